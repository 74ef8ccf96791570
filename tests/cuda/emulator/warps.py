"""What the lanes of a warp do together: shuffles, votes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .machine import WARP, Wave
from .parse import Instruction, Unsupported
from .program import End, Mask, Program, Run


def _members(wave: Wave, mask: Mask, members: np.ndarray) -> np.ndarray:
    """The mask as an array; every live lane that its member mask names must be here."""
    here = np.full(wave.lanes, True) if mask is True else mask
    named = members.astype(np.uint64) >> (wave.lane_index % WARP).astype(np.uint64) & np.uint64(1)
    missing = (named == 1) & wave.live & ~here & np.repeat(here.reshape(-1, WARP).any(1), WARP)
    if missing.any():
        wave.fault(missing, "a lane that the member mask names is elsewhere")
    if np.any(here & (named == 0)):
        wave.fault(here & (named == 0), "this lane is not in its member mask")
    return here


def _per_warp(values: np.ndarray, here: np.ndarray) -> np.ndarray:
    """The member mask of each lane's warp, also for the lanes that do not run."""
    first = here.reshape(-1, WARP).argmax(1)
    return np.repeat(values.reshape(-1, WARP)[np.arange(first.size), first], WARP)


def _shuffle(program: Program, i: Instruction) -> Run:
    """shfl.sync.mode.b32 d[|p], a, b, c, members: c holds the highest lane (bits 0-4) and the mask of the segment (bits 8-12)."""
    _, sync, mode, kind = i.opcode
    if sync != "sync" or kind != "b32":
        raise Unsupported("this shuffle")
    value, by, clamp, members = (program.read(operand, "u32", i) for operand in i.operands[1:])
    name, _, inside = i.operands[0].partition("|")
    target = program.written(name, "b32", i)
    flag = program.written(inside, "pred", i) if inside else None

    def run(wave: Wave, mask: Mask) -> None:
        r = wave.r
        here = np.full(wave.lanes, True) if mask is True else mask
        here = _members(wave, mask, _per_warp(r[members], here))
        lane = wave.lane_index % WARP
        offset, bound = r[by].astype(np.int64) & 31, r[clamp].astype(np.int64)
        segment = bound >> 8 & 31
        low = lane & segment
        high = low | (bound & 31 & ~segment)
        other = {"idx": low | (offset & ~segment), "up": lane - offset, "down": lane + offset, "bfly": lane ^ offset}[mode]
        ok = other >= high if mode == "up" else other <= high
        source = wave.lane_index - lane + np.where(ok, other, lane)
        gone = here & ~here[source]
        if gone.any():
            wave.fault(gone, "shfl reads a lane that does not take part")
        np.putmask(r[target], here, r[value][source])
        if flag is not None:
            np.putmask(r[flag], here, ok)

    return run


def _vote(program: Program, i: Instruction) -> Run:
    """vote.sync.{all,any,uni}.pred and vote.sync.ballot.b32."""
    _, sync, mode, kind = i.opcode
    if sync != "sync":
        raise Unsupported("this vote")
    predicate, negated = program.predicate(i.operands[1], i)
    members = program.read(i.operands[2], "u32", i)
    target = program.written(i.operands[0], kind, i)

    def run(wave: Wave, mask: Mask) -> None:
        r = wave.r
        here = np.full(wave.lanes, True) if mask is True else mask
        here = _members(wave, mask, _per_warp(r[members], here))
        warps = here.reshape(-1, WARP)
        yes = (~r[predicate] if negated else r[predicate]).reshape(-1, WARP) & warps
        every, some = (yes | ~warps).all(1), yes.any(1)
        result: Any = {"all": every, "any": some, "uni": every | ~some}.get(mode)
        if mode == "ballot":
            result = (yes.astype(np.uint64) << np.arange(WARP, dtype=np.uint64)).sum(1).astype(np.uint32)
        np.putmask(r[target], here, np.repeat(result, WARP))

    return run


def _active_lanes(program: Program, i: Instruction) -> Run:
    target = program.written(i.operands[0], "b32", i)

    def run(wave: Wave, mask: Mask) -> None:
        here = (np.full(wave.lanes, True) if mask is True else mask).reshape(-1, WARP)
        bits = (here.astype(np.uint64) << np.arange(WARP, dtype=np.uint64)).sum(1).astype(np.uint32)
        np.putmask(wave.r[target], here.ravel(), np.repeat(bits, WARP))

    return run


def warp_barrier(program: Program, i: Instruction, following: int) -> End:
    """bar.warp.sync members: the lanes go on when all live ones that are named have come."""
    if i.guard:
        raise Unsupported("only an unguarded bar.warp.sync")
    members = program.read(i.operands[0], "u32", i)

    def complete(wave: Wave, lanes: np.ndarray) -> np.ndarray:
        named = _per_warp(wave.r[members], lanes).astype(np.uint64) >> (wave.lane_index % WARP).astype(np.uint64) & np.uint64(1)
        missing = (named == 1) & wave.live & ~lanes
        return np.repeat(~missing.reshape(-1, WARP).any(1), WARP)

    def end(wave: Wave, mask: np.ndarray) -> None:
        arrived = mask & complete(wave, mask)
        wave.go(following, arrived)
        rest = np.greater(mask, arrived)
        if rest.any():
            wave.park((complete, i), following, rest)

    return end


WARPS: dict[str, Callable[[Program, Instruction], Run]] = {
    "shfl": _shuffle,
    "vote": _vote,
    "activemask": _active_lanes,
}
