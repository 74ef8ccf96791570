"""The PTX emulator's control flow: divergence, loops, barriers, the orders of warps, what lanes of a warp do together."""

from __future__ import annotations

import numpy as np
import pytest

from .emulator import Fault, Program, Unsupported, machine
from .snippets import ORDERS, kernel, run

MINE = "mad.wide.u32 %d1, %r0, 4, %d0;"
SHARED = ".shared .align 4 .b8 words[1024];"
STORE = "mad.wide.u32 %d1, %r0, 4, %d0; st.global.u32 [%d1], %r1;"


def words(body: str, block: int = 64, order: str = "forward", declarations: str = SHARED) -> np.ndarray:
    return run(kernel(body, declarations=declarations), np.zeros(block, np.uint32), block=block, order=order)[0]


@pytest.mark.parametrize("order", ORDERS)
def test_branches_diverge_and_meet(order: str) -> None:
    body = f"""
        and.b32 %r2, %r0, 1; setp.eq.u32 %p1, %r2, 0; @%p1 bra EVEN;
        setp.gt.u32 %p2, %r0, 20; @%p2 bra LARGE;
        mov.u32 %r1, 1; bra.uni DONE;
        LARGE: mov.u32 %r1, 2; bra DONE;
        EVEN: mov.u32 %r1, 3;
        DONE: add.u32 %r1, %r1, 10; {STORE}
    """
    lane = np.arange(64)
    np.testing.assert_array_equal(words(body, order=order), 10 + np.where(lane % 2 == 0, 3, np.where(lane > 20, 2, 1)))


@pytest.mark.parametrize("block", [1, 5, 32, 45, 256])
def test_loops_of_different_lengths(block: int) -> None:
    """Thread n sums 0 .. n - 1, skips odd numbers by ``continue`` and stops at 100 by ``break``."""
    body = f"""
        mov.u32 %r1, 0; mov.u32 %r2, 0;
        TOP: setp.ge.u32 %p1, %r2, %r0; @%p1 bra END;
        and.b32 %r3, %r2, 1; setp.eq.u32 %p2, %r3, 1; @%p2 bra NEXT;
        add.u32 %r1, %r1, %r2; setp.gt.u32 %p3, %r1, 100; @%p3 bra END;
        NEXT: add.u32 %r2, %r2, 1; bra TOP;
        END: {STORE}
    """

    def expected(n: int) -> int:
        total = 0
        for k in range(0, n, 2):
            total += k
            if total > 100:
                break
        return total

    np.testing.assert_array_equal(words(body, block), [expected(n) for n in range(block)])


def test_a_guard_leaves_the_other_lanes_alone() -> None:
    body = f"mov.u32 %r1, 5; setp.lt.u32 %p1, %r0, 7; @%p1 add.u32 %r1, %r1, %r0; @!%p1 shl.b32 %r1, %r1, %r1; {STORE}"
    lane = np.arange(64)
    np.testing.assert_array_equal(words(body), np.where(lane < 7, 5 + lane, 5 << 5))


def test_some_leave_early() -> None:
    body = f"mov.u32 %r1, 9; setp.gt.u32 %p1, %r0, 40; @%p1 ret; setp.gt.u32 %p1, %r0, 35; @%p1 exit; bar.sync 0; {STORE}"
    np.testing.assert_array_equal(words(body), np.where(np.arange(64) > 35, 0, 9))


def test_a_table_of_branches() -> None:
    body = f"""
        and.b32 %r2, %r0, 3; setp.eq.u32 %p1, %r2, 3; mov.u32 %r1, 100; @%p1 bra DONE;
        TABLE: .branchtargets A, B, C;
        brx.idx %r2, TABLE;
        A: mov.u32 %r1, 1; bra DONE;
        B: mov.u32 %r1, 2; bra DONE;
        C: mov.u32 %r1, 3;
        DONE: {STORE}
    """
    np.testing.assert_array_equal(words(body), np.resize([1, 2, 3, 100], 64))
    with pytest.raises(Fault, match=r"brx\.idx 3 of 3"):
        words(body.replace("@%p1 bra DONE;", ""))


def test_scopes_of_inline_ptx() -> None:
    piece = "{{ .reg .pred p; .reg .b32 t; setp.gt.u32 p, %r0, {0}; mov.u32 t, {1}; @!p bra SKIP; add.u32 %r1, %r1, t; SKIP: }}"
    body = f"mov.u32 %r1, 0; {piece.format(10, 1)} {piece.format(20, 5)} {STORE}"
    lane = np.arange(64)
    np.testing.assert_array_equal(words(body), 1 * (lane > 10) + 5 * (lane > 20))


