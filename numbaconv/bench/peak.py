"""The multiply-add peak of this machine, against which rates are stated: a loop of independent multiply-adds that touches no memory."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from ..arrays import AnyArray
from ..cpu.simd import Vectors, data_pointer
from ..cpu.target import target

STEPS = 20_000  # of the loop in one call: about a tenth of a millisecond
_DTYPES = {"float64": np.float64, "complex128": np.float64}


def peak_call(dtype: str, threads: int) -> tuple[Callable[[], None], int]:
    """A call that keeps the multiply-add units of ``threads`` cores busy, and how many operations (two a multiply-add and lane) it does.

    float64 and complex128 are measured in float64, every other dtype in float32.  Each accumulator of the microkernel's register tile
    is one chain, which is enough to hide the latency.
    """
    chains, kind = target().tile_rows * target().tile_vectors, _DTYPES.get(dtype, np.float32)
    loop, steps = _loop(chains), STEPS if threads == 1 else 40 * STEPS  # so many that starting threads costs nothing
    values = [np.full(64, 0.5, kind) for _ in range(threads)]

    def on_all_threads() -> None:
        others = [threading.Thread(target=loop, args=(steps, own)) for own in values[1:]]
        for thread in others:
            thread.start()
        loop(steps, values[0])
        for thread in others:
            thread.join()

    return on_all_threads, 2 * threads * steps * chains * target().lanes(np.dtype(kind).name)


@functools.cache
def _loop(chains: int) -> Callable[[int, AnyArray], None]:
    """``loop(steps, values)``: ``steps`` times total = total * values[0] + values[0] in ``chains`` vectors; the sum to values[:lanes]."""
    from numba import njit, types
    from numba.extending import intrinsic

    @intrinsic  # type: ignore[untyped-decorator]
    def run(typingctx: Any, steps: Any, values: Any) -> Any:
        def codegen(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
            v = Vectors(b, signature.args[1].dtype)
            pointer = data_pointer(context, b, signature.args[1], arguments[1])
            factor = v.broadcast(pointer)  # known at run time alone: nothing is folded
            before, loop, after = b.block, b.append_basic_block("peak.loop"), b.append_basic_block("peak.end")
            b.branch(loop)
            b.position_at_end(loop)
            left, totals = b.phi(arguments[0].type), [b.phi(v.vector) for _ in range(chains)]
            fewer, new = b.sub(left, left.type(1)), [v.fma(total, factor, factor) for total in totals]
            b.cbranch(b.icmp_signed(">", fewer, left.type(0)), loop, after)
            for phi, start, again in [(left, arguments[0], fewer), *zip(totals, map(v.constant, range(chains)), new)]:
                phi.add_incoming(start, before)
                phi.add_incoming(again, loop)
            b.position_at_end(after)
            v.store(functools.reduce(b.fadd, new), pointer)
            return context.get_dummy_value()

        return types.void(types.int64, values), codegen

    @njit(nogil=True)  # type: ignore[untyped-decorator]
    def loop(steps: int, values: AnyArray) -> None:
        run(steps, values)

    compiled: Callable[[int, AnyArray], None] = loop
    return compiled
