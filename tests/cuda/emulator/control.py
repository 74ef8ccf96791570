"""What ends a basic block: branches, exits, barriers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from .parse import Instruction, Unsupported
from .program import End, Program
from .tensorcores import mbarrier_wait
from .warps import warp_barrier

if TYPE_CHECKING:
    from .machine import Wave


def _taken(program: Program, instruction: Instruction) -> Callable[[Wave, np.ndarray], np.ndarray]:
    """The lanes of the mask that an instruction's guard lets through."""
    if not instruction.guard:
        return lambda wave, mask: mask
    predicate, negated = program.predicate(instruction.guard, instruction)
    if negated:
        return lambda wave, mask: np.greater(mask, wave.r[predicate])
    return lambda wave, mask: np.logical_and(mask, wave.r[predicate])


def fall(program: Program, instruction: Instruction, following: int) -> End:
    return lambda wave, mask: wave.go(following, mask)


def branch(program: Program, instruction: Instruction, following: int) -> End:
    taken_by = _taken(program, instruction)
    target = program.block_of[program.source.label(instruction.operands[0], instruction.scope)]

    def end(wave: Wave, mask: np.ndarray) -> None:
        taken = taken_by(wave, mask)
        count = np.count_nonzero(taken)
        if count == np.count_nonzero(mask):
            wave.go(target, mask)
        elif count == 0:
            wave.go(following, mask)
        else:
            wave.go(target, taken)
            wave.go(following, np.greater(mask, taken))

    return end


def branch_table(program: Program, instruction: Instruction, following: int) -> End:
    """brx.idx: the index picks a label of a ``.branchtargets`` list."""
    taken_by = _taken(program, instruction)
    index = program.read(instruction.operands[0], "u32", instruction)
    tables = program.source.tables
    table = next(
        tables[instruction.scope[:depth], instruction.operands[1]]
        for depth in range(len(instruction.scope), 0, -1)
        if (instruction.scope[:depth], instruction.operands[1]) in tables
    )
    targets = [program.block_of[program.source.label(label, instruction.scope)] for label in table]

    def end(wave: Wave, mask: np.ndarray) -> None:
        taken = taken_by(wave, mask)
        wave.go(following, np.greater(mask, taken))
        values = wave.r[index]
        for value in np.unique(values[taken]):
            if value >= len(targets):
                wave.fault(taken & (values == value), f"brx.idx {value} of {len(targets)} labels")
            wave.go(targets[value], taken & (values == value))

    return end


def leave(program: Program, instruction: Instruction, following: int) -> End:
    taken_by = _taken(program, instruction)

    def end(wave: Wave, mask: np.ndarray) -> None:
        taken = taken_by(wave, mask)
        wave.leave(taken)
        wave.go(following, np.greater(mask, taken))

    return end


def trap(program: Program, instruction: Instruction, following: int) -> End:
    taken_by = _taken(program, instruction)

    def end(wave: Wave, mask: np.ndarray) -> None:
        taken = taken_by(wave, mask)
        if taken.any():
            wave.fault(taken, "trap")
        wave.go(following, mask)

    return end


def barrier(program: Program, instruction: Instruction, following: int) -> End:
    """``bar.sync id [, threads]`` and its synonyms ``barrier.sync``, ``barrier.cta.sync`` (with or without ``.aligned``)."""
    if instruction.guard or "sync" not in instruction.opcode or "red" in instruction.opcode:
        raise Unsupported("only an unguarded bar.sync")
    operands = [int(operand) for operand in instruction.operands]
    name, threads = operands[0], operands[1] if len(operands) > 1 else 0

    def end(wave: Wave, mask: np.ndarray) -> None:
        wave.park(("barrier", name, threads, instruction), following, mask)

    return end


ENDS = {
    "fall": fall,
    "bra": branch,
    "brx": branch_table,
    "ret": leave,
    "exit": leave,
    "trap": trap,
    "bar.sync": barrier,
    "bar.warp": warp_barrier,
    "barrier.sync": barrier,
    "barrier.cta": barrier,
    "mbarrier.try_wait": mbarrier_wait,
    "mbarrier.test_wait": mbarrier_wait,
}
