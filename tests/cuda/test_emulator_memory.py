"""The PTX emulator's memory: every fault, poison, cp.async, atomics, 64-bit addresses, variables and parameters."""

from __future__ import annotations

import numpy as np
import pytest

from .emulator import POISON, Fault, Memory, Program, launch
from .snippets import ORDERS, kernel, run

# %d1 = address of the thread's float of the array
MINE = "mad.wide.u32 %d1, %r0, 4, %d0;"
SHARED = ".extern .shared .align 16 .b8 dynamic[]; .shared .align 4 .b8 fixed[512];"
FLOATS = np.arange(32, dtype=np.float32)


def write_at(text: str, size: int = 32, block: int = 32) -> list[np.ndarray]:
    return run(kernel(f"{MINE} {text}"), np.zeros(size, np.float32), block=block)


# Global memory ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, message",
    [
        ("st.global.f32 [%d1+4], 0f3F800000;", r"out of bounds: 4 bytes of global memory at .*thread 31 of block \(0, 0, 0\), one of 1"),
        ("st.global.f32 [%d1+-4], 0f3F800000;", "out of bounds.*thread 0 of"),
        ("ld.global.f32 %f1, [%d1+128];", "out of bounds.*one of 32"),
        ("ld.global.nc.v4.f32 {%f1, %f2, %f3, %f4}, [%d1];", "misaligned: 16 bytes.*thread 1 of"),
        ("ld.global.u16 %h1, [%d1+1];", "misaligned: 2 bytes"),
        ("st.global.v2.u32 [%d1], {%r0, %r0};", "misaligned: 8 bytes"),
        ("cvt.u32.u64 %r1, %d1; cvt.u64.u32 %d1, %r1; ld.global.f32 %f1, [%d1];", "out of bounds"),  # the address cut to 32 bits
        ("mov.u64 %d2, 0; ld.global.f32 %f1, [%d2];", "out of bounds"),
        ("ld.f32 %f1, [%d1+512];", "out of bounds"),
    ],
)
def test_bad_addresses(text: str, message: str) -> None:
    with pytest.raises(Fault, match=message) as caught:
        write_at(text)
    assert "at PTX line" in str(caught.value)
    assert text.split("; ")[-1].rstrip(";") in str(caught.value)


def test_a_guard_keeps_bad_addresses_away() -> None:
    (result,) = write_at("setp.lt.u32 %p1, %r0, 31; @%p1 st.global.f32 [%d1+4], 0f3F800000;")
    np.testing.assert_array_equal(result, [0] + [1] * 31)
    with pytest.raises(Fault, match="thread 31"):
        write_at("setp.lt.u32 %p1, %r0, 31; @!%p1 st.global.f32 [%d1+4], 0f3F800000;")


def test_allocations_are_apart_and_end() -> None:
    memory = Memory(1 << 20)
    a, b = memory.allocate(100), memory.allocate(0)
    assert a % 256 == 0 and b % 256 == 0 and b - a >= 356
    assert memory.view(a, 100).shape == (100,)
    with pytest.raises(Fault):
        memory.view(a, 101)
    memory.view(b, 0)
    with pytest.raises(Fault):
        memory.view(b, 1)
    memory.free(a)
    with pytest.raises(Fault):
        memory.view(a, 1)
    with pytest.raises(Fault):
        memory.free(a)
    with pytest.raises(Fault):
        memory.free(b + 256)
    with pytest.raises(MemoryError):
        memory.allocate(1 << 20)


def test_freed_memory_is_used_again_and_poisoned() -> None:
    memory = Memory(1 << 16)
    for _ in range(200):
        address = memory.allocate(5000)
        assert (memory.view(address, 5000) == POISON).all()
        memory.view(address, 5000)[...] = 0
        memory.free(address)


def test_a_view_stays_where_it_is() -> None:
    memory = Memory(1 << 20)
    address = memory.allocate(128)
    view = memory.view(address, 128).view(np.float32)
    view[...] = 7
    for _ in range(20):
        memory.allocate(1000)
    launch(kernel(f"{MINE} st.global.f32 [%d1], 0f40000000;"), [address], 1, 16, memory=memory)
    np.testing.assert_array_equal(view, [2] * 16 + [7] * 16)
    np.testing.assert_array_equal(memory.read(address, (2, 16), np.float32), view.reshape(2, 16))


