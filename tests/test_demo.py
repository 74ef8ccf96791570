"""The demo's parts on small volumes, its data, its picture, and the commands of ``python -m numbaconv``."""

from __future__ import annotations

import gzip
import importlib.metadata
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import numbaconv
from numbaconv.__main__ import main
from numbaconv.demo import brain, draw, steps
from numbaconv.demo.brain import PACKAGE, load_brain, read_nifti
from numbaconv.demo.measure import SAMPLE, Progress, check_sample, measure
from numbaconv.problem import Problem

from .cases import arguments, case
from .demo_data import needs_brain

TEXT = "f32_fwd_mb1g1_ic32id64ih64iw64_oc64kd3kh3kw3_s1x1x1_p1:1x1:1x1:1_d1x1x1_zeros_b1"


@pytest.fixture
def volume() -> np.ndarray:
    """A ball of texture in an empty box, float32 in [0, 1]."""
    d, h, w = np.ogrid[-1:1:12j, -1:1:14j, -1:1:13j]
    texture = np.random.default_rng(0).random((12, 14, 13), dtype=np.float32)
    return np.where(d**2 + h**2 + w**2 < 0.7, texture, np.float32(0))


def silent() -> Progress:
    return Progress(steps.steps_of_progress())


# ---- the three parts -------------------------------------------------------------------------------------------------------
def test_filter_bank(volume: np.ndarray) -> None:
    step = steps.filter_bank(volume, silent())
    run = step.runs["bank"]
    assert run.result.shape == (1, 6, *volume.shape) and run.check.passed
    assert run.check.elements == SAMPLE * 6 and 0 < run.best <= run.first * 100
    assert np.abs(run.result).max(axis=(0, 2, 3, 4)).min() > 0
    # Smoothing keeps a constant, a derivative removes it.
    sums = steps.filter_bank_weight().sum(axis=(1, 2, 3, 4))
    np.testing.assert_allclose(sums, [1, 1, 0, 0, 0, 0], atol=0.05)


def test_filter_bank_is_scipys(volume: np.ndarray) -> None:
    pytest.importorskip("scipy", reason="scipy is not installed")
    step = steps.filter_bank(volume, silent())
    assert len(step.peers) == 2
    assert all(peer.difference < 1e-5 and peer.seconds > 0 for peer in step.peers)


def test_two_or_three(volume: np.ndarray) -> None:
    step = steps.two_or_three(volume, silent())
    flat, solid, bridge = step.runs.values()
    assert flat.result.shape == (1, 1, 14, 13), "2-D sums over the channels: a plane"
    assert solid.result.shape == (1, 1, 12, 14, 13), "3-D slides along depth: a volume"
    assert bridge.result.shape == (1, 1, 1, 14, 13)
    np.testing.assert_allclose(bridge.result[:, :, 0], flat.result, atol=1e-6)
    assert all(run.check.passed for run in step.runs.values())
    # The 2-D filter with equal weights does not see the order of the slices; the 3-D one does.
    turned = steps.two_or_three(np.ascontiguousarray(volume[::-1] ** 2), silent()), steps.two_or_three(volume**2, silent())
    np.testing.assert_allclose(turned[0].runs["conv2d"].result, turned[1].runs["conv2d"].result, atol=1e-6)
    assert not np.allclose(turned[0].runs["conv3d"].result, turned[1].runs["conv3d"].result, atol=1e-3)
    assert all(peer.difference < 1e-5 for peer in step.peers)


def test_layer_stack(volume: np.ndarray) -> None:
    step = steps.layer_stack(volume, silent())
    strided, dilated, depthwise = step.runs.values()
    assert [run.result.shape for run in step.runs.values()] == [(1, 8, 6, 7, 7), (1, 16, 6, 7, 7), (1, 16, 6, 4, 4)]
    assert all(run.check.passed for run in step.runs.values())
    assert strided.explanation.problem.stride == (2, 2, 2) and dilated.explanation.problem.dilation == (2, 2, 2)
    assert dilated.explanation.problem.groups == 4 and depthwise.explanation.problem.groups == 16


