"""What a call does with device arrays around its kernels: see :mod:`numbaconv.memory`."""

from __future__ import annotations

from typing import Any

from ..arrays import AnyArray, check_out
from ..device import DeviceArray
from .arrays import empty, ordered, stream_handle
from .copies import copy
from .driver import driver
from .launches import Launched
from .repeat import Repeat
from .sums import add, channel_sums
from .transfers import overwrite, to_host


class Device:
    """Arrays on a CUDA device: the work is put on a stream and not waited for."""

    device = "cuda"

    def begin(self, arguments: dict[str, Any], stream: Any) -> dict[str, Any]:
        first = next(iter(arguments.values()))
        handle = first.stream if stream is None else stream_handle(stream)
        return {name: ordered(array, handle) for name, array in arguments.items()}

    def result(self, shape: tuple[int, ...], dtype: str, out: Any, arguments: dict[str, Any], needed: int) -> Any:
        first: DeviceArray = next(iter(arguments.values()))
        if out is None:
            return empty(shape, dtype, first)
        return ordered(check_out(out, shape, dtype, arguments), first.stream)

    def readable(self, array: DeviceArray, rank: int) -> DeviceArray:
        return array.five(rank)

    writable = weight = readable

    def bias(self, array: DeviceArray | None) -> DeviceArray | None:
        return array

    def settle(self, packed: tuple[DeviceArray, ...]) -> None:
        if packed:
            driver().synchronize(packed[0].stream, packed[0].device)

    def repeating(self, setup: Any, rank: int, packed: tuple[Any, ...]) -> Repeat | None:
        return Repeat(setup, rank, packed) if isinstance(setup, Launched) else None

    def conjugate(self, array: DeviceArray, out: DeviceArray | None = None) -> DeviceArray:
        result = empty(array.shape, array.dtype, array) if out is None else out
        copy(array, result, conjugate=True)
        return result

    def copied(self, array: DeviceArray) -> Any:
        result = empty(array.shape, array.dtype, array)
        copy(array, result)
        driver().synchronize(result.stream, result.device)
        return result.owner

    def added(self, a: DeviceArray, b: DeviceArray) -> Any:
        result = empty(a.shape, a.dtype, a)
        add(a, ordered(b, a.stream), result)
        return result.owner

    def to_host(self, array: DeviceArray) -> AnyArray:
        return to_host(array)

    def overwrite(self, array: DeviceArray, values: AnyArray) -> None:
        overwrite(array, values)

    def channel_sums(self, array: DeviceArray) -> Any:
        return channel_sums(array).owner

    def finish(self, result: DeviceArray) -> Any:
        return result.owner


DEVICE = Device()
