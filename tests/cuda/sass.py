"""Machine code of kernels for GPUs that are not here: registers, stack, spills, shared memory, and which instructions there are.

    code = sass.report(kernel, "sm_90a")
    code.registers, code.count("FFMA"), code.count("LDG", "128"), code.local_accesses

    _, used = sass.assemble(ptx, "sm_90a")
    used.registers, used.stack, used.spilled

The first is what nvJitLink makes of LTO-IR, as it is shipped; the second what ptxas says of PTX, in a tenth of the time and less.

The disassemblers come from PyPI: nvidia-cuda-cuobjdump, nvidia-cuda-nvdisasm, and ptxas from nvidia-cuda-nvcc.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from numbaconv.cuda import launch

from .packages import tool

ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90a", "sm_100", "sm_120")


@dataclass(frozen=True)
class Sass:
    """What the disassemblers say of a cubin with one kernel.

    Attributes
    ----------
    registers : of a thread
    stack : bytes of a thread's local memory, spilled registers and arrays that are indexed at run time
    shared : bytes of static shared memory of a block
    text : the disassembly
    """

    registers: int
    stack: int
    shared: int
    text: str

    @cached_property
    def instructions(self) -> Counter[str]:
        """How often each opcode stands in the text, in full: ``LDG.E.128.CONSTANT``."""
        return Counter(re.findall(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", self.text, re.MULTILINE))

    def count(self, name: str, *parts: str) -> int:
        """Instructions of this name with all these parts: ``count("LDG", "128")``, ``count("FFMA")``, ``count("LDGSTS")``."""
        wanted = {name, *parts}
        return sum(
            number for opcode, number in self.instructions.items() if opcode.split(".")[0] == name and wanted <= set(opcode.split("."))
        )

    @property
    def local_accesses(self) -> int:
        """Loads and stores of local memory: every spilled register shows here, and every array that is indexed at run time."""
        return self.count("LDL") + self.count("STL")

    @property
    def fused_multiply_adds(self) -> int:
        """Of float32; from sm_100 on one FFMA2 does two."""
        return self.count("FFMA") + 2 * self.count("FFMA2")


def report(kernel: launch.Kernel, architecture: str) -> Sass:
    """Of the cubin that is shipped to a GPU of this architecture."""
    return inspect(launch.compile_cubin(kernel, architecture))


def spilled(kernel: launch.Kernel, architecture: str) -> tuple[int, int]:
    """Bytes of spill stores and of spill loads, from what the assembler says while linking: it compiles the kernel again."""
    _, said = launch.link(launch._compile(kernel, architecture, "ltoir"), architecture, ("-verbose", "-Xptxas=-v"))
    found = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", said)
    assert found is not None, said
    return int(found[1]), int(found[2])


def inspect(cubin: bytes) -> Sass:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text, usage = _run("nvdisasm", "-c", file.name), _run("cuobjdump", "-res-usage", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", usage)
    assert found is not None, usage
    registers, stack, shared, local = map(int, found.groups())
    return Sass(registers, max(stack, local), shared, text)


class Usage(NamedTuple):
    """What ptxas says of a kernel: registers of a thread, bytes of its local memory, bytes of spill stores and loads."""

    registers: int
    stack: int
    spilled: int


def assemble(ptx: str, architecture: str) -> tuple[bytes, Usage]:
    """A cubin by ptxas, which refuses what is no PTX."""
    with tempfile.TemporaryDirectory() as folder:
        source, cubin = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        source.write_text(ptx)
        said = _run("ptxas", "-v", f"-arch={architecture}", str(source), "-o", str(cubin))
        code = cubin.read_bytes()
    # Of the kernel, and of the system's functions that it calls, such as long division.
    frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", said)
    assert frames, said
    stack, stores, loads = (max(map(int, numbers)) for numbers in zip(*frames))
    return code, Usage(int(re.findall(r"Used (\d+) registers", said)[0]), stack, stores + loads)


def _run(name: str, *arguments: str) -> str:
    path = tool(name)
    assert path is not None, f"{name} is not installed"
    process = subprocess.run([path, *arguments], capture_output=True, text=True)
    assert process.returncode == 0, f"{name}: {process.stdout}{process.stderr}"
    return process.stdout + process.stderr
