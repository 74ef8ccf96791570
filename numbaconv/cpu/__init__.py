"""The CPU algorithms, fastest first, ending in the one that takes every problem."""

from ..choose import Algorithm
from .direct import Direct
from .filter import Filter
from .implicit_gemm import ImplicitGemm
from .weight_grad import WeightGemm

ALGORITHMS: tuple[Algorithm, ...] = (Filter(), ImplicitGemm(), WeightGemm(), Direct())
