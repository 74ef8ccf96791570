"""Layers on a CUDA device: numbaconv beside torch and cuDNN, on tensors that rotate through more than the cache."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..arrays import AnyArray
from . import gradients
from .contenders import (
    PEERS,
    Contender,
    Place,
    Prepared,
    Task,
    channels_last,
    from_tensor,
    numbaconv_function,
    numbaconv_out,
    to_channels_last,
    to_tensor,
)
from .layers import Layer
from .measure import Expected, Row, check_contenders, expected, layer_task, row_of
from .timing import Stopwatch, in_turns

SLOT = 0.004
"""Seconds of one turn."""

MOST_COPIES = 256  # of a task's arrays
_CACHES = 2.0  # times the cache that they fill together
_MOST_QUEUED = 60  # calls of a turn: with three kernels each, the driver's queue of 1024 never blocks
_HOST_SECONDS = 150e-6  # what the host takes at most for a call
_CLOCK = 2e9  # cycles a second at most
_SQUARE = 8192  # of the matrices whose product gives the arithmetic limit


class Gpu(Place, Protocol):
    """A device with a clock and two limits."""

    name: str
    cache_bytes: int

    @property
    def stopwatch(self) -> Stopwatch: ...

    def synchronize(self) -> None: ...

    def limits(self, dtype: str) -> tuple[float, float]:
        """Operations and bytes a second, measured: a large matrix product of the dtype, and a large copy, read and written."""
        ...


@dataclass(frozen=True)
class GpuRow(Row):
    """One contender on one layer on a device.

    peak : operations a second of a large matrix product; bandwidth : bytes a second of a large copy; bytes : of arrays, each touched once
    """

    bytes: int
    bandwidth: float

    @property
    def bound_by_memory(self) -> bool:
        """Whether moving the arrays once would take longer than the operations."""
        return self.bytes / self.bandwidth > self.flops / self.peak

    @property
    def share(self) -> float:
        """Of the nearer limit."""
        return max(self.bytes / self.bandwidth, self.flops / self.peak) / self.seconds

    @property
    def rate(self) -> str:
        """In the unit of the nearer limit."""
        if self.bound_by_memory:
            return f"{self.bytes / self.seconds / 1e9:.0f} GB/s"
        return f"{self.flops / self.seconds / 1e12:.2f} TFLOP/s"


def bench_on_gpu(
    layer: Layer, peers: Sequence[Contender], gpu: Gpu, rounds: int, say: Callable[[str], None], right: Expected | None = None
) -> list[GpuRow]:
    """Time ours and the peers on a layer, as :func:`~numbaconv.bench.measure.bench_layer` does on the host.

    right : what ``expected_of(layer)`` has, where it is known already.
    """
    p = layer.problem
    host = layer_task(layer, 1)
    copies = min(MOST_COPIES, math.ceil(_CACHES * gpu.cache_bytes / p.bytes))
    tasks = [host.on(gpu) for _ in range(copies)]
    checked = check_contenders(layer, tasks, right or expected(host), ours(p.direction), peers, say)
    turns = in_turns({one.contender.name: one.prepared.call for one in checked}, gpu.stopwatch, rounds, SLOT)
    peak, bandwidth = gpu.limits(p.dtype)
    return [
        GpuRow(**row_of(gpu.name, layer, 0, one, turns[one.contender.name], peak), bytes=p.bytes, bandwidth=bandwidth) for one in checked
    ]  # fmt: skip


# ---- who takes part ----------------------------------------------------------------------------------------------------------
def numbaconv_cl(task: Task) -> Prepared | None:
    """A plan with ``out`` (of gradients the function with it) on arrays in channels_last, converted beforehand."""
    converted = channels_last(task)
    if converted is None or task.place is None:
        return None
    planned = numbaconv_out if task.problem.direction == "forward" else gradients.numbaconv_out
    return planned(converted._replace(place=_ChannelsLast(task.place)))


class _ChannelsLast:
    """A place whose tensors are in channels_last."""

    def __init__(self, place: Place) -> None:
        self._place, self.get = place, place.get

    def put(self, array: AnyArray) -> Any:
        return to_channels_last(self._place.put(array))

    def full(self, shape: tuple[int, ...], dtype: str, value: float) -> Any:
        return to_channels_last(self._place.full(shape, dtype, value))


def ours(direction: str) -> tuple[Contender, ...]:
    """Ours write into ``out``: torch's fresh results are from its pool, which costs the device nothing."""
    planned = numbaconv_out if direction == "forward" else gradients.numbaconv_out
    found = (Contender("numbaconv", planned), Contender("numbaconv_cl", numbaconv_cl))
    return (*found, Contender("numbaconv_function", numbaconv_function)) if direction == "forward" else found


