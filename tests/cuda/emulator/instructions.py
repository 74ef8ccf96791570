"""Every instruction by the first part of its opcode: (program, instruction) -> the closure that runs it."""

from __future__ import annotations

from collections.abc import Callable

from .arithmetic import ARITHMETIC
from .bits import LOGIC
from .conversions import CONVERSIONS
from .moves import MOVES
from .parse import Instruction
from .program import Program, Run
from .tensorcores import TENSOR_CORES, bulk_copy
from .transfers import TRANSFERS
from .warps import WARPS


def _copy(program: Program, i: Instruction) -> Run:
    return (bulk_copy if "bulk" in i.opcode else TRANSFERS["cp"])(program, i)


HANDLERS: dict[str, Callable[[Program, Instruction], Run]] = (
    ARITHMETIC | LOGIC | MOVES | CONVERSIONS | TRANSFERS | WARPS | TENSOR_CORES | {"cp": _copy}
)
