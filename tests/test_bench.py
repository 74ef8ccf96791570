"""The benchmark: its layers, its checks, how it takes turns, its tables, and the command on tiny layers.  No time is asserted."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from numbaconv import Problem, reference
from numbaconv.__main__ import main
from numbaconv.bench import choice, gradients, timing
from numbaconv.bench.chart import draw_chart
from numbaconv.bench.contenders import OURS, PEERS, Contender, Prepared, Task, find_peers
from numbaconv.bench.layers import LAYERS, Layer, find_layers, random_layers
from numbaconv.bench.measure import Row, WrongAnswer, bench_layer, check
from numbaconv.bench.peak import peak_call
from numbaconv.bench.report import Kind, Result, geometric_mean, markdown, read_csv, results, summary, write_csv
from numbaconv.sample import draw_sample, draw_weight_sample

from .cases import case

TINY = (
    "f32_fwd_mb2g1_ic4ih9iw8_oc8kh3kw3_s1x1_p1:1x1:1_d1x1_zeros_b1",
    "f32_fwd_mb1g1_ic1id6ih7iw8_oc1kd3kh3kw3_s1x1x1_p1:1x1:1x1:1_d1x1x1_zeros_b0",
)


# ---- layers ------------------------------------------------------------------------------------------------------------------
def test_every_layer_is_a_problem() -> None:
    assert len(LAYERS) == 40 and len(random_layers()) == 40
    for layer in find_layers([*LAYERS, "random"]):
        p = layer.problem
        assert str(p) == (LAYERS | random_layers())[layer.name]
        assert 1e6 < p.flops < 4e10 and p.bytes < 3e8, layer.name
    assert len({*LAYERS.values(), *random_layers().values()}) == 80


def test_random_layers_stay_the_same() -> None:
    assert random_layers()["random_00"] == "f32_fwd_mb2g1_ic24iw278_oc64kw9_s2_p4:4_d1_zeros_b1"
    assert random_layers()["random_39"] == "f32_fwd_mb8g1_ic160ih37iw37_oc512kh1kw1_s1x1_p0:0x0:0_d1x1_zeros_b1"
    assert list(random_layers(3, seed=1).values()) != list(random_layers(3, seed=2).values())


def test_find_layers() -> None:
    assert [layer.name for layer in find_layers()] == list(LAYERS)
    assert [layer.name for layer in find_layers(["unet3d", "img_3x3_2048"])] == ["unet3d_3_32_64_64c", "unet3d_3_64_64_32c", "img_3x3_2048"]
    assert [layer.name for layer in find_layers(["r50_3x3_64_56"])] == ["r50_3x3_64_56"], "a whole name is that layer alone"
    assert find_layers([TINY[0]], dtype="float64")[0].problem.dtype == "float64"
    assert str(find_layers([TINY[0]], direction="input_grad")[0].problem) == TINY[0].replace("fwd", "igrad").replace("_b1", "_b0_op0x0")
    assert len(find_layers(direction="weight_grad")) == 35, "nobody trains the filters of images"


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "complex64", "int8", "uint8"])
def test_arrays_of_a_layer(dtype: str) -> None:
    layer = find_layers([TINY[0]], dtype)[0]
    x, w, b = layer.arrays()
    assert (x.shape, w.shape) == (layer.problem.source_shape, layer.problem.weight_shape) and b is not None and b.shape == (8,)
    assert x.dtype == w.dtype == b.dtype == dtype and np.array_equal(x, layer.arrays()[0])
    assert find_layers([TINY[1]])[0].arrays()[2] is None


# ---- the check before a time ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "text",
    [
        TINY[0],
        case("fwd", (19,), (3,), p=3, d=4, s=2, ic=4, oc=6, g=2, mb=3, b=1),
        case("fwd", (5, 6, 7), (3, 1, 2), p=((1, 0), 0, 2), d=(1, 3, 2), mode="circular", mb=2, t="f64"),
        case("fwd", (8, 9), (3, 2), p=1, ic=3, oc=4, t="c64", b=1),
        case("fwd", (8, 9), (3, 2), p=1, ic=3, oc=4, t="s8", b=1),
    ],
)
def test_sample_is_the_references(text: str) -> None:
    p = Problem.parse(text)
    x, w, b = Layer("", p).arrays()
    whole, sample = reference.convolve(p, x, w, b, rounded=False), draw_sample(p, x, 40)
    exact = sample.exact(w, b)
    np.testing.assert_allclose(sample.found(whole), exact, rtol=1e-13, atol=1e-13)
    assert (sample.magnitudes(w, b) >= abs(exact) - 1e-12).all()
    assert len({tuple(place) for place in sample.places}) > 10 and (sample.places.min(0) >= 0).all()

    answer = reference.convolve(p, x, w, b)
    assert check(p, answer, sample, exact)[0] < 1e-6
    other = answer.astype("complex128" if answer.dtype == "complex64" else "int64")
    for wrong in (answer[:, ::-1], answer + answer.dtype.type(1), answer[..., :-1], other, answer * np.float32(np.nan)):
        with pytest.raises(WrongAnswer):
            check(p, wrong, sample, exact)


@pytest.mark.parametrize(
    "text",
    [
        TINY[0],
        case("fwd", (19,), (3,), p=3, d=4, s=2, ic=4, oc=6, g=2, mb=3),
        case("fwd", (5, 6, 7), (3, 1, 2), p=((1, 0), 0, 2), d=(1, 3, 2), s=(2, 1, 3), mb=2, t="f64"),
        case("fwd", (8, 9), (3, 2), p=1, ic=3, oc=4, t="c64"),
    ],
)
def test_samples_of_gradients_are_the_references(text: str) -> None:
    layer = Layer("", Problem.parse(text).gradient("input_grad"))
    x, w, _ = layer.arrays()
    g, p = layer.grad_output(), layer.problem
    sample = draw_sample(p, g, 40)
    np.testing.assert_allclose(sample.found(reference.convolve(p, g, w, rounded=False)), sample.exact(w, None), rtol=1e-13, atol=1e-13)
    p = replace(p, direction="weight_grad")
    pairs = draw_weight_sample(p, 4)
    np.testing.assert_allclose(pairs.found(reference.weight_grad(p, x, g, rounded=False)), pairs.exact(x, g), rtol=1e-13, atol=1e-13)
    assert len({tuple(pair) for pair in pairs.pairs}) == 4 and len(draw_weight_sample(p, 10_000).pairs) == p.out_channels * p.in_per_group


@pytest.mark.parametrize("dtype", [None, "complex64"])
@pytest.mark.parametrize("direction", ["input_grad", "weight_grad"])
def test_gradients_are_checked_and_timed(direction: Any, dtype: str | None) -> None:
    layers = find_layers([TINY[0], case("fwd", (20,), (3,), s=2, p=1, g=2, ic=4, oc=4)], dtype, direction)
    peers = [peer for peer in gradients.PEERS if peer.installed and dtype is None]  # torch has no complex gradients on the CPU
    for layer in layers:
        said: list[str] = []
        rows = bench_layer(layer, [*peers, Contender("wrong", wrong, packages="numpy")], 1, 1, said.append)
        expected = ["numbaconv", "numbaconv_out", *(peer.name for peer in peers if peer.name != "torch_cl" or layer.problem.rank > 1)]
        assert [row.contender for row in rows] == expected and all(row.max_error < 1e-5 for row in rows)
        assert len(said) == 1 and "wrong: WrongAnswer" in said[0]


def wrong(task: Task) -> Prepared:
    """A peer whose answers are wrong."""
    return Prepared(lambda: np.zeros(task.problem.result_shape, np.float32), lambda result: result)


def refusing(task: Task) -> Prepared:
    raise RuntimeError("not implemented\nfor this")


def absent(task: Task) -> None:
    """A peer without such an operation."""


def test_a_peer_that_refuses_or_is_wrong_is_named_and_not_timed() -> None:
    peers = [Contender(f.__name__, f, packages="numpy") for f in (wrong, refusing, absent)]
    said: list[str] = []
    rows = bench_layer(find_layers([TINY[0]])[0], peers, 1, 1, said.append)
    assert [row.contender for row in rows] == [contender.name for contender in OURS]
    assert len(said) == 2 and "WrongAnswer: largest error" in said[0] and said[1].endswith("refusing: RuntimeError: not implemented")
    assert all(row.seconds > 0 and row.peak > 0 and row.rms_error <= row.max_error < 1e-6 for row in rows)
    assert rows[0].note and "numba" in rows[0].version and rows[1].reuses_output and not rows[0].reuses_output


def test_a_wrong_answer_of_ours_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("numbaconv.bench.measure.OURS", (Contender("numbaconv", wrong),))
    assert main(["bench", "--layers", TINY[0], "--against", "ndimage", "--rounds", "1"]) == 1
    assert "numbaconv is WRONG" in capsys.readouterr().out


def test_peers() -> None:
    assert [peer.name for peer in find_peers()] == [peer.name for peer in PEERS]
    assert [peer.name for peer in find_peers(["scipy", "torch"])] == ["oaconvolve", "ndimage", "torch"]
    assert all(peer.packages and peer.modules and peer.prepare.__doc__ for peer in PEERS)
    assert not Contender("x", wrong, ("no_such_module_anywhere",)).installed


# ---- turns and threads -------------------------------------------------------------------------------------------------------
def test_turns_are_interleaved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a clock that calls themselves move: what each call costs is what is measured."""
    now, order = 0.0, []
    monkeypatch.setattr(timing.time, "process_time", lambda: now)

    def call(name: str, cost: float) -> Callable[[], None]:
        def work() -> None:
            nonlocal now
            order.append(name)
            now += cost

        return work

    turns = timing.interleaved({"a": call("a", 0.01), "b": call("b", 0.02), "slow": call("slow", 0.5), "stuck": call("stuck", 9.0)}, 1, 13)
    assert {name: len(t.seconds) for name, t in turns.items()} == {"a": 13, "b": 13, "slow": 3, "stuck": 3}
    assert {name: round(t.median, 9) for name, t in turns.items()} == {"a": 0.01, "b": 0.02, "slow": 0.5, "stuck": 9.0}
    assert order[:4] == ["a", "b", "slow", "stuck"] and order[4:6] == ["a", "a"], "once each, then a turn with one call before it"
    first = [name for i, name in enumerate(order) if i == 0 or order[i - 1] != name]
    assert first[8:12] == ["b", "slow", "stuck", "a"], "the second round begins with the second one"


