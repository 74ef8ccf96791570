"""The first call of a process: what is compiled and what is loaded, the notice, the cache and where it cannot be kept, warmup."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

import numbaconv
from numbaconv import warmup
from numbaconv.__main__ import main
from numbaconv.choose import registry

from .conftest import Python

# Prints how many functions of ours are compiled, and what standard error shows.
CALL = """
import io, sys
sys.stderr = io.StringIO()
from numba.core import event
import numpy, numbaconv
with event.install_recorder("numba:compile") as compiled:
    {before}
    result = numbaconv.conv1d(numpy.arange(5, dtype=numpy.int32)[None], numpy.array([[[1, 2, 3]]], numpy.int32), algorithm="direct")
assert (result == [[8, 14, 20]]).all()
ours = [data.data["dispatcher"].py_func.__module__.startswith("numbaconv") for _, data in compiled.buffer if data.is_start]
print(sum(ours), len(sys.stderr.getvalue().splitlines()), sys.stderr.getvalue(), sep="|", end="")
"""


def first_call(python: Python, before: str = "", **environment: str) -> tuple[int, int, str]:
    """Functions compiled, lines on standard error, and those lines."""
    compiled, lines, text = python(CALL.format(before=before), **environment).split("|", 2)
    return int(compiled), int(lines), text


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the package, to be edited."""
    folder = tmp_path_factory.mktemp("copy")
    shutil.copytree(Path(numbaconv.__file__).parent, folder / "numbaconv", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def imports_of(folder: Path) -> dict[str, str]:
    """The environment in which the package is imported from ``folder``, whatever the current directory."""
    return {"PYTHONPATH": str(folder), "PYTHONSAFEPATH": "1"}


def test_notice_cache_and_edits(python: Python, copy: Path, tmp_path: Path) -> None:
    """One line while compiling, none while loading; an edit of a file that holds only intrinsics compiles everything again."""
    environment = imports_of(copy) | {"NUMBA_CACHE_DIR": str(tmp_path)}
    compiled, lines, text = first_call(python, **environment)
    assert compiled > 5 and lines == 1
    assert "compiling" in text and str(tmp_path) in text
    assert first_call(python, **environment) == (0, 0, "")

    edited = copy / "numbaconv" / "cpu" / "simd.py"
    edited.write_text(edited.read_text("utf-8") + "\n# edited\n", "utf-8")
    again, lines, _ = first_call(python, "import logging; logging.getLogger('numbaconv').setLevel(logging.ERROR)", **environment)
    assert again == compiled and lines == 0, "the notice is silenced as the README says"


@pytest.mark.skipif(sys.platform == "win32", reason="the user's cache folder is not told by an environment variable there")
def test_no_folder_can_be_written(python: Python, copy: Path, tmp_path: Path) -> None:
    """A read-only installation without a home: simulated, because a superuser may write anywhere."""
    for folder in (copy / "numbaconv", copy / "numbaconv" / "cpu"):
        shutil.rmtree(folder / "__pycache__", ignore_errors=True)
        (folder / "__pycache__").touch()
    blocked = tmp_path / "file"
    blocked.touch()
    below = {name: str(blocked / "below") for name in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "HOME")}
    for _ in range(2):
        compiled, lines, text = first_call(python, **imports_of(copy), **below)
        assert compiled > 5 and lines == 1 and "no cache folder can be written" in text


def test_the_folder_goes_away(python: Python, tmp_path: Path) -> None:
    """After the import, as on a full disk: neither loading nor saving fails the call."""
    cache = tmp_path / "cache"
    gone = f"import numbaconv.cpu, shutil; shutil.rmtree({str(cache)!r}); open({str(cache)!r}, 'w').close()"
    compiled, lines, _ = first_call(python, gone, NUMBA_CACHE_DIR=str(cache))
    assert compiled > 5 and lines == 1 and cache.is_file()


# ---- warmup ------------------------------------------------------------------------------------------------------------
def warmed(python: Python, *algorithms: str, **environment: str) -> list[str]:
    """What `warmup --dtype int32,int8` prints where these are the algorithms, or all of them."""
    only = f"warmup.registry = lambda device: [a for a in found(device) if not {algorithms} or a.name in {algorithms}]"
    code = f"import sys; from numbaconv import __main__, warmup; found = warmup.registry; {only}; "
    return python(code + "sys.exit(__main__.main(['warmup', '--dtype', 'int32,int8']))", NUMBA_NUM_THREADS="2", **environment).splitlines()


def test_warmup(python: Python, tmp_path: Path) -> None:
    """What it compiles a second process loads, also where the call opens a parallel region."""
    into = {"NUMBA_CACHE_DIR": str(tmp_path)}
    *told, summary = warmed(python, "direct", **into)
    assert [line.split()[:2] for line in told] == [["direct", "int32"], ["direct", "int8"]] and str(tmp_path) in summary
    assert "functions compiled" in told[0]  # int8 may need nothing else: kernels know the dtype of the sums
    assert all("already compiled" in line for line in warmed(python, "direct", **into)[:-1])
    parallel = "from numbaconv.cpu import threads; threads.SERIAL_BELOW = 0.0"
    assert first_call(python, parallel, NUMBA_NUM_THREADS="2", **into) == (0, 0, "")


def test_warmup_of_all_algorithms(python: Python) -> None:
    """In the folder of these tests, which holds most of it."""
    usual = {dtype: list(warmup.usual_problems(dtype)) for dtype in ("int32", "int8")}
    taking = [[a.name, dtype] for a in registry("cpu") for dtype, problems in usual.items() if any(a.supports(p) is None for p in problems)]
    assert ["direct", "int8"] in taking and len(taking) > 4
    assert [line.split()[:2] for line in warmed(python)[:-1]] == taking
    again = warmed(python)[:-1]
    assert [line.split()[:2] for line in again] == taking and all("already compiled" in line for line in again)


def test_warmup_without_a_compiler(python: Python) -> None:
    code = "from numbaconv.__main__ import main; print(main(['warmup']))"
    assert python(code, NUMBA_DISABLE_JIT="1") == "Nothing to do: NUMBA_DISABLE_JIT is set.\n1\n"


def test_warmup_refuses_unknown_dtypes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["warmup", "--dtype", "float32,uint32"])
    assert stopped.value.code == 2 and "uint32" in capsys.readouterr().err


@pytest.mark.parametrize("algorithm", [algorithm.name for algorithm in registry("cpu")])
def test_every_algorithm_is_warmed_up(algorithm: str) -> None:
    found = next(a for a in registry("cpu") if a.name == algorithm)
    assert any(found.supports(problem) is None for problem in warmup.usual_problems("float32"))
