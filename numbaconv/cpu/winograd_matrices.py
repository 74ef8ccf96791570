"""Winograd's minimal filtering: interpolation points and exact matrices.

F(m, r) gives m neighbouring results of an r-tap correlation from m + r - 1 products instead of m * r::

    y = output @ ((weight @ w) * (input @ d))        d: m + r - 1 cells, w: r taps, y[i] = sum over k of w[k] * d[i + k]

The matrices follow from polynomial interpolation at m + r - 2 points and infinity (A. L. Toom, S. A. Cook; S. Winograd, "Arithmetic
Complexity of Computations", 1980; A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural Networks", 2016).  Several axes are
transformed one after the other.

The points decide the rounding errors: 0, +-5/8, +-3/2 give half the error of the customary 0, +-1, +-2.  Every entry of the input and
output matrices is exact in float32.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import NamedTuple

Matrix = tuple[tuple[Fraction, ...], ...]

POINTS = {
    1: (),
    4: (Fraction(0), Fraction(1), Fraction(-1)),
    6: (Fraction(0), Fraction(5, 8), Fraction(-5, 8), Fraction(3, 2), Fraction(-3, 2)),
    8: (Fraction(0), Fraction(1, 2), Fraction(-1, 2), Fraction(1), Fraction(-1), Fraction(2), Fraction(-2)),
}
"""Finite interpolation points of a transform of so many cells."""


class Factor(NamedTuple):
    """F(outputs, taps) along one axis; F(1, 1) leaves an axis alone."""

    outputs: int
    taps: int

    @property
    def cells(self) -> int:
        """Cells that a tile reads, and products that it takes."""
        return self.outputs + self.taps - 1

    @property
    def input(self) -> Matrix:
        return _matrices(self.outputs, self.taps)[0]

    @property
    def weight(self) -> Matrix:
        return _matrices(self.outputs, self.taps)[1]

    @property
    def output(self) -> Matrix:
        return _matrices(self.outputs, self.taps)[2]


IDENTITY = Factor(1, 1)


@functools.cache
def _matrices(outputs: int, taps: int) -> tuple[Matrix, Matrix, Matrix]:
    """Input (cells, cells), weight (cells, taps) and output (outputs, cells) matrix; the last row or column is that of infinity."""
    points = POINTS[outputs + taps - 1]
    cells = len(points) + 1
    input = [_monic([q for q in points if q != p], cells) for p in points] + [_monic(points, cells)]
    weight = [[p**k / _product(p - q for q in points if q != p) for k in range(taps)] for p in points]
    weight.append([Fraction(k == taps - 1) for k in range(taps)])
    output = [[p**i for p in points] + [Fraction(i == outputs - 1)] for i in range(outputs)]
    for i in range(outputs):
        for k in range(taps):
            for j in range(cells):  # the identity of Cook and Toom
                assert sum(output[i][t] * weight[t][k] * input[t][j] for t in range(cells)) == (j == i + k)
    return _frozen(input), _frozen(weight), _frozen(output)


def _monic(roots: Sequence[Fraction], length: int) -> list[Fraction]:
    """Coefficients, constant first, of the product of (x - root), as ``length`` numbers."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted, scaled = [Fraction(0), *coefficients], [*(root * c for c in coefficients), Fraction(0)]
        coefficients = [a - b for a, b in zip(shifted, scaled)]
    return coefficients + [Fraction(0)] * (length - len(coefficients))


def _product(numbers: Iterable[Fraction]) -> Fraction:
    return functools.reduce(lambda a, b: a * b, numbers, Fraction(1))


def _frozen(rows: list[list[Fraction]]) -> Matrix:
    return tuple(tuple(row) for row in rows)
