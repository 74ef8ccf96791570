"""What the front-end does with device arrays before and around the kernels: reading them, refusing, ordering streams, results, plans."""

from __future__ import annotations

import itertools
import re
from typing import Any

import numpy as np
import pytest

from . import packages

if why := packages.missing():
    pytest.skip(why, allow_module_level=True)

import numbaconv
from numbaconv import grad
from numbaconv.device import DeviceArray

from .device import Placed, get, put

RNG = np.random.default_rng(0)
X, W, B = (RNG.integers(-4, 5, shape).astype(np.float32) for shape in ((2, 4, 6, 7), (6, 4, 3, 3), (6,)))
EXPECTED = numbaconv.conv2d(X, W, B, precision="ieee")


def test_end_to_end(device: Any) -> None:
    """The result is an array of the device, of the input's dtype, C-contiguous."""
    x, w, b = (put(device, a) for a in (X, W, B))
    y = numbaconv.conv2d(x, w, b)
    np.testing.assert_array_equal(get(device, y), EXPECTED)
    assert y.dtype == np.float32 and y.shape == EXPECTED.shape
    np.testing.assert_array_equal(get(device, numbaconv.conv2d(put(device, X[0]), w, b)), EXPECTED[0])
    assert numbaconv.conv2d(put(device, X[:0]), w).shape == (0, 6, 4, 5)


def test_out(device: Any) -> None:
    x, w, b = (put(device, a) for a in (X, W, B))
    out = put(device, np.full_like(EXPECTED, np.nan))
    assert numbaconv.conv2d(x, w, b, out=out) is out
    np.testing.assert_array_equal(get(device, out), EXPECTED)


REFUSED = [
    ("weight", W, TypeError, r"weight must live where input does, got input in the memory of cuda:0 and weight in host memory"),
    ("bias", B, TypeError, r"bias must live where input does"),
    ("input", X, TypeError, r"weight must live where input does, got input in host memory and weight in the memory of cuda:0"),
    ("weight", "float64", TypeError, r"weight must have the dtype of input, got input float32 and weight float64"),
    ("input", "uint16", TypeError, r"input must have one of the dtypes float64.*got uint16: convert with .astype\(numpy.int32\)"),
    ("input", "bool", TypeError, r"input must have one of the dtypes .*got bool"),
    ("weight", (6, 3, 3, 3), ValueError, r"input must have weight.shape\[1\] \* groups = 3 channels, got 4"),
    ("out", (2, 6, 4, 6), ValueError, r"out must have shape \(2, 6, 4, 5\)"),
    ("out", "int32", TypeError, r"out must have dtype float32, got int32"),
    ("out", EXPECTED, TypeError, r"out must be an array in the memory of cuda:0 or None, got numpy.ndarray in host memory"),
    ("stream", "fast", TypeError, r"stream must be a stream of CuPy, torch, Numba or cuda.core, or its handle as an int, got 'fast'"),
    ("algorithm", "fft", ValueError, r"algorithm must be 'auto' or one of"),
    ("stride", 0, ValueError, r"stride must be at least 1, got 0"),
    ("padding_mode", "mirror", ValueError, r"padding_mode must be one of"),
]


@pytest.mark.parametrize("name, change, error, message", REFUSED)
def test_refusals(name: str, change: Any, error: type[Exception], message: str, device: Any) -> None:
    """Nothing is launched or written."""
    arrays = {"input": X, "weight": W, "bias": B, "out": np.full_like(EXPECTED, 7)}
    given = {key: put(device, a) for key, a in arrays.items()}
    out = given["out"]
    if name in arrays and isinstance(change, (str, tuple)):
        change = put(device, np.ones(change, np.float32) if isinstance(change, tuple) else np.ones(arrays[name].shape, change))
    if device.emulated:
        device.launched.clear()
    with pytest.raises(error, match="^" + message):
        numbaconv.conv2d(**given | {name: change})
    assert (get(device, out) == 7).all()
    if device.emulated:
        assert device.launched == []


