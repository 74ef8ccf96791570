"""The layers that are timed, as data: names and text forms of ``Problem``; and layers drawn at random, to check the cost model on."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from ..arrays import AnyArray, dtype_named
from ..problem import Direction, Problem

T = TypeVar("T")

# From networks for images, volumes, video and sound, and filters of single images: no more alike than what people run.
LAYERS = {
    "r50_stem7x7s2": "f32_fwd_mb1g1_ic3ih224iw224_oc64kh7kw7_s2x2_p3:3x3:3_d1x1_zeros_b1",
    "r50_stem7x7s2_b8": "f32_fwd_mb8g1_ic3ih224iw224_oc64kh7kw7_s2x2_p3:3x3:3_d1x1_zeros_b1",
    "r50_1x1_64_256_56": "f32_fwd_mb1g1_ic64ih56iw56_oc256kh1kw1_s1x1_p0:0x0:0_d1x1_zeros_b1",
    "r50_1x1_256_128_56s2": "f32_fwd_mb1g1_ic256ih56iw56_oc128kh1kw1_s2x2_p0:0x0:0_d1x1_zeros_b1",
    "r50_1x1_1024_256_14": "f32_fwd_mb1g1_ic1024ih14iw14_oc256kh1kw1_s1x1_p0:0x0:0_d1x1_zeros_b1",
    "r50_1x1_512_2048_7": "f32_fwd_mb1g1_ic512ih7iw7_oc2048kh1kw1_s1x1_p0:0x0:0_d1x1_zeros_b1",
    "r50_3x3_64_56": "f32_fwd_mb1g1_ic64ih56iw56_oc64kh3kw3_s1x1_p1:1x1:1_d1x1_zeros_b1",
    "r50_3x3_128_28": "f32_fwd_mb1g1_ic128ih28iw28_oc128kh3kw3_s1x1_p1:1x1:1_d1x1_zeros_b1",
    "r50_3x3_128_56s2": "f32_fwd_mb1g1_ic128ih56iw56_oc128kh3kw3_s2x2_p1:1x1:1_d1x1_zeros_b1",
    "r50_3x3_256_14": "f32_fwd_mb1g1_ic256ih14iw14_oc256kh3kw3_s1x1_p1:1x1:1_d1x1_zeros_b1",
    "r50_3x3_512_7": "f32_fwd_mb1g1_ic512ih7iw7_oc512kh3kw3_s1x1_p1:1x1:1_d1x1_zeros_b1",
    "r50_3x3_64_56_b8": "f32_fwd_mb8g1_ic64ih56iw56_oc64kh3kw3_s1x1_p1:1x1:1_d1x1_zeros_b1",
    "r50_3x3_256_14_b8": "f32_fwd_mb8g1_ic256ih14iw14_oc256kh3kw3_s1x1_p1:1x1:1_d1x1_zeros_b1",
    "vgg_3x3_64_224": "f32_fwd_mb1g1_ic64ih224iw224_oc64kh3kw3_s1x1_p1:1x1:1_d1x1_zeros_b1",
    "unet2d_3x3_128_64_256": "f32_fwd_mb1g1_ic128ih256iw256_oc64kh3kw3_s1x1_p1:1x1:1_d1x1_zeros_b1",
    "deeplab_3x3d12_2048_256_33": "f32_fwd_mb1g1_ic2048ih33iw33_oc256kh3kw3_s1x1_p12:12x12:12_d12x12_zeros_b1",
    "resnext_3x3g32_128_56": "f32_fwd_mb1g32_ic128ih56iw56_oc128kh3kw3_s1x1_p1:1x1:1_d1x1_zeros_b1",
    "resnext_3x3g32_512_14": "f32_fwd_mb1g32_ic512ih14iw14_oc512kh3kw3_s1x1_p1:1x1:1_d1x1_zeros_b1",
    "mb_dw3s1_128_56": "f32_fwd_mb1g128_ic128ih56iw56_oc128kh3kw3_s1x1_p1:1x1:1_d1x1_zeros_b1",
    "mb_dw3s2_128_56": "f32_fwd_mb1g128_ic128ih56iw56_oc128kh3kw3_s2x2_p1:1x1:1_d1x1_zeros_b1",
    "mb_dw3s1_512_14": "f32_fwd_mb1g512_ic512ih14iw14_oc512kh3kw3_s1x1_p1:1x1:1_d1x1_zeros_b1",
    "mb_1x1_512_512_14": "f32_fwd_mb1g1_ic512ih14iw14_oc512kh1kw1_s1x1_p0:0x0:0_d1x1_zeros_b1",
    "convnext_dw7_96_56": "f32_fwd_mb1g96_ic96ih56iw56_oc96kh7kw7_s1x1_p3:3x3:3_d1x1_zeros_b1",
    "convnext_dw7_96_56_b8": "f32_fwd_mb8g96_ic96ih56iw56_oc96kh7kw7_s1x1_p3:3x3:3_d1x1_zeros_b1",
    "unet3d_3_32_64_64c": "f32_fwd_mb1g1_ic32id64ih64iw64_oc64kd3kh3kw3_s1x1x1_p1:1x1:1x1:1_d1x1x1_zeros_b1",
    "unet3d_3_64_64_32c": "f32_fwd_mb1g1_ic64id32ih32iw32_oc64kd3kh3kw3_s1x1x1_p1:1x1:1x1:1_d1x1x1_zeros_b1",
    "med3d_stem_1_32_96c": "f32_fwd_mb1g1_ic1id96ih96iw96_oc32kd3kh3kw3_s1x1x1_p1:1x1:1x1:1_d1x1x1_zeros_b1",
    "big3d_7c_1_1_96c": "f32_fwd_mb1g1_ic1id96ih96iw96_oc1kd7kh7kw7_s1x1x1_p3:3x3:3x3:3_d1x1x1_zeros_b1",
    "c3d_3_64_128_16x56x56": "f32_fwd_mb1g1_ic64id16ih56iw56_oc128kd3kh3kw3_s1x1x1_p1:1x1:1x1:1_d1x1x1_zeros_b1",
    "r2p1d_sp_64_144_8x56x56": "f32_fwd_mb1g1_ic64id8ih56iw56_oc144kd1kh3kw3_s1x1x1_p0:0x1:1x1:1_d1x1x1_zeros_b1",
    "r2p1d_t_144_64_8x56x56": "f32_fwd_mb1g1_ic144id8ih56iw56_oc64kd3kh1kw1_s1x1x1_p1:1x0:0x0:0_d1x1x1_zeros_b1",
    "dw3d_3_64_16x56x56": "f32_fwd_mb1g64_ic64id16ih56iw56_oc64kd3kh3kw3_s1x1x1_p1:1x1:1x1:1_d1x1x1_zeros_b1",
    "wavenet_k2d256_128_256": "f32_fwd_mb1g1_ic128iw16000_oc256kw2_s1_p0:0_d256_zeros_b1",
    "speech_k5_80_512": "f32_fwd_mb1g1_ic80iw1000_oc512kw5_s1_p2:2_d1_zeros_b1",
    "speech_k5_80_512_b8": "f32_fwd_mb8g1_ic80iw1000_oc512kw5_s1_p2:2_d1_zeros_b1",
    "img_3x3_2048": "f32_fwd_mb1g1_ic1ih2048iw2048_oc1kh3kw3_s1x1_p1:1x1:1_d1x1_zeros_b1",
    "img_7x7_2048": "f32_fwd_mb1g1_ic1ih2048iw2048_oc1kh7kw7_s1x1_p3:3x3:3_d1x1_zeros_b1",
    "img_31x31_2048": "f32_fwd_mb1g1_ic1ih2048iw2048_oc1kh31kw31_s1x1_p15:15x15:15_d1x1_zeros_b1",
    "rgb_dw7x7_1080p": "f32_fwd_mb1g3_ic3ih1080iw1920_oc3kh7kw7_s1x1_p3:3x3:3_d1x1_zeros_b1",
    "rgb_3to3_5x5_1080p": "f32_fwd_mb1g1_ic3ih1080iw1920_oc3kh5kw5_s1x1_p2:2x2:2_d1x1_zeros_b1",
}

IMAGE_FILTERS = ("img_", "rgb_")
"""How names of layers begin that nobody trains."""

VOLUMES = {
    "unet3d_3_32_32_128c": "f32_fwd_mb1g1_ic32id128ih128iw128_oc32kd3kh3kw3_s1x1x1_p1:1x1:1x1:1_d1x1x1_zeros_b1",
    "unet3d_3s2_32_64_128c": "f32_fwd_mb1g1_ic32id128ih128iw128_oc64kd3kh3kw3_s2x2x2_p1:1x1:1x1:1_d1x1x1_zeros_b1",
    "unet3d_1_32_4_128c": "f32_fwd_mb1g1_ic32id128ih128iw128_oc4kd1kh1kw1_s1x1x1_p0:0x0:0x0:0_d1x1x1_zeros_b1",
    "med3d_stem_4_32_128c": "f32_fwd_mb1g1_ic4id128ih128iw128_oc32kd3kh3kw3_s1x1x1_p1:1x1:1x1:1_d1x1x1_zeros_b1",
    "mednext_dw3d_5_32_128c": "f32_fwd_mb1g32_ic32id128ih128iw128_oc32kd5kh5kw5_s1x1x1_p2:2x2:2x2:2_d1x1x1_zeros_b1",
}
"""Layers of networks for medical volumes, timed on a GPU beside the others."""

GPU_BATCH = {1: 16, 2: 32, 3: 2}
"""Images in a batch of the layers of a table on a GPU, by their number of axes."""

# ---- layers drawn at random --------------------------------------------------------------------------------------------------
SEED = 20260101
_CHANNELS = (1, 2, 3, 4, 8, 12, 16, 24, 32, 48, 64, 80, 96, 128, 160, 192, 256, 320, 384, 512)
_KERNELS = {1: (1, 2, 3, 3, 5, 7, 9, 15), 2: (1, 1, 3, 3, 3, 3, 5, 7, 11), 3: (1, 2, 3, 3, 3, 3, 5, 7)}
_SIZES = {1: (64, 16384), 2: (7, 512), 3: (6, 96)}
_FLOPS = (1e6, 8e9)
_LARGEST_BYTES = 256e6
_PART = 1 << 22


def random_layers(count: int = 40, seed: int = SEED) -> dict[str, str]:
    """Names and text forms of ``count`` layers over the ranges that networks use; the same for the same seed everywhere."""
    numbers = random.Random(seed)
    problems: list[Problem] = []
    while len(problems) < count:
        p = _draw(numbers)
        if p is not None and _FLOPS[0] <= p.flops <= _FLOPS[1] and p.bytes <= _LARGEST_BYTES:
            problems.append(p)
    return {f"random_{i:02}": str(p) for i, p in enumerate(problems)}


def _draw(numbers: random.Random) -> Problem | None:
    """One layer, or None where its kernel does not fit."""

    def one_of(values: Sequence[T]) -> T:
        return values[int(numbers.random() * len(values))]  # random() alone is the same in every Python

    rank = one_of((1, 2, 2, 2, 3, 3))
    low, high = _SIZES[rank]
    size = [round(low * (high / low) ** numbers.random())] * rank
    if rank == 3:
        size[0] = max(2, size[0] // one_of((1, 1, 1, 2, 4)))
    kernel = [one_of(_KERNELS[rank])] * rank
    if rank == 3 and numbers.random() < 0.2:
        kernel = one_of(([1] + kernel[1:], [kernel[0], 1, 1]))
    stride, dilation = one_of((1, 1, 1, 1, 2)), one_of((1, 1, 1, 1, 1, 1, 1, 2, 4))
    if stride > 1:
        dilation = 1
    channels, filters, groups = one_of(_CHANNELS), one_of(_CHANNELS), 1
    if numbers.random() < 0.25:
        groups = one_of([n for n in (channels, channels, 2, 4, 8, 32) if channels % n == 0] or [1])
        filters = channels
    paddings = [(k - 1) // 2 * dilation for k in _three(kernel)]
    p = Problem(
        dtype="float32", out_dtype="float32", direction="forward", rank=rank, batch=one_of((1, 1, 1, 1, 2, 4, 8)), groups=groups,
        in_channels=channels, in_size=_three(size), out_channels=filters, kernel=_three(kernel), stride=_three([stride] * rank),
        padding=((paddings[0],) * 2, (paddings[1],) * 2, (paddings[2],) * 2), dilation=_three([dilation] * rank),
        bias=numbers.random() < 0.7,
    )  # fmt: skip
    return p if min(p.out_size) > 0 else None


def _three(values: Sequence[int]) -> tuple[int, int, int]:
    depth, height, width = [1] * (3 - len(values)) + list(values)
    return depth, height, width


# ---- choosing layers, and their arrays ---------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Layer:
    name: str
    problem: Problem

    def arrays(self, seed: int = 0) -> tuple[AnyArray, AnyArray, AnyArray | None]:
        """Input, weight and bias: normally distributed and scaled so that results are about 1; whole numbers for integers."""
        p, rng = replace(self.problem, direction="forward"), np.random.default_rng(seed)
        x, w, b = (_values(rng, shape, p.dtype) for shape in (p.source_shape, p.weight_shape, (p.result_channels,)))
        if w.dtype.kind not in "iu":
            w = (w / math.sqrt(p.in_per_group * p.taps)).astype(w.dtype)
        return x, w, b if p.bias else None

    def grad_output(self, seed: int = 1) -> AnyArray:
        """A gradient with respect to the convolution's result, distributed like the input."""
        p = replace(self.problem, direction="forward")
        return _values(np.random.default_rng(seed), p.result_shape, p.dtype)


