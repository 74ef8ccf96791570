"""Kernels run by Python itself (NUMBA_DISABLE_JIT), and compiled with bounds checks (NUMBA_BOUNDSCHECK)."""

from __future__ import annotations

from pathlib import Path

import pytest

from numbaconv import Problem
from numbaconv.choose import registry

from .cases import PROBLEMS, TOKENS
from .checks import taking
from .conftest import Python

# The cheapest cases of each dtype and direction, and every cheap one of a few geometries.
SMALL = sorted(
    {
        str(p)
        for key in {(p.dtype, p.out_dtype, p.direction) for p in PROBLEMS}
        for p in sorted((p for p in PROBLEMS if (p.dtype, p.out_dtype, p.direction) == key), key=lambda p: (p.flops, str(p)))[:2]
    }
    | {str(p) for p in PROBLEMS if p.dtype == "float32" and p.flops < 30_000}
)

CHECK = """
from numbaconv import Problem
from tests.checks import DEFINITION, check_exact
problems = [Problem.parse(text) for text in {texts!r}]
done = 0
for algorithm in DEFINITION:
    for p in problems:
        if algorithm.supports(p) is None:
            try:
                check_exact(p, algorithm.name)
            except Exception as error:
                raise AssertionError(f"{{algorithm.name}} fails on {{p}}") from error
            done += 1
print(done)
"""


def test_the_small_cases_are_many_and_wide() -> None:
    problems = [Problem.parse(text) for text in SMALL]
    assert len(SMALL) >= 100
    assert {text.split("_")[0].split("-")[0] for text in SMALL} == set(TOKENS)
    assert {(p.rank, p.direction) for p in problems} == {(rank, direction) for rank in (1, 2, 3) for direction in ("forward", "input_grad")}
    assert {p.padding_mode for p in problems} == {"zeros", "reflect", "replicate", "circular"}


def test_without_compilation(python: Python) -> None:
    """`direct` computes every small case in the interpreter, exactly as compiled."""
    assert int(python(CHECK.format(texts=SMALL), NUMBA_DISABLE_JIT="1", timeout=400)) == len(SMALL)


def test_intrinsics_decline_without_compilation(python: Python) -> None:
    """An algorithm made of intrinsics says so; the rest of the choice goes on without it."""
    reasons = python(
        """
        import numpy as np, numbaconv
        from numbaconv.choose import registry
        x, w = np.ones((1, 64, 14, 14), np.float32), np.ones((64, 64, 3, 3), np.float32)
        problem = numbaconv.explain(x, w).problem
        for algorithm in registry("cpu"):
            print(algorithm.name, algorithm.supports(problem), sep=": ")
        assert numbaconv.explain(x, w).algorithm == "direct"
        """,
        NUMBA_DISABLE_JIT="1",
    ).splitlines()
    assert [line.split(":")[0] for line in reasons] == [algorithm.name for algorithm in registry("cpu")]
    for line in reasons:
        name, reason = line.split(": ", 1)
        compiled = taking("f32_fwd_mb1g1_ic64ih14iw14_oc64kh3kw3_s1x1_p0:0x0:0_d1x1_zeros_b0")
        if name == "direct":
            assert reason == "None"
        elif name in compiled:
            assert "NUMBA_DISABLE_JIT" in reason
        else:
            assert reason != "None"


SPREAD = [str(p) for p in PROBLEMS if p.dtype == "float32"][::3] + [str(p) for p in PROBLEMS if p.dtype == "float16"]


@pytest.fixture(scope="module")
def checked_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder for code with bounds checks alone, empty at first: a warm cache could hold code without them."""
    return tmp_path_factory.mktemp("bounds_checked")


def test_no_read_or_write_out_of_bounds(python: Python, checked_cache: Path) -> None:
    code = """
    import numpy as np
    from numba import njit

    @njit
    def read(array, index):
        return array[index]

    try:
        read(np.zeros(3), 5)
    except IndexError:
        pass
    else:
        raise AssertionError("bounds are not checked in this process")
    """
    done = python(
        "import textwrap\n" + f"exec(textwrap.dedent({code!r}))\n" + CHECK.format(texts=SPREAD),
        NUMBA_BOUNDSCHECK="1",
        NUMBA_CACHE_DIR=str(checked_cache),
        timeout=400,
    )
    assert int(done) >= len(SPREAD)
    assert any(checked_cache.iterdir()), "nothing was compiled"


def test_an_out_of_bounds_read_of_a_kernel_raises(python: Python, checked_cache: Path) -> None:
    """`direct` told of a source one row higher than it is: the checks see the read, so they are compiled into the kernel."""
    python(
        """
        import dataclasses
        import numpy as np
        from numbaconv import Problem
        from numbaconv.cpu.direct import Direct
        problem = Problem.parse("f32_fwd_mb1g1_ic1ih5iw6_oc1kh3kw3_s1x1_p0:0x0:0_d1x1_zeros_b0")
        wrong = dataclasses.replace(problem, in_size=(1, 6, 6))
        setup = Direct().setup(wrong)
        x = np.ones((1, 1, 1, 5, 6), np.float32)
        packed = setup.pack(np.ones((1, 1, 1, 3, 3), np.float32), None)
        right = Direct().setup(problem)
        right.run(x, packed, np.zeros((1, 1, 1, 3, 4), np.float32))
        try:
            setup.run(x, packed, np.zeros((1, 1, 1, 4, 4), np.float32))
        except IndexError as error:
            print(error)
        else:
            raise AssertionError("an out-of-bounds read went through")
        """,
        NUMBA_BOUNDSCHECK="1",
        NUMBA_CACHE_DIR=str(checked_cache),
    )
