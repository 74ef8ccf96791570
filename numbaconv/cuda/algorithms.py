"""The algorithms on a CUDA device, fastest first; the last one takes everything."""

from __future__ import annotations

from ..choose import Algorithm
from .depthwise import Depthwise, Filter
from .depthwise_weight import DepthwiseWeight
from .direct import Direct
from .implicit_gemm import ImplicitGemm
from .weight_grad import WeightGemm

ALGORITHMS: tuple[Algorithm, ...] = (Depthwise(), Filter(), ImplicitGemm(), DepthwiseWeight(), WeightGemm(), Direct())
