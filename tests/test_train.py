"""``demo --train``: the network, its optimiser, the data, the scores, the picture and the command, mostly on small made-up volumes."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from numbaconv.__main__ import main
from numbaconv.demo import maps, train, unet
from numbaconv.demo.maps import Maps, load_maps
from numbaconv.demo.train import COMPARED, Scores, Training

from .demo_data import needs_maps


def made_up(d: int = 36, h: int = 100, w: int = 40) -> Maps:
    """Noise whose smoothed middle values are "grey matter", with a border of zeros."""
    rng = np.random.default_rng(0)
    t1 = np.zeros((d, h, w), np.float32)
    t1[1:-1, 1:-1, 1:-1] = rng.integers(1, 256, (d - 2, h - 2, w - 2)) / np.float32(255)
    return Maps(t1, np.float32(1) / (1 + ((t1 - np.float32(0.5)) / np.float32(0.2)) ** 4), (40, 60))


# ---- the network -----------------------------------------------------------------------------------------------------
def test_the_gradients_are_those_of_the_loss() -> None:
    """Along the gradient of each parameter the loss changes by its squared length; in float64, by central differences."""
    layers = unet.make_layers(0)
    for layer in layers.values():
        layer._dtype = np.dtype(np.float64)
        layer.weight, layer.bias = layer.weight.astype(np.float64), layer.bias.astype(np.float64)
        layer.train()
    rng = np.random.default_rng(1)
    x, target = rng.standard_normal((2, 1, 8, 4, 8)), rng.random((2, 1, 8, 4, 8))

    def loss_of(layers: Any) -> tuple[float, Any, Any]:
        logits, outputs = unet.forward(layers, x, lambda y: np.maximum(y, unet.LEAK * y), lambda parts: np.concatenate(parts, axis=1))
        return *unet.cross_entropy(logits, target), outputs

    _, g, outputs = loss_of(layers)
    unet.backward(layers, outputs, g)
    for name, layer in layers.items():
        for parameter in ("weight", "bias"):
            gradient = getattr(layer, f"{parameter}_grad")
            assert np.abs(gradient).max() > 0
            h = 1e-6 / np.linalg.norm(gradient)
            ends = []
            for sign in (1, -1):
                moved = copy.deepcopy(layers)
                setattr(moved[name], parameter, getattr(layer, parameter) + sign * h * gradient)
                ends.append(loss_of(moved)[0])
            assert (ends[0] - ends[1]) / (2 * h) == pytest.approx(np.vdot(gradient, gradient), rel=1e-4), f"{name}.{parameter}"


def test_cross_entropy_at_the_extremes() -> None:
    logits = np.array([0, 100, -100, 100, -100], np.float32)
    target = np.array([0.5, 1, 0, 0, 1], np.float32)
    loss, g = unet.cross_entropy(logits, target)
    assert loss == pytest.approx((np.log(2) + 200) / 5)
    np.testing.assert_allclose(g, [0, 0, 0, 0.2, -0.2], atol=1e-7)


def test_the_network_learns() -> None:
    data, engine = made_up(), unet.NumbaconvEngine(0)
    corners = data.positions(np.random.default_rng(0), 60, 16).reshape(30, 2, 3)
    losses = []
    for batch in corners:
        x, target = (np.stack([maps.cube(volume, corner, 16) for corner in batch])[:, None] for volume in (data.t1, data.grey))
        losses.append(engine.step(train.standardised(x), target, 0.003))
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    probabilities = engine.predict(train.standardised(data.t1[None, None, :, :20]))
    assert probabilities.shape == (1, 1, 36, 20, 40) and probabilities.min() >= 0 and probabilities.max() <= 1
    assert all(layer.weight_grad is None and layer._last is None for layer in engine.layers.values())


def test_torch_takes_the_same_steps() -> None:
    """The same losses and weights, by torch's own layers, autograd and Adam."""
    if os.environ.get("NUMBACONV_REQUIRE_TORCH") != "1":
        pytest.importorskip("torch", reason="torch is not installed", exc_type=ImportError)
    ours, theirs = unet.NumbaconvEngine(3), unet.TorchEngine(3)
    rng = np.random.default_rng(0)
    for step in range(5):
        x = rng.standard_normal((2, 1, 16, 12, 16)).astype(np.float32)
        target = rng.random(x.shape, np.float32)
        assert ours.step(x, target, 1e-3 * (step + 1)) == pytest.approx(theirs.step(x, target, 1e-3 * (step + 1)), rel=1e-5)
    np.testing.assert_allclose(ours.predict(x), theirs.predict(x), atol=1e-4)
    for name, layer in ours.layers.items():
        np.testing.assert_allclose(layer.weight, theirs._layers[name].weight.detach().numpy(), atol=1e-4)


def test_learning_rate() -> None:
    rates = [train.learning_rate(step, 800) for step in range(800)]
    assert np.argmax(rates) == train.WARM_UP - 1 and 0.9 * train.RATE < max(rates) < train.RATE
    assert 0 < rates[0] < 0.02 * train.RATE and 0 < rates[-1] < 0.001 * train.RATE