def test_numpy_takes_no_stream() -> None:
    for call in (
        lambda: numbaconv.conv2d(X, W, stream=0),
        lambda: numbaconv.plan(X, W)(X, stream=0),
        lambda: grad.conv2d_input(X.shape, W, EXPECTED, stream=0),
        lambda: grad.conv_bias(EXPECTED, stream=0),
    ):
        with pytest.raises(TypeError, match=r"^stream must be None for NumPy arrays, got int"):
            call()


def test_arrays_that_cannot_be_read(device: Any) -> None:
    w = put(device, W)

    def changed(**changes: Any) -> Placed:
        x = put(device, X)
        vars(x).update(changes)
        return x

    for x, error, message in (
        (changed(mask=put(device, X > 0)), TypeError, "input must not be masked"),
        (changed(dtype=np.dtype(">f4")), ValueError, "input must have native byte order"),
        (changed(pointer=put(device, X).pointer + 2), ValueError, "input must be aligned to its itemsize 4, got address"),
        (changed(strides=(168, 42, 28, 4)), ValueError, "input must be aligned to its itemsize 4, got strides"),
    ):
        with pytest.raises(error, match="^" + message):
            numbaconv.conv2d(x, w)
    read_only = changed(readonly=True)
    np.testing.assert_array_equal(get(device, numbaconv.conv2d(read_only, w, put(device, B))), EXPECTED)
    out = put(device, EXPECTED)
    out.readonly = True
    with pytest.raises(ValueError, match=r"^out must be writeable, got a read-only array"):
        numbaconv.conv2d(put(device, X), w, out=out)


def test_an_object_of_the_same_type_may_live_on_the_host(device: Any) -> None:
    """As jax's arrays do, whose one type refuses the interface on the CPU."""

    class Either(Placed):
        on_the_host = False

        @property
        def __cuda_array_interface__(self) -> dict[str, Any]:
            if self.on_the_host:
                raise AttributeError("not here")
            return super().__cuda_array_interface__

    placed = put(device, X)
    x = Either(placed.pointer, placed.shape, placed.strides, placed.dtype, placed)
    np.testing.assert_array_equal(get(device, numbaconv.conv2d(x, put(device, W), put(device, B))), EXPECTED)
    x.on_the_host = True
    with pytest.raises(TypeError, match=r"^input must be a numpy.ndarray, got "):
        numbaconv.conv2d(x, put(device, W), put(device, B))


def test_out_that_overlaps(device: Any) -> None:
    x, w = put(device, X), put(device, W)
    inside = Placed(x.pointer, EXPECTED.shape, EXPECTED.strides, X.dtype, x)
    with pytest.raises(ValueError, match=r"^out must not share memory with input"):
        numbaconv.conv2d(x, w, out=inside)
    folded = put(device, EXPECTED)
    folded.strides = (0, *folded.strides[1:])
    with pytest.raises(ValueError, match=r"^out must not overlap itself"):
        numbaconv.conv2d(x, w, out=folded)


def test_streams(device: Any) -> None:
    """Work is put on the input's stream, or the one given, after what the other arrays' streams hold."""
    if not device.emulated:
        pytest.skip("test_interop has the real ones")
    x, w, b = (put(device, a) for a in (X, W, B))
    x.stream, w.stream = 11, 12
    device.launched.clear(), device.followed.clear()
    numbaconv.conv2d(x, w, b)
    assert {stream for _, _, stream in device.launched} == {11} and device.followed == [(11, 12), (11, 0)]

    class Stream:
        def __cuda_stream__(self) -> tuple[int, int]:
            return 0, 13

    for stream in (13, Stream(), type("S", (), {"ptr": 13})(), type("S", (), {"cuda_stream": 13})(), type("S", (), {"handle": 13})()):
        device.launched.clear(), device.followed.clear()
        numbaconv.conv2d(x, w, b, stream=stream)
        assert {s for _, _, s in device.launched} == {13} and device.followed == [(13, 11), (13, 12), (13, 0)]
    x.stream = w.stream = 1
    device.followed.clear()
    numbaconv.conv2d(x, w, b)
    assert device.followed == [], "0 and 1 name the same stream"


