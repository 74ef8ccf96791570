"""Tensor cores and what feeds them: mma.sync, ldmatrix, wgmma, mbarrier, tiles fetched by TMA.

Which lane holds which element of a fragment, and how a descriptor addresses shared memory, is taken from "PTX ISA", not from a device.
Products are summed in float64 and rounded once; a tensor core rounds differently.  wgmma is done when it is issued: a missing
``wgmma.fence``, ``wgmma.wait_group`` or ``fence.proxy.async`` cannot show.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .conversions import from_bfloat16
from .machine import WARP, Wave
from .memory import Fault
from .parse import Instruction, Unsupported, inner, number, split
from .program import End, Mask, Program, Run, put
from .transfers import addressing, place

Array = np.ndarray
LANE = np.arange(WARP)


def _elements(words: Array, kind: str) -> list[Array]:
    """The one or two float32 elements that each 32-bit word holds, the lower half first."""
    if kind == "tf32":
        return [(words & np.uint32(0xFFFFE000)).view(np.float32)]  # the unit drops the low 13 bits
    halves = [(words & np.uint32(0xFFFF)).astype(np.uint16), (words >> np.uint32(16)).astype(np.uint16)]
    return [from_bfloat16(half) if kind == "bf16" else half.view(np.float16).astype(np.float32) for half in halves]


def _fragment(registers: list[Array], kind: str, rows: int) -> Array:
    """(warps, rows, k) of an A (16 rows) or a B (8 columns, transposed) fragment.

    Register i of lane 4 g + t holds row g (+ 8 for the odd registers of A), and columns t onwards (+ the width of a register column).
    """
    words = [word.reshape(-1, WARP) for word in registers]
    per = 1 if kind == "tf32" else 2
    matrix = np.zeros((words[0].shape[0], rows, 8 * per), np.float32)
    group, thread = LANE >> 2, LANE & 3
    for at, word in enumerate(words):
        row, column = (group + 8 * (at & 1), at >> 1) if rows == 16 else (group, at)
        for part, value in enumerate(_elements(word, kind)):
            matrix[:, row, per * (thread + 4 * column) + part] = value
    return matrix


def _whole(wave: Wave, mask: Mask) -> None:
    """Every warp that takes part does so with all 32 lanes."""
    if mask is not True:
        partial = mask.reshape(-1, WARP).any(1) != mask.reshape(-1, WARP).all(1)
        if partial.any():
            wave.fault(mask & np.repeat(partial, WARP), "only part of the warp is here")


def _mma(program: Program, i: Instruction) -> Run:
    """mma.sync.aligned.m16n8k{8,16}.row.col.f32.kind.kind.f32: D = A B + C."""
    shape, kind = i.opcode[3], i.opcode[-2]
    if (shape, kind) not in (("m16n8k8", "tf32"), ("m16n8k16", "bf16"), ("m16n8k16", "f16")) or i.type != "f32":
        raise Unsupported(f"mma {shape} {kind}")
    a, b = (program.vector(operand, "b32", i) for operand in i.operands[1:3])
    c = program.vector(i.operands[3], "f32", i)
    targets = [program.written(name, "f32", i) for name in inner(i.operands[0])]
    group, column = LANE >> 2, 2 * (LANE & 3)

    def run(wave: Wave, mask: Mask) -> None:
        _whole(wave, mask)
        r = wave.r
        left, right = _fragment([r[slot] for slot in a], kind, 16), _fragment([r[slot] for slot in b], kind, 8)
        product = left.astype(np.float64) @ right.transpose(0, 2, 1).astype(np.float64)
        values = [product[:, group + 8 * (at >> 1), column + (at & 1)].ravel() + r[slot] for at, slot in enumerate(c)]
        for target, value in zip(targets, values):
            put(r[target], mask, value.astype(np.float32))

    return run


def _ldmatrix(program: Program, i: Instruction) -> Run:
    """ldmatrix.sync.aligned.m8n8.xN[.trans].shared.b16: lane 8 m + row gives the address of that row of matrix m."""
    targets = [program.written(name, "b32", i) for name in inner(i.operands[0])]
    if i.opcode[3] != "m8n8" or f"x{len(targets)}" not in i.opcode:
        raise Unsupported("this ldmatrix")
    transposed, address = "trans" in i.opcode, addressing(program, i.operands[1], i)

    def run(wave: Wave, mask: Mask) -> None:
        _whole(wave, mask)
        addresses = address(wave, slice(None))
        giving = (wave.lane_index % WARP < 8 * len(targets)) & mask
        offsets = np.zeros(wave.lanes, np.int64)
        lanes = np.flatnonzero(giving)
        arena, offsets[lanes] = place(wave, "shared", addresses[lanes], 16, lanes)
        for at, target in enumerate(targets):
            rows = offsets.reshape(-1, WARP)[:, 8 * at : 8 * at + 8]
            matrix = arena.words(2)[rows[:, :, None] // 2 + np.arange(8)]  # (warps, 8, 8)
            if transposed:
                matrix = matrix.transpose(0, 2, 1)
            pairs = np.ascontiguousarray(matrix).view(np.uint32)  # (warps, 8, 4)
            put(wave.r[target], mask, pairs[:, LANE >> 2, LANE & 3].ravel())

    return run


# wgmma -----------------------------------------------------------------------------------------------------------------------------------


def _described(wave: Wave, block: int, descriptor: int, rows: int, k: int, kind: str) -> Array:
    """(rows, k) of a K-major matrix in shared memory with the 128-byte swizzle: rows of 128 bytes, in groups of eight."""
    if descriptor >> 62 != 1:
        raise Fault("only the 128-byte swizzle is known")
    width = 4 if kind == "tf32" else 2
    start, stride = (descriptor & 0x3FFF) << 4, (descriptor >> 32 & 0x3FFF) << 4
    row, column = np.arange(rows)[:, None], np.arange(k)
    address = start + row // 8 * stride + row % 8 * 128 + column * width
    address ^= (address >> 7 & 7) << 4
    if address.max() + width > wave.team.shared_bytes:
        raise Fault(f"out of bounds: a matrix up to byte {address.max() + width} of {wave.team.shared_bytes} of shared memory")
    words = wave.team.shared.words(width)[(address + block * wave.team.shared_stride) // width]
    return _elements(words.astype(np.uint32), kind)[0]


def _wgmma(program: Program, i: Instruction) -> Run:
    """wgmma.mma_async.sync.aligned.m64nNkK.f32.kind.kind {d}, descriptor of A, descriptor of B, scale-d, 1, 1[, 0, 0]."""
    if i.opcode[1] != "mma_async":
        return lambda wave, mask: None  # fence, commit_group, wait_group
    shape = re.fullmatch(r"m64n(\d+)k(\d+)", i.opcode[4])
    if shape is None or i.opcode[5] != "f32" or any(number(operand, "s32") != 1 for operand in i.operands[4:6]):
        raise Unsupported("this wgmma")
    n, k, kind = int(shape[1]), int(shape[2]), i.opcode[6]
    targets = [program.written(name, "f32", i) for name in inner(i.operands[0])]
    a, b = (program.read(operand, "u64", i) for operand in i.operands[1:3])
    scale, negated = program.predicate(i.operands[3], i)
    lane = np.arange(128)
    row, column = lane // 32 * 16 + lane % 32 // 4, 2 * (lane & 3)

    def run(wave: Wave, mask: Mask) -> None:
        r = wave.r
        here = np.full(wave.lanes, True) if mask is True else mask
        each = wave.lanes // wave.team.count  # lanes of a block
        for start in (at for block in range(wave.team.count) for at in range(block * each, (block + 1) * each, 128)):
            group = slice(start, start + 128)
            if not here[group].any():
                continue
            if not here[group].all() or here[group].size < 128:
                wave.fault(here, "only part of the warp group is here")
            block = int(wave.block[start])
            left, right = (_described(wave, block, int(r[slot][start]), rows, k, kind) for slot, rows in ((a, 64), (b, n)))
            product = left.astype(np.float64) @ right.T.astype(np.float64)
            keep = r[scale][start] != negated
            for at, target in enumerate(targets):
                value = product[row + 8 * (at >> 1 & 1), column + (at & 1) + 8 * (at >> 2)]
                r[target][group] = value + r[target][group] if keep else value

    return run


# mbarrier and TMA ------------------------------------------------------------------------------------------------------------------------


@dataclass
class PhaseBarrier:
    """An mbarrier: a phase ends when all have arrived and all announced bytes have come."""

    count: int
    pending: int
    nbytes: int = 0
    phase: int = 0

    def settle(self) -> None:
        if self.pending == 0 and self.nbytes == 0:
            self.phase ^= 1
            self.pending = self.count


@dataclass(frozen=True)
class TensorMap:
    """Stands for a tiled CUtensorMap of a matrix: ``box`` (rows, columns) at a time, zeros outside, 128-byte swizzle.

    ``memory.tensor_maps[address]`` is the one that a kernel names by that address.
    """

    address: int
    shape: tuple[int, int]
    box: tuple[int, int]
    dtype: Any

    def fetch(self, wave: Wave, column: int, row: int) -> Array:
        matrix = wave.team.memory.read(self.address, self.shape, self.dtype)
        tile = np.zeros(self.box, self.dtype)
        inside = matrix[max(row, 0) : max(row + self.box[0], 0), max(column, 0) : max(column + self.box[1], 0)]
        top, left = max(-row, 0), max(-column, 0)
        tile[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
        return tile.view(np.uint8).ravel()


def _barrier_of(wave: Wave, lane: int, address: int) -> PhaseBarrier:
    try:
        return wave.team.barriers[int(wave.block[lane]), address]
    except KeyError:
        raise Fault(f"no mbarrier was initialised at {address:#x}") from None


def _mbarrier(program: Program, i: Instruction) -> Run:
    action = i.opcode[1]
    address = addressing(program, i.operands[0 if action in ("init", "inval") else 1], i)
    expects = "expect_tx" in i.opcode
    if action not in ("init", "inval", "arrive"):
        raise Unsupported("this mbarrier")
    count = program.read(i.operands[1 if action == "init" else 2], "u32", i) if action == "init" or expects else None

    def run(wave: Wave, mask: Mask) -> None:
        lanes = wave.lane_index[slice(None) if mask is True else mask]
        for lane, at in zip(lanes, address(wave, lanes).tolist()):
            given = int(wave.r[count][lane]) if count is not None else 0
            if action == "init":
                wave.team.barriers[int(wave.block[lane]), at] = PhaseBarrier(given, given)
            elif action == "arrive":
                barrier = _barrier_of(wave, lane, at)
                barrier.nbytes += given
                barrier.pending -= 1
                barrier.settle()

    return run


def mbarrier_wait(program: Program, i: Instruction, following: int) -> End:
    """mbarrier.try_wait.parity p, [barrier], phase: parks the lanes until that phase is over, then p is true."""
    address, phase = addressing(program, i.operands[1], i), program.read(i.operands[2], "u32", i)
    target = program.written(i.operands[0], "pred", i)

    def ready(wave: Wave, lanes: Array) -> Array:
        over = np.zeros(wave.lanes, np.bool_)
        picked = np.flatnonzero(lanes)
        for lane, at in zip(picked, address(wave, picked).tolist()):
            over[lane] = _barrier_of(wave, lane, at).phase != wave.r[phase][lane] & 1
        return over

    def end(wave: Wave, mask: Array) -> None:
        np.putmask(wave.r[target], mask, True)
        wave.park((ready, i), following, mask)

    return end


def bulk_copy(program: Program, i: Instruction) -> Run:
    """cp.async.bulk.tensor.2d [destination], [map, {column, row}], [mbarrier]; the bytes come at once and are counted at the mbarrier."""
    if "tensor" not in i.opcode or "2d" not in i.opcode or "tile" not in i.opcode:
        raise Unsupported("this bulk copy")
    name, coordinates = split(i.operands[1].removeprefix("[").removesuffix("]"))
    slots = [program.read(name, "u64", i), *program.vector(coordinates, "s32", i)]
    to, barrier = addressing(program, i.operands[0], i), addressing(program, i.operands[2], i)

    def run(wave: Wave, mask: Mask) -> None:
        lanes = wave.lane_index[slice(None) if mask is True else mask]
        for lane, start, at in zip(lanes, to(wave, lanes).tolist(), barrier(wave, lanes).tolist()):
            described, column, row = (int(wave.r[slot][lane]) for slot in slots)
            data = wave.team.memory.tensor_maps[described].fetch(wave, column, row)
            offsets = start + np.arange(data.size)
            place(wave, "shared", offsets[[0, -1]], 1, np.array([lane, lane]))
            offsets ^= (offsets >> 7 & 7) << 4
            wave.team.shared.bytes[offsets + wave.shared_base[lane]] = data
            counted = _barrier_of(wave, lane, at)
            counted.nbytes -= data.size
            counted.settle()

    return run


def _nothing(program: Program, i: Instruction) -> Run:
    return lambda wave, mask: None


TENSOR_CORES: dict[str, Callable[[Program, Instruction], Run]] = {
    "mma": _mma,
    "ldmatrix": _ldmatrix,
    "wgmma": _wgmma,
    "mbarrier": _mbarrier,
    "setmaxnreg": _nothing,
    "griddepcontrol": _nothing,
}
