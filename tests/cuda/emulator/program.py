"""A kernel's PTX decoded once into closures: basic blocks of instructions, each bound to the registers it reads and writes.

An operand becomes a *slot*: the number of an array, in a wave's list ``r``, with one element a lane.  Registers, immediate values, special
registers and addresses of variables are all slots, so an instruction is a NumPy function applied to a few arrays of equal shape.  A
register read as another type of the same width, as its low part, or as one of the parts it is packed from, is a view of the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .parse import DTYPES, Instruction, Source, Unsupported, inner, number

if TYPE_CHECKING:
    from .machine import Wave

Mask = Any  # True where every lane takes part, else (lanes,) bool
Run = Callable[["Wave", Mask], None]  # executes one instruction for the lanes of the mask
End = Callable[["Wave", np.ndarray], None]  # ends a basic block: says where its lanes go
SPECIAL = (
    "%tid",
    "%ntid",
    "%ctaid",
    "%nctaid",
    "%laneid",
    "%warpid",
    "%nwarpid",
    "%dynamic_smem_size",
    "%total_smem_size",
    "%lanemask",
    "%clock",
)


class Slot(NamedTuple):
    source: str  # "register", "constant", "special", "variable"
    key: Any  # (bytes, row) of a register, the bytes of a constant, the name of the others
    dtype: np.dtype
    part: int = 0  # which of the parts of that dtype


@dataclass
class Block:
    """Instructions that run one after another; ``end`` sends the lanes on."""

    body: list[tuple[Instruction, Run]]
    end: End
    last: Instruction | None  # for the message of a fault in ``end``


class Program:
    """A kernel, from its PTX text.

    Attributes
    ----------
    text : the PTX
    name : the entry's name
    parameters : (name, PTX type, bytes) of each parameter in order; the type is that of the declaration ("u64", "f32", "b8" for an array)
    """

    def __init__(self, ptx: str) -> None:
        self.text, self.source = ptx, Source(ptx)
        self.name = self.source.name
        self.parameters = self.source.parameters
        self.slots: dict[Slot, int] = {}
        self.rows: dict[int, int] = {}  # bytes of a register (0: predicate) -> how many there are
        self._registers: dict[Any, tuple[int, int]] = {}
        self.parameter_offsets: dict[str, int] = {}
        self.parameter_bytes = 0
        for name, _, nbytes in self.parameters:
            self.parameter_offsets[name] = self.parameter_bytes
            self.parameter_bytes += -(-nbytes // 8) * 8
        self._place_variables()
        self.warps_together = 4 if any(i.opcode[0] == "wgmma" for i in self.source.instructions) else 1  # a warp group issues wgmma
        self.blocks = self._decode()

    def _place_variables(self) -> None:
        """Offsets in shared memory (dynamic memory after the static) and in a thread's local memory."""
        self.offsets: dict[str, int] = {}
        sizes = {"shared": 0, "local": 0}
        variables = self.source.variables.values()
        self.shared_align = max([16, *(v.align for v in variables if v.space == "shared")])
        for variable in variables:
            if variable.space in sizes and not variable.dynamic:
                offset = -(-sizes[variable.space] // variable.align) * variable.align
                self.offsets[variable.name] = offset
                sizes[variable.space] = offset + variable.nbytes
        self.local_bytes = -(-sizes["local"] // 16) * 16
        dynamic = [v.name for v in variables if v.dynamic]
        self.shared_bytes = -(-sizes["shared"] // self.shared_align) * self.shared_align if dynamic else sizes["shared"]
        self.offsets |= dict.fromkeys(dynamic, self.shared_bytes)

    def _decode(self) -> list[Block]:
        from .control import ENDS
        from .instructions import HANDLERS

        instructions = self.source.instructions
        ends = [ENDS.get(i.opcode[0]) or ENDS.get(".".join(i.opcode[:2])) for i in instructions]
        leaders = {0, *self.source.labels.values(), *(at + 1 for at, end in enumerate(ends) if end)}
        leaders = sorted(at for at in leaders if at < len(instructions))
        self.block_of = {at: number for number, at in enumerate(leaders)} | {len(instructions): len(leaders)}
        blocks = []
        for start, stop in zip(leaders, [*leaders[1:], len(instructions)]):
            body = []
            end = None
            for at in range(start, stop):
                instruction = instructions[at]
                try:
                    if ends[at]:
                        end = ends[at](self, instruction, self.block_of[at + 1])
                        break
                    handler = HANDLERS.get(instruction.opcode[0])
                    if handler is None:
                        raise Unsupported("no such instruction here")
                    body.append((instruction, self._guarded(instruction, handler(self, instruction))))
                except (Unsupported, KeyError, IndexError, ValueError) as error:
                    raise Unsupported(f"PTX {instruction}: {error!r}") from error
            if end is None:
                end = ENDS["fall"](self, instructions[stop - 1], self.block_of[stop])
            blocks.append(Block(body, end, instructions[stop - 1]))
        return blocks

    def _guarded(self, instruction: Instruction, run: Run) -> Run:
        if not instruction.guard:
            return run
        predicate, negated = self.predicate(instruction.guard, instruction)

        def guarded(wave: Wave, mask: Mask) -> None:
            holds = ~wave.r[predicate] if negated else wave.r[predicate]
            taken = holds if mask is True else holds & mask
            active = np.count_nonzero(taken)
            if active:
                run(wave, True if active == taken.size else taken)

        return guarded

    # Operands -------------------------------------------------------------------------------------------------------------------------

    def _slot(self, slot: Slot) -> int:
        return self.slots.setdefault(slot, len(self.slots))

    def _row(self, register: tuple[Any, str, str]) -> tuple[int, int]:
        if register not in self._registers:
            width = 0 if register[2] == "pred" else DTYPES[register[2]].itemsize
            self._registers[register] = (width, self.rows.setdefault(width, 0))
            self.rows[width] += 1
        return self._registers[register]

    def read(self, operand: str, kind: str, instruction: Instruction, part: int = 0) -> int:
        """The slot of an operand as PTX type ``kind``; from a wider register its ``part``-th piece."""
        dtype = DTYPES[kind]
        register = self.source.register(operand, instruction.scope)
        if register is not None:
            row = self._row(register)
            if row[0] < (0 if kind == "pred" else dtype.itemsize):
                raise Unsupported(f"{operand} is narrower than {kind}")
            return self._slot(Slot("register", row, dtype, part))
        if operand.startswith(SPECIAL):
            return self._slot(Slot("special", operand, dtype))
        name, _, offset = (piece.strip() for piece in operand.partition("+"))
        if name in self.source.variables:
            if name in self.offsets:
                return self.constant(self.offsets[name] + int(offset or 0), kind)
            return self._slot(Slot("variable", (name, int(offset or 0)), dtype))
        return self.constant(number(operand, kind), kind)

    def constant(self, value: int | float, kind: str) -> int:
        dtype = DTYPES[kind]
        if dtype.kind in "iu":
            bits = (int(value) % (1 << 8 * dtype.itemsize)).to_bytes(dtype.itemsize, "little")
        else:
            bits = np.array(value, dtype).tobytes()
        return self._slot(Slot("constant", bits, dtype))

    def predicate(self, operand: str, instruction: Instruction) -> tuple[int, bool]:
        """(slot, whether it is negated)."""
        return self.read(operand.removeprefix("!"), "pred", instruction), operand.startswith("!")

    def written(self, operand: str, kind: str, instruction: Instruction, part: int = 0) -> int:
        """The slot of a destination: a wider register takes the whole value, extended by its sign where ``kind`` is signed."""
        dtype = DTYPES[kind]
        if operand == "_":
            return self.read_scratch(kind)
        register = self.source.register(operand, instruction.scope)
        if register is None:
            raise Unsupported(f"{operand} is no register")
        row = self._row(register)
        if row[0] > dtype.itemsize and part == 0:
            dtype = np.dtype(f"{'i' if dtype.kind == 'i' else 'u'}{row[0]}")
        elif row[0] < (0 if kind == "pred" else dtype.itemsize):
            raise Unsupported(f"{operand} is narrower than {kind}")
        return self._slot(Slot("register", row, dtype, part))

    def read_scratch(self, kind: str) -> int:
        return self._slot(Slot("register", self._row(((), "_", kind)), DTYPES[kind]))

    def vector(self, operand: str, kind: str, instruction: Instruction) -> list[int]:
        return [self.read(element, kind, instruction) for element in inner(operand)]

    def address(self, operand: str, instruction: Instruction) -> tuple[int, int]:
        """``[base + offset]`` as (slot of the base as s64 or u32, offset)."""
        name, _, offset = (piece.strip() for piece in operand.strip("[]").partition("+"))
        if "-" in name[1:]:
            name, _, offset = (piece.strip() for piece in name.partition("-"))
            offset = "-" + offset
        register = self.source.register(name, instruction.scope)
        kind = "u32" if register and DTYPES[register[2]].itemsize == 4 else "s64"
        return self.read(name, kind, instruction), int(offset or 0)


def modifiers(instruction: Instruction, *allowed: str, after: int = 1, types: int = 1) -> set[str]:
    """The parts of an opcode between its name and its types; anything outside ``allowed`` is refused rather than ignored."""
    found = set(instruction.opcode[after : len(instruction.opcode) - types])
    if not found <= set(allowed):
        raise Unsupported(f"modifiers {sorted(found - set(allowed))}")
    return found


def put(target: np.ndarray, mask: Mask, value: Any) -> None:
    """``value``, of the target's dtype, into the lanes of the mask."""
    if mask is True:
        target[...] = value
    else:
        np.putmask(target, mask, value)


def assign(target: int, function: Callable[..., Any], sources: Sequence[int]) -> Run:
    """Run ``function`` on the sources' arrays; its result, of the target's dtype, goes into the lanes of the mask.

    A NumPy ufunc writes straight into the target when every lane takes part.
    """
    if not isinstance(function, np.ufunc):

        def run(wave: Wave, mask: Mask) -> None:
            r = wave.r
            put(r[target], mask, function(*[r[source] for source in sources]))

        return run
    if len(sources) != function.nin:
        raise Unsupported(f"{len(sources)} operands")
    if len(sources) == 2:
        a, b = sources

        def run_two(wave: Wave, mask: Mask) -> None:
            r = wave.r
            if mask is True:
                function(r[a], r[b], out=r[target])
            else:
                np.putmask(r[target], mask, function(r[a], r[b]))

        return run_two

    def run_any(wave: Wave, mask: Mask) -> None:
        r = wave.r
        values = [r[source] for source in sources]
        if mask is True:
            function(*values, out=r[target])
        else:
            np.putmask(r[target], mask, function(*values))

    return run_any
