"""The CPU algorithms, fastest first, ending in the one that takes every problem."""

from ..choose import Algorithm
from .depthwise import Depthwise
from .direct import Direct
from .fft import Fft
from .filter import Filter
from .implicit_gemm import ImplicitGemm
from .weight_grad import WeightGemm
from .winograd import Winograd

ALGORITHMS: tuple[Algorithm, ...] = (
    Winograd("winograd", "transform"),
    Winograd("winograd_fast", "loose"),
    Fft(),
    Depthwise(),
    Filter(),
    ImplicitGemm(),
    WeightGemm(),
    Direct(),
)
