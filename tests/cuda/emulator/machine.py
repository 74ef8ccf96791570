"""Runs a program: grids into teams of blocks, teams into waves of warps, waves through basic blocks.

The lanes of a wave run together as far as they take the same branches; of the groups that diverged, the one at the lowest basic block goes
first, which brings structured code back together where its branches meet.  A wave runs until all its lanes have left or wait at a barrier,
then the next one does: so a warp sees of the others either nothing or all up to their next barrier, and which of the two depends on the
order of the warps.  Running them in several orders makes a missing barrier show.  Not modelled: warps that interleave in any other way,
races between blocks, and the order in which other threads see writes that no barrier separates.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .memory import POISON, Arena, Fault, Memory
from .parse import DTYPES
from .program import Mask, Program, Slot

WARP = 32
LANES = 2048  # of a wave, from as many blocks as that takes: enough to make the cost of a NumPy call small beside its work
ENDLESS = 1_000_000  # basic blocks that a wave may run
SHARED_WINDOW, LOCAL_WINDOW = 1 << 48, 1 << 49  # where shared and local memory lie among the generic addresses
Dim = tuple[int, int, int]


def launch(
    program: Program,
    values: Sequence[Any],
    grid: int | Sequence[int],
    block: int | Sequence[int],
    shared_bytes: int = 0,
    *,
    memory: Memory,
    order: str = "forward",
) -> None:
    """Run a grid to its end.

    Parameters
    ----------
    values : a number for each kernel parameter; a pointer is an address in ``memory``.  ``bytes`` for a parameter declared as an array.
    grid, block : sizes in up to three dimensions, x first
    shared_bytes : dynamic shared memory of a block
    order : in which the warps of a block run, up to their next barrier each, and the blocks of the grid: "forward", "reverse" or
        "random:SEED".  "together" runs all warps of a block at once, instruction by instruction: several times faster, and blind to
        missing barriers.  "lanes" runs the first lane of all warps up to the next barrier, then the second one of all: it shows what
        threads of one warp exchange without a barrier, and refuses shuffles and the like.

    Raises
    ------
    Fault : naming the PTX line, the block and the thread
    """
    grid, block = _three(grid), _three(block)
    threads = block[0] * block[1] * block[2]
    bound = program.source.limits.get("maxntid") or program.source.limits.get("reqntid") or (1024,)
    if not 0 < threads <= min(1024, int(np.prod(bound))):
        raise Fault(f"{threads} threads a block; the kernel takes {int(np.prod(bound))}")
    if min(grid) < 1 or grid[0] >= 1 << 31 or max(grid[1:]) > 65535:
        raise Fault(f"a grid of {grid}")
    blocks = [(x, y, z) for z in range(grid[2]) for y in range(grid[1]) for x in range(grid[0])]
    warps = list(range(-(-threads // WARP)))
    together = len(warps) if order in ("together", "lanes") else min(program.warps_together, len(warps))
    groups = [warps[at : at + together] for at in range(0, len(warps), together)]
    shuffle = None
    if order == "reverse":
        blocks.reverse()
        groups.reverse()
    elif order.startswith("random:"):
        shuffle = random.Random(int(order.partition(":")[2])).shuffle
        shuffle(blocks)
    elif order not in ("forward", "together", "lanes"):
        raise ValueError(f"order is forward, reverse, random:SEED, together or lanes, not {order!r}")
    addresses = _place_globals(program, memory)
    parameters = _parameter_bytes(program, values)
    size = max(1, LANES // (together * WARP))
    memory.stored = None
    try:
        with np.errstate(all="ignore"):
            team = None
            for start in range(0, len(blocks), size):
                part = blocks[start : start + size]
                if team is None or team.count != len(part):
                    team = Team(program, len(part), groups, block, grid, shared_bytes, memory, parameters, addresses)
                team.run(part, shuffle, apart=order == "lanes")
    finally:
        for address in addresses.values():
            memory.free(address)


def _three(sizes: int | Sequence[int]) -> Dim:
    sizes = (sizes,) if isinstance(sizes, int) else tuple(sizes)
    x, y, z = (*sizes, *(1,) * (3 - len(sizes)))
    return int(x), int(y), int(z)


def _place_globals(program: Program, memory: Memory) -> dict[str, int]:
    """Addresses of the module's own variables that the program names (tables of constants)."""
    addresses = {}
    for name in {slot.key[0] for slot in program.slots if slot.source == "variable"}:
        variable = program.source.variables[name]
        addresses[name] = memory.allocate(variable.nbytes)
        memory.view(addresses[name], variable.nbytes)[...] = np.frombuffer(variable.data or bytes(variable.nbytes), np.uint8)
    return addresses


