"""The machine code of the plain kernels on every architecture: nothing spilled or in local memory, and the loads that were meant."""

from __future__ import annotations

import pytest

from . import packages

if why := packages.missing("nvdisasm", "cuobjdump", "ptxas"):
    pytest.skip(why, allow_module_level=True)

from numbaconv.cuda.columns import fold_kernel, unfold_kernel
from numbaconv.cuda.copies import copy_kernel
from numbaconv.cuda.direct import direct_kernel
from numbaconv.cuda.direct_weight import weight_kernel
from numbaconv.cuda.launch import Kernel
from numbaconv.cuda.sums import add_kernel, sums_kernel

from . import sass

KERNELS = [
    direct_kernel("float32", "float32", 8, False, False, False),
    direct_kernel("float32", "float32", 8, True, False, False),
    direct_kernel("float32", "float32", 8, True, True, True),
    direct_kernel("float16", "float16", 4, False, False, False),
    direct_kernel("bfloat16", "bfloat16", 8, False, False, False),
    direct_kernel("float64", "float64", 8, False, False, False),
    direct_kernel("complex64", "complex64", 4, False, False, False),
    direct_kernel("int8", "int32", 8, False, False, False),
    weight_kernel("float32", 4),
    weight_kernel("complex64", 4),
    weight_kernel("int8", 4),
    copy_kernel("float32", "float32", False),
    copy_kernel("float16", "float32", False),
    copy_kernel("complex128", "complex128", True),
    sums_kernel("float32"),
    add_kernel("bfloat16"),
    unfold_kernel("float32"),
    fold_kernel("float32"),
]


# Compiling takes a second: every kernel for the first and the last architecture, and the first kernels for those between.
PAIRS = [(kernel, sm) for sm in sass.ARCHITECTURES for kernel in (KERNELS if sm in ("sm_80", "sm_120") else KERNELS[:3])]


@pytest.mark.parametrize("kernel, architecture", PAIRS, ids=lambda value: getattr(value, "name", value))
def test_nothing_spills(kernel: Kernel, architecture: str) -> None:
    report = sass.report(kernel, architecture)
    assert report.stack == report.local_accesses == 0
    assert report.registers <= 128


@pytest.mark.parametrize("architecture", sass.ARCHITECTURES)
def test_direct_reads_its_weights_sixteen_bytes_at_a_time(architecture: str) -> None:
    report = sass.report(direct_kernel("float32", "float32", 8, False, False, False), architecture)
    assert report.count("LDG", "128") >= 2 and report.fused_multiply_adds >= 8
