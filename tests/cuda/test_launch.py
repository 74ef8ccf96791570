"""Compiling and its disk cache, the notice, and warming up for a GPU that is not here."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from . import packages

if why := packages.missing():
    pytest.skip(why, allow_module_level=True)

from numbaconv.__main__ import main
from numbaconv.cuda import launch
from numbaconv.cuda.copies import copy_kernel
from numbaconv.cuda.driver import Arguments, Call

KERNEL = copy_kernel("int8", "int8", False)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder of its own."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    launch.cache_folder.cache_clear()
    yield tmp_path / "numbaconv-cuda"
    launch.cache_folder.cache_clear()


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the kernels that are compiled, not loaded, from now on."""
    names: list[str] = []
    real = launch._compile

    def noting(kernel: launch.Kernel, architecture: str, output: str) -> Any:
        names.append(kernel.name)
        return real(kernel, architecture, output)

    monkeypatch.setattr(launch, "_compile", noting)
    return names


def test_machine_code_is_kept(folder: Path, compiled: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    cubin = launch.compile_cubin(KERNEL, "sm_80")
    assert launch.compile_cubin(KERNEL, "sm_80") == cubin and compiled == [KERNEL.name]
    assert [path.name.split(".")[0] for path in folder.iterdir()] == [KERNEL.name]
    launch.compile_cubin(KERNEL, "sm_90a")
    assert len(compiled) == 2, "another architecture is another code"
    monkeypatch.setattr(launch, "_versions", lambda: "another version of a package or of a source file")
    launch.compile_cubin(KERNEL, "sm_80")
    assert len(compiled) == 3


def test_every_source_file_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = Path(launch.__file__).parent
    shutil.copytree(package, tmp_path / "cuda")
    shutil.copy(package.parent / "padding.py", tmp_path)
    monkeypatch.setattr(launch, "__file__", str(tmp_path / "cuda" / "launch.py"))
    versions = launch._versions.__wrapped__
    seen = {versions()}
    for changed in ("cuda/geometry.py", "cuda/ptx.py", "padding.py"):
        path = tmp_path / changed
        path.write_bytes(path.read_bytes() + b"\n# changed\n")
        seen.add(versions())
    assert len(seen) == 4


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path, compiled: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "a file"))
    (tmp_path / "a file").write_text("in the way")
    launch.cache_folder.cache_clear()
    try:
        assert all(launch.compile_cubin(KERNEL, "sm_80").startswith(b"\x7fELF") for _ in range(2)) and len(compiled) == 2
    finally:
        launch.cache_folder.cache_clear()


def test_one_notice(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    launch._say_that_it_takes_seconds.cache_clear()
    with caplog.at_level(logging.WARNING, "numbaconv"):
        for name in ("int8", "uint8"):
            launch.compile_cubin(copy_kernel(name, name, False), "sm_80")
    assert [record.getMessage() for record in caplog.records] == [
        f"numbaconv is compiling kernels for sm_80, which takes seconds (once: kept in {folder})"
    ]


@pytest.mark.parametrize("architecture", ["sm_9", "90", "sm_90b", "compute_90"])
def test_architectures_that_do_not_exist(architecture: str) -> None:
    with pytest.raises(ValueError, match=r"^architecture must be like 'sm_90a' or 'sm_120', got"):
        launch.compile_ptx(KERNEL, architecture)


def test_a_call_may_be_shared_between_threads() -> None:
    """Each takes arguments that no other one is using, also while one is under way."""
    seen: list[tuple[int, ...]] = []

    def function(grid: Any, stream: int, arguments: Arguments) -> None:
        seen.append(tuple(arguments.values))
        if len(seen) == 1:
            call(0, 3, 4)  # as another thread would while the driver reads the first one's
            assert tuple(arguments.values) == (1, 2, 2**64 - 7)

    call = Call(function, (1, 1, 1), 2, [-7])
    call(0, 1, 2)
    assert seen == [(1, 2, 2**64 - 7), (3, 4, 2**64 - 7)]


def test_warming_up_needs_a_name_without_a_gpu(capsys: pytest.CaptureFixture[str], gpu: bool) -> None:
    if gpu:
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit):
        main(["warmup", "--device", "cuda"])
    assert "--architecture must say what to compile for where there is no GPU" in capsys.readouterr().err