def _parameter_bytes(program: Program, values: Sequence[Any]) -> np.ndarray:
    if len(values) != len(program.parameters):
        raise Fault(f"{len(values)} values for {len(program.parameters)} parameters")
    packed = np.zeros(program.parameter_bytes, np.uint8)
    for (name, kind, nbytes), value in zip(program.parameters, values):
        dtype = DTYPES[kind]
        if isinstance(value, bytes):
            data = value
        elif dtype.kind in "iu":
            if not -(1 << 8 * nbytes - 1) <= int(value) < 1 << 8 * nbytes:
                raise Fault(f"{value} does not fit parameter {name} of type {kind}")
            data = (int(value) & ((1 << 8 * nbytes) - 1)).to_bytes(nbytes, "little")
        else:
            data = np.array(value, dtype).tobytes()
        if len(data) != nbytes:
            raise Fault(f"{len(data)} bytes for parameter {name} of {nbytes}")
        packed[program.parameter_offsets[name] :][:nbytes] = np.frombuffer(data, np.uint8)
    return packed


class Team:
    """``count`` blocks that run at once, as lanes of the same waves, each with its own shared memory."""

    def __init__(
        self,
        program: Program,
        count: int,
        groups: list[list[int]],
        block: Dim,
        grid: Dim,
        shared_bytes: int,
        memory: Memory,
        parameters: np.ndarray,
        addresses: dict[str, int],
    ) -> None:
        self.program, self.count, self.block, self.grid = program, count, block, grid
        self.threads = block[0] * block[1] * block[2]
        self.dynamic_bytes = shared_bytes
        self.shared_bytes = program.shared_bytes + shared_bytes
        self.shared_stride = -(-self.shared_bytes // 1024) * 1024
        self.shared = Arena(self.shared_stride * count)
        self.memory, self.parameters, self.addresses = memory, parameters, addresses
        self.blocks: list[Dim] = []
        self.barriers: dict[Any, Any] = {}  # mbarrier objects, by (block, address)
        self.waves = [Wave(self, warps) for warps in groups]

    def run(self, blocks: list[Dim], shuffle: Callable[[list[Wave]], None] | None, apart: bool) -> None:
        """Run the blocks to their end; ``shuffle`` reorders the waves anew after each barrier, ``apart`` as :meth:`Wave.run`."""
        self.blocks = blocks
        self.barriers.clear()
        self.shared.bytes[...] = POISON
        for wave in self.waves:
            wave.start(blocks)
        while True:
            if shuffle is not None:
                shuffle(self.waves)
            for wave in self.waves:
                wave.run(apart)
            if not any(wave.parked for wave in self.waves):
                return
            if not self._release():
                self._stuck()

    def _release(self) -> bool:
        """Let the lanes go on whose barrier is complete; whether there were any."""
        released = False
        for key in dict.fromkeys(key for wave in self.waves for key, _ in wave.parked):
            if key[0] == "barrier":
                released |= self._complete(*key[1:3])
        for wave in self.waves:
            released |= wave.wake()
        return released

    def _complete(self, name: int, threads: int) -> bool:
        arrived = sum(wave.arrived(name, threads) for wave in self.waves)
        live = sum(wave.by_block(wave.live) for wave in self.waves)
        done = (arrived > 0) & (arrived == (threads or live))
        for wave in self.waves:
            wave.pass_barrier(name, threads, done)
        return bool(done.any())

    def _stuck(self) -> None:
        live = sum(wave.by_block(wave.live) for wave in self.waves)
        parked = [(wave, key, mask) for wave in self.waves for (key, _), mask in wave.parked.items()]
        wave, key, mask = parked[0]
        at = int(np.flatnonzero(mask)[0])
        block = wave.block[at]
        here = sum(int(np.count_nonzero(m & (w.block == block))) for w, k, m in parked if k[:3] == key[:3])
        raise Fault(f"{here} of the {live[block]} live threads of block {self.blocks[block]} wait for the others forever, at PTX {key[-1]}")


class Wave:
    """Lanes that run together: ``len(warps)`` warps of each block of the team, block by block.

    ``r`` holds one array for each slot of the program; ``ready`` the lanes to run next, by basic block; ``parked`` those that wait, by what
    they wait for and the basic block after it.
    """

    def __init__(self, team: Team, warps: list[int]) -> None:
        self.team, self.program = team, team.program
        thread = (np.array(warps)[:, None] * WARP + np.arange(WARP)).ravel()
        self.lanes = thread.size * team.count
        self.thread = np.tile(thread, team.count)
        self.block = np.repeat(np.arange(team.count), thread.size)
        self.exists = self.thread < team.threads
        self.lane_index = np.arange(self.lanes)
        self.shared_base = self.block * team.shared_stride
        self.local = Arena(self.lanes * team.program.local_bytes)
        self.local_base = self.lane_index * team.program.local_bytes
        self._files = {width: np.zeros((rows, self.lanes), f"u{width}" if width else np.bool_) for width, rows in team.program.rows.items()}
        self._block_indices: list[tuple[np.ndarray, int]] = []  # (array, dimension) of each %ctaid
        self.r = [self._column(slot) for slot in team.program.slots]
        self.ready: dict[int, np.ndarray] = {}
        self.parked: dict[tuple[Any, int], np.ndarray] = {}
        self.live = self.exists
        self.commits = np.zeros(self.lanes, np.int64)  # groups of cp.async that each lane has committed
        self.copies: list[Any] = []  # cp.async under way
        self.at: Any = None  # the instruction that runs
        self.steps = 0

    def _column(self, slot: Slot) -> np.ndarray:
        if slot.source == "register":
            width, row = slot.key
            values = self._files[width][row]
            return values.view(slot.dtype)[slot.part :: max(1, width // slot.dtype.itemsize)]
        if slot.source == "variable":
            return np.full(self.lanes, self.team.addresses[slot.key[0]] + slot.key[1]).astype(slot.dtype)
        if slot.source == "special":
            values = np.broadcast_to(self._special(slot.key), (self.lanes,)).astype(slot.dtype)
            if slot.key.startswith("%ctaid."):
                self._block_indices.append((values, "xyz".index(slot.key[-1])))
            return values
        return np.repeat(np.frombuffer(slot.key, slot.dtype), self.lanes)

    def _special(self, name: str) -> Any:
        block, lane = self.team.block, self.thread % WARP
        name, _, axis = name[1:].partition(".")
        dimension = "xyz".find(axis)
        if name == "tid":
            return (self.thread, self.thread // block[0], self.thread // (block[0] * block[1]))[dimension] % block[dimension]
        one = np.uint64(1) << lane.astype(np.uint64)
        values: dict[str, Any] = {
            "ntid": block[dimension],
            "ctaid": 0,
            "nctaid": self.team.grid[dimension],
            "laneid": lane,
            "warpid": self.thread // WARP,
            "nwarpid": -(-self.team.threads // WARP),
            "dynamic_smem_size": self.team.dynamic_bytes,
            "total_smem_size": self.team.shared_bytes,
            "lanemask_eq": one,
            "lanemask_lt": one - 1,
            "lanemask_le": 2 * one - 1,
            "lanemask_gt": (1 << WARP) - 2 * one,
            "lanemask_ge": (1 << WARP) - one,
            "clock": 0,
            "clock64": 0,
        }
        return values[name]

    def start(self, blocks: list[Dim]) -> None:
        for width, values in self._files.items():
            values.view(np.uint8)[...] = POISON if width else 1
        self.local.bytes[...] = POISON
        for values, dimension in self._block_indices:
            values[...] = np.array(blocks)[self.block, dimension]
        self.live = self.exists.copy()
        self.ready = {0: self.live.copy()}
        self.steps = 0
        self.commits[...] = 0
        self.copies.clear()

    def run(self, apart: bool) -> None:
        """Until every lane has left or waits; ``apart``: one lane of each warp after the other."""
        if not apart:
            self._run_ready()
            return
        everyone, lane = self.ready, self.lane_index % WARP
        for number in range(WARP):
            self.ready = {block: some for block, lanes in everyone.items() if (some := lanes & (lane == number)).any()}
            self._run_ready()

    def _run_ready(self) -> None:
        blocks, ready = self.program.blocks, self.ready
        while ready:
            self.steps += 1
            if self.steps > ENDLESS:
                raise Fault(f"{ENDLESS} basic blocks have run: this does not end, at PTX {self.at}")
            at = min(ready)
            lanes = ready.pop(at)
            if at == len(blocks):
                self.leave(lanes)  # past the last instruction
                continue
            block = blocks[at]
            mask: Mask = True if np.count_nonzero(lanes) == self.lanes else lanes
            try:
                for self.at, execute in block.body:
                    execute(self, mask)
                self.at = block.last
                block.end(self, lanes)
            except Fault as fault:
                raise Fault(f"{fault}, at PTX {self.at}") from None

    # Control --------------------------------------------------------------------------------------------------------------------------

    def go(self, block: int, lanes: np.ndarray) -> None:
        """These lanes run ``block`` next, together with those that are there already."""
        if block in self.ready:
            self.ready[block] = self.ready[block] | lanes
        elif lanes.any():
            self.ready[block] = lanes

    def leave(self, lanes: np.ndarray) -> None:
        self.live = np.greater(self.live, lanes)

    def park(self, key: Any, following: int, lanes: np.ndarray) -> None:
        before = self.parked.get((key, following))
        self.parked[key, following] = lanes if before is None else before | lanes

    def by_block(self, lanes: np.ndarray) -> np.ndarray:
        """(blocks,) how many of the lanes belong to each block."""
        return np.count_nonzero(lanes.reshape(self.team.count, -1), axis=1)

    def arrived(self, name: int, threads: int) -> np.ndarray:
        counts = np.zeros(self.team.count, np.int64)
        for (key, _), lanes in self.parked.items():
            if key[:3] == ("barrier", name, threads):
                counts += self.by_block(lanes)
        return counts

    def pass_barrier(self, name: int, threads: int, blocks: np.ndarray) -> None:
        """The lanes of ``blocks`` that wait at this barrier go on."""
        passed = blocks[self.block]
        for (key, following), lanes in list(self.parked.items()):
            gone = lanes & passed
            if key[:3] != ("barrier", name, threads) or not gone.any():
                continue
            if "barrier" not in key[-1].opcode or "aligned" in key[-1].opcode:
                self.whole_warps(gone, f"at PTX {key[-1]}")
            self._unpark(key, following, gone)

    def wake(self) -> bool:
        """Lanes that wait for something else than a barrier go on where the first part of their key, a function, says so."""
        woken = False
        for (key, following), lanes in list(self.parked.items()):
            if callable(key[0]) and (gone := lanes & key[0](self, lanes)).any():
                self._unpark(key, following, gone)
                woken = True
        return woken

    def _unpark(self, key: Any, following: int, gone: np.ndarray) -> None:
        stay = np.greater(self.parked.pop((key, following)), gone)
        if stay.any():
            self.parked[key, following] = stay
        self.go(following, gone)

    # Faults ---------------------------------------------------------------------------------------------------------------------------

    def fault(self, lanes: np.ndarray, message: str) -> None:
        lane = int(np.flatnonzero(lanes)[0])
        where = f"thread {self.thread[lane]} of block {self.team.blocks[self.block[lane]]}"
        raise Fault(f"{message} ({where}, one of {np.count_nonzero(lanes)})")

    def whole_warps(self, lanes: np.ndarray, what: str = "") -> None:
        """Every warp with one of these lanes has all its live lanes here."""
        missing = np.greater(self.live, lanes).reshape(-1, WARP) & lanes.reshape(-1, WARP).any(1)[:, None]
        if missing.any():
            self.fault(missing.ravel(), f"the warp is not whole: this thread is elsewhere {what}".rstrip())
