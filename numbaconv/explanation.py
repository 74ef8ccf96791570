"""What a call does and why, as text."""

from __future__ import annotations

from dataclasses import dataclass

from .choose import Choice
from .problem import Problem


@dataclass(frozen=True)
class Explanation:
    """The answer of :func:`numbaconv.explain`; ``str()`` is the text, the fields are its content."""

    problem: Problem
    choice: Choice

    @property
    def algorithm(self) -> str:
        """Name of the algorithm taken."""
        return self.choice.name

    def __str__(self) -> str:
        p, setup = self.problem, self.choice.setup
        rows = [
            ("problem", str(p)),
            ("operation", f"{'transposed ' if p.transposed else ''}convolution, {p.rank}-D, {p.dtype} to {p.out_dtype}"),
            ("input", f"{p.source_shape}"),
            ("weight", f"{p.weight_shape}" + (f", groups {p.groups}" if p.groups > 1 else "")),
            ("output", f"{p.result_shape}"),
            ("formula", _formula(p)),
            *_size_rows(p),
            ("work", f"{p.flops / 1e9:.4g} GFLOP by the definition"),
            ("traffic", f"{p.bytes / 2**20:.4g} MiB, {p.flops / max(p.bytes, 1):.1f} FLOP a byte"),
            ("algorithm", self.algorithm),
            ("arithmetic", self.choice.arithmetic),
            ("memory", f"workspace at most {setup.workspace:,} bytes, packed weight {setup.packed_bytes:,} bytes"),
        ]
        for verdict in self.choice.verdicts:
            if verdict.name == self.algorithm:
                rows.append((f"  {verdict.name}", f"taken, estimated {_seconds(verdict.cost)} an image"))
            elif verdict.reason is not None:
                rows.append((f"  {verdict.name}", f"declines: {verdict.reason}"))
            else:
                rows.append((f"  {verdict.name}", f"not taken, estimated {_seconds(verdict.cost)} an image"))
        width = max(len(label) for label, _ in rows) + 2
        return "\n".join(f"{label:<{width}}{text}" for label, text in rows)


def _formula(p: Problem) -> str:
    if p.transposed:
        return "out[n, i] = bias[i] + sum over o, k with x * stride + k * dilation - padding = y of weight[o, i, k] * input[n, o, x], at y"
    return "out[n, o] = bias[o] + sum over c, k of weight[o, c, k] * input[n, c, x * stride + k * dilation - padding], at x"


def _size_rows(p: Problem) -> list[tuple[str, str]]:
    rows = []
    for axis in range(3 - p.rank, 3):
        i, o, k, s, d = p.in_size[axis], p.out_size[axis], p.kernel[axis], p.stride[axis], p.dilation[axis]
        (lo, hi), op = p.padding[axis], p.output_padding[axis]
        if p.transposed:
            text = f"{i} = ({o} - 1) * {s} + {d} * ({k} - 1) + 1 + {op} - {lo} - {hi}"
        else:
            text = f"{o} = floor(({i} + {lo} + {hi} - {d} * ({k} - 1) - 1) / {s}) + 1"
        rows.append(("size " + "DHW"[axis], text + (f", padding {p.padding_mode}" if lo or hi else "")))
    return rows


def _seconds(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * scale >= 1:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds * 1e6:.2g} µs"
