"""The brain volume of the demo, where it is installed."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from numbaconv.demo.brain import PACKAGE, brain_path


def _missing() -> bool:
    try:
        brain_path()
    except FileNotFoundError:
        return True
    return False


needs_brain: Callable[..., pytest.MarkDecorator] = pytest.mark.skipif(
    _missing() and os.environ.get("NUMBACONV_REQUIRE_DEMO") != "1",
    reason=f'{PACKAGE} is not installed: pip install -e ".[demo]" (NUMBACONV_REQUIRE_DEMO=1 makes this a failure)',
)
