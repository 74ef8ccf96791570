"""A kernel that does something else than what was compiled: how the tests of what the tests see (mutations) break it and watch it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from numbaconv.cuda.launch import Kernel

from .device import get
from .emulator import Fault, Program
from .emulator.instructions import HANDLERS
from .emulator.parse import DTYPES, Instruction

Calls = tuple[Callable[[], Any], np.ndarray]  # what to run, and the right result
Change = Callable[[Any], Callable[..., None]]  # from what an instruction does to what it shall do


def caught(device: Any, calls: Iterable[Calls], orders: Iterable[str] = ("together",)) -> bool:
    """Whether one of the calls gives a wrong result or is stopped, in one of the orders of warps."""
    for run, expected in calls:
        for device.order in orders:
            try:
                if not np.array_equal(get(device, run()), expected, equal_nan=True):
                    return True
            except Fault:
                return True
    return False


def lines_that_run(program: Program, device: Any, calls: Iterable[Calls]) -> set[int]:
    """Numbers of the PTX lines that the calls come to: the compiler also writes paths for divisions by zero."""
    lines: set[int] = set()

    def noting(block: Any) -> Callable[..., None]:
        end, own = block.end, [i.line for i in [*(i for i, _ in block.body), block.last] if i is not None]

        def run(wave: Any, lanes: np.ndarray) -> None:
            lines.update(own)
            end(wave, lanes)

        return run

    ends = [block.end for block in program.blocks]
    try:
        for block in program.blocks:
            block.end = noting(block)
        assert not caught(device, calls)
    finally:
        for block, end in zip(program.blocks, ends):
            block.end = end
    return lines


@contextmanager
def rewritten(program: Program, text: str) -> Iterator[None]:
    """The program, which plans hold on to, becomes another one for a while."""
    good = dict(vars(program))
    vars(program).update(vars(Program(text)))
    try:
        yield
    finally:
        vars(program).update(good)


@contextmanager
def changed(program: Program, instructions: Iterable[Instruction], change: Callable[[Instruction, Any], Any]) -> Iterator[None]:
    """These instructions do ``change(instruction, what it does)`` for a while."""
    chosen = {id(instruction) for instruction in instructions}
    good = [block.body for block in program.blocks]
    for block in program.blocks:
        block.body = [(i, change(i, run) if id(i) in chosen else run) for i, run in block.body]
    try:
        yield
    finally:
        for block, body in zip(program.blocks, good):
            block.body = body


# ---- bounds ------------------------------------------------------------------------------------------------------------
class Bounds:
    """The comparisons and guards of a kernel, grouped by what bounds them.

    Attributes
    ----------
    groups : name -> instructions.  ``g.source_w`` : all comparisons with this field of the kernel's arguments; ``loop at line N`` : the end
        of a loop; ``%r82`` : comparisons with this register; ``%r81 lt`` : of this one with a row of numbers, in code that is unrolled;
        ``guard ld.global...`` : loads and multiply-adds under a condition; ``zeros cp.async...`` : copies that are zeros under one.
        Left out are comparisons of single numbers, which ask whether a loop has a turn at all, and for the signs of divisions.
    """

    def __init__(self, kernel: Kernel, program: Program, lines: set[int]) -> None:
        self._program, self._source = program, program.source
        self._fields = dict(zip((name for name, *_ in program.parameters), _fields(kernel)))
        self._definitions: dict[tuple[Any, ...], list[Instruction]] = defaultdict(list)
        for i in self._source.instructions:
            if i.operands and (register := self._source.register(i.operands[0], i.scope)):
                self._definitions[register].append(i)
        ends = self._ends_of_loops()
        groups: dict[str, list[Instruction]] = defaultdict(list)
        for i in self._source.instructions:
            if i.line in lines and (name := self._name(i, ends)):
                groups[name].append(i)
        self.groups = {name: found for name, found in groups.items() if not name.startswith("%") or " " not in name or len(found) >= 4}

    def _ends_of_loops(self) -> set[str]:
        """Predicates on which the kernel goes back."""
        return {
            i.guard.removeprefix("!")
            for at, i in enumerate(self._source.instructions)
            if i.opcode[0] == "bra" and i.guard and self._source.label(i.operands[0], i.scope) <= at
        }

    def _name(self, i: Instruction, ends: set[str]) -> str:
        if i.opcode[0] == "setp" and i.type[0] in "su" and len(i.scope) == 1:
            predicate, left, right = i.operands
            if predicate in ends:
                return f"loop at line {i.line}"
            if i.opcode[1] not in ("lt", "le", "gt", "ge"):
                return ""
            if right.startswith("%"):
                return self._field(right, i) or self._field(left, i) or right
            return f"{left} {i.opcode[1]}" if i.type in ("s32", "u32") and not self._field(left, i) else ""
        if i.guard and i.opcode[0] in ("ld", "fma"):
            return f"guard {'.'.join(i.opcode)}"
        return f"zeros {'.'.join(i.opcode)}" if i.opcode[:2] == ("cp", "async") and len(i.operands) == 4 and "%" in i.operands[3] else ""

    def _field(self, operand: str, i: Instruction) -> str:
        """The field that a register is a copy of."""
        while register := self._source.register(operand, i.scope):
            if len(self._definitions[register]) != 1:
                return ""
            (i,) = self._definitions[register]
            if i.opcode[:2] == ("ld", "param"):
                return self._fields.get(i.operands[1].strip("[]"), "")
            if i.opcode[0] not in ("mov", "cvt"):
                return ""
            operand = i.operands[1]
        return ""

    def wrong(self, name: str) -> dict[str, Any]:
        """What to do to the group's instructions: their bound is one more, or one less; their guard always holds."""
        if name.startswith(("guard ", "zeros ")):
            return {"always": changed(self._program, self.groups[name], self._unguarded)}
        return {f"{by:+}": changed(self._program, self.groups[name], self._moved(by)) for by in (1, -1)}

    def _moved(self, by: int) -> Any:
        def change(i: Instruction, run: Any) -> Any:
            slot, step = self._program.read(i.operands[2], i.type, i), np.array(by).astype(DTYPES[i.type])

            def moved(wave: Any, mask: Any) -> None:
                wave.r[slot] += step
                run(wave, mask)
                wave.r[slot] -= step

            return moved

        return change

    def _unguarded(self, i: Instruction, run: Any) -> Any:
        operands = i.operands if i.guard else (*i.operands[:2], i.operands[2], i.operands[2])
        return HANDLERS[i.opcode[0]](self._program, replace(i, guard="", operands=operands))


def _fields(kernel: Kernel) -> list[str]:
    """Names of a kernel's parameters: ``source``, ``g.batch``."""
    code = kernel.function.__code__
    names = []
    for name, kind in zip(code.co_varnames, kernel.signature):
        inner = getattr(kind, "fields", None)
        names += [f"{name}.{field}" for field in inner] if inner else [name]
    return names
