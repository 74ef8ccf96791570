"""The tests would see it if a bound of one of the package's kernels were one off, or if a guard were missing: each is tried in the PTX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

from numbaconv import Problem, reference

from ..cases import case, integer_arrays
from ..layouts import channels_last
from . import packages

if why := packages.missing():
    pytest.skip(why, allow_module_level=True)

from numbaconv.arrays import check_array
from numbaconv.choose import registry
from numbaconv.cuda import depthwise

from .broken import Bounds, Calls, caught, lines_that_run
from .device import put
from .emulator import machine


class Study(NamedTuple):
    """Problems that take one kernel, and which of its bounds no problem can show to be one off.

    harmless : by name, with the reason beside them.  Of the ends of loops and of bounds that have no name three may be: of loops whose
        last turn writes again what is there, or fetches zeros that nobody reads, or that these problems go round once.
    """

    algorithm: str
    kernel: str  # how its name begins
    texts: tuple[str, ...]
    bounds: tuple[str, ...]  # fields of its arguments that must be among those that are tried
    harmless: tuple[str, ...] = ()
    arrange: Callable[[np.ndarray], np.ndarray] = np.asarray


def wgrad(*given: Any, **options: Any) -> str:
    return case("fwd", *given, **options).replace("_fwd_", "_wgrad_")


MODES = ("zeros", "reflect", "replicate", "circular")
WHOLE_QUADS = ("g.padded_channels -1", "zeros cp.async.cg.shared.global always")  # channels go by fours; the packed weight has no edge
STUDIES = (
    Study("direct", "direct-",
        tuple(case("fwd", (4, 5, 6), (2, 3, 3), p=1, s=(1, 2, 1), ic=3, oc=5, b=1, mb=2, mode=mode) for mode in MODES),
        ("sizes.cells", "depth.source", "height.source", "width.source", "sizes.results")),
    Study("direct", "direct-", (case("igrad", (4, 5, 6), (2, 3, 3), p=(0, 1, 1), s=(1, 1, 2), op=(0, 0, 1), ic=5, oc=3, b=1, mb=2),),
        ("sizes.cells", "depth.source", "height.source", "width.source", "sizes.results")),
    Study("depthwise", "depthwise",
        tuple(case("fwd", (3, n, 11), (3, 3, 3), p=1, g=3, ic=3, oc=3, b=b, mb=5) for n, b in ((9, 1), (10, 0))),
        ("g.threads", "g.source_d", "g.source_h", "g.source_w", "g.result_h"), ("g.result_w +1",)),  # a thread has one column
    Study("depthwise", "depthwise", (case("igrad", (3, 5, 6), (3, 3, 3), p=1, s=2, op=1, g=3, ic=3, oc=3, b=1, mb=5),),
        ("g.threads", "g.source_d", "g.source_h", "g.source_w", "g.result_h", "g.result_w")),
    Study("depthwise", "depthwise",
        tuple(case("fwd", (3, h, w), (3, 3, 3), p=1, g=4, ic=4, oc=4, b=1, mb=3) for h, w in ((11, 11), (12, 12), (13, 11))),
        ("g.threads", "g.source_d", "g.source_h", "g.source_w", "g.result_h", "g.result_w"), (), channels_last),
    Study("filter", "depthwise", tuple(case("fwd", (3, 9, 11), (3, 3, 3), p=1, ic=3, oc=8, b=b, mb=3) for b in (1, 0)),
        ("g.threads", "g.source_d", "g.source_h", "g.source_w", "g.result_h", "g.result_w")),
    Study("implicit_gemm", "implicit-gemm",
        tuple(case("fwd", (3, 5, 5), (2, 3, 3), p=1, ic=ic, oc=40, b=1, mb=2, mode=mode) for ic, mode in zip((7, 3, 7, 7), MODES)),
        ("g.images", "g.tiles", "g.padded_channels", "g.size_d", "g.size_h", "g.size_w", "g.taps_d"), WHOLE_QUADS),
    Study("implicit_gemm", "implicit-gemm", tuple(case("fwd", (3, 5, 5), (2, 3, 3), p=1, ic=ic, oc=40, b=1, mb=2) for ic in (8, 4)),
        ("g.images", "g.tiles", "g.padded_channels", "g.size_d", "g.size_h", "g.size_w", "g.taps_d"), WHOLE_QUADS, channels_last),
    Study("weight_gemm", "weight_float", tuple(wgrad((3, 5, 7), (2, 3, 3), p=1, ic=ic, oc=6, mb=3) for ic in (5, 14)),
        ("g.in_d", "g.in_h", "g.in_w", "g.out_w", "g.out_h", "g.out_d", "g.rows", "g.columns")),
    Study("filter_weight", "depthwise",
        tuple(wgrad((3, 9, n), (2, 3, 3), p=1, g=3, ic=3, oc=3, mb=mb) for n, mb in ((11, 40), (23, 20), (1, 40))),
        ("g.out_h", "g.source_d", "g.source_h", "g.source_w", "g.per_image"), ("g.sources +1",)),  # and a block one source channel
    Study("filter_weight", "depthwise",
        tuple(wgrad((3, 9, n), (2, 3, 3), p=1, ic=3, oc=5, mb=mb) for n, mb in ((11, 4), (1, 40))),
        ("g.sources", "g.out_h", "g.source_d", "g.source_h", "g.source_w")),
    Study("filter_weight", "depthwise", (wgrad((3, 9, 11), (3, 3, 3), p=1, g=35, ic=35, oc=35, mb=4),),
        ("g.groups", "g.out_h", "g.source_d", "g.source_h", "g.source_w"), (), channels_last),
)  # fmt: skip


def prepared(device: Any, text: str, study: Study, infinite: bool) -> Calls:
    """The call that computes a problem from fresh arrays of whole numbers, none of them zero, and the right result.

    infinite : one number of each array is: only those show a product with a zero that must not be
    """
    p = Problem.parse(text)
    x, w, b = (None if a is None else np.where(a == 0, 2, a).astype(a.dtype) for a in integer_arrays(p))
    g = np.random.default_rng(1).integers(1, 4, (p.batch, p.out_channels, *p.out_size[3 - p.rank :])).astype(x.dtype)
    if infinite:
        x[-1, 0, 1, -1, -1] = x[0, 0, 1, 1, x.shape[-1] // 2] = w[0, 0, 0, 0, 0] = g[-1, 0, 1, 1, -1] = np.inf
    (algorithm,) = (a for a in registry("cuda") if a.name == study.algorithm)
    assert algorithm.supports(p) is None
    setup = algorithm.setup(p.per_image)
    gradient = p.direction == "weight_grad"
    with np.errstate(invalid="ignore"):
        expected = reference.weight_grad(p, x, g) if gradient else reference.convolve(p, x, w, b)

    def on_device(array: np.ndarray) -> Any:
        return check_array("array", put(device, array))

    def run() -> Any:
        out = put(device, np.full_like(expected, np.nan) if gradient else study.arrange(np.full_like(expected, np.nan)))
        if gradient:
            packed = (on_device(study.arrange(g)).five(p.rank),)
        else:
            packed = setup.pack(on_device(w).five(p.rank), None if b is None else on_device(b))
        setup.run(on_device(study.arrange(x)).five(p.rank), packed, check_array("out", out).five(p.rank))
        return out

    return run, expected


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: f"{study.algorithm}-{study.texts[0]}")
def test_every_wrong_bound_shows(study: Study, device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if not device.emulated:
        pytest.skip("a GPU does not say what it has read")
    monkeypatch.setattr(device, "order", "together")
    monkeypatch.setattr(machine, "ENDLESS", 20_000)
    monkeypatch.setattr(depthwise, "MOST_ROWS", 2)  # so that a thread has several images
    device.launched.clear()
    calls = [prepared(device, text, study, infinite) for text in study.texts for infinite in (False, True)]
    assert not caught(device, calls)
    launched = {name for name, *_ in device.launched if name.startswith(study.kernel)}
    ((kernel, program),) = ((kernel, program) for kernel, program in device._programs.items() if kernel.name in launched)
    bounds = Bounds(kernel, program, lines_that_run(program, device, calls))
    assert set(study.bounds) <= set(bounds.groups), sorted(bounds.groups)
    survived = []
    for name, instructions in bounds.groups.items():
        for how, wrong in bounds.wrong(name).items():
            with wrong:
                if not caught(device, calls) and f"{name} {how}" not in study.harmless:
                    survived.append(f"{name} {how}: {instructions[0]}")
    nameless = [text for text in survived if text.startswith(("%", "loop"))]
    assert len(survived) == len(nameless) <= 3, "\n".join(survived)
