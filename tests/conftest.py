"""Fixtures: Python in a fresh process, with this checkout importable and a time limit."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
Python = Callable[..., str]


@pytest.fixture
def python() -> Python:
    """``python(code, timeout=..., NAME="value", ...)``: run ``code`` in a fresh interpreter and return what it prints.

    Fails with the output when the process fails or does not end in time.  Keywords are environment variables.
    """

    def run(code: str, *, timeout: float = 240, **environment: str) -> str:
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
            env=os.environ | {"PYTHONPATH": path} | environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return run