def gpu_peers(direction: str) -> list[Contender]:
    return [peer for peer in (PEERS if direction == "forward" else gradients.PEERS) if peer.modules[0] == "torch"]


# ---- the real one ------------------------------------------------------------------------------------------------------------
class TorchGpu:
    """The current device, its memory and clock by torch."""

    def __init__(self) -> None:
        import torch

        found = torch.cuda.get_device_properties(torch.cuda.current_device())
        self.cache_bytes: int = found.L2_cache_size
        version = torch.backends.cudnn.version() or 0
        cudnn = f"cuDNN {version // 10000}.{version // 100 % 100}.{version % 100}"
        self.name = f"{found.name}, driver {_driver_version()}, CUDA {torch.version.cuda}, {cudnn}"
        self._limits: dict[str, tuple[float, float]] = {}

    def put(self, array: AnyArray) -> Any:
        return to_tensor(array).cuda()

    def get(self, array: Any) -> AnyArray:
        return from_tensor(array)

    def full(self, shape: tuple[int, ...], dtype: str, value: float) -> Any:
        import torch

        return torch.full(shape, value, dtype=getattr(torch, dtype), device="cuda")

    def synchronize(self) -> None:
        import torch

        torch.cuda.synchronize()

    @functools.cached_property
    def stopwatch(self) -> Stopwatch:
        """Events around calls that wait behind a sleeping kernel, so that the host is ahead and its own time does not count."""
        import torch

        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

        def measure(call: Callable[[], object], repeats: int) -> float:
            repeats = min(repeats, _MOST_QUEUED)
            torch.cuda._sleep(int(repeats * _HOST_SECONDS * _CLOCK))
            start.record()
            for _ in range(repeats):
                call()
            end.record()
            end.synchronize()
            return float(start.elapsed_time(end)) / 1e3 / repeats

        return measure

    def limits(self, dtype: str) -> tuple[float, float]:
        if dtype not in self._limits:
            self._limits[dtype] = self._measured(dtype)
        return self._limits[dtype]

    def _measured(self, dtype: str) -> tuple[float, float]:
        import torch

        kind = getattr(torch, dtype)
        factor = torch.randn(_SQUARE, _SQUARE, device="cuda", dtype=kind if kind.is_floating_point or kind.is_complex else torch.float32)
        source = torch.randn(1 << 29, device="cuda")
        result = torch.empty_like(source)
        calls = {"product": lambda: factor @ factor, "copy": lambda: result.copy_(source)}
        turns = in_turns(calls, self.stopwatch, 5, SLOT)
        operations = (8 if kind.is_complex else 2) * _SQUARE**3
        return operations / turns["product"].best, 2 * source.nbytes / turns["copy"].best


@contextlib.contextmanager
def ieee_torch() -> Iterator[None]:
    """torch computes float32 in IEEE float32, and cuDNN tries its algorithms before it takes one."""
    import torch

    places = ((torch.backends.cudnn, "allow_tf32", False), (torch.backends.cuda.matmul, "allow_tf32", False))
    settings = (*places, (torch.backends.cudnn, "benchmark", True))
    before = [getattr(place, name) for place, name, _ in settings]
    for place, name, value in settings:
        setattr(place, name, value)
    try:
        yield
    finally:
        for (place, name, _), value in zip(settings, before):
            setattr(place, name, value)


def _driver_version() -> str:
    """The driver's version as nvidia-smi prints it; "?" without that program."""
    import shutil
    import subprocess

    if shutil.which("nvidia-smi") is None:
        return "?"
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return (subprocess.run(asked, capture_output=True, text=True).stdout.splitlines() or ["?"])[0]
