"""The PTX emulator's tensor cores: fragments as "PTX ISA" draws them, on short kernels written by hand."""

from __future__ import annotations

import numpy as np
import pytest

from .emulator import Fault, Memory, launch
from .emulator.conversions import from_bfloat16, to_bfloat16, to_tensorfloat32
from .emulator.tensorcores import TensorMap
from .snippets import ORDERS, kernel, run

RNG = np.random.default_rng(0)


def bits_of(matrix: np.ndarray, kind: str) -> np.ndarray:
    """The matrix rounded to ``kind``, as float32 bits, float16 bits or bfloat16 bits."""
    if kind == "tf32":
        return to_tensorfloat32(matrix)
    return to_bfloat16(matrix) if kind == "bf16" else matrix.astype(np.float16).view(np.uint16)


def rounded(matrix: np.ndarray, kind: str) -> np.ndarray:
    bits = bits_of(matrix, kind)
    values = from_bfloat16(bits) if kind == "bf16" else bits.view(np.float32 if kind == "tf32" else np.float16)
    return values.astype(np.float64)


@pytest.mark.parametrize("kind", ["tf32", "bf16", "f16"])
def test_mma(kind: str) -> None:
    """D = A B + C with the fragments gathered here by the formulas of "PTX ISA", 9.7.14.5."""
    k = 8 if kind == "tf32" else 16
    a, b, c = (RNG.standard_normal(shape).astype(np.float32) for shape in ((16, k), (k, 8), (16, 8)))
    group, thread = np.arange(32) // 4, np.arange(32) % 4
    left, right = bits_of(a, kind), bits_of(b, kind)
    if kind == "tf32":
        first = [left[group + 8 * (i & 1), thread + 4 * (i >> 1)] for i in range(4)]
        second = [right[thread + 4 * i, group] for i in range(2)]
    else:
        low_high = lambda low, high: low.astype(np.uint32) | high.astype(np.uint32) << 16  # noqa: E731
        columns = [2 * thread + 8 * (i >> 1) for i in range(4)]
        first = [low_high(left[group + 8 * (i & 1), columns[i]], left[group + 8 * (i & 1), columns[i] + 1]) for i in range(4)]
        second = [low_high(right[2 * thread + 8 * i, group], right[2 * thread + 8 * i + 1, group]) for i in range(2)]
    third = [c[group + 8 * (i >> 1), 2 * thread + (i & 1)] for i in range(4)]
    shape, types = f"m16n8k{k}", f"f32.{kind}.{kind}.f32"
    body = f"""
        mad.wide.u32 %d1, %r0, 40, %d0;
        ld.global.v2.b32 {{%r1, %r2}}, [%d1]; ld.global.v2.b32 {{%r3, %r4}}, [%d1+8]; ld.global.v2.b32 {{%r5, %r6}}, [%d1+16];
        ld.global.v2.f32 {{%f1, %f2}}, [%d1+24]; ld.global.v2.f32 {{%f3, %f4}}, [%d1+32];
        mma.sync.aligned.{shape}.row.col.{types} {{%f5, %f6, %f7, %f8}}, {{%r1, %r2, %r3, %r4}}, {{%r5, %r6}}, {{%f1, %f2, %f3, %f4}};
        ld.param.u64 %d2, [out]; mad.wide.u32 %d2, %r0, 16, %d2; st.global.v4.f32 [%d2], {{%f5, %f6, %f7, %f8}};
    """
    words = np.stack([*first, *second, *(value.view(np.uint32) for value in third)], axis=1)
    arrays = np.concatenate([words, words]), np.zeros((64, 4), np.float32)
    _, result = run(kernel(body, "u64 from, u64 out"), *arrays, block=64)
    d = np.zeros((16, 8))
    for i in range(4):
        d[group + 8 * (i >> 1), 2 * thread + (i & 1)] = result[:32, i]
    np.testing.assert_allclose(d, rounded(a, kind) @ rounded(b, kind) + c, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(result[:32], result[32:])  # the second warp's, of the same data
    with pytest.raises(Fault, match="only part of the warp"):
        run(kernel("setp.gt.u32 %p1, %r0, 40; @%p1 ret; " + body, "u64 from, u64 out"), *arrays, block=64)


@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix(transposed: bool) -> None:
    body = f"""
        mov.u32 %r1, words; mad.lo.u32 %r2, %r0, 16, %r1; mad.wide.u32 %d1, %r0, 16, %d0;
        ld.global.v4.b32 {{%r3, %r4, %r5, %r6}}, [%d1]; st.shared.v4.b32 [%r2], {{%r3, %r4, %r5, %r6}}; bar.sync 0;
        ldmatrix.sync.aligned.m8n8.x4{".trans" * transposed}.shared.b16 {{%r3, %r4, %r5, %r6}}, [%r2];
        st.global.v4.b32 [%d1], {{%r3, %r4, %r5, %r6}};
    """
    matrices = RNG.integers(0, 1 << 16, (4, 8, 8), np.uint16)
    program = kernel(body, declarations=".shared .align 16 .b8 words[512];")
    (result,) = run(program, matrices)
    expected = matrices.transpose(0, 2, 1) if transposed else matrices
    lane = np.arange(32)
    np.testing.assert_array_equal(result.reshape(32, 4, 2)[:, :, 0], expected[:, lane // 4, lane % 4 * 2].T)
    np.testing.assert_array_equal(result.reshape(32, 4, 2)[:, :, 1], expected[:, lane // 4, lane % 4 * 2 + 1].T)
    with pytest.raises(Fault, match="out of bounds"):
        run(kernel(body.replace("[%r2];", "[%r2+16];"), declarations=".shared .align 16 .b8 words[512];"), matrices)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", ["tf32", "bf16", "f16"])
def test_wgmma(kind: str, order: str) -> None:
    """64 x 8 of a row of 128 bytes: two steps of 32 bytes of k, from shared memory that is swizzled by hand."""
    width, k = (4, 8) if kind == "tf32" else (2, 16)
    a, b = RNG.standard_normal((64, 128 // width)).astype(np.float32), RNG.standard_normal((8, 128 // width)).astype(np.float32)
    rows = np.concatenate([bits_of(a, kind), bits_of(b, kind)]).view(np.uint8).reshape(72, 8, 16)
    chunk = np.arange(8)
    swizzled = np.stack([row[chunk ^ (at & 7)] for at, row in enumerate(rows)])
    mma = f"wgmma.mma_async.sync.aligned.m64n8k{k}.f32.{kind}.{kind} {{%f1, %f2, %f3, %f4}}"
    tail = "1, 1" if kind == "tf32" else "1, 1, 0, 0"
    body = f"""
        mov.u32 %r1, words; mov.u32 %r3, %r0;
        COPY: setp.ge.u32 %p1, %r3, 576; @%p1 bra COPIED; mad.wide.u32 %d1, %r3, 16, %d0; mad.lo.u32 %r2, %r3, 16, %r1;
        ld.global.v4.b32 {{%r4, %r5, %r6, %r7}}, [%d1]; st.shared.v4.b32 [%r2], {{%r4, %r5, %r6, %r7}}; add.u32 %r3, %r3, 128; bra COPY;
        COPIED: bar.sync 0; mov.u64 %d2, {0x4000004000010000}; shr.u32 %r2, %r1, 4; cvt.u64.u32 %d3, %r2; or.b64 %d3, %d3, %d2;
        add.u64 %d4, %d3, {64 * 128 // 16}; setp.ne.u32 %p2, 0, 0; setp.eq.u32 %p3, 0, 0;
        wgmma.fence.sync.aligned; {mma}, %d3, %d4, %p2, {tail}; add.u64 %d3, %d3, 2; add.u64 %d4, %d4, 2; {mma}, %d3, %d4, %p3, {tail};
        wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;
        ld.param.u64 %d5, [out]; mad.wide.u32 %d5, %r0, 16, %d5; st.global.v4.f32 [%d5], {{%f1, %f2, %f3, %f4}};
    """
    program = kernel(body, "u64 from, u64 out", ".shared .align 1024 .b8 words[9216];")
    _, result = run(program, swizzled, np.zeros((128, 4), np.float32), block=128, order=order)
    lane = np.arange(128)
    d = np.zeros((64, 8))
    for i in range(4):
        d[lane // 32 * 16 + lane % 32 // 4 + 8 * (i >> 1), 2 * (lane % 4) + (i & 1)] = result[:, i]
    used = slice(0, 2 * k)
    np.testing.assert_allclose(d, rounded(a[:, used], kind) @ rounded(b[:, used], kind).T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("order", ORDERS)
def test_a_tile_by_tma_and_mbarrier(order: str) -> None:
    """One thread asks for a tile that hangs over the edges of the matrix; 64 threads wait for it."""
    body = """
        mov.u32 %r1, words; mov.u32 %r2, barrier; setp.eq.u32 %p1, %r0, 0; @!%p1 bra WAIT;
        mbarrier.init.shared.b64 [%r2], 1; ld.param.u64 %d1, [map]; mov.u32 %r3, -2; mov.u32 %r4, 6;
        mbarrier.arrive.expect_tx.shared.b64 _, [%r2], 1024;
        cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%r1], [%d1, {%r3, %r4}], [%r2];
        WAIT: bar.sync 0;
        AGAIN: mbarrier.try_wait.parity.shared.b64 %p2, [%r2], 0; @!%p2 bra AGAIN;
        mad.lo.u32 %r5, %r0, 16, %r1; ld.shared.v4.b32 {%r6, %r7, %r8, %r9}, [%r5];
        mad.wide.u32 %d2, %r0, 16, %d0; st.global.v4.b32 [%d2], {%r6, %r7, %r8, %r9};
    """
    program = kernel(body, "u64 out, u64 map", ".shared .align 1024 .b8 words[1024]; .shared .align 8 .b64 barrier;")
    matrix = RNG.standard_normal((10, 20)).astype(np.float32)
    memory = Memory(1 << 20)
    source, out = memory.allocate(matrix.nbytes), memory.allocate(1024)
    memory.write(source, matrix)
    memory.tensor_maps[4096] = TensorMap(source, (10, 20), (8, 32), np.float32)
    launch(program, [out, 4096], 1, 64, memory=memory, order=order)
    expected = np.zeros((8, 32), np.float32)
    expected[:4, 2:22] = matrix[6:]
    chunks = memory.read(out, (8, 8, 4), np.float32)
    chunk = np.arange(8)
    result = np.stack([row[chunk ^ at] for at, row in enumerate(chunks)]).reshape(8, 32)
    np.testing.assert_array_equal(result, expected)
