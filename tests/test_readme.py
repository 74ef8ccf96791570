"""What the README says holds: its commands, its code, its table for people from scipy.ndimage."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import numbaconv

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def test_two_set_up_commands() -> None:
    commands = re.findall(r"pip install .*&&.*", README)
    assert commands == ['pip install -e ".[demo]" && python -m numbaconv demo', 'pip install -e ".[test]" && pytest']


def test_the_quickstart_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 1
    names: dict[str, object] = {}
    exec(blocks[0].replace("print(", "str("), names)
    y = names["y"]
    assert isinstance(y, np.ndarray) and y.shape == (2, 32, 12, 24, 24) and y.dtype == np.float32


def test_files_that_it_names_are_there() -> None:
    root = Path(__file__).parent.parent
    named = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert named and all((root / name).is_file() for name in named)


def scipy_rows() -> list[tuple[str, str]]:
    """(scipy's mode, padding_mode) of the table."""
    return re.findall(r'^\| `"(\w+)"`[^|]*\|[^|]*\| `"(\w+)"` \|$', README, re.MULTILINE)


@pytest.mark.parametrize("mode, padding_mode", scipy_rows())
@pytest.mark.parametrize("kernel", [(3, 3, 3), (2, 4, 5)], ids=str)
def test_scipy_table(mode: str, padding_mode: str, kernel: tuple[int, ...]) -> None:
    ndimage = pytest.importorskip("scipy.ndimage", reason="scipy is not installed")
    assert len(scipy_rows()) == 4
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((6, 7, 8)), rng.standard_normal(kernel)
    found = numbaconv.conv3d(x[None, None], w[None, None], padding="same_lower", padding_mode=padding_mode)[0, 0]
    np.testing.assert_allclose(found, ndimage.correlate(x, w, mode=mode), rtol=0, atol=1e-12)


def test_scipys_reflect_is_numpys_symmetric() -> None:
    ndimage = pytest.importorskip("scipy.ndimage", reason="scipy is not installed")
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((6, 7, 8)), rng.standard_normal((3, 3, 3))
    found = numbaconv.conv3d(np.pad(x, 1, mode="symmetric")[None, None], w[None, None])[0, 0]
    np.testing.assert_allclose(found, ndimage.correlate(x, w, mode="reflect"), rtol=0, atol=1e-12)
