"""What a call does with arrays around its kernels, on the host and on a CUDA device: one interface, two of them."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from .arrays import ELEMENTS, AnyArray, allocate, check_memory, check_out, dtype_named, five, name_of, native, storage_view
from .device import DeviceArray


class Repeating(Protocol):
    """Calls of one plan, of layouts that have been checked and prepared in an earlier call."""

    def __call__(self, input: Any, out: Any) -> Any:
        """Compute and return what the caller gets; or return None, with nothing done, where the usual way has to look."""
        ...

    def remember(self, input: Any, result: Any) -> None:
        """A call with these arrays was good and is prepared."""
        ...


class Memory(Protocol):
    """``arguments`` are a call's arrays by the caller's names; kernels see 5-D arrays (N, C, D, H, W)."""

    device: str
    """The registry whose algorithms compute here."""

    def begin(self, arguments: dict[str, Any], stream: Any) -> dict[str, Any]:
        """The arrays as the call's stream sees them; TypeError for a stream where there is none."""
        ...

    def result(self, shape: tuple[int, ...], dtype: str, out: Any, arguments: dict[str, Any], needed: int) -> Any:
        """``out``, checked, or a fresh array, after a check that ``needed`` bytes more can be had."""
        ...

    def readable(self, array: Any, rank: int) -> Any:
        """The 5-D storage view that a kernel reads, of an array with ``rank`` spatial axes, batched or not."""
        ...

    def writable(self, array: Any, rank: int) -> Any:
        """The same of a result."""
        ...

    def weight(self, array: Any, rank: int) -> Any:
        """The 5-D view of a weight that an algorithm packs."""
        ...

    def bias(self, array: Any) -> Any:
        """What an algorithm packs of a bias, or None."""
        ...

    def settle(self, packed: tuple[Any, ...]) -> None:
        """Wait until what a plan keeps can be read from everywhere."""
        ...

    def repeating(self, setup: Any, rank: int, packed: tuple[Any, ...]) -> Repeating | None:
        """A short way for calls of a plan whose layouts have been met before; None where the usual way is short."""
        ...

    def conjugate(self, array: Any, out: Any = None) -> Any:
        """The complex conjugate, fresh or in ``out``, which may be the array itself."""
        ...

    def copied(self, array: Any) -> Any:
        """A copy that the caller may keep, of the array's own library."""
        ...

    def added(self, a: Any, b: Any) -> Any:
        """The sum of two arrays of one shape, as the caller gets it."""
        ...

    def to_host(self, array: Any) -> AnyArray:
        """The array on the host: itself where it is there."""
        ...

    def overwrite(self, array: Any, values: AnyArray) -> None:
        """Write values on the host, of the array's shape and dtype, into the array."""
        ...

    def channel_sums(self, array: Any) -> Any:
        """What the caller gets as the sum of (N, C, ...) over all axes but the second: floats in float64, one image after the other."""
        ...

    def finish(self, result: Any) -> Any:
        """What the caller gets."""
        ...


class Host:
    """NumPy arrays."""

    device = "cpu"

    def begin(self, arguments: dict[str, Any], stream: Any) -> dict[str, Any]:
        if stream is not None:
            raise TypeError(f"stream must be None for NumPy arrays, got {type(stream).__name__}")
        return arguments

    def result(self, shape: tuple[int, ...], dtype: str, out: Any, arguments: dict[str, Any], needed: int) -> Any:
        if out is not None:
            check_memory(needed)
            return check_out(out, shape, dtype, arguments)
        like = next(iter(arguments.values()))
        kind = like.dtype if name_of(like) == dtype else dtype_named(dtype)
        return allocate(shape, kind if kind.isnative else kind.newbyteorder("="), needed)

    def readable(self, array: Any, rank: int) -> Any:
        return five(storage_view(native(array)), rank)

    def writable(self, array: Any, rank: int) -> Any:
        return five(storage_view(array), rank)

    def weight(self, array: Any, rank: int) -> Any:
        return five(native(array), rank)

    def bias(self, array: Any) -> Any:
        return None if array is None else native(array)

    def settle(self, packed: tuple[Any, ...]) -> None:
        pass

    def repeating(self, setup: Any, rank: int, packed: tuple[Any, ...]) -> Repeating | None:
        if not hasattr(setup, "call") or setup.problem.transposed:
            return None
        from .cpu.calls import Repeat

        return Repeat(setup, rank, packed)

    def conjugate(self, array: Any, out: Any = None) -> Any:
        return np.conjugate(array, out=out)

    def copied(self, array: Any) -> Any:
        return array.copy()

    def added(self, a: Any, b: Any) -> Any:
        return a + b

    def to_host(self, array: Any) -> AnyArray:
        return array  # type: ignore[no-any-return]

    def overwrite(self, array: Any, values: AnyArray) -> None:
        array[...] = values

    def channel_sums(self, array: Any) -> Any:
        accumulator = ELEMENTS[name_of(array)].accumulator
        wide = np.result_type(accumulator, np.float64) if accumulator.kind in "fc" else np.dtype(np.int64)
        total = np.zeros(array.shape[1], wide)
        for image in array:
            total += image.sum(axis=tuple(range(1, image.ndim)), dtype=wide)
        return total.astype(array.dtype.newbyteorder("="))

    def finish(self, result: Any) -> Any:
        return result


HOST = Host()


def memory_of(array: Any) -> Memory:
    """The memory that an array lies in."""
    if type(array) is not DeviceArray:
        return HOST
    from .cuda.memory import DEVICE

    return DEVICE
