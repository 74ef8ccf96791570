"""The benchmark on a device: its layers, what is compiled ahead, and the whole command on an emulated one.  No time is asserted."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from . import packages

if why := packages.missing():
    pytest.skip(why, allow_module_level=True)

from numbaconv.__main__ import main
from numbaconv.arrays import dtype_named
from numbaconv.bench import ahead, contenders, gpu, gpu_command, gradients
from numbaconv.bench.command import add_options
from numbaconv.bench.contenders import Contender, Prepared, Task, numbaconv_function, numbaconv_out
from numbaconv.bench.gpu import GpuRow, bench_on_gpu
from numbaconv.bench.gpu_report import cost_lines, describe, gpu_results, markdown, summary
from numbaconv.bench.launch_cost import Cost, measure_costs
from numbaconv.bench.layers import LAYERS, VOLUMES, Layer, find_gpu_layers
from numbaconv.bench.measure import WrongAnswer
from numbaconv.bench.report import Result, read_csv

from ..conftest import Python
from .device import get, put

TINY = "f32_fwd_mb2g1_ic4ih9iw8_oc8kh3kw3_s1x1_p1:1x1:1_d1x1_zeros_b1"


class FakeGpu:
    """The device of the tests as a device of the benchmark, timed by the host's clock."""

    name, cache_bytes = "a fake device", 8000

    def __init__(self, device: Any) -> None:
        self._device = device

    def put(self, array: np.ndarray) -> Any:
        return put(self._device, array)

    def get(self, array: Any) -> np.ndarray:
        return get(self._device, array)

    def full(self, shape: tuple[int, ...], dtype: str, value: float) -> Any:
        return self.put(np.full(shape, value, dtype_named(dtype)))

    def synchronize(self) -> None: ...

    def stopwatch(self, call: Callable[[], object], repeats: int) -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    def limits(self, dtype: str) -> tuple[float, float]:
        return 50e12, 4e12


def on_host(task: Task) -> Prepared:
    """A peer that computes nothing on the device: the answer of ours, always at hand."""
    ready = (numbaconv_out if task.problem.direction == "forward" else gradients.numbaconv_out)(task)
    result = ready.call()
    return Prepared(lambda: result, ready.answer)


def wrong(task: Task) -> Prepared:
    return Prepared(task.poisoned, task.to_host)


def refusing(task: Task) -> Prepared:
    raise RuntimeError("no")


PEER = Contender("torch", on_host, ("numba",), "numba")


