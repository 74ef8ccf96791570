"""Weight and bias of a layer: initialisation, assignment, state dicts and safetensors files."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import numbaconv
from numbaconv import Conv1d, Conv2d, Conv3d, ConvTranspose2d, ConvTranspose3d

from .layers import X, small_layer


# ---- initialisation --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("layer", "fan_in"),
    [
        (Conv2d(4, 64, 3, rng=0), 36),
        (Conv3d(4, 64, 3, groups=2, rng=0), 54),
        (ConvTranspose2d(4, 64, 3, rng=0), 576),
        (ConvTranspose3d(4, 64, 3, groups=4, rng=0), 432),
        (Conv1d(16, 128, 5, rng=0), 80),
    ],
    ids=repr,
)
def test_initialisation_is_uniform_within_torchs_bound(layer: Any, fan_in: int) -> None:
    """fan_in as torch's own ``_calculate_fan_in_and_fan_out`` gave it for these layers."""
    bound = fan_in**-0.5
    for values in (layer.weight, layer.bias):
        assert 0.9 * bound < np.abs(values).max() <= np.float32(bound)
        assert values.dtype == np.float32 and values.flags.c_contiguous
    assert layer.weight.var() == pytest.approx(bound**2 / 3, rel=0.06)


@pytest.mark.parametrize(("layer", "shape"), [(Conv2d, (6, 2, 2, 3)), (ConvTranspose2d, (4, 3, 2, 3))])
def test_the_weight_is_drawn_first_then_the_bias(layer: Any, shape: tuple[int, ...]) -> None:
    bound = 1 / math.sqrt(math.prod(shape[1:]))
    for made in (layer(4, 6, (2, 3), groups=2, rng=5), layer(4, 6, (2, 3), groups=2, rng=np.random.default_rng(5))):
        draws = np.random.default_rng(5)
        np.testing.assert_array_equal(made.weight, draws.uniform(-bound, bound, shape).astype(np.float32), strict=True)
        np.testing.assert_array_equal(made.bias, draws.uniform(-bound, bound, 6).astype(np.float32), strict=True)


def test_a_generator_goes_on() -> None:
    rng = np.random.default_rng(1)
    first, second = Conv1d(2, 3, 3, rng=rng), Conv1d(2, 3, 3, rng=rng)
    assert (first.weight != second.weight).any()
    assert (Conv1d(2, 3, 3).weight != Conv1d(2, 3, 3).weight).any()


@pytest.mark.parametrize(
    "dtype", [np.float64, "float32", np.dtype(">f4"), np.float16, "bfloat16", ml_dtypes.bfloat16, np.complex64, complex]
)
def test_dtypes(dtype: Any) -> None:
    wanted = np.dtype(ml_dtypes.bfloat16) if dtype == "bfloat16" else np.dtype(dtype).newbyteorder("=")
    layer = Conv1d(3, 8, 3, dtype=dtype, rng=0)
    assert layer.weight.dtype == layer.bias.dtype == wanted
    assert layer(np.ones((3, 4), wanted)).dtype == wanted
    parts = [layer.weight.real, layer.weight.imag] if wanted.kind == "c" else [layer.weight]
    for part in parts:
        assert 0.25 < np.abs(part.astype(np.float64)).max() < 1 / 3 + 2**-9
    with pytest.raises(TypeError, match=r"^weight must have the dtype of input"):
        layer(np.ones((3, 4), np.int32))


def test_no_input_channels() -> None:
    layer = Conv2d(0, 4, 3, rng=0)
    np.testing.assert_array_equal(layer.bias, np.zeros(4, np.float32), strict=True)
    layer.bias[...] = [1, 2, 3, 4]
    np.testing.assert_array_equal(layer(np.zeros((0, 3, 4), np.float32))[:, 0], [[1, 1], [2, 2], [3, 3], [4, 4]])