@pytest.mark.parametrize("scipy", [True, False])
def test_steps_report_their_progress(volume: np.ndarray, scipy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if scipy:
        pytest.importorskip("scipy", reason="scipy is not installed")
    monkeypatch.setattr(steps, "has_scipy", lambda: scipy)
    progress = silent()
    done = [part(volume, progress) for part in (steps.filter_bank, steps.two_or_three, steps.layer_stack)]
    assert progress.done == progress.steps
    assert [bool(step.peers) for step in done] == [scipy, scipy, False]


# ---- the check against the reference finds errors --------------------------------------------------------------------------
@pytest.mark.parametrize(
    "text",
    [
        case("fwd", (9,), (3,), p=1, ic=2, oc=3, b=1, t="f32"),
        case("fwd", (8, 9), (3, 2), p=((2, 0), (0, 1)), s=2, ic=4, oc=4, g=2, t="f32"),
        case("fwd", (5, 6, 7), (3, 3, 3), p=1, d=(1, 2, 1), s=(2, 1, 1), mode="reflect", b=1, t="f32"),
        case("fwd", (5, 6, 7), (3, 3, 3), p=2, mode="circular", t="f32"),
    ],
)
def test_check_sample(text: str) -> None:
    problem = Problem.parse(text)
    rng = np.random.default_rng(1)
    shapes = problem.source_shape, problem.weight_shape, (problem.result_channels,)
    x, w, b = (rng.standard_normal(shape, dtype=np.float32) for shape in shapes)
    bias = b if problem.bias else None
    found = getattr(numbaconv, f"conv{problem.rank}d")(x, w, bias, **arguments(problem))
    check = check_sample(problem, x, w, bias, found)
    assert check.passed and check.elements == SAMPLE * problem.out_channels and "passed" in str(check)
    wrong = check_sample(problem, x, w, bias, found + np.float32(1e-2))
    assert not wrong.passed and wrong.error > 5e-3 and "FAILED" in str(wrong)


def test_measure_runs_the_call(volume: np.ndarray) -> None:
    calls = []
    weight = np.ones((1, 1, 1, 1, 1), np.float32)
    x = volume[None, None]

    def call() -> np.ndarray:
        calls.append(1)
        return numbaconv.conv3d(x, weight)

    run = measure(call, numbaconv.explain(x, weight), x, weight, None)
    assert 2 <= len(calls) <= 4 and np.array_equal(run.result, x) and run.check.error == 0


def test_progress_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(2)
    with progress.step("unseen"):
        pass
    assert capsys.readouterr().err == "", "nothing where stderr is no terminal"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress.step("seen"):
        pass
    assert "[############------------] 1/2 seen" in capsys.readouterr().err
    assert progress.done == 2


# ---- the data --------------------------------------------------------------------------------------------------------------
def nifti(order: str, dtype: str, code: int, values: np.ndarray) -> bytes:
    header = bytearray(352)
    struct.pack_into(f"{order}i", header, 0, 348)
    struct.pack_into(f"{order}8h", header, 40, 3, *values.shape[::-1], 1, 1, 1, 1)
    struct.pack_into(f"{order}h", header, 70, code)
    struct.pack_into(f"{order}f", header, 108, 352)
    header[344:348] = b"n+1\0"
    return bytes(header) + values.astype(order + dtype).tobytes()


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dtype, code", [("u1", 2), ("i2", 4), ("f4", 16)])
def test_read_nifti(tmp_path: Path, order: str, dtype: str, code: int) -> None:
    values = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    data = nifti(order, dtype, code, values)
    plain, packed = tmp_path / "a.nii", tmp_path / "a.nii.gz"
    plain.write_bytes(data)
    packed.write_bytes(gzip.compress(data))
    assert np.array_equal(read_nifti(plain), values) and np.array_equal(read_nifti(packed), values)


def test_read_nifti_refuses_other_files(tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    path.write_bytes(b"not a picture of a brain")
    with pytest.raises(ValueError, match="is not a NIfTI-1 file"):
        read_nifti(path)
    path.write_bytes(nifti("<", "c8", 32, np.zeros((1, 1, 1))))
    with pytest.raises(ValueError, match="datatype code 32"):
        read_nifti(path)


@needs_brain
def test_the_brain() -> None:
    volume = load_brain()
    assert volume.shape == (193, 229, 193) and volume.dtype == np.float32 and volume.flags.c_contiguous
    assert volume.min() == 0 and volume.max() == 1 and 0.2 < (volume > 0).mean() < 0.25
    # inferior to superior: the narrow brain stem lies low, nothing above the crown
    assert 0 < (volume[20] > 0).sum() < (volume[90] > 0).sum() and not volume[-1].any()
    part = load_brain(20)
    assert part.shape == (20, 20, 20) and part.max() == 1
    assert load_brain(200).shape == (193, 200, 193)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def absent(name: str) -> Any:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(brain.importlib.metadata, "files", absent)
    with pytest.raises(SystemExit) as exit_:
        main(["demo", "--output", str(tmp_path / "a.png")])
    assert exit_.value.code == 1
    assert PACKAGE in capsys.readouterr().err


# ---- the picture -----------------------------------------------------------------------------------------------------------
def test_colour_maps() -> None:
    plane = np.array([[-1.0, 0.0, 1.0]])
    blue, black, orange = draw.signed(plane, 1.0)[0].astype(int)
    assert blue[2] > blue[0] and not black.any() and orange[0] > orange[2]
    assert draw.grey(plane, 1.0).tolist() == [[[0] * 3, [0] * 3, [255] * 3]]
    assert draw.colours(plane)[0] is draw.signed and draw.colours(np.abs(plane))[0] is draw.grey
    assert not draw.grey(np.zeros((2, 2)), 0.0).any()


def test_planes_within_the_extent(volume: np.ndarray) -> None:
    box = draw.extent(volume, margin=0)
    inside = np.nonzero(volume)
    for (low, high), indices, n in zip(box, inside, volume.shape):
        assert (round(low * n), round(high * n)) == (indices.min(), indices.max() + 1)
    axial, coronal, sagittal = draw.orthogonal(volume, ((0, 1),) * 3)
    assert axial.shape == (14, 13) and coronal.shape == (12, 13) and sagittal.shape == (12, 14)
    assert np.array_equal(coronal[-1], volume[0, 7]), "superior on top"
    assert draw.extent(np.zeros((2, 2, 2)))[0] == (0.0, 1.0)


def test_sheet(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    tile = draw.zoomed(draw.grey(np.ones((4, 5)), 1.0), 50)
    assert tile.shape == (40, 50, 3)
    assert draw.pile([tile] * 3, right=20, up=5).shape == (50, 90, 3)
    assert draw.column([tile, tile[:, :30]]).shape == (40 + 40 + draw.GAP // 2, 50, 3)
    sheet = draw.Sheet()
    sheet.heading("A heading", "and a note")
    sheet.row([("one\nline two", tile), ("", draw.arrow()), ("two", tile)])
    sheet.save(tmp_path / "sheet.png")
    with image.open(tmp_path / "sheet.png") as saved:
        assert saved.width > 180 and saved.height > 120
        assert (255, 255, 255) in {colour for _, colour in saved.convert("RGB").getcolors()}


# ---- commands --------------------------------------------------------------------------------------------------------------
@needs_brain
def test_demo_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "demo.png"
    assert main(["demo", "--crop", "16", "--output", str(picture)]) == 0
    printed = capsys.readouterr().out
    assert "7 of 7 checks against the reference passed" in printed and str(picture) in printed
    for part in ("1. Six", "2. Two or three", "3. A stack", "GFLOP/s", "algorithm", "shapes     input (1, 1, 16, 16, 16)"):
        assert part in printed
    assert "scipy.ndimage" in printed, "its times, or that it is not installed"
    assert picture.read_bytes().startswith(b"\x89PNG")


@needs_brain
def test_demo_fails_when_a_check_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    honest = steps.measure
    monkeypatch.setattr(steps, "measure", lambda *a: replace(m := honest(*a), check=replace(m.check, bound_used=2.0)))
    assert main(["demo", "--crop", "8", "--output", str(tmp_path / "demo.png")]) == 1
    assert "0 of 7 checks" in capsys.readouterr().out


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    assert f"numbaconv {numbaconv.__version__}" in printed and "direct (definition)" in printed
    for word in ("numba ", "llvmlite", "numpy", "threads", "-bit vectors"):
        assert word in printed


def test_explain(capsys: pytest.CaptureFixture[str]) -> None:
    def printed(line: str) -> str:
        assert main(line.split()) == 0
        return capsys.readouterr().out

    by_text = printed(f"explain {TEXT}")
    assert printed("explain 1,32,64,64,64 64,32,3,3,3 --padding 1 --bias --dtype float32") == by_text and TEXT in by_text
    line = "explain 4,6,9 6,2,4 --transposed --groups 3 --stride 2 --padding 0:1 --dtype bfloat16 --algorithm direct"
    assert "bf16_igrad_mb4g3_ic6iw19_oc6kw4_s2_p0:1_d1_zeros_b0_op0" in printed(line)
    assert "_circular_" in printed("explain 1,3,9 3,3,3 --padding same_upper --stride 2 --padding-mode circular")


@pytest.mark.parametrize(
    "line, sentence",
    [
        ("", "the following arguments are required: COMMAND"),
        ("fly", "invalid choice: 'fly'"),
        ("demo --crop many", "argument --crop: invalid int value: 'many'"),
        ("demo --crop 7", "crop must be at least 8, got 7"),
        ("demo --output picture.jpg", "--output must name a .png file, got 'picture.jpg'"),
        ("demo --output no/such/folder/a.png", "--output must be a file in a folder that exists and can be written to"),
        ("explain nonsense", "not the text form of a Problem: 'nonsense'"),
        (f"explain {TEXT} --stride 2", "--stride goes with two shapes"),
        ("explain 1,2 3,4 5,6", "got 3 arguments"),
        ("explain 1,3,x 3,3,3", "the input shape must be integers with commas between them"),
        ("explain 1,3,9 3,2,3", "input must have weight.shape[1] * groups = 2 channels, got 3"),
        ("explain 1,3,9 3,3,3 --stride two", "argument --stride: the value must be integers"),
        ("explain 1,3,9 3,3,3 --padding banana", "padding must be"),
        ("explain 1,3,9 3,3,3 --padding 1:x", "argument --padding: a pair must be integers"),
        ("explain 1,3,9 3,3,3 --dtype float33", "dtype must be"),
        ("explain 1,3,9 3,3,3 --algorithm magic", "algorithm must be 'auto' or one of"),
        ("explain 1,3,9 3,3,3 --precision double", "precision must be"),
    ],
)
def test_bad_arguments_exit_2(line: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(line.split())
    printed = capsys.readouterr()
    assert exit_.value.code == 2 and sentence in printed.err and printed.out == ""


def test_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "numbaconv", "--version"], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == numbaconv.__version__