def find_gpu_layers(
    names: Sequence[str] | None = None, dtype: str | None = None, direction: Direction = "forward", batch: int | None = None
) -> list[Layer]:
    """As :func:`find_layers` of ``LAYERS`` and ``VOLUMES``, each problem once, with the batches of GPU_BATCH or ``batch``.

    Text forms of problems keep their batch where ``batch`` is None.
    """
    if batch is not None and batch < 1:
        raise ValueError(f"--batch must be at least 1, got {batch}")
    found: dict[Problem, Layer] = {}
    for layer in find_layers(names, dtype, direction, LAYERS | VOLUMES):
        own = layer.problem.batch if "_ic" in layer.name else GPU_BATCH[layer.problem.rank]
        problem = replace(layer.problem, batch=own if batch is None else batch)
        found.setdefault(problem, Layer(layer.name, problem))
    return list(found.values())


def find_layers(
    names: Sequence[str] | None = None,
    dtype: str | None = None,
    direction: Direction = "forward",
    table: Mapping[str, str] = LAYERS,
) -> list[Layer]:
    """Layers by parts of their names, or by text forms of forward problems; all of ``table`` without ``names``.

    dtype : replaces that of every layer; direction : what is computed of every layer, of gradients by default of those that are trained.
    ValueError for a name that no layer has, and for problems that the peers have not.
    """
    texts = dict(_found(names, table)) if names else dict(table)
    if not names and direction != "forward":
        texts = {name: text for name, text in texts.items() if not name.startswith(IMAGE_FILTERS)}
    layers = [Layer(name, Problem.parse(text)) for name, text in texts.items()]
    for layer in layers:
        p = layer.problem
        if p.direction != "forward" or p.padding_mode != "zeros" or any(low != high for low, high in p.padding):
            raise ValueError(f"--layers must be forward convolutions with the same zero padding on both sides, got {p}")
    if dtype is not None:
        layers = [Layer(layer.name, replace(layer.problem, dtype=dtype, out_dtype=dtype)) for layer in layers]
    if direction == "forward":
        return layers
    return [Layer(layer.name, layer.problem.gradient(direction)) for layer in layers]


def _found(names: Sequence[str], table: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    known = {**table, **random_layers()}
    for name in names:
        if "_ic" in name:
            yield name, name
            continue
        found = {name: known[name]} if name in known else {other: text for other, text in known.items() if name in other}
        if not found:
            raise ValueError(f"--layers must be text forms of problems or (parts of) names out of {', '.join(known)}, got {name!r}")
        yield from found.items()


def _values(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> AnyArray:
    if "int" in dtype:
        return rng.integers(0 if dtype.startswith("u") else -4, 5, shape).astype(dtype)
    values = _normal(rng, shape, np.float64 if dtype == "float64" else np.float32)
    if dtype.startswith("complex"):
        values = values + 1j * _normal(rng, shape, np.float32)
    return values.astype(dtype_named(dtype), copy=False)


def _normal(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> AnyArray:
    """Normally distributed; drawn by all processors, in parts that do not depend on how many those are."""
    values = np.empty(shape, dtype)
    parts = np.array_split(values.reshape(-1), -(-values.size // _PART) or 1)
    with ThreadPoolExecutor() as pool:
        for _ in pool.map(lambda own, part: own.standard_normal(out=part, dtype=dtype), rng.spawn(len(parts)), parts):
            pass
    return values