# ---- weight and bias -------------------------------------------------------------------------------------------------------
def test_a_changed_weight_is_seen() -> None:
    layer = small_layer()
    before = layer(X)
    layer.weight[1] *= 2
    changed = layer(X)
    assert (changed[:, 1] != before[:, 1]).any()
    np.testing.assert_array_equal(changed, numbaconv.conv2d(X, layer.weight, layer.bias))
    layer.weight -= 1.0
    layer.bias += 3.0
    np.testing.assert_array_equal(layer(X), numbaconv.conv2d(X, layer.weight, layer.bias))


def test_assignment_keeps_the_array() -> None:
    layer = small_layer()
    weight = np.asfortranarray(np.ones((3, 2, 2, 2)))
    layer.weight = weight
    assert layer.weight is weight
    layer.bias = None
    assert list(layer.state_dict()) == ["weight"] and repr(layer).endswith("bias=False)")
    np.testing.assert_array_equal(layer(X), numbaconv.conv2d(X, weight))
    layer.bias = np.arange(3.0)
    np.testing.assert_array_equal(layer(X), numbaconv.conv2d(X, weight, np.arange(3.0)))


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("weight", np.zeros((3, 2, 2)), ValueError, r"^weight must have shape \(3, 2, 2, 2\), got \(3, 2, 2\)"),
        ("weight", np.zeros((3, 2, 2, 2), np.float32), TypeError, r"^weight must have the layer's dtype float64, got float32"),
        ("weight", [1.0], TypeError, r"^weight must be a numpy.ndarray, got list"),
        ("weight", None, TypeError, r"^weight must be a numpy.ndarray, got NoneType"),
        ("bias", np.zeros(2), ValueError, r"^bias must have shape \(3,\), got \(2,\)"),
        ("bias", np.zeros(3, int), TypeError, r"^bias must have the layer's dtype float64, got int64"),
    ],
)
def test_assignment_refusals(name: str, value: Any, error: type[Exception], message: str) -> None:
    layer = small_layer()
    kept = getattr(layer, name)
    with pytest.raises(error, match=message):
        setattr(layer, name, value)
    assert getattr(layer, name) is kept


# ---- state -----------------------------------------------------------------------------------------------------------------
def test_state_dict_round_trip() -> None:
    source, target = small_layer(), Conv2d(2, 3, 2, dtype=np.float64)
    weight, bias = target.weight, target.bias
    assert source.state_dict()["weight"] is source.weight
    target.load_state_dict(source.state_dict())
    assert target.weight is weight and target.bias is bias  # written in place, as torch does
    np.testing.assert_array_equal(target(X), source(X))


def test_load_state_dict_converts_as_torch_does() -> None:
    layer = Conv2d(1, 1, 1, dtype=np.float16)
    layer.load_state_dict({"weight": np.array([[[[0.1]]]]), "bias": np.array([1e9], ml_dtypes.bfloat16)})
    assert layer.weight.item() == np.float16(0.1) and layer.bias[0] == np.inf
    layer.load_state_dict({"weight": np.array([[[[3]]]]), "bias": np.array([2], ">f8")})
    assert (layer.weight.item(), layer.bias[0], layer.weight.dtype) == (3, 2, np.float16)


@pytest.mark.parametrize(
    ("state", "error", "message"),
    [
        ({"weight": np.ones((3, 2, 2, 2))}, ValueError, r"^state_dict must have exactly the keys .*: missing \['bias'\]$"),
        (
            {"weight": np.ones((3, 2, 2, 2)), "bias": np.ones(3), "scale": np.ones(3)},
            ValueError,
            r"^state_dict must have exactly the keys .*: unexpected \['scale'\]$",
        ),
        ({}, ValueError, r": missing \['bias', 'weight'\]$"),
        ({"weight": np.ones((3, 2, 2, 2)), "bias": np.ones(4)}, ValueError, r"^bias must have shape \(3,\) for Conv2d.*, got \(4,\)"),
        ({"weight": np.ones((3, 2, 2, 2)), "bias": [1.0, 2.0, 3.0]}, TypeError, r"^bias must be a numpy.ndarray, got list"),
        ({"weight": np.ones((3, 2, 2, 2)), "bias": np.ones(3, complex)}, TypeError, r"^bias must be real for a layer of dtype float64"),
        ([("weight", 1)], TypeError, r"^state_dict must be a mapping"),
    ],
)
def test_load_state_dict_refusals(state: Any, error: type[Exception], message: str) -> None:
    layer = small_layer()
    before = layer.weight.copy()
    with pytest.raises(error, match=message):
        layer.load_state_dict(state)
    np.testing.assert_array_equal(layer.weight, before)


