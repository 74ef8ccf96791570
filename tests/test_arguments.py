"""What bad input gets: ValueError or TypeError in one sentence that names the argument, before anything is computed or written."""

from __future__ import annotations

import itertools
import re
import sys
import time
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import numbaconv
from numbaconv import explain, plan

from .checks import taking

Call = Callable[..., Any]


def ones(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.ones(shape, dtype)


def forward(**changed: Any) -> Any:
    """A valid conv2d with some arguments changed; ``out`` must come back untouched when it is refused."""
    arguments: dict[str, Any] = {"input": ones(2, 4, 6, 7), "weight": ones(6, 2, 3, 3), "bias": ones(6), "groups": 2}
    return numbaconv.conv2d(**arguments | {"out": np.full((2, 6, 4, 5), np.nan, np.float32)} | changed)


def transposed(**changed: Any) -> Any:
    """A valid conv_transpose2d with some arguments changed."""
    arguments: dict[str, Any] = {"input": ones(2, 4, 6, 7), "weight": ones(4, 3, 3, 3), "bias": ones(6), "groups": 2, "stride": 2}
    return numbaconv.conv_transpose2d(**arguments | {"out": np.full((2, 6, 13, 15), np.nan, np.float32)} | changed)


def refused(call: Call, error: type[Exception], word: str, **changed: Any) -> str:
    """Assert the refusal and return its message."""
    out = changed.get("out")
    before = out.tobytes() if isinstance(out, np.ndarray) and out.dtype != object else None
    with pytest.raises(error) as caught:
        call(**changed)
    message = str(caught.value)
    assert type(caught.value) is error and "\n" not in message
    assert re.search(rf"\b{word}\b", message), message
    assert before is None or out.tobytes() == before, "a refused call wrote into out"
    return message


def test_the_unchanged_calls_are_valid() -> None:
    assert forward().shape == (2, 6, 4, 5) and transposed().shape == (2, 6, 13, 15)


# ---- numbers ---------------------------------------------------------------------------------------------------------
NOT_INTEGERS = [None, 1.0, "1", True, np.float64(1), np.array([1, 1]), {1, 2}, (1.0, 1), (1, None), [True, 1], 1 + 0j, b"1"]


@pytest.mark.parametrize("value", NOT_INTEGERS, ids=repr)
@pytest.mark.parametrize("name", ["stride", "dilation", "padding"])
def test_not_integers(name: str, value: Any) -> None:
    for call in (forward, transposed):
        if name == "padding" and call is forward and isinstance(value, str):
            refused(call, ValueError, name, padding=value)  # a string, and not one of the names
        else:
            refused(call, TypeError, name, **{name: value})


@pytest.mark.parametrize("value", [*NOT_INTEGERS[:6], (1, 1)], ids=repr)
def test_groups_is_one_integer(value: Any) -> None:
    for call in (forward, transposed):
        refused(call, TypeError, "groups", groups=value)


@pytest.mark.parametrize("value", NOT_INTEGERS, ids=repr)
def test_output_padding_is_an_integer(value: Any) -> None:
    refused(transposed, TypeError, "output_padding", output_padding=value)


@pytest.mark.parametrize(
    "name, value",
    [
        *itertools.product(("stride", "dilation"), (0, -1, (1, 0), (), (1, 1, 1), [1, 2, 3, 4], 2**62, 2**63, 10**30)),
        *itertools.product(("padding",), (-1, (0, -1), (), (1, 1, 1), 2**62, 2**63, 10**30)),
        *itertools.product(("padding",), (((0, 1), (0, -1)), ((0, 1),) * 3, ((1,), (1, 2)))),
        *itertools.product(("groups",), (0, -1, 3, 2**63)),
    ],
    ids=repr,
)  # fmt: skip
def test_numbers_out_of_range(name: str, value: Any) -> None:
    for call in (forward, transposed):
        refused(call, ValueError, name, **{name: value})


@pytest.mark.parametrize("value", [-1, 2, (1, 2), (0, 0, 0), 2**63], ids=repr)
def test_output_padding_out_of_range(value: Any) -> None:
    refused(transposed, ValueError, "output_padding", output_padding=value)


def test_integers_of_every_kind_are_taken() -> None:
    for value in (2, (2,), [2], (2, 2), [2, 2], np.int8(2), np.uint64(2), (np.int32(2), 2), np.array(2)):
        assert forward(stride=value, out=None).shape == (2, 6, 2, 3)
    for value in (1, (1, 1), [1], ((1, 1), (1, 1)), [(1, 1)], ([1, 1], (1, 1))):
        assert forward(padding=value, out=None).shape == (2, 6, 6, 7)


# ---- padding and modes -----------------------------------------------------------------------------------------------
def test_padding_strings() -> None:
    refused(forward, ValueError, "padding", padding="SAME")
    refused(forward, ValueError, "padding", padding="full")
    assert "same_upper" in refused(forward, ValueError, "padding", padding="same", stride=2)
    refused(transposed, TypeError, "padding", padding="same")
    refused(forward, TypeError, "padding", padding=((1, 1), 1))
    refused(forward, TypeError, "padding", padding=("same", "same"))


@pytest.mark.parametrize("mode, size, most", [("reflect", 6, 5), ("circular", 6, 6)])
def test_padding_beyond_a_modes_limit(mode: str, size: int, most: int) -> None:
    forward(padding=((most, 0), (0, 0)), padding_mode=mode, out=None)
    for pair in ((most + 1, 0), (0, most + 1)):
        message = refused(forward, ValueError, "padding", padding=(pair, (0, 0)), padding_mode=mode, out=None)
        assert mode in message and f"size {size}" in message


def test_padding_mode() -> None:
    for mode in ("constant", "symmetric", "Reflect", "edge", ""):
        refused(forward, ValueError, "padding_mode", padding_mode=mode)
    for mode in (None, 0, ["zeros"], np.zeros(3)):
        refused(forward, TypeError, "padding_mode", padding_mode=mode)
    with pytest.raises(TypeError, match="padding_mode"):
        transposed(padding_mode="reflect")


def test_precision_and_algorithm() -> None:
    for call in (forward, transposed):
        refused(call, ValueError, "precision", precision="float32")
        refused(call, TypeError, "precision", precision=32)
        refused(call, TypeError, "precision", precision=["ieee"])
        assert "direct" in refused(call, ValueError, "algorithm", algorithm="fastest")
        refused(call, TypeError, "algorithm", algorithm=None)
        refused(call, TypeError, "algorithm", algorithm=["direct"])


# ---- shapes ----------------------------------------------------------------------------------------------------------
SHAPES = [
    ("input", (6, 7)), ("input", (1, 2, 4, 6, 7)), ("input", (2, 3, 6, 7)), ("input", (2, 4, 0, 7)), ("input", ()), ("input", (2, 0, 6, 7)),
    ("weight", (6, 2, 3)), ("weight", (6, 2, 3, 3, 3)), ("weight", (0, 2, 3, 3)), ("weight", (6, 2, 0, 3)), ("weight", ()),
    ("bias", (5,)), ("bias", (6, 1)), ("bias", ()), ("bias", (0,)), ("bias", (1,)),
    ("out", (2, 6, 4, 6)), ("out", (6, 4, 5)), ("out", (1, 6, 4, 5)), ("out", ()),
]  # fmt: skip


@pytest.mark.parametrize("name, shape", SHAPES, ids=str)
def test_shapes(name: str, shape: tuple[int, ...]) -> None:
    for call in (forward, transposed):
        refused(call, ValueError, name, **{name: ones(*shape)})


def test_kernel_beyond_the_padded_input() -> None:
    refused(forward, ValueError, "kernel", input=ones(2, 4, 2, 2))
    refused(forward, ValueError, "kernel", dilation=3)
    refused(forward, ValueError, "kernel", padding="valid", dilation=(1, 4))
    refused(transposed, ValueError, "padding", padding=8)


def test_empty_dimensions_that_are_allowed() -> None:
    """No image, or no input channel, is a result like any other; a transposed convolution to no channel has an empty one."""
    assert forward(input=ones(0, 4, 6, 7), out=None).shape == (0, 6, 4, 5)
    no_channels = numbaconv.conv2d(ones(2, 0, 6, 7), ones(6, 0, 3, 3), np.arange(6, dtype=np.float32))
    np.testing.assert_array_equal(no_channels, np.broadcast_to(np.arange(6.0)[:, None, None], (2, 6, 4, 5)))
    assert numbaconv.conv_transpose2d(ones(0, 4, 6, 7), ones(4, 3, 3, 3)).shape == (0, 3, 8, 9)


# ---- kinds of array --------------------------------------------------------------------------------------------------
def foreign(module: str, name: str, **members: Any) -> Any:
    """An array-like object that claims to be of another library's class."""
    return type(name, (), {"__module__": module, "shape": (2, 4, 6, 7), "__array__": lambda self: ones(2, 4, 6, 7), **members})()


FOREIGN = [
    (np.ma.masked_array(ones(2, 4, 6, 7), mask=False), r"\.filled\("),
    (np.ma.masked_array(ones(2, 4, 6, 7)).view(type("Mine", (np.ma.MaskedArray,), {})), r"\.filled\("),
    (foreign("torch", "Tensor"), r"\.detach\(\)\.numpy\(\)"),
    (foreign("nibabel.nifti1", "Nifti1Image", dataobj=0), r"asarray\(\w+\.dataobj\)"),
    (foreign("nibabel.arrayproxy", "ArrayProxy"), r"numpy\.asarray\("),
    (foreign("xarray.core.dataarray", "DataArray"), r"\.values"),
    (foreign("cupy", "ndarray"), "host"),
    (foreign("numba.cuda.cudadrv.devicearray", "DeviceNDArray"), "host"),
    (foreign("somewhere", "OnDevice", __cuda_array_interface__={}), "host"),
    (foreign("dask.array.core", "Array"), r"numpy\.asarray\("),
    (ones(2, 4, 6, 7).view(type("Sub", (np.ndarray,), {})), r"numpy\.asarray\("),
    (ones(2, 4, 6, 7).tolist(), r"numpy\.array\("),
    ((1.0, 2.0), r"numpy\.array\("),
    (1.0, r"numpy\.array\("),
    (np.float32(1), r"numpy\.asarray\("),
    (memoryview(ones(4)), r"numpy\.asarray\("),
    ("input", r"numpy\.asarray\("),
]


@pytest.mark.parametrize("value, advice", FOREIGN, ids=lambda value: value if isinstance(value, str) else type(value).__name__)
def test_foreign_kinds_of_array(value: Any, advice: str) -> None:
    for call, name in itertools.product((forward, transposed), ("input", "weight", "bias")):
        assert re.search(advice, refused(call, TypeError, name, **{name: value}))
        refused(call, TypeError, "out", out=value)


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
def test_matrix() -> None:
    for name in ("input", "weight", "bias", "out"):
        refused(forward, TypeError, name, **{name: np.matrix([[1.0, 2.0]])})


def test_none_is_only_a_bias_or_an_out() -> None:
    for name in ("input", "weight"):
        refused(forward, TypeError, name, **{name: None})


UNSUPPORTED = (
    bool, np.uint16, np.uint32, np.uint64, np.longdouble, np.clongdouble, object, "U4", "S4", "M8[s]", "m8[s]", "V4", [("a", "f4")],
    ml_dtypes.float8_e4m3fn, ml_dtypes.int4,
)  # fmt: skip


@pytest.mark.parametrize("dtype", UNSUPPORTED, ids=str)
def test_unsupported_dtypes(dtype: Any) -> None:
    for name, shape in (("input", (2, 4, 6, 7)), ("weight", (6, 2, 3, 3)), ("bias", (6,))):
        message = refused(forward, TypeError, name, **{name: np.zeros(shape, dtype)})
        assert "astype" in message or "convert" in message
    refused(forward, TypeError, "out", out=np.zeros((2, 6, 4, 5), dtype))


def test_mixed_dtypes() -> None:
    for name, shape in (("weight", (6, 2, 3, 3)), ("bias", (6,))):
        for dtype in (np.float64, np.float16, np.int32, np.complex64, ml_dtypes.bfloat16):
            message = refused(forward, TypeError, name, **{name: np.zeros(shape, dtype)})
            assert "float32" in message and np.dtype(dtype).name in message
    refused(forward, TypeError, "out", out=np.zeros((2, 6, 4, 5)))


def test_out_dtype() -> None:
    narrow = {name: ones(*shape, dtype=np.int8) for name, shape in (("input", (2, 4, 6, 7)), ("weight", (6, 2, 3, 3)), ("bias", (6,)))}
    assert forward(**narrow, out=None, out_dtype=np.int32).dtype == np.int32
    assert forward(out=None, out_dtype="float32").dtype == np.float32
    refused(forward, ValueError, "out_dtype", **narrow, out=None, out_dtype=np.int64)
    refused(forward, ValueError, "out_dtype", out=None, out_dtype=np.int32)
    refused(forward, ValueError, "out_dtype", out=None, out_dtype=np.float64)
    refused(forward, TypeError, "out_dtype", out=None, out_dtype="no dtype")
    refused(forward, TypeError, "out_dtype", out=None, out_dtype=3)
    refused(forward, TypeError, "out", **narrow, out=ones(2, 6, 4, 5, dtype=np.int8), out_dtype=np.int32)


# ---- out -------------------------------------------------------------------------------------------------------------
def test_out_that_cannot_be_written() -> None:
    out = ones(2, 6, 4, 5)
    out.setflags(write=False)
    refused(forward, ValueError, "out", out=out)
    refused(forward, ValueError, "out", out=ones(2, 6, 4, 5).astype(np.dtype(np.float32).newbyteorder()))
    refused(forward, ValueError, "out", out=np.lib.stride_tricks.as_strided(ones(1000), (2, 6, 4, 5), (400, 64, 8, 4)))
    refused(forward, ValueError, "out", out=np.lib.stride_tricks.as_strided(ones(1000), (2, 6, 4, 5), (0, 80, 20, 4)))
    unaligned = np.zeros(2 * 6 * 4 * 5 * 4 + 1, np.uint8)[1:].view(np.float32).reshape(2, 6, 4, 5)
    refused(forward, ValueError, "out", out=unaligned)


def test_out_that_shares_memory() -> None:
    memory = ones(4000)
    shapes = {"input": (2, 4, 6, 7), "weight": (6, 2, 3, 3), "bias": (6,)}
    out = memory[100:340].reshape(2, 6, 4, 5)
    for name, shape in shapes.items():
        n = int(np.prod(shape))
        apart, overlapping = memory[1000 : 1000 + n].reshape(shape), memory[339 : 339 + n].reshape(shape)
        assert forward(**{name: apart}, out=out) is out
        memory[:] = 1
        refused(forward, ValueError, "out", **{name: overlapping}, out=out)
    # Interleaved cells of one buffer share no byte.
    buffer = ones(2, 4, 6, 7, 2)
    result = np.full((2, 6, 4, 5, 2), np.nan, np.float32)[..., 0]
    assert forward(input=buffer[..., 0], out=result) is result


# ---- sizes -----------------------------------------------------------------------------------------------------------
def test_a_huge_stride_computes_one_output() -> None:
    for stride in (1000, 2**31, 2**40, 2**61):
        y = forward(stride=stride, out=None)
        assert y.shape == (2, 6, 1, 1) and (y == 19).all()
    assert transposed(input=ones(2, 4, 1, 1), stride=2**61, out=None).shape == (2, 6, 3, 3)


HUGE = 2**40
HUGE_CALLS = [
    ({"dilation": 2**61, "weight": [1]}, [1, 2, 3, 4, 5]),
    ({"padding": HUGE, "stride": HUGE, "weight": [1]}, [0, 1, 0]),
    ({"padding": HUGE, "stride": 7, "dilation": HUGE}, [10]),
    ({"padding": HUGE, "stride": HUGE // 2, "dilation": 3}, [0, 0, 41, 0]),
    ({"padding": HUGE, "stride": HUGE, "weight": [1], "padding_mode": "replicate"}, [1, 1, 5]),
    ({"padding": HUGE, "stride": 7, "dilation": HUGE, "padding_mode": "replicate"}, [511]),
    ({"padding": HUGE, "stride": HUGE // 2, "dilation": 3, "padding_mode": "replicate"}, [111, 111, 541, 555]),
]
HUGE_TRANSPOSED = [
    ({"dilation": 2**61, "weight": [1]}, [1, 2, 3, 4, 5]),
    ({"stride": HUGE, "padding": 2 * HUGE}, [3, 30, 300]),
    ({"dilation": HUGE, "padding": HUGE}, [10, 20, 30, 40, 50]),
    ({"stride": HUGE, "padding": ((4 * HUGE - 1, 0),)}, [0, 5, 50, 500]),
]


@pytest.mark.parametrize("algorithm", taking("f32_fwd_mb1g1_ic1iw5_oc1kw3_s1_p0:0_d1_zeros_b0"))
def test_huge_geometry_with_a_small_result(algorithm: str) -> None:
    """Padding, dilation and stride far beyond the input: no memory and no time for what is not there."""
    for function, calls in ((numbaconv.conv1d, HUGE_CALLS), (numbaconv.conv_transpose1d, HUGE_TRANSPOSED)):
        for arguments, expected in calls:
            weight = np.array([[arguments.get("weight", [1, 10, 100])]], np.float32)
            try:
                y = function(np.array([[[1, 2, 3, 4, 5]]], np.float32), **arguments | {"weight": weight}, algorithm=algorithm)
            except ValueError as refusal:  # it may decline with a reason, never compute something else
                assert str(refusal).startswith(f"algorithm {algorithm!r} declines: ")
                continue
            np.testing.assert_array_equal(y, [[expected]])


def test_overflowing_extents() -> None:
    refused(forward, ValueError, "dilation", dilation=2**61)
    refused(forward, ValueError, "dilation", dilation=2**61, padding=2**61)
    refused(forward, ValueError, "padding", padding=2**61)
    refused(transposed, ValueError, "dilation", dilation=2**61)
    refused(transposed, ValueError, "output", stride=2**60)
    refused(forward, ValueError, "output", padding=2**35)


def test_results_beyond_the_memory() -> None:
    """MemoryError at once: nothing is allocated, nothing computed."""
    start = time.perf_counter()
    x, w = np.broadcast_to(ones(1, 1, 1, 1), (2**20, 1, 1000, 1000)), ones(1, 1, 1, 1)
    for call in (numbaconv.conv2d, numbaconv.conv_transpose2d):
        with pytest.raises(MemoryError, match="output and workspace need"):
            call(x, w)
    with pytest.raises(MemoryError):
        numbaconv.conv2d(ones(1, 1, 1, 1), w, padding=2**24)
    with pytest.raises(MemoryError):
        numbaconv.conv_transpose1d(ones(1, 1, 2), ones(1, 1, 1), stride=2**40)
    assert time.perf_counter() - start < 5


def test_extreme_array_strides() -> None:
    """A view of one element with any strides is that element; a stride of 2**40 bytes is refused only by memory."""
    for steps in ((2**62, -(2**62), 2**61, 7), (-8, 3, 1, -1)):
        x = np.lib.stride_tricks.as_strided(ones(1, 1, 1, 1), (1, 1, 1, 1), steps)
        assert numbaconv.conv2d(x, ones(1, 1, 1, 1))[0, 0, 0, 0] == 1
        assert numbaconv.conv2d(x, ones(1, 1, 3, 3), padding=1)[0, 0, 0, 0] == 1
        out = np.lib.stride_tricks.as_strided(ones(1, 1, 1, 1), (1, 1, 1, 1), tuple(4 * (s // 4) for s in steps))
        assert numbaconv.conv2d(x, ones(1, 1, 1, 1), out=out) is out


# ---- plans -----------------------------------------------------------------------------------------------------------
def test_plans_refuse_as_the_functions_do() -> None:
    x, w, b = ones(2, 4, 6, 7), ones(6, 2, 3, 3), ones(6)
    for make in (plan, explain):
        refused(make, ValueError, "stride", input_or_shape=x, weight=w, groups=2, stride=0)
        refused(make, ValueError, "groups", input_or_shape=x, weight=w, groups=0)
        refused(make, ValueError, "bias", input_or_shape=x, weight=w, bias=ones(5), groups=2)
        refused(make, ValueError, "weight", input_or_shape=x, weight=ones(6, 2), groups=2)
        refused(make, ValueError, "output_padding", input_or_shape=x, weight=w, groups=2, output_padding=1)
        refused(make, ValueError, "padding_mode", input_or_shape=x, weight=ones(4, 3, 3, 3), transposed=True, padding_mode="reflect")
        refused(make, TypeError, "input", input_or_shape=x, weight=w.astype(np.float64), groups=2)
        refused(make, TypeError, "input_or_shape", input_or_shape=None, weight=w, groups=2)
        refused(make, TypeError, "input_or_shape", input_or_shape=(2, 4.0, 6, 7), weight=w, groups=2)
        refused(make, ValueError, "input_or_shape", input_or_shape=(2, 4, -6, 7), weight=w, groups=2)
        refused(make, TypeError, "dtype", input_or_shape=x.shape, weight=w, groups=2, dtype="f9")
        refused(make, TypeError, "bias", input_or_shape=x, weight=w, bias=np.ones(6), groups=2)
        refused(make, TypeError, "transposed", input_or_shape=x, weight=w, groups=2, transposed="no")
    refused(plan, TypeError, "weight", input_or_shape=x.shape, weight=w.shape, groups=2)
    p = plan(x, w, b, groups=2)
    refused(p, ValueError, "input", input=ones(2, 4, 6, 8))
    refused(p, ValueError, "input", input=ones(4, 6))
    refused(p, TypeError, "input", input=x.astype(np.float64))
    refused(p, TypeError, "input", input=x.tolist())
    refused(p, ValueError, "out", input=x, out=ones(2, 6, 4, 6))
    refused(p, TypeError, "out", input=x, out=np.ones((2, 6, 4, 5)))


# ---- anything at all -------------------------------------------------------------------------------------------------
ANYTHING = [
    None, True, 0, -1, 2, 2**63, 1.5, float("nan"), 1j, "same", "", b"x", (), (1, 2), (1, 2, 3), [None], ((1, 2), (3, 4)), {}, {1},
    object(), int, len, np.int64(3), np.zeros(0, np.float32), ones(2, 4, 6, 7), np.zeros(2, object), ..., slice(None), range(3), sys,
]  # fmt: skip
COMMON = ("input", "weight", "bias", "stride", "padding", "dilation", "groups", "out", "out_dtype", "precision", "algorithm")
PARAMETERS = {forward: (*COMMON, "padding_mode"), transposed: (*COMMON, "output_padding")}
OF_A_PLAN = ("input_or_shape", *COMMON[1:7], "transposed", "output_padding", "padding_mode", "dtype", *COMMON[8:])


@pytest.mark.parametrize("call, name", [(call, name) for call, names in PARAMETERS.items() for name in names])
def test_anything_for_any_parameter(call: Call, name: str) -> None:
    """A result, ValueError or TypeError: nothing else, whatever comes."""
    for value in ANYTHING:
        try:
            result = call(**({"out": None} if name != "out" else {}) | {name: value})
        except (ValueError, TypeError) as error:
            assert type(error) in (ValueError, TypeError)
        else:
            assert type(result) is np.ndarray


@pytest.mark.parametrize("make", [plan, explain])
def test_anything_for_a_plan(make: Call) -> None:
    given: dict[str, Any] = {"input_or_shape": (2, 4, 6, 7), "weight": ones(6, 2, 3, 3), "groups": 2}
    for name, value in itertools.product(OF_A_PLAN, ANYTHING):
        try:
            make(**given | {name: value})
        except (ValueError, TypeError) as error:
            assert type(error) in (ValueError, TypeError)
