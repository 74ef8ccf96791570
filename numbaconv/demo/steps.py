"""The three parts of the demo, each a function of the volume that computes, times and checks, and draws nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial, reduce
from importlib.util import find_spec
from typing import Any

import numpy as np

from ..arrays import AnyArray
from ..functional import conv2d, conv3d
from ..modules import Conv3d
from ..plans import explain
from .measure import Measured, Progress, measure, seconds

RADIUS = 3
FILTERS = ("Gaussian, sigma 1", "Gaussian, sigma 2", "Sobel along D", "Sobel along H", "Sobel along W", "LoG, sigma 1")


@dataclass(frozen=True)
class Peer:
    """scipy.ndimage on the same filters: what was called, its seconds, and the largest difference from our result."""

    call: str
    seconds: float
    difference: float


@dataclass(frozen=True)
class Step:
    """One part of the demo: its title, the convolutions in it by name, scipy's times, and what there is to say."""

    title: str
    runs: dict[str, Measured]
    peers: list[Peer] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def has_scipy() -> bool:
    return find_spec("scipy") is not None


def steps_of_progress() -> int:
    """How many times the three functions together report to a :class:`Progress`."""
    return 7 + (2 + 2) * has_scipy()


# ---- a bank of filters -------------------------------------------------------------------------------------------------
def filter_bank_weight() -> AnyArray:
    """The six filters as one float32 weight (6, 1, 7, 7, 7), each the one that scipy.ndimage's function of that name applies."""
    x = np.arange(-RADIUS, RADIUS + 1.0)

    def gaussian(sigma: float) -> AnyArray:
        values = np.exp(-(x**2) / (2 * sigma**2))
        normalised: AnyArray = values / values.sum()
        return normalised

    def outer(d: AnyArray, h: AnyArray, w: AnyArray) -> AnyArray:
        return d[:, None, None] * h[:, None] * w

    difference, smooth = np.zeros_like(x), np.zeros_like(x)
    difference[RADIUS - 1 : RADIUS + 2], smooth[RADIUS - 1 : RADIUS + 2] = (-1, 0, 1), (1, 2, 1)
    g1, g2 = gaussian(1.0), gaussian(2.0)
    curved = (x**2 - 1) * g1
    filters = [
        outer(g1, g1, g1),
        outer(g2, g2, g2),
        outer(difference, smooth, smooth),
        outer(smooth, difference, smooth),
        outer(smooth, smooth, difference),
        outer(curved, g1, g1) + outer(g1, curved, g1) + outer(g1, g1, curved),
    ]
    return np.stack(filters)[:, None].astype(np.float32)


def filter_bank(volume: AnyArray, progress: Progress) -> Step:
    """Gaussians of two scales, Sobel along three axes and a Laplacian of Gaussian as one conv3d, 1 channel to 6."""
    weight = filter_bank_weight()
    with progress.step("six 3-D filters as one conv3d"):
        run = _run(conv3d, volume[None, None], weight, padding=RADIUS, padding_mode="reflect")
    peers = []
    if has_scipy():
        import scipy.ndimage as ndi

        dense = [partial(ndi.correlate, volume, w, mode="mirror") for w in weight[:, 0]]
        named = [
            *(partial(ndi.gaussian_filter, volume, sigma, mode="mirror", radius=RADIUS) for sigma in (1, 2)),
            *(partial(ndi.sobel, volume, axis, mode="mirror") for axis in range(3)),
            partial(ndi.gaussian_laplace, volume, 1, mode="mirror", radius=RADIUS),
        ]
        with progress.step("scipy.ndimage.correlate, six times"):
            peers.append(_peer("six calls of correlate, every product of the filter as here", dense, run.result[0]))
        with progress.step("scipy.ndimage.gaussian_filter, sobel, gaussian_laplace"):
            peers.append(_peer("gaussian_filter (2), sobel (3), gaussian_laplace: separable, one axis after another", named, run.result[0]))
    return Step("Six 3-D filters as one conv3d", {"bank": run}, peers)


