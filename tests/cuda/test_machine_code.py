"""The machine code of the kernels: nothing spilled or in local memory, no more registers than planned, and the loads that were meant.

Two tables.  ``SHIPPED``: the plain kernels of every kind and dtype as nvJitLink makes them, each for one or two of the six architectures.
The other one is every kernel that the emulated tests of the table of cases, of layouts and of gradients launch, some 240, and the tiles of
implicit GEMM: their PTX, which the emulator runs, assembled by ptxas.  The first of each kind, dtype and direction is assembled for all six
architectures and every other kernel for one of them, in turn; all for all would take a minute and a half.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from typing import Any

import pytest

from numbaconv import Problem

from ..cases import arguments
from ..gradients import function_name
from . import packages

if why := packages.missing("nvdisasm", "cuobjdump", "ptxas"):
    pytest.skip(why, allow_module_level=True)

import numbaconv
from numbaconv import grad
from numbaconv.bench.ahead import Nowhere, _channels_last, _Recorder, processes
from numbaconv.cuda import driver
from numbaconv.cuda.columns import fold_kernel, unfold_kernel
from numbaconv.cuda.copies import copy_kernel
from numbaconv.cuda.direct import Form, direct_kernel
from numbaconv.cuda.direct_weight import weight_kernel
from numbaconv.cuda.implicit_gemm import TILES
from numbaconv.cuda.implicit_gemm_kernel import kernel as gemm_kernel
from numbaconv.cuda.launch import Kernel
from numbaconv.cuda.sums import add_kernel, sums_kernel

from . import sass, test_cases, test_gradients, test_layouts
from .compiled import ptx_of

SHIPPED = [
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
PAIRS = [(kernel, sm) for kernel, sm in zip(SHIPPED, itertools.cycle(sass.ARCHITECTURES))]
PAIRS += [(kernel, sm) for kernel, sm in zip(SHIPPED[:9], ("sm_120", "sm_80") * 5)]


@pytest.mark.parametrize("kernel, architecture", dict.fromkeys(PAIRS), ids=lambda value: getattr(value, "name", value))
def test_nothing_shipped_spills(kernel: Kernel, architecture: str) -> None:
    report = sass.report(kernel, architecture)
    assert report.stack == report.local_accesses == 0
    assert report.registers <= 168


@pytest.mark.parametrize("architecture", sass.ARCHITECTURES)
def test_direct_reads_its_weights_sixteen_bytes_at_a_time(architecture: str) -> None:
    code, used = sass.assemble(ptx_of(SHIPPED[0]), architecture)
    report = sass.inspect(code)
    assert report.count("LDG", "128") >= 2 and report.fused_multiply_adds >= 32
    assert report.registers <= 168 and used[1:] == (0, 0)


# ---- every kernel ------------------------------------------------------------------------------------------------------------
def convolve(algorithm: str, p: Problem, layout: Any = Nowhere) -> None:
    b = Nowhere((p.result_channels,), p.dtype) if p.bias else None
    given = arguments(p) | ({"out_dtype": p.out_dtype} if p.out_dtype != p.dtype else {})
    function = getattr(numbaconv, f"conv{'_transpose' * p.transposed}{p.rank}d")
    x, out = layout(p.source_shape, p.dtype), layout(p.result_shape, p.out_dtype)
    function(x, Nowhere(p.weight_shape, p.dtype), b, **given, algorithm=algorithm, out=out)


def differentiate(p: Problem) -> None:
    x, w, g = (Nowhere(shape, p.dtype) for shape in (p.source_shape, p.weight_shape, p.result_shape))
    getattr(grad, f"{function_name(p)}_input")(x.shape, w, g, **arguments(p))
    getattr(grad, f"{function_name(p)}_weight")(x, w.shape, g, **arguments(p))
    grad.conv_bias(g)


def kind_of(kernel: Kernel) -> str:
    """Kernels that differ in sizes alone are of one kind."""
    return re.sub(r"\d+(x\d+)+|(?<=[-_])\d+(?=[-_]|$)", "", kernel.name)


# Local memory that is known: bytes of a thread.
IN_MEMORY = {"depthwise_float32_7x7_2x2_1x1_4x4_1_1_2_0_10001000": 272}  # one row of a strided 7x7 gradient is too long to be unrolled
FEW_SPILLED = 16  # of five kernels that march down a column, where the planned blocks leave a register or two too few


def check(kernels: Iterable[Kernel]) -> None:
    kinds: set[str] = set()
    failures = []
    for number, kernel in enumerate(sorted(kernels, key=lambda kernel: kernel.name)):
        first, kinds = kind_of(kernel) not in kinds, kinds | {kind_of(kernel)}
        marches = kernel.name.startswith("depthwise")
        registers = min(168 if marches else 128, 65536 // (kernel.threads * kernel.blocks) // 8 * 8)
        for i, architecture in enumerate(sass.ARCHITECTURES):
            if first or number % len(sass.ARCHITECTURES) == i:
                used = sass.assemble(ptx_of(kernel), architecture)[1]
                in_memory = IN_MEMORY.get(kernel.name, used.spilled and marches and FEW_SPILLED)
                if used.registers > registers or used.stack > in_memory:
                    failures.append(f"{kernel.name} for {architecture}: {used}")
    assert kinds and not failures, "\n".join(failures)


def check_all() -> None:
    """To be called where no device is used, ever: a driver that only notes kernels is in its place, and what is prepared is remembered."""
    recorder = driver._driver = _Recorder("sm_80")
    for name, p in test_cases.spread():
        convolve(name, p)
    for name, text in test_layouts.PAIRS:
        convolve(name, Problem.parse(text), _channels_last)
    for p in test_gradients._spread(test_gradients.OWN):
        differentiate(p)
    check(recorder.kernels.values())


def test_kernels_of_cases_layouts_and_gradients() -> None:
    with processes(1) as pool:
        pool.submit(check_all).result()


def test_tiles_of_implicit_gemm() -> None:
    tiles = dict.fromkeys(tile for tiles in TILES for tile in tiles[:2])
    check(gemm_kernel(tile, last, "quads of channels" if last else "cells", False) for tile in tiles for last in (False, True))
