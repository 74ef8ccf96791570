"""Comparisons, selections and moves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .arithmetic import FLOATS, flushed
from .parse import DTYPES, Instruction, Unsupported, inner
from .program import Mask, Program, Run, assign, modifiers, put

Array = np.ndarray

ORDERED: dict[str, np.ufunc] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lo": np.less,
    "ls": np.less_equal,
    "hi": np.greater,
    "hs": np.greater_equal,
}
COMBINED = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


def _comparison(name: str, kind: str) -> Callable[[Array, Array], Array]:
    if name == "num":
        return lambda a, b: ~(np.isnan(a) | np.isnan(b))
    if name == "nan":
        return lambda a, b: np.isnan(a) | np.isnan(b)
    if name == "ne" and kind in FLOATS:
        return lambda a, b: (a < b) | (a > b)  # false for NaN, unlike neu
    if name in ORDERED:
        return ORDERED[name]
    plain = ORDERED[name.removesuffix("u")]  # eltu and the like: true for NaN
    return lambda a, b: plain(a, b) | np.isnan(a) | np.isnan(b)


def _set_predicate(program: Program, i: Instruction) -> Run:
    """setp.cmp[.boolop][.ftz].type p[|q], a, b[, [!]c]; set.cmp.dtype.stype d, a, b."""
    is_set = i.opcode[0] == "set"
    compare = _comparison(i.opcode[1], i.type)
    parts = modifiers(i, *COMBINED, "ftz", after=2, types=2 if is_set else 1)
    combined = next((COMBINED[part] for part in parts if part in COMBINED), None)
    if "ftz" in parts:
        plain = compare
        compare = lambda a, b: plain(flushed(a), flushed(b))  # noqa: E731
    sources = [program.read(operand, i.type, i) for operand in i.operands[1:3]]
    if is_set:
        if combined or i.opcode[-2] not in ("u32", "s32", "b32", "f32"):
            raise Unsupported("this form of set")
        dtype = DTYPES[i.opcode[-2]]
        true = np.float32(1) if dtype.kind == "f" else np.array(-1).astype(dtype)
        return assign(program.written(i.operands[0], i.opcode[-2], i), lambda a, b: np.where(compare(a, b), true, dtype.type(0)), sources)
    first, _, second = i.operands[0].partition("|")
    targets = [program.written(name, "pred", i) for name in (first, second) if name]
    if combined is None and len(targets) == 1:
        return assign(targets[0], compare, sources)
    other, negated = program.predicate(i.operands[3], i) if combined else (0, False)

    def run(wave: Any, mask: Mask) -> None:
        r = wave.r
        holds = compare(r[sources[0]], r[sources[1]])
        results = (holds, ~holds)
        if combined is not None:
            against = ~r[other] if negated else r[other].copy()
            results = tuple(combined(result, against) for result in results)
        for target, result in zip(targets, results):
            put(r[target], mask, result)

    return run


def _select(program: Program, i: Instruction) -> Run:
    modifiers(i)
    sources = [program.read(operand, i.type, i) for operand in i.operands[1:3]]
    predicate, negated = program.predicate(i.operands[3], i)
    if negated:
        sources.reverse()
    return assign(program.written(i.operands[0], i.type, i), np.where, [predicate, *sources])


def _move(program: Program, i: Instruction) -> Run:
    """mov, and mov between one register and the vector of its parts."""
    modifiers(i)
    targets, sources = inner(i.operands[0]), inner(i.operands[1])
    if len(targets) == len(sources) == 1:
        return assign(
            program.written(targets[0], i.type, i), np.positive if i.type != "pred" else np.copy, [program.read(sources[0], i.type, i)]
        )
    count = max(len(targets), len(sources))
    part = f"b{8 * DTYPES[i.type].itemsize // count}"
    pairs = []
    for at in range(count):
        if len(sources) == 1:
            if targets[at] != "_":
                pairs.append((program.written(targets[at], part, i), program.read(sources[0], part, i, at)))
        else:
            pairs.append((program.read(targets[0], part, i, at), program.read(sources[at], part, i)))

    def run(wave: Any, mask: Mask) -> None:
        r = wave.r
        for (target, _), value in zip(pairs, [r[source].copy() for _, source in pairs]):
            put(r[target], mask, value)

    return run


def _float_class(program: Program, i: Instruction) -> Run:
    """testp: finite, infinite, number, notanumber."""
    tests = {"finite": np.isfinite, "infinite": np.isinf, "number": lambda x: ~np.isnan(x), "notanumber": np.isnan}
    return assign(program.written(i.operands[0], "pred", i), tests[i.opcode[1]], [program.read(i.operands[1], i.type, i)])


MOVES: dict[str, Callable[[Program, Instruction], Run]] = {
    "setp": _set_predicate,
    "set": _set_predicate,
    "selp": _select,
    "testp": _float_class,
    "mov": _move,
}