def test_on_threads() -> None:
    import numba

    before, cpus = dict(os.environ), sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    threads = numba.get_num_threads()
    with timing.on_threads(1):
        assert os.environ["OMP_NUM_THREADS"] == "1" and numba.get_num_threads() == 1
        assert cpus is None or sorted(os.sched_getaffinity(0)) == cpus[-1:]
    assert dict(os.environ) == before and numba.get_num_threads() == threads
    assert cpus is None or sorted(os.sched_getaffinity(0)) == cpus
    with pytest.raises(ValueError, match="--threads must be between 1 and"), timing.on_threads(10_000):
        pass


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("threads", [1, 2])
def test_peak(dtype: str, threads: int) -> None:
    call, operations = peak_call(dtype, threads)
    call()
    assert operations > 1e6
    assert peak_call("float32", threads)[1] == operations * (1 if dtype == "float32" else 2), "twice as many lanes"


# ---- tables ------------------------------------------------------------------------------------------------------------------
def rows_of(layer: str, threads: int, **milliseconds: float) -> list[Row]:
    text = TINY[layer != "a"]
    return [
        Row(
            "a machine", "2026-01-01", layer, text, threads, name, f"{name} 1.0", "direct" if name.startswith("numbaconv") else "",
            name in ("numbaconv_out", "ort"), ms / 1e3, ms / 1e3, 5, 2 * 10**9, 1e12, 1e-7, 1e-8,
        )
        for name, ms in milliseconds.items()
    ]  # fmt: skip