@pytest.mark.parametrize("kind, poison", [("f4", np.nan), ("f8", np.nan), ("f2", np.nan), ("i1", -1), ("i8", -1)])
def test_memory_that_was_never_written_is_poison(kind: str, poison: float) -> None:
    memory = Memory(1 << 16)
    address = memory.allocate(64)
    np.testing.assert_array_equal(memory.read(address, (64 // np.dtype(kind).itemsize,), kind), np.array(poison, kind))


def test_offsets_beyond_32_bits() -> None:
    """Elements on both sides of 2**31 of an array of bytes, most of which are never touched."""
    count = 2**31 + 4096
    memory = Memory(count + 4096)
    address = memory.allocate(count, poison=False)
    text = "{} add.s64 %d1, %d0, %d2; mov.u16 %h1, 5; st.global.u8 [%d1], %h1;"
    launch(kernel(text.format("mov.u32 %r1, 0x80000000; add.u32 %r1, %r1, %r0; cvt.u64.u32 %d2, %r1;")), [address], 1, 32, memory=memory)
    start = memory.view(address, count)
    assert (start[2**31 : 2**31 + 32] == 5).all() and start[2**31 + 32] == 0 and start[0] == 0
    with pytest.raises(Fault, match="out of bounds"):  # the same offset as a signed 32-bit number
        launch(kernel(text.format("mov.u32 %r1, 0x80000000; cvt.s64.s32 %d2, %r1;")), [address], 1, 32, memory=memory)


def test_a_read_only_load_of_what_was_stored() -> None:
    load = "mov.u32 %r2, {}; mad.wide.u32 %d2, %r2, 4, %d0; ld.global{}.f32 %f1, [%d2];"
    store = "st.global.f32 [%d1], 0f3F800000;"
    write_at(f"{load.format(3, '.nc')} {store}", 64)
    write_at(f"{store} {load.format(3, '')}", 64)
    write_at(f"{store} {load.format(40, '.nc')}", 64)
    with pytest.raises(Fault, match="stored what is loaded through the read-only cache"):
        write_at(f"{store} {load.format(3, '.nc')}", 64)


def test_every_width() -> None:
    source = np.arange(256, dtype=np.uint8)
    text = """
        mad.wide.u32 %d2, %r0, 16, %d0; ld.param.u64 %d3, [to]; mad.wide.u32 %d3, %r0, 16, %d3;
        ld.global.u8 %h1, [%d2]; ld.global.s8 %h2, [%d2+1]; ld.global.u16 %h3, [%d2+2];
        ld.global.b32 %r1, [%d2+4]; ld.global.b64 %d4, [%d2+8];
        st.global.u8 [%d3], %h1; st.global.b8 [%d3+1], %h2; st.global.u16 [%d3+2], %h3;
        st.global.u32 [%d3+4], %r1; st.global.u64 [%d3+8], %d4;
    """
    _, copied = run(kernel(text, "u64 from, u64 to"), source, np.zeros_like(source), block=16)
    np.testing.assert_array_equal(copied, source)
    text = """
        mad.wide.u32 %d2, %r0, 16, %d0; ld.param.u64 %d3, [to]; mad.wide.u32 %d3, %r0, 16, %d3;
        ld.global.v4.u8 {%h1, %h2, %h3, %h4}, [%d2]; ld.global.v2.b16 {%h5, %h6}, [%d2+4]; ld.global.v2.f32 {%f1, %f2}, [%d2+8];
        st.global.v4.u8 [%d3], {%h1, %h2, %h3, %h4}; st.global.v2.b16 [%d3+4], {%h5, %h6}; st.global.v2.f32 [%d3+8], {%f1, %f2};
        ld.global.v2.b64 {%d4, %d5}, [%d3]; st.global.v2.b64 [%d3], {%d4, %d5};
    """
    _, copied = run(kernel(text, "u64 from, u64 to"), source, np.zeros_like(source), block=16)
    np.testing.assert_array_equal(copied, source)


def test_a_signed_load_is_extended() -> None:
    text = """
        cvt.u64.u32 %d1, %r0; add.s64 %d1, %d0, %d1; ld.global.s8 %r1, [%d1]; ld.global.u8 %r2, [%d1];
        ld.param.u64 %d2, [to]; mad.wide.u32 %d2, %r0, 8, %d2; st.global.v2.u32 [%d2], {%r1, %r2};
    """
    source = np.array([0, 1, 127, -128, -1], np.int8)
    _, result = run(kernel(text, "u64 from, u64 to"), source, np.zeros((5, 2), np.int32), block=5)
    np.testing.assert_array_equal(result, [[x, x % 256] for x in source.tolist()])


# Shared and local memory -----------------------------------------------------------------------------------------------------------------


def test_shared_memory_starts_as_poison() -> None:
    body = f"{MINE} mov.u32 %r1, fixed; mad.lo.u32 %r1, %r0, 4, %r1; ld.shared.f32 %f1, [%r1]; st.global.f32 [%d1], %f1;"
    (result,) = run(kernel(body, declarations=SHARED), FLOATS)
    assert np.isnan(result).all()


@pytest.mark.parametrize("shared_bytes, fine", [(128, True), (124, False), (0, False)])
def test_dynamic_shared_memory_follows_the_static(shared_bytes: int, fine: bool) -> None:
    body = f"""
        {MINE} ld.global.f32 %f1, [%d1];
        mov.u64 %d2, dynamic; cvta.shared.u64 %d3, %d2; mad.wide.u32 %d3, %r0, 4, %d3; st.f32 [%d3], %f1;
        cvta.to.shared.u64 %d4, %d3; cvt.u32.u64 %r1, %d4; ld.shared.f32 %f2, [%r1]; add.f32 %f2, %f2, %f2; st.global.f32 [%d1], %f2;
        mov.u32 %r2, fixed; ld.shared.f32 %f3, [%r2+508];
    """
    program = kernel(body, declarations=SHARED)
    if fine:
        np.testing.assert_array_equal(run(program, FLOATS, shared_bytes=shared_bytes)[0], 2 * FLOATS)
    else:
        with pytest.raises(Fault, match=r"bytes of .* of shared memory"):
            run(program, FLOATS, shared_bytes=shared_bytes)


def test_blocks_have_their_own_shared_memory() -> None:
    """Each of 70 blocks, several of which run at once, leaves its number and adds what another would have left."""
    body = """
        mov.u32 %r1, %ctaid.x; mov.u32 %r2, fixed; setp.ne.u32 %p1, %r0, 0; @!%p1 st.shared.u32 [%r2], %r1; bar.sync 0;
        ld.shared.u32 %r3, [%r2]; mad.lo.u32 %r4, %r1, 64, %r0; mad.wide.u32 %d1, %r4, 4, %d0; st.global.u32 [%d1], %r3;
    """
    for order in ORDERS:
        (result,) = run(kernel(body, declarations=SHARED), np.zeros((70, 64), np.uint32), grid=70, block=64, order=order)
        np.testing.assert_array_equal(result, np.arange(70)[:, None] + np.zeros(64, int))


def test_local_memory_is_a_threads_own() -> None:
    body = f"""
        .local .align 16 .b8 frame[32];
        {MINE} ld.global.f32 %f1, [%d1];
        mov.u64 %d2, frame; cvta.local.u64 %d3, %d2; st.f32 [%d3+4], %f1; st.local.f32 [%d2], %f1;
        ld.local.v2.f32 {{%f2, %f3}}, [%d2]; add.f32 %f2, %f2, %f3; st.global.f32 [%d1], %f2;
    """
    np.testing.assert_array_equal(run(kernel(body), FLOATS)[0], 2 * FLOATS)
    with pytest.raises(Fault, match="4 bytes of 32 of local memory"):
        run(kernel(body.replace("[%d3+4]", "[%d3+32]")), FLOATS)


# cp.async --------------------------------------------------------------------------------------------------------------------------------

COPY = """
    mad.wide.u32 %d1, %r0, 16, %d0; ld.param.u64 %d2, [out]; mad.wide.u32 %d2, %r0, 16, %d2;
    mov.u32 %r1, dynamic; mad.lo.u32 %r2, %r0, 16, %r1;
"""
ASIDE = "ld.shared.v4.f32 {%f1, %f2, %f3, %f4}, [%r2]; st.global.v4.f32 [%d2], {%f1, %f2, %f3, %f4};"


def copied(text: str, block: int = 32, order: str = "forward") -> np.ndarray:
    source = np.arange(4 * block, dtype=np.float32)
    program = kernel(f"{COPY} {text}", "u64 from, u64 out", SHARED)
    return run(program, source, np.zeros((block, 4), np.float32), block=block, shared_bytes=32 * block, order=order)[1]


@pytest.mark.parametrize(
    "wait, arrived",
    [
        ("cp.async.wait_group 0;", True),
        ("cp.async.wait_all;", True),
        ("cp.async.wait_group 1;", False),
        ("", False),
        ("cp.async.commit_group; cp.async.wait_group 1;", True),
        ("cp.async.commit_group; cp.async.commit_group; cp.async.wait_group 3;", False),
    ],
)
def test_copies_are_poison_until_waited_for(wait: str, arrived: bool) -> None:
    result = copied(f"cp.async.cg.shared.global [%r2], [%d1], 16; cp.async.commit_group; {wait} {ASIDE}")
    assert np.array_equal(result.ravel(), np.arange(128)) if arrived else np.isnan(result).all()


def test_copies_that_were_not_committed_arrive_only_with_wait_all() -> None:
    assert np.isnan(copied(f"cp.async.cg.shared.global [%r2], [%d1], 16; cp.async.wait_group 0; {ASIDE}")).all()
    assert not np.isnan(copied(f"cp.async.cg.shared.global [%r2], [%d1], 16; cp.async.wait_all; {ASIDE}")).any()


def test_groups_belong_to_the_thread_that_commits() -> None:
    """Half the threads commit a second, empty group: for them wait_group 1 suffices."""
    text = """
        cp.async.cg.shared.global [%r2], [%d1], 16; cp.async.commit_group;
        setp.lt.u32 %p1, %r0, 16; @%p1 cp.async.commit_group; cp.async.wait_group 1;
    """
    np.testing.assert_array_equal(np.isnan(copied(text + ASIDE)).all(1), np.arange(32) >= 16)


@pytest.mark.parametrize("size", [0, 1, 4, 7, 16])
def test_copies_are_filled_with_zeros(size: int) -> None:
    result = copied(f"mov.u32 %r3, {size}; cp.async.cg.shared.global [%r2], [%d1], 16, %r3; cp.async.wait_all; {ASIDE}")
    expected = np.arange(128, dtype=np.float32).reshape(32, 4).view(np.uint8).copy()
    expected[:, size:] = 0
    np.testing.assert_array_equal(result.view(np.uint8), expected)


@pytest.mark.parametrize(
    "text, message",
    [
        ("cp.async.cg.shared.global [%r2], [%d1+16], 16;", "out of bounds: cp.async.*thread 31"),
        ("cp.async.cg.shared.global [%r2], [%d1+8], 16;", "misaligned: cp.async"),
        ("cp.async.cg.shared.global [%r2+8], [%d1], 16;", "misaligned: 16 bytes"),
        ("cp.async.cg.shared.global [%r2+1024], [%d1], 16;", "out of bounds: 16 bytes of .* shared"),
        ("mov.u32 %r3, 17; cp.async.cg.shared.global [%r2], [%d1], 16, %r3;", "reads more"),
    ],
)
def test_bad_copies(text: str, message: str) -> None:
    with pytest.raises(Fault, match=message):
        copied(text)


def test_a_copy_of_nothing_reads_nothing() -> None:
    copied("add.s64 %d1, %d1, 1048576; cp.async.ca.shared.global [%r2], [%d1], 4, 0; cp.async.wait_all;")


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("barrier", ["bar.sync 0;", ""])
def test_another_warps_copy_needs_a_barrier(order: str, barrier: str) -> None:
    """Each thread reads what a thread of the other warp has copied and waited for."""
    other = "xor.b32 %r3, %r0, 32; mad.lo.u32 %r2, %r3, 16, %r1;"
    result = copied(f"cp.async.cg.shared.global [%r2], [%d1], 16; cp.async.wait_all; {barrier} {other} {ASIDE}", 64, order)
    right = np.array_equal(result, np.roll(np.arange(256).reshape(64, 4), 32, 0))
    assert right if barrier or order == "together" else np.isnan(result).any()


# Atomics ---------------------------------------------------------------------------------------------------------------------------------


def test_atomics() -> None:
    text = f"""
        atom.global.add.u32 %r1, [%d0], 3; {MINE} atom.global.max.s32 %r2, [%d0+4], %r0; red.global.add.f32 [%d0+8], 0f3F800000;
        atom.global.cas.b32 %r3, [%d0+12], 0, %r1; atom.global.exch.b32 %r4, [%d0+16], %r0; st.global.u32 [%d1+20], %r1;
    """
    (result,) = run(kernel(text), np.zeros(37, np.uint32))
    assert result[:2].tolist() == [96, 31] and result[2:3].view(np.float32)[0] == 32 and result[4] == 31
    assert result[3] == 3  # the second lane's: the first one found 0 and left 0
    np.testing.assert_array_equal(np.sort(result[5:]), np.arange(0, 96, 3))


# Variables and parameters ----------------------------------------------------------------------------------------------------------------


def test_tables_of_constants() -> None:
    declarations = ".const .align 4 .b8 table[8] = {1, 0, 0, 0, 255, 1}; .global .align 4 .u32 other[2] = {7, 0x10};"
    loads = "ld.const.u32 %r1, [table+4]; mov.u64 %d2, other; ld.global.u32 %r2, [%d2+4];"
    body = f"{MINE} {loads} add.u32 %r1, %r1, %r2; st.global.u32 [%d1], %r1;"
    (result,) = run(kernel(body, declarations=declarations), np.zeros(32, np.uint32))
    assert (result == 511 + 16).all()


def test_parameters_of_every_type() -> None:
    parameters = "u64 out, u8 a, s16 b, s32 c, f32 d, f64 e, u64 f"
    body = """
        ld.param.u8 %h1, [a]; cvt.u32.u16 %r1, %h1; ld.param.s16 %h2, [b]; cvt.s32.s16 %r2, %h2; ld.param.u32 %r3, [c];
        ld.param.f32 %f1, [d]; ld.param.f64 %g1, [e]; ld.param.u64 %d1, [f];
        st.global.u32 [%d0], %r1; st.global.u32 [%d0+4], %r2; st.global.u32 [%d0+8], %r3; st.global.f32 [%d0+12], %f1;
        st.global.f64 [%d0+16], %g1; st.global.u64 [%d0+24], %d1;
    """
    program = kernel(body, parameters)
    assert program.name == "snippet" and program.parameters[:3] == [("out", "u64", 8), ("a", "u8", 1), ("b", "s16", 2)]
    numbers = (200, -3, -70000, 0.1, 0.2, 2**63 + 1)
    (result,) = run(program, np.zeros(32, np.uint8), numbers=numbers, block=1)
    assert result[:12].view(np.int32).tolist() == [200, -3, -70000]
    assert result[12:16].view(np.float32)[0] == np.float32(0.1) and result[16:24].view(np.float64)[0] == 0.2
    assert result[24:].view(np.uint64)[0] == 2**63 + 1
    with pytest.raises(Fault, match="does not fit"):
        run(program, np.zeros(32, np.uint8), numbers=(256, *numbers[1:]))
    with pytest.raises(Fault, match="6 values for 7"):
        run(program, np.zeros(32, np.uint8), numbers=numbers[:5])


def test_launch_limits() -> None:
    program = Program(".entry k(.param .u64 a) .maxntid 64, 1, 1 { ret; }")
    memory = Memory(4096)
    launch(program, [0], 3, 64, memory=memory)
    for grid, block in (((1,), (65,)), ((1,), (0,)), ((1, 65536), (1,)), ((0,), (1,))):
        with pytest.raises(Fault):
            launch(program, [0], grid, block, memory=memory)
    with pytest.raises(ValueError, match="order"):
        launch(program, [0], 1, 1, memory=memory, order="sideways")
