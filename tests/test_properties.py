"""Random problems in random memory layouts, by hypothesis: against the reference, and through the text form and back.

The runs are derandomised: every run tries the same examples.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from numbaconv import Problem, reference
from numbaconv.arguments import PADDING_MODES

from . import layouts
from .cases import call, dtype_of, integer_arrays
from .checks import DEFINITION, always_parallel, assert_same

# Each run of the whole suite tries 400 + 150 + 300 examples.
steady = {"deadline": None, "derandomize": True, "database": None, "suppress_health_check": [HealthCheck.too_slow]}
DTYPES = ("float64", "float32", "float16", "bfloat16", "complex64", "complex128", "int8", "int16", "int32", "int64", "uint8")


def numbers(low: int, high: int, rank: int) -> st.SearchStrategy[tuple[int, ...]]:
    return st.tuples(*[st.integers(low, high)] * rank)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Any small valid problem, of both directions."""
    rank = draw(st.integers(1, 3))
    transposed = draw(st.booleans())
    most = {1: 40, 2: 12, 3: 6}[rank]
    kernel, stride, dilation = draw(numbers(1, 4, rank)), draw(numbers(1, 4, rank)), draw(numbers(1, 3, rank))
    size, low, high = draw(numbers(1, most, rank)), draw(numbers(0, 4, rank)), draw(numbers(0, 4, rank))
    mode = draw(st.sampled_from(PADDING_MODES)) if not transposed else "zeros"
    extents = [d * (k - 1) + 1 for k, d in zip(kernel, dilation)]
    if mode in ("reflect", "circular"):  # clip the padding to the mode's limit
        limits = [n - (mode == "reflect") for n in size]
        low, high = (tuple(map(min, pads, limits)) for pads in (low, high))
    output_padding = tuple(draw(st.integers(0, max(s, d) - 1)) if transposed else 0 for s, d in zip(stride, dilation))
    if transposed:  # ``size`` is that of the source; cut the padding where it would leave no result
        full = [(n - 1) * s + e + op for n, s, e, op in zip(size, stride, extents, output_padding)]
        low = tuple(min(lo, n - 1) for lo, n in zip(low, full))
        high = tuple(min(hi, n - 1 - lo) for hi, lo, n in zip(high, low, full))
        size = tuple(n - lo - hi for n, lo, hi in zip(full, low, high))
    else:  # grow the input until the kernel fits
        size = tuple(max(n, e - lo - hi) for n, e, lo, hi in zip(size, extents, low, high))
    groups = draw(st.integers(1, 3))
    dtype = draw(st.sampled_from(DTYPES))
    to_int32 = dtype in ("int8", "int16", "uint8") and draw(st.booleans())
    return Problem(
        dtype=dtype,
        out_dtype="int32" if to_int32 else dtype,
        direction="input_grad" if transposed else "forward",
        rank=rank,
        batch=draw(st.integers(0, 3)),
        groups=groups,
        in_channels=groups * draw(st.integers(0 if not transposed else 1, 5)),
        in_size=filled(size, 1),
        out_channels=groups * draw(st.integers(1, 5)),
        kernel=filled(kernel, 1),
        stride=filled(stride, 1),
        padding=filled(tuple(zip(low, high)), (0, 0)),
        dilation=filled(dilation, 1),
        output_padding=filled(output_padding, 0),
        padding_mode=mode,
        bias=draw(st.booleans()),
    )


def filled(values: tuple[Any, ...], fill: Any) -> Any:
    return (fill,) * (3 - len(values)) + tuple(values)


@st.composite
def laid_out(draw: st.DrawFn, array: np.ndarray) -> np.ndarray:
    """A view of ``array``'s shape and dtype in a random layout; its values too where a stride is zero."""
    array = layouts.with_axes_in_order(array, draw(st.permutations(range(array.ndim))))
    kind = draw(st.sampled_from(("as it is", "strided", "strided", "repeated", "unaligned", "byte swapped", "read-only")))
    if kind == "strided":
        return layouts.with_steps(array, draw(st.tuples(*[st.sampled_from((1, -1, 2, -2, 3))] * array.ndim)))
    if kind == "repeated" and array.size:
        return layouts.repeated(array, draw(st.lists(st.integers(0, array.ndim - 1), min_size=1, unique=True)))
    if kind == "unaligned":
        return layouts.unaligned(array)
    if kind == "byte swapped" and array.dtype.name != "bfloat16":  # ml_dtypes has no other byte order
        return layouts.byte_swapped(array)
    return layouts.read_only(array) if kind == "read-only" else array


@st.composite
def calls(draw: st.DrawFn) -> tuple[Problem, list[np.ndarray | None], np.ndarray | None]:
    """A problem, its arguments in random layouts, and None or an ``out`` in one, full of ones."""
    p = draw(problems())
    arrays = [None if array is None else draw(laid_out(array)) for array in integer_arrays(p)]
    if draw(st.booleans()):
        return p, arrays, None
    out = layouts.with_axes_in_order(np.ones(p.result_shape, dtype_of(p.out_dtype)), draw(st.permutations(range(p.rank + 2))))
    return p, arrays, layouts.with_steps(out, draw(st.tuples(*[st.sampled_from((1, -1, 2, -3))] * out.ndim)))


@settings(max_examples=400, **steady)
@given(calls(), st.booleans())
def test_any_problem_in_any_layout(given_call: tuple[Problem, list[Any], np.ndarray | None], parallel: bool) -> None:
    p, (x, w, b), out = given_call
    expected = reference.convolve(p, x, w, b)
    for algorithm in DEFINITION:
        if algorithm.supports(p) is None:
            if parallel:
                with always_parallel():
                    y = call(p, x, w, b, algorithm=algorithm.name, out=out)
            else:
                y = call(p, x, w, b, algorithm=algorithm.name, out=out)
            assert out is None or y is out
            assert_same(y, expected)


@settings(max_examples=150, **steady)
@given(problems(), st.data())
def test_a_result_does_not_depend_on_the_batch_around_it(p: Problem, data: st.DataObject) -> None:
    """Each image alone, unbatched, gives the bits that it has in its batch (floats included)."""
    if p.batch == 0:
        return
    x, w, b = integer_arrays(p)
    if x.dtype.kind in "fc":
        noise = np.random.default_rng(0).standard_normal(x.shape)
        x = (x.astype(np.complex128 if x.dtype.kind == "c" else np.float64) * noise).astype(x.dtype)
    together = call(p, x, w, b)
    image = data.draw(st.integers(0, p.batch - 1))
    assert call(p, x[image], w, b).tobytes() == together[image].tobytes()


@settings(max_examples=300, **steady)
@given(problems())
def test_the_text_form_parses_back(p: Problem) -> None:
    assert Problem.parse(str(p)) == p
    assert p.out_size == tuple(  # the documented formula, by floor division of exact integers
        math.floor((i + lo + hi - d * (k - 1) - 1 - op) / s) + 1
        for i, (lo, hi), d, k, op, s in zip(p.in_size, p.padding, p.dilation, p.kernel, p.output_padding, p.stride)
    )