@pytest.fixture
def rows() -> list[Row]:
    ours = {"numbaconv": 10.0, "numbaconv_out": 8.0, "numbaconv_function": 11.0}
    twice = {"numbaconv": 4.0, "numbaconv_out": 4.0, "numbaconv_function": 5.0}
    return [
        *rows_of("a", 1, **ours, torch=30.0, ort=16.0),
        *rows_of("b", 1, **ours, torch=9.0),
        *rows_of("a", 2, **twice, torch=20.0),
        *rows_of("c", 2, **twice),
    ]


def test_ratios(rows: list[Row]) -> None:
    a, b = results(rows)[Kind("forward", 1)]
    assert a.best_peer is a.by_name["ort"] and a.ratio == 2.0, "ort reuses its result, and so do we beside it"
    assert (a.fresh_ratio, a.torch_ratio, b.ratio, a.ours.gflops) == pytest.approx((1.6, 3.0, 0.9, 200))
    alone = results(rows)[Kind("forward", 2)][1]
    assert alone.best_peer is None and np.isnan(alone.ratio) and np.isnan(alone.torch_ratio)
    assert geometric_mean([1.0, 4.0, float("nan")]) == 2.0 and np.isnan(geometric_mean([]))


def test_markdown_and_summary(rows: list[Row]) -> None:
    text = markdown(rows, "the command")
    for part in ("a machine", "2026-01-01", "torch 1.0", "`the command`", "### 1 thread\n", "### 2 threads\n", "### Two threads over one"):
        assert part in text
    assert "| a | 2.000 | direct | 200.0 | 250.0 | 181.8 | 20 % | ort | 125.0 | 2.00 | 1.60 | 3.00 |" in text
    assert "| **0.90** |" in text, "losses stand out"
    assert "1 layers of at least 1 GFLOP: geometric mean 2.50; below 1.8: none" in text
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) == 4 and all(len({line.count("|") for line in table}) == 1 for table in tables)
    lines = "\n".join(summary(rows))
    assert "1 thread: ahead on 1 of 2 layers; behind: b (0.90)" in lines and "torch, contiguous: 1.64 times our time" in lines


