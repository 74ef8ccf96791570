"""``pytest tests/cuda --gpu`` runs on this machine's GPU; without it on an emulated device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--gpu", action="store_true", help="run tests/cuda on the first GPU instead of the emulator")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu: needs a GPU, and --gpu")


# Of the compilers and the emulator: a machine with a GPU may have other versions of them than the extras pin, and has better things to do.
WITHOUT_A_GPU = ("machine_code", "test_sass", "test_emulator", "test_mutations", "test_bounds", "compiled_ahead")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    gpu = config.getoption("--gpu", default=False)
    for item in items:
        if not gpu and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a GPU: pytest tests/cuda --gpu"))
        if gpu and any(name in item.nodeid for name in WITHOUT_A_GPU):
            item.add_marker(pytest.mark.skip(reason="is about the compilers or the emulator, and runs without --gpu"))


@pytest.fixture(scope="session")
def gpu(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--gpu", default=False))


@pytest.fixture(scope="session")
def _session_device(gpu: bool) -> Any:
    from .device import Emulated, Real

    return Real() if gpu else Emulated()


@pytest.fixture
def device(_session_device: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The device under test, in the place of the driver where it is emulated."""
    from numbaconv.cuda import driver

    if _session_device.emulated:
        monkeypatch.setattr(driver, "_driver", _session_device)
    yield _session_device