@pytest.mark.parametrize("bias", [np.lib.stride_tricks.as_strided(np.zeros(1), (3,), (0,)), np.broadcast_to(1.0, 3)])
def test_load_state_dict_needs_room(bias: np.ndarray) -> None:
    layer = small_layer()
    layer.bias = bias
    before = layer.weight.copy()
    with pytest.raises(ValueError, match=r"^bias of the layer must be writeable and not overlap itself"):
        layer.load_state_dict({"weight": np.ones((3, 2, 2, 2)), "bias": np.ones(3)})
    np.testing.assert_array_equal(layer.weight, before)


def test_safetensors(tmp_path: Path) -> None:
    numpy_format = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")
    source = small_layer()
    network = {f"features.0.{name}": array for name, array in source.state_dict().items()}
    numpy_format.save_file(network | {"head.weight": np.ones(2)}, tmp_path / "network.safetensors")
    layer = Conv2d(2, 3, 2, dtype=np.float64)
    layer.load_safetensors(tmp_path / "network.safetensors", prefix="features.0.")
    np.testing.assert_array_equal(layer(X), source(X))

    numpy_format.save_file({k: v.astype(np.float16) for k, v in source.state_dict().items()}, tmp_path / "layer.safetensors")
    layer = Conv2d(2, 3, 2, dtype=np.float64)
    layer.load_safetensors(str(tmp_path / "layer.safetensors"))
    np.testing.assert_array_equal(layer.weight, source.weight, strict=True)

    with pytest.raises(ValueError, match=r"unexpected \['features.0.bias', 'features.0.weight', 'head.weight'\]$"):
        layer.load_safetensors(tmp_path / "network.safetensors")
    with pytest.raises(ValueError, match=r"below prefix 'head.' must have exactly .*: missing \['bias'\]$"):
        layer.load_safetensors(tmp_path / "network.safetensors", "head.")
    with pytest.raises(TypeError, match=r"^prefix must be a string"):
        layer.load_safetensors(tmp_path / "network.safetensors", 0)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError):
        layer.load_safetensors(tmp_path / "nothing")
    (tmp_path / "text").write_text("no tensors here")
    with pytest.raises(ValueError, match=r"^path must be a safetensors file"):
        layer.load_safetensors(tmp_path / "text")


def test_safetensors_bfloat16(tmp_path: Path) -> None:
    """A bfloat16 checkpoint loads into a float32 layer, also where nobody has imported ml_dtypes before."""
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    header = json.dumps({"weight": {"dtype": "BF16", "shape": [1, 1, 2], "data_offsets": [0, 4]}}).encode()
    values = np.array([1.5, -2.0], ml_dtypes.bfloat16)
    (tmp_path / "half").write_bytes(len(header).to_bytes(8, "little") + header + values.tobytes())
    code = """if True:
        import sys, numbaconv
        layer = numbaconv.Conv1d(1, 1, 2, bias=False)
        assert "ml_dtypes" not in sys.modules
        layer.load_safetensors(sys.argv[1])
        print(layer.weight.dtype, layer.weight.tolist())
    """
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path / "half")], capture_output=True, text=True, check=False)
    assert (run.stdout.strip(), run.stderr) == ("float32 [[[1.5, -2.0]]]", "")


def test_safetensors_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r"numbaconv\[safetensors\]"):
        small_layer().load_safetensors("anything")
