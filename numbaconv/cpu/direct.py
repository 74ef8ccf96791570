"""Temporary: the reference behind the interface of an algorithm, until the kernel is here."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .. import reference
from ..arrays import ELEMENTS, dtype_named
from ..choose import Accuracy
from ..problem import Problem


class Direct:
    name = "direct"
    accuracy: Accuracy = "definition"

    def supports(self, problem: Problem) -> str | None:
        return None

    def cost(self, problem: Problem) -> float:
        return problem.flops / 1e9

    def setup(self, problem: Problem) -> DirectSetup:
        return DirectSetup(problem)


@dataclass(frozen=True)
class DirectSetup:
    problem: Problem
    workspace: int = 0
    packed_bytes: int = 0

    def pack(self, weight, bias):
        return (weight.copy(), None if bias is None else bias.copy())

    def run(self, source, packed, result):
        p = replace(self.problem, batch=source.shape[0])
        w, b = packed
        y = reference.convolve(p, source.view(dtype_named(p.dtype)), w, b)
        result[...] = y.view(ELEMENTS[p.out_dtype].storage).reshape(result.shape)
