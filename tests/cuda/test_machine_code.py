"""The machine code of the plain kernels on every architecture: nothing spilled or in local memory, and the loads that were meant."""

from __future__ import annotations

import pytest

from . import packages

if why := packages.missing("nvdisasm", "cuobjdump", "ptxas"):
    pytest.skip(why, allow_module_level=True)

from numbaconv.cuda.columns import fold_kernel, unfold_kernel
from numbaconv.cuda.copies import copy_kernel
from numbaconv.cuda.direct import Form, direct_kernel
from numbaconv.cuda.direct_weight import weight_kernel
from numbaconv.cuda.launch import Kernel
from numbaconv.cuda.sums import add_kernel, sums_kernel

from . import sass

KERNELS = [
    direct_kernel(Form("float32", "float32", 8, 4, False, False, False)),
    direct_kernel(Form("float32", "float32", 8, 4, True, False, False)),
    direct_kernel(Form("float32", "float32", 8, 1, True, True, True)),
    direct_kernel(Form("float16", "float16", 4, 4, False, False, False)),
    direct_kernel(Form("bfloat16", "bfloat16", 8, 4, False, False, False)),
    direct_kernel(Form("float64", "float64", 8, 4, False, False, False)),
    direct_kernel(Form("complex64", "complex64", 8, 2, False, False, False)),
    direct_kernel(Form("complex128", "complex128", 8, 1, False, False, False)),
    direct_kernel(Form("int8", "int32", 8, 4, False, False, False)),
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
    assert report.registers <= 168


@pytest.mark.parametrize("architecture", sass.ARCHITECTURES)
def test_direct_reads_its_weights_sixteen_bytes_at_a_time(architecture: str) -> None:
    report = sass.report(KERNELS[0], architecture)
    assert report.count("LDG", "128") >= 2 and report.fused_multiply_adds >= 32
