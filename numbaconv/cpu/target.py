"""The CPU that kernels are compiled for: width and number of its vector registers, and the register tile that fits them."""

from __future__ import annotations

import functools
import platform
from dataclasses import dataclass

import numpy as np
from llvmlite import binding
from numba.core import config
from numba.core.codegen import get_host_cpu_features


@dataclass(frozen=True)
class Target:
    """What the kernels' code depends on.

    vector_bytes : size of a vector register
    registers : number of vector registers
    fma : whether there is a fused multiply-add instruction
    float16 : whether there are conversions between float16 and float32
    pairs_instruction : LLVM's name of the multiply-add of int16 pairs into int32; empty where there is none
    fused_pairs : whether that instruction also adds to a sum
    """

    vector_bytes: int
    registers: int
    fma: bool
    float16: bool
    pairs_instruction: str = ""
    fused_pairs: bool = False

    def lanes(self, dtype: str) -> int:
        """Elements of the named dtype in one vector."""
        return self.vector_bytes // np.dtype(dtype).itemsize

    @property
    def tile_rows(self) -> int:
        """Rows of the register tile: broadcast elements of one operand of a matrix product."""
        return 8 if self.registers >= 32 else 6

    @property
    def tile_vectors(self) -> int:
        """Vectors in a row of the register tile, which leaves registers for one row of the other operand and a broadcast.

        8 x 3 (32 registers) and 6 x 2 (16 registers) reach 96 to 99 % of the multiply-add peak without a spill.
        """
        return 3 if self.registers >= 32 else 2


@functools.cache
def target() -> Target:
    """The target of this process, as Numba compiles for it (NUMBA_CPU_FEATURES, NUMBA_CPU_NAME and NUMBA_ENABLE_AVX honoured)."""
    return _from_features(_features(), _architecture())


def _features() -> frozenset[str]:
    text = get_host_cpu_features() if config.CPU_FEATURES is None else config.CPU_FEATURES
    return frozenset(name[1:] for name in text.split(",") if name.startswith("+"))


def _architecture() -> str:
    return binding.get_process_triple().partition("-")[0] or platform.machine()


def _from_features(features: frozenset[str], architecture: str) -> Target:
    if architecture.startswith(("x86", "i686", "amd64")):
        if {"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= features:
            return Target(64, 32, True, True, "llvm.x86.avx512.pmaddw.d.512", "avx512vnni" in features)
        fma, float16 = "fma" in features, "f16c" in features
        if "avx2" in features:
            return Target(32, 16, fma, float16, "llvm.x86.avx2.pmadd.wd", "avxvnni" in features)
        return Target(16, 16, fma, float16, "llvm.x86.sse2.pmadd.wd")
    arm = architecture.startswith(("aarch64", "arm64"))
    return Target(vector_bytes=16, registers=32, fma=arm or architecture.startswith("ppc64"), float16=arm)
