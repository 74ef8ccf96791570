"""The CPU algorithms, fastest first, ending in the one that takes every problem."""

from ..choose import Algorithm
from .direct import Direct
from .implicit_gemm import ImplicitGemm

ALGORITHMS: tuple[Algorithm, ...] = (ImplicitGemm(), Direct())
