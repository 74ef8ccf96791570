"""The text form of a Problem: test id, log line and benchmark row.

``f32_fwd_mb1g1_ic32id64ih64iw64_oc64kd3kh3kw3_s1x1x1_p1:1x1:1x1:1_d1x1x1_zeros_b1`` reads: dtype (``s8-s32`` with another result dtype),
direction, batch and groups, input channels and sizes, output channels and kernel, stride, (low, high) padding, dilation,
padding mode, bias, and ``_op…`` for output padding.  After oneDNN's benchdnn, whose driver has the same three uses.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

_DIRECTIONS = {"forward": "fwd", "input_grad": "igrad", "weight_grad": "wgrad"}
_DTYPES = {
    "float64": "f64", "float32": "f32", "float16": "f16", "bfloat16": "bf16", "complex64": "c64", "complex128": "c128",
    "int8": "s8", "int16": "s16", "int32": "s32", "int64": "s64", "uint8": "u8",
}  # fmt: skip
_NAMES = {token: name for name, token in (_DTYPES | _DIRECTIONS).items()}

_PATTERN = re.compile(
    rf"(?P<dtype>{'|'.join(_DTYPES.values())})(?:-(?P<out_dtype>{'|'.join(_DTYPES.values())}))?_(?P<direction>fwd|igrad|wgrad)"
    r"_mb(?P<batch>\d+)g(?P<groups>[1-9]\d*)_ic(?P<ic>\d+)(?P<in_size>(?:i[dhw]\d+){1,3})_oc(?P<oc>\d+)(?P<kernel>(?:k[dhw]\d+){1,3})"
    r"_s(?P<stride>\d+(?:x\d+){0,2})_p(?P<padding>\d+:\d+(?:x\d+:\d+){0,2})_d(?P<dilation>\d+(?:x\d+){0,2})"
    r"_(?P<mode>zeros|reflect|replicate|circular)_b(?P<bias>[01])(?:_op(?P<op>\d+(?:x\d+){0,2}))?"
)


def write(problem: Any) -> str:
    """The text form of a Problem."""
    p, first = problem, 3 - problem.rank

    def sizes(prefix: str, values: Sequence[int]) -> str:
        return "".join(f"{prefix}{axis}{value}" for axis, value in zip("dhw"[first:], values[first:]))

    def by(values: Sequence[int]) -> str:
        return "x".join(str(value) for value in values[first:])

    parts = [
        _DTYPES[p.dtype] + (f"-{_DTYPES[p.out_dtype]}" if p.out_dtype != p.dtype else ""),
        _DIRECTIONS[p.direction],
        f"mb{p.batch}g{p.groups}",
        f"ic{p.in_channels}{sizes('i', p.in_size)}",
        f"oc{p.out_channels}{sizes('k', p.kernel)}",
        f"s{by(p.stride)}",
        "p" + "x".join(f"{lo}:{hi}" for lo, hi in p.padding[first:]),
        f"d{by(p.dilation)}",
        p.padding_mode,
        f"b{int(p.bias)}",
    ]
    if p.transposed or any(p.output_padding):
        parts.append(f"op{by(p.output_padding)}")
    return "_".join(parts)


def read(text: str) -> dict[str, Any]:
    """A Problem's fields, sizes as lists of its rank; ValueError for what is no text form."""
    match = _PATTERN.fullmatch(text)
    if match is None:
        raise ValueError(f"not the text form of a Problem: {text!r}")
    part = match.groupdict()
    rank = part["stride"].count("x") + 1

    def numbers(name: str) -> list[int]:
        return [int(n) for n in re.findall(r"\d+", part[name] or "")]

    return {
        "dtype": _NAMES[part["dtype"]],
        "out_dtype": _NAMES[part["out_dtype"] or part["dtype"]],
        "direction": _NAMES[part["direction"]],
        "rank": rank,
        "batch": int(part["batch"]),
        "groups": int(part["groups"]),
        "in_channels": int(part["ic"]),
        "in_size": numbers("in_size"),
        "out_channels": int(part["oc"]),
        "kernel": numbers("kernel"),
        "stride": numbers("stride"),
        "padding": [(int(lo), int(hi)) for lo, hi in re.findall(r"(\d+):(\d+)", part["padding"])],
        "dilation": numbers("dilation"),
        "output_padding": numbers("op") or [0] * rank,
        "padding_mode": part["mode"],
        "bias": part["bias"] == "1",
    }
