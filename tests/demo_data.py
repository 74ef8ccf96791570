"""The brain volumes of the demo, where they are installed."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from numbaconv.demo import brain, maps
from numbaconv.demo.brain import installed_file

Mark = Callable[..., pytest.MarkDecorator]


def _needs(package: str, file: str, extra: str) -> Mark:
    """Skip a test where the package with the data is not installed; NUMBACONV_REQUIRE_DEMO=1 makes that a failure."""
    reason = ""
    try:
        installed_file(package, file, file, extra)
    except FileNotFoundError as error:
        reason = "" if os.environ.get("NUMBACONV_REQUIRE_DEMO") == "1" else f"{error} (NUMBACONV_REQUIRE_DEMO=1 makes this a failure)"
    return pytest.mark.skipif(bool(reason), reason=reason)


needs_brain = _needs(brain.PACKAGE, brain.FILE, "demo")
needs_maps = _needs(maps.PACKAGE, maps.GREY, "train")
