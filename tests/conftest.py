"""Fixtures: Python in a fresh process, with this checkout importable and a time limit."""

from __future__ import annotations

import faulthandler
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LONGEST = 900  # seconds of a test: many times what any takes
Python = Callable[..., str]


@pytest.fixture(autouse=True)
def ends() -> Iterator[None]:
    """A test that does not end ends its process, after the traceback: compiled code cannot be interrupted."""
    faulthandler.dump_traceback_later(LONGEST, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def run_python(code: str, *, timeout: float = 240, **environment: str) -> str:
    """Run ``code`` in a fresh interpreter and return what it prints; keywords are environment variables.

    Fails with the output when the process fails or does not end in time.
    """
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        env=os.environ | {"PYTHONPATH": path} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)  # its children too
        process.kill()
        out, err = process.communicate()
        pytest.fail(f"not done after {timeout} s\n{out}\n{err}")
    assert process.returncode == 0, f"exit status {process.returncode}\n{out}\n{err}"
    return out


@pytest.fixture
def python() -> Python:
    return run_python
