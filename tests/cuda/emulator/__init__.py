"""Runs a CUDA kernel's real PTX on the CPU, with NumPy, vectorised over threads.

program = Program(ptx)
memory = Memory(1 << 24)
x = memory.allocate(nbytes)
launch(program, [x, 3], grid=(4, 1, 1), block=(256, 1, 1), memory=memory, order="reverse")
"""

from .machine import launch
from .memory import POISON, Fault, Memory
from .parse import Unsupported
from .program import Program

__all__ = ["POISON", "Fault", "Memory", "Program", "Unsupported", "launch"]
