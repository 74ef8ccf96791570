"""The algorithms on a CUDA device, fastest first; the last one takes everything."""

from __future__ import annotations

from ..choose import Algorithm
from .direct import Direct
from .implicit_gemm import ImplicitGemm

ALGORITHMS: tuple[Algorithm, ...] = (ImplicitGemm(), Direct())