@pytest.fixture
def fake(device: Any, monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    """Without what needs tensors of torch."""
    monkeypatch.setattr(gpu, "ours", lambda direction: tuple(c for c in OURS(direction) if c.name != "numbaconv_cl"))
    return FakeGpu(device)


OURS = gpu.ours


# ---- layers and what is compiled ahead -----------------------------------------------------------------------------------------
def test_layers() -> None:
    layers = {layer.name: layer.problem for layer in find_gpu_layers()}
    assert len({str(p) for p in layers.values()}) == len(layers) and layers.keys() <= {*LAYERS, *VOLUMES}
    assert "r50_3x3_64_56" in layers and "r50_3x3_64_56_b8" not in layers, "once each"
    assert {(p.rank, p.batch) for p in layers.values()} == {(1, 16), (2, 32), (3, 2)}
    assert [layer.problem.batch for layer in find_gpu_layers(["unet3d_3_32"], batch=3)] == [3] * 2 and set(VOLUMES) <= set(layers)
    assert find_gpu_layers([TINY])[0].problem.batch == 2, "text forms are taken as they are"
    assert find_gpu_layers([TINY], "float16", "weight_grad", 5)[0].problem.batch == 5
    with pytest.raises(ValueError, match="--batch must be at least 1, got 0"):
        find_gpu_layers(batch=0)


@pytest.mark.parametrize("direction", ["forward", "input_grad", "weight_grad"])
def test_what_is_compiled_ahead_is_what_runs(direction: Any, fake: FakeGpu, device: Any, python: Python) -> None:
    """In a process of its own: what the calls without a device prepare must not be met by calls with one."""
    layer = find_gpu_layers([TINY], None, direction)[0]
    names = python(
        f"from numbaconv.bench.ahead import kernel_names; print(*kernel_names({str(layer.problem)!r}, 'sm_90a'), sep='|')"
    ).strip()
    if not device.emulated:
        return
    device.launched.clear()
    bench_on_gpu(layer, [], fake, 1, print)
    assert device.launched and {name for name, _, _ in device.launched} <= set(names.split("|"))


def test_arrays_that_do_not_exist() -> None:
    real = np.zeros((2, 5, 6, 3), np.float32).transpose(0, 3, 1, 2)
    assert ahead._channels_last((2, 3, 5, 6), "float32").__cuda_array_interface__["strides"] == real.strides
    a, b = ahead.Nowhere((3, 5), "float64"), ahead.Nowhere((1,), "float64")
    assert b.__cuda_array_interface__["data"][0] >= a.__cuda_array_interface__["data"][0] + 120


def test_compiling_ahead_fills_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    said: list[str] = []
    text = "f32_fwd_mb1g1_ic1iw9_oc1kw1_s1_p0:0_d1_zeros_b0"
    with ahead.processes(1) as pool:
        ahead.compile_ahead([text, "nonsense"], "sm_90a", pool, said.append)
    assert len(list(tmp_path.rglob("*.cubin"))) >= 2 and len(said) == 1 and said[0].startswith("nonsense: not compiled ahead: ValueError")


# ---- times -----------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("direction", ["forward", "input_grad", "weight_grad"])
def test_rows(direction: Any, fake: FakeGpu) -> None:
    layer = find_gpu_layers([TINY], None, direction)[0]
    said: list[str] = []
    rows = bench_on_gpu(layer, [PEER, Contender("wrong", wrong)], fake, 1, said.append)
    assert [row.contender for row in rows] == ["numbaconv", *(["numbaconv_function"] if direction == "forward" else []), "torch"]
    assert len(said) == 1 and "wrong: WrongAnswer" in said[0]
    assert all(row.seconds > 0 and row.max_error < 1e-6 and row.bytes == layer.problem.bytes for row in rows) and rows[0].note


def test_calls_rotate_through_copies_of_the_arrays(fake: FakeGpu) -> None:
    seen: list[int] = []

    def watching(task: Task) -> Prepared:
        ready = numbaconv_out(task)
        return Prepared(lambda: (seen.append(task.input.pointer), ready.call())[1], ready.answer)

    bench_on_gpu(find_gpu_layers([TINY])[0], [Contender("torch", watching, ("numba",), "numba")], fake, 4, print)
    copies = -(-2 * fake.cache_bytes // find_gpu_layers([TINY])[0].problem.bytes)
    assert copies > 1 and len(set(seen)) == copies and seen[copies : 2 * copies] == seen[:copies]


def test_unwritten_elements_are_wrong(fake: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 32 sampled places none may be among them: every element is looked at."""

    def leaving_one(task: Task) -> Prepared:
        ready = numbaconv_function(task)

        def answer(result: Any) -> np.ndarray:
            found = ready.answer(result)
            found[-1, -1, -1, -1] = np.nan
            return found

        return Prepared(ready.call, answer)

    monkeypatch.setattr(gpu, "ours", lambda direction: (Contender("numbaconv", leaving_one),))
    with pytest.raises(WrongAnswer, match="NaN, or were not written"):
        bench_on_gpu(find_gpu_layers([TINY])[0], [], fake, 1, print)


def test_fixed_costs(fake: FakeGpu) -> None:
    costs = measure_costs(fake, calls=2, rounds=1)
    assert [cost.call.split("(")[0] for cost in costs] == ["an empty kernel", "plan", "plan", "conv2d"]
    assert all(cost.calls == 2 and cost.microseconds > 0 for cost in costs)
    assert len(cost_lines(costs)) == 6 and cost_lines(costs)[2].endswith("| 0.0 |")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("direction", ["forward", "input_grad", "weight_grad"])
def test_tensors(dtype: str, direction: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch and cuDNN's side on tensors of the host, with torch in the place of ours: layouts, rotation and the way back."""
    torch = pytest.importorskip("torch")

    class Host(FakeGpu):
        def put(self, array: np.ndarray) -> Any:
            return contenders.to_tensor(array).clone()

        def get(self, array: Any) -> np.ndarray:
            return contenders.from_tensor(array)

        def full(self, shape: tuple[int, ...], dtype: str, value: float) -> Any:
            return torch.full(shape, value, dtype=getattr(torch, dtype))

    layouts = set()

    def by_torch(task: Task) -> Prepared:
        out, ready = task.poisoned(), (contenders.torch if direction == "forward" else gradients.torch)(task)
        layouts.add((task.input.is_contiguous(), out.is_contiguous(), out.is_contiguous(memory_format=torch.channels_last)))
        return Prepared(lambda: out.copy_(ready.call()), task.to_host)

    for module, name in ((gpu, "numbaconv_out"), (gradients, "numbaconv_out"), (gpu, "numbaconv_function")):
        monkeypatch.setattr(module, name, by_torch)
    rows = bench_on_gpu(find_gpu_layers([TINY], dtype, direction)[0], gpu.gpu_peers(direction), Host(None), 1, print)
    ours = ["numbaconv", "numbaconv_cl", *(["numbaconv_function"] if direction == "forward" else [])]
    assert [row.contender for row in rows] == [*ours, "torch", "torch_cl"]
    assert layouts == {(True, True, False), (False, False, True)}


# ---- tables and the command ------------------------------------------------------------------------------------------------------
def row_of(layer: Layer, name: str, microseconds: float) -> GpuRow:
    p = layer.problem
    return GpuRow(
        "a device", "2026-01-01", layer.name, str(p), 0, name, f"{name} 1.0", "direct" if name == "numbaconv" else "", False,
        microseconds / 1e6, microseconds / 1e6, 5, p.flops, 50e12, 1e-7, 1e-8, p.bytes, 4e12,
    )  # fmt: skip


def test_report() -> None:
    layers = find_gpu_layers(["mb_dw3s1_128_56", "r50_3x3_256_14"])
    times = {"numbaconv": 80.0, "numbaconv_cl": 60.0, "torch": 240.0, "torch_cl": 72.0}
    rows = [row_of(layer, name, t * (1 + 4 * (layer is layers[1]))) for layer in layers for name, t in times.items()]
    rows += [replace(row, problem=row.problem.replace("f32", "f64")) for row in rows[:1]]
    depthwise, dense = (result.ours for result in gpu_results(rows)["forward", "float32"])
    assert depthwise.bound_by_memory and not dense.bound_by_memory
    assert depthwise.rate == f"{layers[0].problem.bytes / 80e-6 / 1e9:.0f} GB/s" and dense.rate.endswith(" TFLOP/s")
    assert 0 < depthwise.share < 1 and 0 < dense.share < 1
    text = markdown(rows, [Cost("an empty kernel", 5.0, 10), Cost("plan(x)", 11.0, 10)], "the command")
    assert "| mb_dw3s1_128_56 | 32 | direct | 80.0 |" in text and "| 60.0 | 240.0 | 72.0 | **0.90** | 1.20 |" in text
    assert "| plan(x) | 11.0 | 6.0 |" in text and "### float32\n" in text and "### float64\n" in text and "a device" in text
    assert any("ahead on 0 of 2 layers" in line for line in summary(rows))
    assert "0.90 x torch_cl" in describe(Result(tuple(rows[:4])))


def options_of(line: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_options(parser)
    return parser.parse_args(line.split())


def test_command(fake: FakeGpu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(gpu_command, "compile_ahead", lambda *_: None)
    monkeypatch.setattr(gpu_command, "processes", ThreadPoolExecutor)
    monkeypatch.setattr(gpu_command, "measure_costs", partial(measure_costs, calls=1, rounds=1))
    files = {name: tmp_path / name for name in ("csv", "markdown", "costs")}
    options = options_of("--device cuda --rounds 1 " + " ".join(f"--{name} {path}" for name, path in files.items()))
    layers = [(layer, [PEER]) for d in ("forward", "weight_grad") for layer in find_gpu_layers([TINY], None, d)]
    assert gpu_command.measure(options, layers, fake, "sm_90a") == 0
    rows = read_csv(files["csv"], GpuRow)
    assert len(rows) == 5 and [kind.direction for kind in gpu_results(rows)] == ["forward", "weight_grad"]
    text = files["markdown"].read_text("utf-8")
    assert "a fake device" in text and f"| {TINY} | 2 |" in text and "### Fixed cost" in text
    assert len(read_csv(files["costs"], Cost)) == 4
    again = tmp_path / "again.md"
    assert main(["bench", "--device", "cuda", "--saved", str(files["csv"]), "--markdown", str(again)]) == 0
    assert "### float32, gradient of the weight" in again.read_text("utf-8")

    options.seconds = 0.0
    assert gpu_command.measure(options, layers, fake, "sm_90a") == 0
    assert "2 of 2 layers are left out: --seconds 0 have passed" in capsys.readouterr().out
    options.seconds = None
    for prepare, sentence in ((wrong, "forward: numbaconv is WRONG: "), (refusing, "forward: numbaconv FAILED: RuntimeError: no")):
        monkeypatch.setattr(gpu, "ours", lambda direction, own=prepare: (Contender("numbaconv", own),))
        assert gpu_command.measure(options, layers[:1], fake, "sm_90a") == 1
        assert sentence in capsys.readouterr().out


def test_without_a_gpu_the_command_says_why(gpu: bool, capsys: pytest.CaptureFixture[str]) -> None:
    if gpu:
        pytest.skip("there is a GPU")
    assert main(["bench", "--device", "cuda"]) == 1
    assert capsys.readouterr().out.startswith("nothing is measured: ")


@pytest.mark.parametrize(
    "line, sentence",
    [
        ("--batch 3", "--batch goes with --device cuda"),
        ("--dtype float32,float64", "more than one --direction or --dtype goes with --device cuda"),
        ("--direction sideways", "--direction must be names out of forward, input_grad, weight_grad, got 'sideways'"),
        ("--device cuda --batch 0", "--batch must be at least 1"),
        ("--device cuda --check-choice", "--check-choice goes with --device cpu"),
        ("--device cuda --against ort", "--against must be names out of torch"),
    ],
)
def test_bad_arguments_exit_2(line: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["bench", *line.split()])
    assert exit_.value.code == 2 and sentence in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "float16,bfloat16", "float64", "complex64"])
def test_command_on_a_gpu(dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch as it is: tensors, events, and channels_last."""
    pytest.importorskip("torch")
    monkeypatch.setattr(gpu_command, "processes", partial(ahead.processes, 2))
    table = tmp_path / "rows.csv"
    directions = "forward,input_grad,weight_grad"
    assert main(f"bench --device cuda --layers {TINY} --direction {directions} --dtype {dtype} --rounds 1 --csv {table}".split()) == 0
    names = {row.contender for row in read_csv(table, GpuRow)}
    assert names == {"numbaconv", "numbaconv_cl", "numbaconv_function", "torch", "torch_cl"}