def test_special_registers() -> None:
    body = """
        mov.u32 %r1, %tid.y; mov.u32 %r2, %ntid.x; mov.u32 %r3, %tid.x; mad.lo.u32 %r4, %r1, %r2, %r3;
        mov.u32 %r5, %ctaid.y; mov.u32 %r6, %nctaid.x; mov.u32 %r7, %ctaid.x; mad.lo.u32 %r8, %r5, %r6, %r7;
        mad.lo.u32 %r9, %r8, 30, %r4; mad.wide.u32 %d1, %r9, 16, %d0;
        mov.u32 %r10, %laneid; mov.u32 %r11, %warpid; shl.b32 %r12, %r8, 8; add.u32 %r12, %r12, %r4; mov.u32 %r13, %lanemask_lt;
        st.global.v4.u32 [%d1], {%r10, %r11, %r12, %r13};
    """
    for order in ORDERS:
        (result,) = run(kernel(body), np.zeros((6, 30, 4), np.uint32), grid=(3, 2), block=(6, 5), order=order)
        thread = np.arange(30)
        for block in range(6):
            np.testing.assert_array_equal(result[block, :, 0], thread % 32)
            np.testing.assert_array_equal(result[block, :, 1], 0)
            np.testing.assert_array_equal(result[block, :, 2], block * 256 + thread)
            np.testing.assert_array_equal(result[block, :, 3], (1 << thread) - 1)


def test_trap() -> None:
    with pytest.raises(Fault, match=r"trap.*thread 8 of"):
        words("setp.gt.u32 %p1, %r0, 7; @%p1 trap;")


def test_an_endless_loop_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "ENDLESS", 1000)
    with pytest.raises(Fault, match="does not end"):
        words("TOP: add.u32 %r1, %r1, 1; bra TOP;")


# Barriers --------------------------------------------------------------------------------------------------------------------------------

REVERSED = f"""
    mov.u32 %r2, words; mad.lo.u32 %r3, %r0, 4, %r2; st.shared.u32 [%r3], %r0;
    bar.sync 0;
    mov.u32 %r4, %ntid.x; sub.u32 %r4, %r4, 1; sub.u32 %r4, %r4, %r0; mad.lo.u32 %r3, %r4, 4, %r2; ld.shared.u32 %r1, [%r3]; {STORE}
"""


@pytest.mark.parametrize("order", ORDERS)
def test_a_barrier_makes_shared_memory_visible(order: str) -> None:
    np.testing.assert_array_equal(words(REVERSED, 256, order), np.arange(256)[::-1])


def test_a_missing_barrier_shows() -> None:
    """In every order in which warps run one after the other."""
    body = REVERSED.replace("bar.sync 0;", "")
    for order in ORDERS:
        assert np.array_equal(words(body, 256, order), np.arange(256)[::-1]) == (order == "together")


def test_threads_of_a_warp_need_a_barrier_too() -> None:
    """Each thread reads what its neighbour has written: warps in step hide that nothing orders the two."""
    body = REVERSED.replace("mov.u32 %r4, %ntid.x; sub.u32 %r4, %r4, 1; sub.u32 %r4, %r4, %r0;", "xor.b32 %r4, %r0, 1;")
    expected = np.arange(64) ^ 1
    for order in (*ORDERS, "lanes"):
        np.testing.assert_array_equal(words(body, 64, order), expected)
        np.testing.assert_array_equal(words(body.replace("bar.sync 0;", "bar.warp.sync -1;"), 64, order), expected)
        assert np.array_equal(words(body.replace("bar.sync 0;", ""), 64, order), expected) == (order != "lanes")


def test_a_warp_barrier_that_some_lanes_never_reach() -> None:
    text = "setp.gt.u32 %p1, %r0, 40; @%p1 bra END; bar.warp.sync {}; END: bar.sync 0;"
    with pytest.raises(Fault, match="wait for the others forever"):
        words(text.format(-1))
    words("setp.gt.u32 %p1, %r0, 15; @%p1 bra END; bar.warp.sync 0xFFFF; END: ret;", 32)


def test_a_missing_second_barrier_shows_in_one_order() -> None:
    """Write, barrier, read, write again: without a barrier after the read, a warp overwrites what another has yet to read."""
    again = "bar.sync 0; st.shared.u32 [%r5], 1000;"
    body = REVERSED.replace("st.shared.u32 [%r3], %r0;", "mov.u32 %r5, %r3; st.shared.u32 [%r3], %r0;").replace(
        "ld.shared.u32 %r1, [%r3];", f"ld.shared.u32 %r1, [%r3]; {again}"
    )
    for order in ORDERS:
        np.testing.assert_array_equal(words(body, 256, order), np.arange(256)[::-1])
    broken = body.replace(again, again.replace("bar.sync 0;", ""))
    assert any(not np.array_equal(words(broken, 256, order), np.arange(256)[::-1]) for order in ORDERS)


@pytest.mark.parametrize("order", ORDERS)
def test_a_barrier_that_some_threads_never_reach(order: str) -> None:
    with pytest.raises(Fault, match=r"(32|64) of the 96 live threads of block \(0, 0, 0\) wait for the others forever"):
        words("setp.gt.u32 %p1, %r0, 31; @%p1 bra AWAY; bar.sync 0; ret; AWAY: bar.sync 1;", 96, order)


def test_a_barrier_in_a_diverged_warp() -> None:
    """All threads arrive at barrier 0, but not the whole warp at the same instruction."""
    with pytest.raises(Fault, match="the warp is not whole"):
        words("and.b32 %r2, %r0, 1; setp.eq.u32 %p1, %r2, 1; @%p1 bra ODD; bar.sync 0; ret; ODD: bar.sync 0;")


