"""Loads, stores, atomics and cp.async, with the checks of every address."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .machine import LOCAL_WINDOW, SHARED_WINDOW, Wave
from .memory import BASE, POISON, Arena
from .parse import DTYPES, Instruction, Unsupported, inner, number
from .program import Mask, Program, Run

SPACES = ("global", "shared", "local", "const")
# What a cache or the memory order does with an access is not modelled: each is seen at once by the lanes that run after it.  But a load
# through the read-only cache (.nc) of what the same launch has stored is a fault.
HINTS = {"nc", "ca", "cg", "cs", "lu", "cv", "wb", "wt", "volatile", "weak", "relaxed", "acquire", "release", "acq_rel"}
HINTS |= {"cta", "gpu", "sys"}


def _space(i: Instruction) -> str:
    """The address space an opcode names, or "generic"."""
    return next((part.partition("::")[0] for part in i.opcode[1:] if part.partition("::")[0] in SPACES), "generic")


def _check_hints(i: Instruction, *allowed: str) -> None:
    for part in i.opcode[1:-1]:
        word = part.partition("::")[0]
        if word not in SPACES and word not in HINTS and word not in ("v2", "v4", "L1", "L2") and part not in allowed:
            raise Unsupported(f"modifier {part}")


def place(wave: Wave, space: str, addresses: np.ndarray, nbytes: int, lanes: np.ndarray) -> tuple[Arena, np.ndarray]:
    """The arena that ``nbytes`` bytes at each of the addresses lie in, and their offsets there.

    ``addresses``, int64, belong to ``lanes`` (numbers of lanes), and so do the offsets.  Raises where one is misaligned or out of bounds.
    """
    if int(np.bitwise_or.reduce(addresses)) & (nbytes - 1):
        _refuse(wave, lanes, addresses, addresses & (nbytes - 1) != 0, f"misaligned: {nbytes} bytes")
    if space == "generic":
        space, window = ("global", 0)
        if addresses[0] >= LOCAL_WINDOW:
            space, window = "local", LOCAL_WINDOW
        elif addresses[0] >= SHARED_WINDOW:
            space, window = "shared", SHARED_WINDOW
        addresses = addresses - window
    if space in ("global", "const"):
        bad = wave.team.memory.outside(addresses, nbytes)
        if bad is not None:
            _refuse(wave, lanes, addresses, bad, f"out of bounds: {nbytes} bytes of global memory")
        return wave.team.memory.arena, addresses - BASE
    arena, base, size = (
        (wave.team.shared, wave.shared_base, wave.team.shared_bytes)
        if space == "shared"
        else (wave.local, wave.local_base, wave.program.local_bytes)
    )
    if int(np.minimum.reduce(addresses)) < 0 or int(np.maximum.reduce(addresses)) + nbytes > size:
        _refuse(
            wave,
            lanes,
            addresses,
            (addresses < 0) | (addresses + nbytes > size),
            f"out of bounds: {nbytes} bytes of {size} of {space} memory",
        )
    return arena, addresses + base[lanes]


def _refuse(wave: Wave, lanes: np.ndarray, addresses: np.ndarray, bad: np.ndarray, message: str) -> None:
    flags = np.zeros(wave.lanes, np.bool_)
    flags[lanes[bad]] = True
    wave.fault(flags, f"{message} at {int(addresses[bad][0]):#x}")


def _active(wave: Wave, mask: Mask) -> Any:
    """What picks the lanes of the mask out of an array, as fast as can be."""
    return slice(None) if mask is True else np.flatnonzero(mask)


def addressing(program: Program, operand: str, i: Instruction) -> Callable[[Wave, Any], np.ndarray]:
    """(wave, lanes) -> the addresses ``[base + offset]`` of those lanes, int64."""
    base, offset = program.address(operand, i)

    def addresses(wave: Wave, lanes: Any) -> np.ndarray:
        values = wave.r[base][lanes]
        if values.dtype != np.int64:
            values = values.astype(np.int64)
        return values + offset if offset else values

    return addresses


def _load(program: Program, i: Instruction) -> Run:
    if "param" in i.opcode:
        return _load_parameter(program, i)
    _check_hints(i)
    names, kind, space = inner(i.operands[0]), i.type, _space(i)
    width = DTYPES[kind].itemsize
    bits = f"b{8 * width}"
    extends, read_only = DTYPES[kind].kind == "i", "nc" in i.opcode
    targets = [program.written(name, kind if extends else bits, i) for name in names]
    address = addressing(program, i.operands[1], i)
    count = len(names)

    def run(wave: Wave, mask: Mask) -> None:
        active = _active(wave, mask)
        lanes = wave.lane_index[active]
        addresses = address(wave, active)
        arena, offsets = place(wave, space, addresses, width * count, lanes)
        if read_only and (stored := wave.team.memory.stored) is not None:
            bad = stored[offsets] | stored[offsets + width * count - 1]
            if bad.any():
                _refuse(wave, lanes, addresses, bad, "this launch has stored what is loaded through the read-only cache,")
        words = arena.words(width, count)[offsets // (width * count)]
        if extends:
            words = words.view(f"i{width}")
        for at, target in enumerate(targets):
            wave.r[target][active] = words[:, at] if count > 1 else words

    return run


def _load_parameter(program: Program, i: Instruction) -> Run:
    """Kernel parameters: the same for every lane."""
    name, _, offset = (piece.strip() for piece in i.operands[1].strip("[]").partition("+"))
    start = program.parameter_offsets[name] + int(offset or 0)
    dtype = DTYPES[i.type]
    targets = [program.written(target, i.type, i) for target in inner(i.operands[0])]

    def run(wave: Wave, mask: Mask) -> None:
        values = wave.team.parameters[start : start + dtype.itemsize * len(targets)].view(dtype)
        for target, value in zip(targets, values):
            wave.r[target][_active(wave, mask)] = value

    return run


def _store(program: Program, i: Instruction) -> Run:
    _check_hints(i)
    names, space = inner(i.operands[1]), _space(i)
    width, count = DTYPES[i.type].itemsize, len(names)
    sources = [program.read(name, i.type if name[0] in "-0123456789" else f"b{8 * width}", i) for name in names]
    address = addressing(program, i.operands[0], i)
    if space == "const":
        raise Unsupported("a store to constant memory")

    def run(wave: Wave, mask: Mask) -> None:
        active = _active(wave, mask)
        arena, offsets = place(wave, space, address(wave, active), width * count, wave.lane_index[active])
        words, at = arena.words(width, count), offsets // (width * count)
        if arena is wave.team.memory.arena:
            wave.team.memory.mark_stored(offsets, width * count)
        values = [wave.r[source][active].view(words.dtype) for source in sources]
        words[at] = values[0] if count == 1 else np.stack(values, axis=1)

    return run


# Atomics ---------------------------------------------------------------------------------------------------------------------------------

COMBINE: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda old, x: old + x,
    "min": np.minimum,
    "max": np.maximum,
    "and": lambda old, x: old & x,
    "or": lambda old, x: old | x,
    "xor": lambda old, x: old ^ x,
    "exch": lambda old, x: x,
    "inc": lambda old, x: old + x.dtype.type(1) if old < x else x.dtype.type(0),
    "dec": lambda old, x: x if old == 0 or old > x else old - x.dtype.type(1),
}


def _atomic(program: Program, i: Instruction) -> Run:
    """atom and red, one lane after the other."""
    operation = next(part for part in i.opcode[1:-1] if part in COMBINE or part == "cas")
    _check_hints(i, operation, "noftz")
    kind, space = i.type, _space(i)
    dtype = DTYPES[kind]
    if operation == "add" and kind == "f16":
        raise Unsupported("atomics on float16")
    operands = i.operands if i.opcode[0] == "atom" else ("_", *i.operands)
    target = program.written(operands[0], kind, i)
    address = addressing(program, operands[1], i)
    sources = [program.read(operand, kind, i) for operand in operands[2:]]

    def run(wave: Wave, mask: Mask) -> None:
        lanes = wave.lane_index[_active(wave, mask)]
        arena, offsets = place(wave, space, address(wave, lanes), dtype.itemsize, lanes)
        words = arena.words(dtype.itemsize).view(dtype)
        for lane, at in zip(lanes, offsets // dtype.itemsize):
            old = words[at]
            values = [wave.r[source][lane] for source in sources]
            if operation != "cas":
                words[at] = COMBINE[operation](old, values[0])
            elif old == values[0]:
                words[at] = values[1]
            wave.r[target][lane] = old

    return run


# cp.async --------------------------------------------------------------------------------------------------------------------------------


@dataclass
class Copy:
    """Bytes under way to shared memory: per lane where to, what, and the number of the group they belong to."""

    lanes: np.ndarray
    offsets: np.ndarray  # (lanes, bytes)
    data: np.ndarray
    group: np.ndarray


def _async(program: Program, i: Instruction) -> Run:
    """cp.async: what it copies is POISON at its destination until the lane that issued it has waited for it."""
    if i.opcode[1] != "async" or "bulk" in i.opcode or "mbarrier" in i.opcode:
        raise Unsupported("this copy")
    if i.opcode[2] == "commit_group":
        return _commit
    if i.opcode[2] in ("wait_group", "wait_all"):
        return _wait(None if i.opcode[2] == "wait_all" else int(i.operands[0]))
    nbytes = number(i.operands[2], "u32")
    if nbytes not in ((16,) if "cg" in i.opcode else (4, 8, 16)):
        raise Unsupported(f"cp.async of {nbytes} bytes")
    to, source = addressing(program, i.operands[0], i), addressing(program, i.operands[1], i)
    size = program.read(i.operands[3] if len(i.operands) > 3 else str(nbytes), "u32", i)

    def run(wave: Wave, mask: Mask) -> None:
        lanes = wave.lane_index[_active(wave, mask)]
        arena, offsets = place(wave, "shared", to(wave, lanes), nbytes, lanes)
        addresses, sizes = source(wave, lanes), wave.r[size][lanes].astype(np.int64)
        if int(np.maximum.reduce(sizes)) > nbytes:
            _refuse(wave, lanes, addresses, sizes > nbytes, f"cp.async of {nbytes} bytes reads more")
        if int(np.bitwise_or.reduce(addresses)) & (nbytes - 1):
            _refuse(wave, lanes, addresses, addresses & (nbytes - 1) != 0, f"misaligned: cp.async of {nbytes} bytes")
        data = np.zeros((lanes.size, nbytes), np.uint8)
        some = np.flatnonzero(sizes)
        if some.size:
            bad = wave.team.memory.outside(addresses[some], sizes[some])
            if bad is not None:
                _refuse(wave, lanes[some], addresses[some], bad, "out of bounds: cp.async of global memory")
            columns = np.arange(nbytes)
            inside = columns < sizes[some, None]
            at = np.where(inside, addresses[some, None] - BASE + columns, 0)
            data[some] = np.where(inside, wave.team.memory.arena.bytes[at], 0)
        at = offsets[:, None] + np.arange(nbytes)
        arena.bytes[at] = POISON
        wave.copies.append(Copy(lanes, at, data, wave.commits[lanes]))

    return run


def _commit(wave: Wave, mask: Mask) -> None:
    wave.commits += mask


def _wait(pending: int | None) -> Run:
    """All but the ``pending`` latest groups of the lanes arrive; None: all, committed or not."""

    def run(wave: Wave, mask: Mask) -> None:
        under_way = []
        for copy in wave.copies:
            done = np.full(copy.lanes.shape, True) if pending is None else copy.group < wave.commits[copy.lanes] - pending
            if mask is not True:
                done &= mask[copy.lanes]
            count = np.count_nonzero(done)
            if count:
                wave.team.shared.bytes[copy.offsets[done]] = copy.data[done]
            if count < done.size:
                left = ~done
                under_way.append(Copy(copy.lanes[left], copy.offsets[left], copy.data[left], copy.group[left]))
        wave.copies[:] = under_way

    return run


def _nothing(program: Program, i: Instruction) -> Run:
    return lambda wave, mask: None


TRANSFERS: dict[str, Callable[[Program, Instruction], Run]] = {
    "ld": _load,
    "ldu": _load,
    "st": _store,
    "atom": _atomic,
    "red": _atomic,
    "cp": _async,
    "membar": _nothing,
    "fence": _nothing,
    "prefetch": _nothing,
    "prefetchu": _nothing,
    "nanosleep": _nothing,
}
