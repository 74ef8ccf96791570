"""The algorithms on a CUDA device, fastest first; the last one takes everything."""

from __future__ import annotations

from ..choose import Algorithm
from .depthwise import Depthwise, Filter
from .direct import Direct
from .filter_weight import FilterWeight
from .implicit_gemm import ImplicitGemm
from .weight_grad import WeightGemm

ALGORITHMS: tuple[Algorithm, ...] = (Depthwise(), Filter(), ImplicitGemm(), FilterWeight(), WeightGemm(), Direct())