def test_gradients_beside_the_forward_function(rows: list[Row]) -> None:
    for direction, ms in (("input_grad", 12.0), ("weight_grad", 10.0)):
        problem = str(Problem.parse(TINY[0]).gradient(direction))
        rows += [replace(row, problem=problem) for row in rows_of("a", 1, numbaconv=ms, torch=24.0)]
    text = markdown(rows, "")
    assert "### 1 thread, gradient of the input" in text and "1 thread: both gradients take 2.00 times the forward function" in text
    assert text.count("–") and summary(rows)[-1].endswith("most: a (2.00)")


def test_csv_comes_back(rows: list[Row], tmp_path: Path) -> None:
    write_csv(tmp_path / "rows.csv", rows)
    assert read_csv(tmp_path / "rows.csv", Row) == rows
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"other\.csv does not hold results of this command"):
        read_csv(tmp_path / "other.csv", Row)


def test_chart(rows: list[Row], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    draw_chart(tmp_path / "chart.png", rows)
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="--png needs a peer"):
        draw_chart(tmp_path / "none.png", [row for row in rows if row.contender.startswith("numbaconv")])


# ---- the choice --------------------------------------------------------------------------------------------------------------
def test_choice() -> None:
    candidates = choice.time_candidates(find_layers([TINY[0]])[0], 1, 1)
    assert sum(c.taken for c in candidates) == 1 and {"direct", "implicit_gemm"} <= {c.algorithm for c in candidates}
    assert all(c.seconds > 0 and c.estimated > 0 for c in candidates)
    fast, slow = (replace(candidates[0], taken=t, seconds=s) for t, s in ((True, 1.0), (False, 2.0)))
    assert choice.loss([fast, slow]) == 1 and choice.loss([replace(fast, taken=False), replace(slow, taken=True)]) == 2
    right, missed = [fast, slow], [replace(fast, taken=False), replace(slow, taken=True)]
    assert choice.verdict_on([right] * 19 + [missed]) == ("auto is within 10% of the fastest on 19 of 20 layers (95.0 %)", True)
    assert not choice.verdict_on([right] * 18 + [missed] * 2)[1]
    assert "! *" not in choice.describe(right) and " 2.00 ! " in choice.describe(missed)


# ---- the command -------------------------------------------------------------------------------------------------------------
def test_command(tmp_path: Path) -> None:
    """Two tiny layers beside every peer that is installed, in a process of their own: peers keep threads and settings."""
    drawn = importlib.util.find_spec("matplotlib") is not None
    files = {name: tmp_path / f"bench.{name}" for name in ("csv", "markdown", *(["png"] if drawn else []))}
    written = [part for name, path in files.items() for part in (f"--{name}", str(path))]
    command = [sys.executable, "-m", "numbaconv", "bench", "--layers", ",".join(TINY), "--rounds", "1", *written]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    installed = {peer.name for peer in PEERS if peer.installed}
    rows = read_csv(files["csv"], Row)
    assert {row.contender for row in rows} == {*(contender.name for contender in OURS), *installed - {"opencv"}}
    assert list(dict.fromkeys(row.problem for row in rows)) == list(TINY)
    for peer in PEERS:
        assert (f"{peer.name} is not installed" in done.stdout) == (not peer.installed)
    for problem in TINY:
        assert f"| {problem} |" in files["markdown"].read_text("utf-8")
    if drawn and installed:
        assert files["png"].read_bytes().startswith(b"\x89PNG")

    again = tmp_path / "again.md"
    assert main(["bench", "--saved", str(files["csv"]), "--markdown", str(again)]) == 0
    assert again.read_text("utf-8").split("Command")[0] == files["markdown"].read_text("utf-8").split("Command")[0]


def test_command_check_choice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "choice.csv"
    assert main(["bench", "--check-choice", "--layers", TINY[0], "--rounds", "1", "--csv", str(table)]) in (0, 1)
    assert "of 1 layers" in capsys.readouterr().out and read_csv(table, choice.Candidate)[0].problem == TINY[0]


@pytest.mark.parametrize(
    "line, sentence",
    [
        ("--layers nonsense", "--layers must be text forms of problems or (parts of) names out of r50_stem7x7s2"),
        (f"--layers {case('igrad', (4,), (3,))}", "--layers must be forward convolutions"),
        ("--against banana", "--against must be names out of torch"),
        ("--rounds 0", "--rounds must be at least 1, got 0"),
        ("--threads 0", "--threads must be between 1 and"),
        ("--csv no/such/folder/a.csv", "the folder of"),
    ],
)
def test_bad_arguments_exit_2(line: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["bench", *line.split()])
    assert exit_.value.code == 2 and sentence in capsys.readouterr().err


def test_a_result_needs_no_peer(rows: list[Row]) -> None:
    assert np.isnan(Result(tuple(row for row in rows if row.layer == "c")).ratio)
