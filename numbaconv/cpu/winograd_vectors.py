"""Operations on the vectors of Winograd's transforms: products of a matrix with them, and the shuffles between cells and tiles."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from .simd import Vectors, int64
from .winograd_matrices import Matrix

# ---- a matrix times vectors --------------------------------------------------------------------------------------------
Row = dict[int, tuple[Fraction, Any]]
"""One row of a product: coefficient and vector of each term, by the vector's number."""


def multiply(v: Vectors, matrix: Matrix, x: Sequence[Any]) -> list[Any]:
    """matrix @ x for vectors x, in few operations, nearly all of them fused.

    Points +-p make pairs of columns equal but for signs in the output matrix: then x[i] + x[j] and x[i] - x[j] stand in for x[i] and x[j].
    In the input matrix they make pairs of rows e + o and e - o, whose parts are computed once.
    """
    rows = _rows(v, matrix, x)
    done: dict[int, Any] = {}
    for i, j in itertools.combinations(range(len(rows)), 2):
        if not {i, j} & done.keys() and _mirrored(rows[i], rows[j]):
            even = [term for key, term in rows[i].items() if term == rows[j][key]]
            odd = [term for key, term in rows[i].items() if term != rows[j][key]]
            e, scale = _combination(v, even), odd[-1][0]
            o = _combination(v, [(c / scale, value) for c, value in odd])
            done[i], done[j] = v.fma(v.constant(float(scale)), o, e), v.fma(v.constant(float(-scale)), o, e)
    return [done[i] if i in done else _combination(v, list(row.values())) for i, row in enumerate(rows)]


def _rows(v: Vectors, matrix: Matrix, x: Sequence[Any]) -> list[Row]:
    """The terms of matrix @ x, row by row."""
    columns = list(zip(*matrix))
    rows: list[Row] = [{} for _ in matrix]
    left = dict(enumerate(x))
    for i, j in itertools.combinations(range(len(columns)), 2):
        signs = {a == b for a, b in zip(columns[i], columns[j]) if a != 0}
        if {i, j} <= left.keys() and signs == {True, False} and all(abs(a) == abs(b) for a, b in zip(columns[i], columns[j])):
            first, second = left.pop(i), left.pop(j)
            total, difference = v.builder.fadd(first, second), v.builder.fsub(first, second)
            for row, a, b in zip(rows, columns[i], columns[j]):
                row[i if a == b else j] = (a, total if a == b else difference)
    for i, value in left.items():
        for row, a in zip(rows, columns[i]):
            row[i] = (a, value)
    return [{key: term for key, term in row.items() if term[0] != 0} for row in rows]


def _mirrored(first: Row, second: Row) -> bool:
    """Whether two rows are e + o and e - o, both parts being there."""
    if first.keys() != second.keys():
        return False
    pairs = [(term[0], second[key][0]) for key, term in first.items()]
    return {a == b for a, b in pairs} == {True, False} and all(abs(a) == abs(b) for a, b in pairs)


def _combination(v: Vectors, terms: Sequence[tuple[Fraction, Any]]) -> Any:
    """The sum of coefficient * vector: one chain of multiply-adds from a vector of coefficient 1, or from a product."""
    start = next((i for i, (c, _) in enumerate(terms) if c == 1), 0)
    c, total = terms[start]
    if c != 1:
        total = v.builder.fmul(v.constant(float(c)), total)
    for i, (c, value) in enumerate(terms):
        if i != start:
            total = v.fma(v.constant(float(c)), value, total)
    return total


# ---- lanes -------------------------------------------------------------------------------------------------------------
def cell_lane(tile: int, outputs: int, lanes: int) -> int:
    """Where the last shuffle of :func:`phases_of` finds phase 0 of a tile of the group, all segments being full, in its two vectors."""
    if outputs == 4:
        return tile // (lanes // 2) * lanes + tile % (lanes // 2)
    return tile * outputs


def phases_of(v: Vectors, segments: list[Any], wanted: int, pick: Any) -> list[Any]:
    """Phases 0 ... wanted - 1 of the tiles of a group: vector p holds cell p of every tile, in the lanes in use.

    ``pick`` points to :func:`cell_lane` of the tile in each lane in use; None where all segments are full.
    """
    outputs, half = len(segments), v.lanes // 2
    if outputs == 1:
        return segments
    full = [cell_lane(tile, outputs, v.lanes) for tile in range(v.lanes)]
    if outputs == 2:
        return [_picked(v, segments[0], segments[1], full, pick, p) for p in range(wanted)]
    found = []
    for p in range(0, wanted, 2):
        pair = [outputs * tile + p + i for i in range(2) for tile in range(half)]
        low, high = (v.shuffle(segments[2 * i], segments[2 * i + 1], pair) for i in range(2))
        found += [_picked(v, low, high, full, pick, i * half) for i in range(2)]
    return found[:wanted]


def result_lanes(half: int, lanes: int) -> list[int]:
    """Lanes of two vectors, phases p and p + 1 of the results, which alternate for the first (0) or second (1) half of the tiles."""
    return [phase * lanes + half * (lanes // 2) + tile for tile in range(lanes // 2) for phase in range(2)]


def segments_of(v: Vectors, phases: list[Any], spread: Any) -> list[Any]:
    """The opposite of :func:`phases_of`; ``spread`` points to :func:`result_lanes` of the lanes in use, both halves."""
    if len(phases) == 1:
        return phases
    halves = []
    for p in range(0, len(phases), 2):
        pointers = (None if spread is None else v.builder.gep(spread, [int64(i * v.lanes)]) for i in range(2))
        halves.append([_picked(v, phases[p], phases[p + 1], result_lanes(i, v.lanes), at, 0) for i, at in enumerate(pointers)])
    if len(phases) == 2:
        return halves[0]
    quarter = v.lanes // 4
    pairs = [[(i * quarter + tile) * 2 for tile in range(quarter)] for i in range(2)]
    lanes = [[at + k for at in pair for k in (0, 1, v.lanes, v.lanes + 1)] for pair in pairs]
    return [v.shuffle(halves[0][half], halves[1][half], lanes[i]) for half in range(2) for i in range(2)]


def _picked(v: Vectors, a: Any, b: Any, full: list[int], pointer: Any, offset: int) -> Any:
    if pointer is None:
        return v.shuffle(a, b, [lane + offset for lane in full])
    return v.pick(a, b, pointer, offset)