# ---- the lesson of two and three dimensions ----------------------------------------------------------------------------
def two_or_three(volume: AnyArray, progress: Progress) -> Step:
    """The same volume through conv2d, its slices as channels, and through conv3d, its slices as depth: both take means."""
    depth = volume.shape[0]
    plane_weight = np.full((1, depth, 5, 5), 1 / (5 * 5 * depth), np.float32)
    volume_weight = np.full((1, 1, 5, 5, 5), 1 / 5**3, np.float32)
    slices, deep = volume[None], volume[None, None]
    with progress.step("conv2d, slices as channels"):
        flat = _run(conv2d, slices, plane_weight, padding=2)
    with progress.step("conv3d, slices as depth"):
        solid = _run(conv3d, deep, volume_weight, padding=2)
    with progress.step("conv3d with a kernel as deep as the volume"):
        bridge = _run(conv3d, deep, plane_weight[:, None], padding=(0, 2, 2))
    peers = []
    if has_scipy():
        import scipy.ndimage as ndi

        def plane() -> AnyArray:
            return reduce(np.add, (ndi.correlate(image, w, mode="constant") for image, w in zip(volume, plane_weight[0])))

        with progress.step("scipy.ndimage.correlate, slice by slice"):
            peers.append(_peer(f"correlate on {depth} slices, then their sum", [plane], flat.result[0]))
        with progress.step("scipy.ndimage.correlate in three dimensions"):
            whole = partial(ndi.correlate, volume, volume_weight[0, 0], mode="constant")
            peers.append(_peer("correlate of the volume", [whole], solid.result[0]))
    apart = float(np.abs(bridge.result[0, 0] - flat.result[0]).max())
    notes = [
        f"2-D: each of {depth} channels has a 5 x 5 filter of its own, {plane_weight.size:,} weights in all, which slides along H and W;",
        f"their sum over the channels is one plane {flat.result.shape[2:]}, and depth is gone.",
        f"3-D: one 5 x 5 x 5 filter, {volume_weight.size} weights, slides along D, H and W, the same at every depth; a volume comes out.",
        f"A 3-D filter as deep as the volume has nowhere to slide: it gives the 2-D plane again (largest difference {apart:.1e}).",
    ]
    runs = {"conv2d": flat, "conv3d": solid, f"conv3d, kernel {depth} deep": bridge}
    return Step("Two or three dimensions: slices as channels, or as depth", runs, peers, notes)


# ---- layers ------------------------------------------------------------------------------------------------------------
def layer_stack(volume: AnyArray, progress: Progress) -> Step:
    """Three Conv3d layers with ReLU between them: one strided, one dilated in groups, one strided and depthwise."""
    layers = {
        "strided: Conv3d(1, 8, 5), stride 2": Conv3d(1, 8, 5, stride=2, padding=2, bias=False, rng=1),
        "dilated, in 4 groups: Conv3d(8, 16, 3), dilation 2": Conv3d(
            8, 16, 3, padding=2, dilation=2, groups=4, padding_mode="replicate", rng=2
        ),
        "depthwise, strided: Conv3d(16, 16, 3), stride (1, 2, 2)": Conv3d(16, 16, 3, stride=(1, 2, 2), padding=1, groups=16, rng=3),
    }
    x, runs = volume[None, None], {}
    for name, layer in layers.items():
        explanation = explain(
            x, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups, padding_mode=layer.padding_mode
        )
        with progress.step(name):
            runs[name] = measure(partial(layer, x), explanation, x, layer.weight, layer.bias)
        x = np.maximum(runs[name].result, 0)
    return Step("A stack of Conv3d layers, ReLU between them", runs)


def _run(function: Callable[..., AnyArray], x: AnyArray, weight: AnyArray, **arguments: Any) -> Measured:
    return measure(partial(function, x, weight, **arguments), explain(x, weight, **arguments), x, weight, None)


def _peer(call: str, filters: Sequence[Callable[[], AnyArray]], ours: AnyArray) -> Peer:
    """Time one call after another and compare with our channels; their results are not kept."""
    total, difference = 0.0, 0.0
    for filter, channel in zip(filters, ours):
        taken, result = seconds(filter)
        total += taken
        difference = max(difference, float(np.abs(result - channel).max()))
    return Peer(call, total, difference)
