"""Record torch's gradients of small convolutions: ``python -m tests.data.make_torch_gradients`` writes ``torch_gradients.json``.

Inputs are whole numbers given by formulas, so every gradient is exact and numbaconv must give the same values, not just close ones.
Padded modes are ``torch.nn.functional.pad`` before the convolution, as torch's layers do it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from numbaconv import Problem

from ..cases import case
from ..gradients import formula_arrays

FILE = Path(__file__).with_name("torch_gradients.json")
TORCH_MODE = {"zeros": "constant", "reflect": "reflect", "replicate": "replicate", "circular": "circular"}


def problems() -> list[str]:
    texts = []
    sizes = {1: (9,), 2: (5, 6), 3: (4, 3, 5)}
    for rank, size in sizes.items():
        kernel = (3, 2, 3)[-rank:]
        texts += [
            case("fwd", size, kernel, b=1, t="f64"),
            case("fwd", size, kernel, mb=2, b=1, s=2, p=1, t="f64"),
            case("fwd", size, kernel, mb=2, p=tuple((1, 2) for _ in size), d=2, t="f64"),
            case("fwd", size, kernel, g=2, ic=4, oc=6, p=1, s=(1, 2, 3)[-rank:], b=1, t="f32"),
            case("fwd", size, kernel, g=4, ic=4, oc=4, p=1, t="f32"),
            case("fwd", size, kernel, p=1, mb=2, t="c128"),
            case("igrad", size, kernel, b=1, t="f64"),
            case("igrad", size, kernel, mb=2, s=3, p=1, op=2, b=1, t="f64"),
            case("igrad", size, kernel, g=2, ic=4, oc=6, s=2, d=(3, 1, 2)[-rank:], op=1, p=1, b=1, t="f32"),
            case("igrad", size, kernel, s=2, p=1, t="c128"),
        ]
        for mode, limit in (("reflect", -1), ("replicate", 2), ("circular", 0)):
            texts.append(case("fwd", size, kernel, p=tuple(n + limit for n in size), mode=mode, t="f64"))
            texts.append(case("fwd", size, kernel, mb=2, p=tuple((1, 2) for _ in size), s=2, mode=mode, b=1, t="f64"))
    return texts


def record(p: Problem) -> dict[str, Any]:
    """The gradients of <conv(x), g> with respect to x, weight and bias, flat; complex numbers as pairs (real, imaginary)."""
    arrays = [None if array is None else torch.from_numpy(array) for array in formula_arrays(p)]
    leaves = [array.requires_grad_() for array in arrays[:3] if array is not None]
    x, w, b, g = arrays
    first = 3 - p.rank
    common = {"stride": p.stride[first:], "dilation": p.dilation[first:], "groups": p.groups}
    if p.transposed:
        padding = [lo for lo, _ in p.padding[first:]]
        function = getattr(F, f"conv_transpose{p.rank}d")
        y = function(x, w, b, padding=padding, output_padding=p.output_padding[first:], **common)
    else:
        pads = [cells for pair in reversed(p.padding[first:]) for cells in pair]
        y = getattr(F, f"conv{p.rank}d")(F.pad(x, pads, TORCH_MODE[p.padding_mode]), w, b, **common)
    y.backward(g)
    names = ("input", "weight", "bias")
    return {"problem": str(p), **{name: whole(leaf.grad) for name, leaf in zip(names, leaves)}}


def whole(gradient: torch.Tensor) -> list[int]:
    numbers = (torch.view_as_real(gradient) if gradient.is_complex() else gradient).flatten().tolist()
    assert all(number == int(number) for number in numbers)
    return [int(number) for number in numbers]


def main() -> None:
    cases = [json.dumps(record(Problem.parse(text)), separators=(",", ":")) for text in problems()]
    FILE.write_text(f'{{"torch": "{torch.__version__}", "cases": [\n' + ",\n".join(cases) + "\n]}\n", "utf-8")


if __name__ == "__main__":
    main()
