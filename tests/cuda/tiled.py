"""A small tiled matrix product with double-buffered cp.async: what the tests of the emulator's power compile and then break."""

from __future__ import annotations

import numpy as np
from numba import cuda
from numba.cuda import types

from numbaconv.cuda import ptx
from numbaconv.cuda.launch import Kernel

from .emulator import Memory, Program, launch

i32, u32, u64 = types.int32, types.uint32, types.uint64
TILE, DEPTH, THREADS = 32, 8, 128  # cells of a side, products of a step
copy16, wait_one, store4, load_shared, load_shared4 = (
    ptx.copy_async(16),
    ptx.wait_async(1),
    ptx.store("float32", 4),
    ptx.load_shared("float32"),
    ptx.load_shared("float32", 4),
)


def _product(a, b, c, m, n, k):  # type: ignore[no-untyped-def]
    """c = a b of float32: a is (m, k), b is (k, n), n and k multiples of 4.  A thread has 2 rows of 4 cells.

    A stage holds 32 x 8 of a and 8 x 32 of b; the lower half of the threads copies the one, the upper half the other.
    """
    shared = ptx.shared_address(cuda.shared.array(2 * 2 * 256, "float32", alignment=16))
    thread = i32(cuda.threadIdx.x)
    top, left = i32(i32(cuda.blockIdx.x) * i32(32)), i32(i32(cuda.blockIdx.y) * i32(32))
    row, column = i32(i32(thread >> i32(3)) * i32(2)), i32(i32(thread & i32(7)) * i32(4))
    part = i32(thread & i32(63))
    sums = cuda.local.array(8, "float32")
    for i in range(8):
        sums[i] = types.float32(0)
    steps = i32(i32(k + i32(7)) // i32(8))
    for step in range(-1, steps):
        following = i32(i32(step) + i32(1))
        if following < steps:
            stage = u32(shared + u32(u32(following & i32(1)) * u32(2048)))
            if thread < i32(64):
                line, at = i32(top + i32(part >> i32(1))), i32(i32(following * i32(8)) + i32(i32(part & i32(1)) * i32(4)))
                inside = line < m and at < k
                offset = i32(i32(line * k) + at) if inside else i32(0)
                copy16(u32(stage + u32(part * i32(16))), u64(a + u64(u64(u32(offset)) << u64(2))), u32(16) if inside else u32(0))
            else:
                line, at = i32(i32(following * i32(8)) + i32(part >> i32(3))), i32(left + i32(i32(part & i32(7)) * i32(4)))
                inside = line < k and at < n
                offset = i32(i32(line * n) + at) if inside else i32(0)
                copy16(
                    u32(stage + u32(i32(1024) + i32(part * i32(16)))),
                    u64(b + u64(u64(u32(offset)) << u64(2))),
                    u32(16) if inside else u32(0),
                )
        ptx.commit_async()
        if step >= 0:
            wait_one()
            cuda.syncthreads()
            stage = u32(shared + u32(u32(i32(step) & i32(1)) * u32(2048)))
            for i in range(8):
                first = load_shared(u32(stage + u32(i32(row * i32(32)) + i32(i * 4))))
                second = load_shared(u32(stage + u32(i32(row * i32(32)) + i32(32 + i * 4))))
                right = load_shared4(u32(stage + u32(i32(1024 + i * 128) + i32(column * i32(4)))))
                for j in range(4):
                    sums[j] += first * right[j]
                    sums[4 + j] += second * right[j]
            cuda.syncthreads()
    for i in range(2):
        line, at = i32(top + row + i32(i)), i32(left + column)
        if line < m and at < n:
            store4(u64(c + u64(u64(u32(i32(line * n) + at)) << u64(2))), (sums[4 * i], sums[4 * i + 1], sums[4 * i + 2], sums[4 * i + 3]))


PRODUCT = Kernel("test_tiled_product", _product, (u64,) * 3 + (i32,) * 3, THREADS)


def multiply(program: Program, a: np.ndarray, b: np.ndarray, order: str) -> np.ndarray:
    """The kernel's result, NaN where it wrote nothing."""
    (m, k), n = a.shape, b.shape[1]
    memory = Memory(1 << 20)
    pointers = [memory.allocate(nbytes) for nbytes in (a.nbytes, b.nbytes, 4 * m * n)]
    for pointer, array in zip(pointers, (a, b)):
        memory.write(pointer, array)
    launch(program, [*pointers, m, n, k], (-(-m // TILE), -(-n // TILE)), THREADS, memory=memory, order=order)
    return memory.read(pointers[2], (m, n), np.float32)