def test_two_devices(device: Any) -> None:
    if not device.emulated:
        pytest.skip("needs two")
    x, w = put(device, X), put(device, W)
    device.elsewhere[w.pointer] = 1
    with pytest.raises(
        ValueError, match=r"^weight must live where input does, got input in the memory of cuda:0 and weight in the memory of cuda:1"
    ):
        numbaconv.conv2d(x, w)
    plan = numbaconv.plan(X.shape, put(device, W))
    device.elsewhere[x.pointer] = 1
    with pytest.raises(
        ValueError, match=r"^input must live where the plan's weight does, in the memory of cuda:0, got input in the memory of cuda:1"
    ):
        plan(x)
    with pytest.raises(
        TypeError, match=r"^input must live where the plan's weight does, in the memory of cuda:0, got input in host memory"
    ):
        plan(X)


def test_plans(device: Any) -> None:
    """A plan holds the packed weight: later changes of it are not seen; a planned call with out allocates nothing without a workspace."""
    w, b = put(device, W), put(device, B)
    plan = numbaconv.plan(X.shape, w, b)
    if device.emulated:
        device.memory.write(w.pointer, np.zeros_like(W))
    for x in (X, X[0], np.concatenate([X, X])):
        expected = numbaconv.conv2d(x, W, B, precision="ieee")
        np.testing.assert_array_equal(get(device, plan(put(device, x))), expected)
        out = put(device, np.full_like(expected, np.nan))
        assert plan(put(device, x), out=out) is out
        np.testing.assert_array_equal(get(device, out), expected)
    assert plan.algorithm in str(plan) and plan.packed_bytes > 0 and plan.workspace >= 0
    explained = str(numbaconv.explain(put(device, X), put(device, W), precision="tf32"))
    assert re.search(r"float32", explained) and "direct" in explained


def test_the_arrays_of_a_call_stay_as_they_are(device: Any) -> None:
    arrays = [put(device, a) for a in (X, W, B)]
    numbaconv.conv2d(*arrays)
    grad.conv2d_input(X.shape, arrays[1], put(device, EXPECTED))
    grad.conv2d_weight(arrays[0], W.shape, put(device, EXPECTED))
    for placed, a in zip(arrays, (X, W, B)):
        np.testing.assert_array_equal(get(device, placed), a)


def test_what_the_library_sees() -> None:
    class Library:
        name = "test"

    array = DeviceArray(1000, (2, 3, 4), (-48, 16, 4), "float32", 4, 0, 0, True, Library(), None)  # type: ignore[arg-type]
    assert array.extent == (1000 - 48, 1000 + 32 + 12 + 4) and array.steps == (-12, 4, 1) and array.size == 24 and array.nbytes == 96
    for rank, shape, strides in ((1, (2, 3, 1, 1, 4), (-48, 16, 0, 0, 4)), (2, (1, 2, 1, 3, 4), (0, -48, 0, 16, 4))):
        assert (array.five(rank).shape, array.five(rank).strides) == (shape, strides)
    assert "float32[2, 3, 4]" in repr(array) and array.shifted(2).pointer == 1008


def test_names_of_availability(device: Any) -> None:
    reason = numbaconv.cuda.unavailable_reason()
    assert numbaconv.cuda.is_available() == (reason is None)
    if device.emulated and reason is not None:
        assert "driver" in reason


@pytest.mark.parametrize("precision", [None, "ieee", "fast", "tf32"])
def test_precisions_are_taken(precision: Any, device: Any) -> None:
    y = numbaconv.conv2d(put(device, X), put(device, W), put(device, B), precision=precision)
    np.testing.assert_array_equal(get(device, y), EXPECTED)


def test_every_function_takes_device_arrays(device: Any) -> None:
    for rank, transposed in itertools.product((1, 2, 3), (False, True)):
        x, w = np.ones((1, 2) + (5,) * rank, np.float32), np.ones((2, 2) + (3,) * rank, np.float32)
        f = getattr(numbaconv, f"conv{'_transpose' * transposed}{rank}d")
        np.testing.assert_array_equal(get(device, f(put(device, x), put(device, w), stride=2)), f(x, w, stride=2))
