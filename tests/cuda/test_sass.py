"""Reading machine code: registers, spills, instruction counts of small kernels whose code is known, for every architecture."""

from __future__ import annotations

import dataclasses

import pytest

from . import packages

if why := packages.missing("nvdisasm", "cuobjdump", "ptxas"):
    pytest.skip(why, allow_module_level=True)

from numba import cuda, int32, uint64

from numbaconv.cuda import launch, ptx
from numbaconv.cuda.launch import Kernel

from . import sass

load4, store4, load, store = ptx.load("float32", 4), ptx.store("float32", 4), ptx.load("float32"), ptx.store("float32")
load_shared4, copy16, wait = ptx.load_shared("float32", 4), ptx.copy_async(16), ptx.wait_async(0)


@pytest.fixture(autouse=True)
def no_disk_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its key knows the package's sources, not these."""
    monkeypatch.setattr(launch, "_cache_file", lambda kernel, architecture: None)


def _stream(x, y):
    """Sixteen bytes a thread, by way of shared memory: y = x * x + x."""
    tile = cuda.shared.array(512, "float32", alignment=16)
    at = uint64(uint64(cuda.threadIdx.x) << uint64(4))
    shared = ptx.shared_address(tile)
    copy16(int32(shared + int32(at)), uint64(x + at), int32(16))
    ptx.commit_async()
    wait()
    cuda.syncthreads()
    a, b, c, d = load_shared4(int32(shared + int32(at)))
    e, f, g, h = load4(uint64(x + at))
    store4(uint64(y + at), (a * a + e, b * b + f, c * c + g, d * d + h))


def _indexed(x, y, n):
    """An array indexed at run time has no registers to live in."""
    values = cuda.local.array(64, "float32")
    for i in range(64):
        values[(i * n) & 63] = load(uint64(x + uint64(4 * i)))
    for i in range(64):
        store(uint64(y + uint64(4 * i)), values[i])


def _crowded(x, y):
    """Many values live at once, each computed from the one before, in the 32 registers that twice 1024 threads leave."""
    values = cuda.local.array(48, "float32")
    value = load(x)
    for i in range(48):
        value = value * value + load(uint64(x + uint64(4 * i)))
        values[i] = value
    for i in range(48):
        value = value * value + values[47 - i]
        store(uint64(y + uint64(4 * i)), value)


STREAM = Kernel("test_stream", _stream, (uint64, uint64), threads=128)
INDEXED = Kernel("test_indexed", _indexed, (uint64, uint64, int32), threads=128)
CROWDED = Kernel("test_crowded", _crowded, (uint64, uint64), threads=1024, blocks=2)


@pytest.mark.parametrize("architecture", sass.ARCHITECTURES)
def test_counts(architecture: str) -> None:
    code = sass.report(STREAM, architecture)
    assert code.fused_multiply_adds == 4
    assert [code.count(*name) for name in (("LDG", "128"), ("LDS", "128"), ("STG", "128"), ("LDGSTS",), ("BAR",))] == [1, 1, 1, 1, 1], (
        code.text
    )
    assert 8 <= code.registers <= 40
    assert (code.stack, code.local_accesses) == (0, 0)
    assert code.shared in (2048, 2048 + 1024)  # from sm_90 on the system keeps 1 KiB
    assert architecture in code.text


def test_local_memory_shows() -> None:
    code = sass.report(INDEXED, "sm_80")
    assert code.stack >= 64 and code.local_accesses >= 17
    assert sass.spilled(INDEXED, "sm_80") == (0, 0)  # it is not a spill


def test_spills_show() -> None:
    stores, loads = sass.spilled(CROWDED, "sm_80")
    assert stores >= 64 and loads >= 64
    code = sass.report(CROWDED, "sm_80")
    assert code.registers <= 32 and code.stack >= stores and code.local_accesses > 16
    assert sass.spilled(dataclasses.replace(CROWDED, threads=128, blocks=1), "sm_80") == (0, 0)


def test_ptx_that_is_assembled() -> None:
    cubin, used = sass.assemble(launch.compile_ptx(STREAM, "sm_80"), "sm_80")
    code = sass.inspect(cubin)
    assert code.fused_multiply_adds == 4 and code.count("LDGSTS") == 1
    assert used == (code.registers, 0, 0)
    assert sass.assemble(launch.compile_ptx(INDEXED, "sm_80"), "sm_120")[1][1:] == (256, 0)
    _, used = sass.assemble(launch.compile_ptx(CROWDED, "sm_80"), "sm_80")
    assert used.registers <= 32 and used.stack >= 64 and used.spilled >= 128
    with pytest.raises(AssertionError, match="ptxas"):
        sass.assemble(".version 8.0\n.target sm_80\n.entry k() { frobnicate; }", "sm_80")