def test_warps_may_arrive_at_different_instructions() -> None:
    body = f"mov.u32 %r1, 4; setp.gt.u32 %p1, %r0, 31; @%p1 bra UPPER; bar.sync 0; bra DONE; UPPER: bar.sync 0; DONE: {STORE}"
    assert (words(body) == 4).all()


def test_named_barriers_of_some_warps() -> None:
    """The upper half exchanges among itself, twice, while the lower one passes another barrier."""
    body = f"""
        mov.u32 %r2, words; mad.lo.u32 %r3, %r0, 4, %r2; st.shared.u32 [%r3], %r0; setp.gt.u32 %p1, %r0, 63; @%p1 bra UPPER;
        bar.sync 1, 64; xor.b32 %r4, %r0, 63; bra READ;
        UPPER: bar.sync 2, 64; bar.sync 2, 64; xor.b32 %r4, %r0, 32;
        READ: mad.lo.u32 %r3, %r4, 4, %r2; ld.shared.u32 %r1, [%r3]; {STORE}
    """
    lane = np.arange(128)
    for order in ORDERS:
        np.testing.assert_array_equal(words(body, 128, order), np.where(lane > 63, lane ^ 32, lane ^ 63))


def test_barriers_of_blocks_that_run_at_once_are_separate() -> None:
    """Block n passes n barriers."""
    body = """
        mov.u32 %r1, %ctaid.x; mov.u32 %r2, 0;
        TOP: setp.ge.u32 %p1, %r2, %r1; @%p1 bra DONE; bar.sync 0; add.u32 %r2, %r2, 1; bra TOP;
        DONE: mad.lo.u32 %r3, %r1, 64, %r0; mad.wide.u32 %d1, %r3, 4, %d0; st.global.u32 [%d1], %r2;
    """
    for order in ORDERS:
        (result,) = run(kernel(body), np.zeros((9, 64), np.uint32), grid=9, block=64, order=order)
        np.testing.assert_array_equal(result, np.arange(9)[:, None] + np.zeros(64, int))


# Warps -----------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mode, by, clamp, source",
    [
        ("bfly", 5, 31, lambda lane: lane ^ 5),
        ("down", 3, 31, lambda lane: np.where(lane + 3 < 32, lane + 3, lane)),
        ("up", 3, 0, lambda lane: np.where(lane >= 3, lane - 3, lane)),
        ("idx", 9, 31, lambda lane: 9 + 0 * lane),
        ("idx", 1, 0x181F, lambda lane: lane // 8 * 8 + 1),
        ("down", 2, 0x1C1F, lambda lane: np.where(lane % 4 < 2, lane + 2, lane)),
    ],
)
def test_shuffles(mode: str, by: int, clamp: int, source: object) -> None:
    body = f"shfl.sync.{mode}.b32 %r1|%p1, %r0, {by}, {clamp}, -1; {STORE}"
    lane = np.arange(64)
    np.testing.assert_array_equal(words(body), lane // 32 * 32 + source(lane % 32))  # type: ignore[operator]


def test_votes() -> None:
    text = "setp.gt.u32 %p1, %r0, 40; vote.sync.ballot.b32 %r1, %p1, -1; vote.sync.any.pred %p2, %p1, -1; vote.sync.all.pred %p3, !%p1, -1;"
    body = f"{text} @%p2 add.u32 %r1, %r1, 1; @%p3 add.u32 %r1, %r1, 2; {STORE}"
    ballot = sum(1 << lane - 32 for lane in range(41, 64))
    np.testing.assert_array_equal(words(body), [2] * 32 + [ballot + 1] * 32)


@pytest.mark.parametrize("text", ["shfl.sync.bfly.b32 %r1, %r0, 1, 31, -1;", "vote.sync.any.pred %p2, %p1, -1;"])
def test_lanes_that_are_missing(text: str) -> None:
    with pytest.raises(Fault, match="a lane that the member mask names is elsewhere"):
        words(f"setp.gt.u32 %p1, %r0, 40; @%p1 bra END; {text} END: ret;")
    words(f"{text.replace('-1;', '0xFFFFFFFF;')}")


# What is not known -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "add.rz.f32 %f1, %f2, %f3;",
        "frobnicate.b32 %r1, %r2;",
        "add.u32 %r1, %r2;",
        "add.u32 %q1, %r2, %r2;",
        "add.u64 %d1, %r1, %r2;",
        "bra NOWHERE;",
        "bar.red.popc.u32 %r1, 0, %p1;",
        "cp.async.cg.shared.global [%r1], [%d1], 8;",
        "ld.global.nothing.f32 %f1, [%d1];",
    ],
)
def test_what_is_not_known_is_refused_with_its_line(text: str) -> None:
    with pytest.raises(Unsupported, match=r"PTX line \d+: .*"):
        kernel(text)


def test_what_is_no_kernel() -> None:
    for text in ("", ".func f() { ret; }", ".entry a() { ret; } .entry b() { ret; }"):
        with pytest.raises(Unsupported):
            Program(text)
