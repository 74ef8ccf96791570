"""The CPU algorithms, fastest first, ending in the one that takes every problem."""

from ..choose import Algorithm
from .direct import Direct

ALGORITHMS: tuple[Algorithm, ...] = (Direct(),)