# ---- the data --------------------------------------------------------------------------------------------------------
def test_no_cube_touches_the_slab() -> None:
    data = made_up()
    corners = data.positions(np.random.default_rng(0), 300, 16)
    assert corners.shape == (300, 3) and len(np.unique(corners, axis=0)) > 250
    low, high = data.slab
    assert ((corners[:, 1] + 16 <= low) | (corners[:, 1] >= high)).all()
    assert {corners[:, 1].min() < low, corners[:, 1].max() >= high} == {True}
    assert (corners >= 0).all() and (corners + 16 <= data.t1.shape).all()
    assert all((maps.cube(data.t1, corner, 16) > 0).mean() >= 1 / 3 for corner in corners)
    t1, grey = data.held_out()
    np.testing.assert_array_equal(t1, data.t1[:, low:high])
    np.testing.assert_array_equal(grey, data.grey[:, low:high])


@needs_maps
def test_the_real_data() -> None:
    data = load_maps(32, 4)
    assert data.t1.shape == data.grey.shape == (156, 184, 148) and data.slab == (76, 108)
    assert data.t1.dtype == data.grey.dtype == np.float32
    assert data.t1.min() == data.grey.min() == 0 and data.t1.max() == data.grey.max() == 1
    assert ((data.grey > 0.5) & (data.t1 > 0)).sum() > 0.99 * (data.grey > 0.5).sum() > 10**6


def test_missing_data_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maps, "PACKAGE", "no-such-package-of-maps")
    with pytest.raises(FileNotFoundError, match=r"no-such-package-of-maps, which is not installed: pip install \"numbaconv\[train\]\""):
        load_maps(32, 4)


# ---- scores ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("side", ["<=", ">"])
def test_best_thresholds_by_trying_them_all(side: str) -> None:
    rng = np.random.default_rng(0)
    level = rng.integers(0, 256, 3000)
    truth = (level > 0) & ((level < 150) if side == "<=" else (level > 100)) & (rng.random(3000) < 0.8)
    brain = level > 0
    single = [(train.dice(brain & (level <= h), truth), f"T1 <= {h / 255:.2f}") for h in range(1, 256)]
    single += [(train.dice(level > h, truth), f"T1 > {h / 255:.2f}") for h in range(1, 255)]
    band = max(train.dice((level > low) & (level <= high), truth) for low in range(1, 255) for high in range(low + 1, 256))
    best, at, pair = train.best_thresholds(level, truth)
    assert best == pytest.approx(max(single)[0]) and at == max(single)[1] and side in at
    assert pair == pytest.approx(band)


def test_scores_pass_only_above_the_threshold() -> None:
    assert Scores({"numbaconv": 0.91}, 0.9, "", 0.95).passed
    assert not Scores({"torch": 0.91, "numbaconv": 0.9}, 0.9, "", 0.95).passed


@pytest.mark.parametrize("difference, agreed", [(0.5e-4, True), (2e-4, False)])
def test_report_says_whether_the_engines_agree(difference: float, agreed: bool, capsys: pytest.CaptureFixture[str]) -> None:
    losses = [1.0] * 30
    other = [1.0] * (COMPARED - 1) + [1 + difference] + [3.0] * 10  # what comes after the first 20 steps is not compared
    trainings = [Training("torch", losses, 1.0, 5.0), Training("numbaconv", other, 1.0, 4.0)]
    assert train.report(trainings, Scores({"torch": 0.95, "numbaconv": 0.85}, 0.9, "T1 <= 0.76", 0.95)) is agreed
    printed = capsys.readouterr().out
    assert ("DO NOT AGREE" in printed) is not agreed and f"{difference:.1e}" in printed
    assert "time: torch 5.0 s, numbaconv 4.0 s" in printed
    assert "beats the single threshold by +0.0500" in printed and "DOES NOT BEAT the single threshold by -0.0500" in printed


# ---- the command -----------------------------------------------------------------------------------------------------
def test_the_whole_run_on_made_up_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(train, "load_maps", lambda planes, multiple: made_up())
    monkeypatch.setattr(train, "CUBE", 16)
    status = main(["demo", "--train", "--steps", "20", "--output", str(tmp_path / "picture.png")])
    printed = capsys.readouterr().out
    assert status == int("DOES NOT BEAT" in printed)
    assert "numbaconv 20/20 steps, loss" in printed and "no training cube touches them" in printed
    from PIL import Image

    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.width > 1000 and len(picture.convert("RGB").getcolors(1 << 20) or []) > 50


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train", "--crop", "48"], "--crop goes with the demo without --train"),
        (["--engine", "torch"], "--engine goes with --train"),
        (["--steps", "30"], "--steps goes with --train"),
        (["--train", "--engine", "jax"], "engine must be one of 'numbaconv', 'torch', got 'jax'"),
        (["--train", "--steps", "19"], "steps must be at least 20, got 19"),
        (["--train", "--output", "picture.jpg"], "--output must name a .png file"),
    ],
)
def test_refusals(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["demo", *arguments])
    assert caught.value.code == 2 and message in capsys.readouterr().err
