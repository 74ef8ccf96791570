"""Every instruction by the first part of its opcode: (program, instruction) -> the closure that runs it."""

from __future__ import annotations

from collections.abc import Callable

from .arithmetic import ARITHMETIC
from .bits import LOGIC
from .conversions import CONVERSIONS
from .moves import MOVES
from .parse import Instruction
from .program import Program, Run
from .transfers import TRANSFERS
from .warps import WARPS

HANDLERS: dict[str, Callable[[Program, Instruction], Run]] = ARITHMETIC | LOGIC | MOVES | CONVERSIONS | TRANSFERS | WARPS
