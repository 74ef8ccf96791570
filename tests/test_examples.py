"""Every example runs as a user runs it, in an empty folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import numbaconv

from .demo_data import needs_brain, needs_maps

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name: str, folder: Path, *arguments: str, blocked: str | None = None, status: int = 0) -> str:
    """What the example prints; ``blocked`` names a package that it finds not installed, ``status`` is what it must exit with."""
    script = EXAMPLES / name
    command = [sys.executable, str(script), *arguments]
    if blocked is not None:
        hide = f"import importlib.util as u, runpy; f = u.find_spec; u.find_spec = lambda n, *a: None if n == {blocked!r} else f(n, *a)"
        command = [sys.executable, "-c", f"{hide}; runpy.run_path({str(script)!r})"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(EXAMPLES.parent), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


def test_every_example_is_run_here() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == {
        "cuda_arrays.py",
        "quickstart.py",
        "torch_weights.py",
        "train_brain_segmentation.py",
        "two_or_three_dimensions.py",
    }


def test_quickstart(tmp_path: Path) -> None:
    printed = run("quickstart.py", tmp_path)
    assert "conv3d (2, 16, 24, 48, 48) -> (2, 32, 12, 24, 24) float32" in printed
    assert "agree to the last bit: True" in printed
    assert len((EXAMPLES / "quickstart.py").read_text().splitlines()) <= 25


@pytest.mark.parametrize("blocked", [None, "numba_cuda"])
def test_cuda_arrays(tmp_path: Path, blocked: str | None) -> None:
    """Without a GPU it says what is missing, and is content."""
    printed = run("cuda_arrays.py", tmp_path, blocked=blocked)
    if blocked or not numbaconv.cuda.is_available():
        assert printed.startswith("No GPU to show this on: ")
    else:
        assert "no hidden copy: weight must live where input does" in printed and "TFLOP/s" in printed
    assert blocked is None or "numba-cuda is not installed: pip install numbaconv[cuda13]" in printed


@pytest.mark.parametrize("blocked", [None, "torch"])
def test_torch_weights(tmp_path: Path, blocked: str | None) -> None:
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    printed = run("torch_weights.py", tmp_path, blocked=blocked)
    assert (tmp_path / "model.safetensors").stat().st_size > 0
    assert "output (1, 1, 16, 32, 32)" in printed
    assert blocked is None or "torch is not installed" in printed


@needs_brain
def test_two_or_three_dimensions(tmp_path: Path) -> None:
    printed = run("two_or_three_dimensions.py", tmp_path, "picture.png")
    assert "gives a plane (1, 1, 229, 193)" in printed and "gives a volume (1, 1, 193, 229, 193)" in printed
    differences = [float(line.rsplit(" ", 1)[1]) for line in printed.splitlines() if "largest difference" in line]
    assert len(differences) == 2 and max(differences) < 1e-5
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


@needs_maps
@pytest.mark.parametrize("engine", ["numbaconv", "torch"])
def test_train_brain_segmentation(tmp_path: Path, engine: str) -> None:
    """Twenty steps: enough to compare the engines, not enough to beat the threshold, which the script says."""
    if engine == "torch" and os.environ.get("NUMBACONV_REQUIRE_TORCH") != "1":
        pytest.importorskip("torch", reason="torch is not installed", exc_type=ImportError)
    picture = tmp_path / "picture.png"
    printed = run("train_brain_segmentation.py", tmp_path, "--steps", "20", "--engine", engine, "--output", str(picture), status=1)
    assert "numbaconv 20/20 steps, loss" in printed and "the network DOES NOT BEAT the single threshold by -" in printed
    assert picture.read_bytes().startswith(b"\x89PNG")
    if engine == "torch":
        assert "losses of the first 20 steps agree: largest relative difference" in printed
        assert "time: torch " in printed and ", numbaconv " in printed
