"""Which factors Winograd convolution takes along each axis: the fewest products that the rounding errors and the weight's growth allow."""

from __future__ import annotations

import itertools
import math

from ..choose import Accuracy
from ..problem import Problem
from .winograd_matrices import IDENTITY, Factor

Factors = tuple[Factor, Factor, Factor]

FACTORS = {1: (IDENTITY,), 3: (Factor(2, 3), Factor(4, 3)), 5: (Factor(2, 5), Factor(4, 5)), 7: (Factor(2, 7),)}
"""What there is for a kernel's size along one axis."""

GROWTH = {IDENTITY: 1.0, Factor(2, 3): 1.4, Factor(4, 3): 2.2, Factor(2, 5): 2.3, Factor(4, 5): 4.5, Factor(2, 7): 5.0}
"""How much a factor adds to the rounding errors, measured: the errors of several axes multiply."""

MOST_GROWTH: dict[Accuracy, float] = {"transform": 7.6, "loose": 30.0}
"""With 7.6 the rms error stays within 3 times that of implicit GEMM."""

GROWING_CHANNELS = 2048
"""So many channels double it: there are more chains of multiply-adds to be added up."""

MOST_WEIGHTS = 8  # times the weight's size


def axis_factors(p: Problem, accuracy: Accuracy) -> Factors | None:
    """The factors of depth, height and width that take the fewest products; None where accuracy and weight allow for none."""
    best, fewest, channels = None, math.inf, p.source_channels // p.groups
    for depth, height, width in itertools.product(*(FACTORS[k] for k in p.kernel)):
        found = (depth, height, width)
        products = math.prod(-(-n // factor.outputs) * factor.cells for factor, n in zip(found, p.result_size))
        grown = math.prod(factor.cells for factor in found) > MOST_WEIGHTS * p.taps
        if products < fewest and not grown and _growth(found, channels) <= MOST_GROWTH[accuracy]:
            best, fewest = found, products
    return best


def _growth(factors: Factors, channels: int) -> float:
    return math.prod(GROWTH[factor] for factor in factors) * (1 + channels / GROWING_CHANNELS)
