"""The script that runs on a GPU machine: what it packs, how it runs steps, and its reports, with commands that need no GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from . import on_a_gpu
from .on_a_gpu import Step, steps

JUNIT = """<?xml version="1.0"?><testsuites><testsuite name="pytest" errors="1" failures="1" skipped="2" tests="6">
<testcase classname="tests.cuda.test_cases" name="test_exact[direct-f32]"/>
<testcase classname="tests.cuda.test_cases" name="test_exact[direct-f64]"><failure message="no">text</failure></testcase>
<testcase classname="tests.cuda.test_cases" name="test_empty"><error message="no">text</error></testcase>
<testcase classname="tests.cuda.test_interop" name="a"><skipped message="needs 30 GiB"/></testcase>
<testcase classname="tests.cuda.test_interop" name="b"><skipped message="needs 30 GiB"/></testcase>
<testcase classname="tests.cuda.test_interop" name="c"/></testsuite></testsuites>"""


def script(code: str, seconds: float = 60, read: Any = lambda step, text: {}, name: str = "a step") -> Step:
    return Step(name, [sys.executable, "-c", code], seconds, read)


def test_a_packed_folder_runs_by_itself(tmp_path: Path) -> None:
    on_a_gpu.main(["pack", str(tmp_path / "packed")])
    folder = tmp_path / "packed"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(folder / "site")])}
    code = "import sitecustomize, numbaconv, tests.cuda.on_a_gpu as o; print(numbaconv.__file__, o.ROOT, sitecustomize.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    package, root, site = done.stdout.split()
    assert package == str(folder / "numbaconv" / "__init__.py") and root == str(folder) and site.startswith(str(folder / "site"))
    assert {path.name for path in folder.iterdir()} >= {"pyproject.toml", "README.md", "REVISION", "tests"}


def test_what_becomes_of_a_step(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    passed = script("print('fine')", read=lambda step, text: {"lines": len(text.splitlines())})
    failed, slow = script("raise SystemExit(3)"), script("import time; print('begun', flush=True); time.sleep(60)")
    absent = Step("absent", ["no-such-program-anywhere"], 5, lambda step, text: {})
    hole = script("", read=lambda step, text: {}["no"])
    for step in (passed, failed, absent, hole):
        step.run(log, 60)
    slow.run(log, 2)
    assert (passed.status, passed.found, passed.tail) == ("passed", {"lines": 1}, "fine")
    assert failed.status == "failed, exit status 3" and absent.status.startswith("not run: ")
    assert slow.status == "stopped after its limit of 2 s" and slow.took < 15 and slow.tail.startswith("begun")
    assert hole.found == {"unreadable": "KeyError: 'no'"}
    assert "==== a step: " in log.read_text("utf-8") and "fine" in log.read_text("utf-8")


def test_results_of_tests_and_of_the_sanitizer(tmp_path: Path) -> None:
    (tmp_path / "tests.xml").write_text(JUNIT)
    step = next(step for step in steps(tmp_path, 8) if step.name == "tests")
    found = step.read(step, "")
    assert {name: found[name] for name in ("passed", "failed", "skipped")} == {"passed": 2, "failed": 2, "skipped": 2}
    assert found["failures"][0] == "tests.cuda.test_cases::test_exact[direct-f64]" and found["reasons"] == {"needs 30 GiB": 2}
    (tmp_path / "tests.xml").unlink()
    printed = "[gw1] [ 1%] PASSED tests/cuda/test_a.py::b[c d] \n[gw0] [ 2%] FAILED tests/cuda/test_a.py::e \n[gw0] PASSED tests/a.py::b\n"
    found = step.read(step, printed)
    assert (found["passed"], found["failed"], found["failures"]) == (2, 1, ["tests/cuda/test_a.py::e"])
    said = "========= COMPUTE-SANITIZER\n40 passed in 3.00s\n========= ERROR SUMMARY: 0 errors\n"
    assert on_a_gpu._read_sanitizer(step, said) == {"summary": ["ERROR SUMMARY: 0 errors", "40 passed in 3.00s"]}


def test_limits_scale(tmp_path: Path) -> None:
    whole, half = steps(tmp_path, 8), steps(tmp_path, 4)
    assert [step.name for step in whole] == ["tests", "bench float32", "bench others", "memcheck", "racecheck"]
    assert sum(step.seconds for step in whole) <= 480 and half[0].seconds == whole[0].seconds / 2


def test_the_sanitizers_subset_has_every_algorithm() -> None:
    names = [f"test_exact[{a}-f32_{i}]" for a, n in (("direct", 300), ("implicit_gemm", 5)) for i in range(n)] + [
        "test_rounding_errors[x-1]"
    ]
    items: list[Any] = [types.SimpleNamespace(name=name) for name in names]
    on_a_gpu.pytest_collection_modifyitems(items)
    kept = [item.name for item in items]
    assert len(kept) == 25 and sum("direct" in name for name in kept) == 20 and kept[0] != kept[1]


def test_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A step that fails does not stop the others, and the reports have them all."""

    def planned(folder: Path, minutes: float) -> list[Step]:
        (folder / "tests.xml").write_text(JUNIT)
        (folder / "float32.csv").write_text("layer,seconds\na,1\n")
        (folder / "float32.markdown").write_text(f"### float32\n\nCommand: `x --csv {folder}/float32.csv`\n")
        real = {step.name: step for step in steps(folder, minutes)}
        bench, others = real["bench float32"], real["bench others"]
        return [
            Step("tests", [sys.executable, "-c", "raise SystemExit(1)", f"--junitxml={folder / 'tests.xml'}"], 60, real["tests"].read),
            script("print('a: numbaconv is WRONG: very')", read=bench.read, name=bench.name),
            script("print('no GPU')", read=others.read, name=others.name),
            Step("memcheck", [], 1, bench.read, "skipped: compute-sanitizer is not installed"),
        ]

    monkeypatch.setattr(on_a_gpu, "steps", planned)
    assert on_a_gpu.main(["run", "--output", str(tmp_path / "out"), "--minutes", "1"]) == 1
    text, report = (tmp_path / "out" / "report.md").read_text("utf-8"), json.loads((tmp_path / "out" / "report.json").read_text())
    assert "| tests | failed, exit status 1; 2 passed; 2 failed; 2 skipped |" in text
    assert "- failed: `tests.cuda.test_cases::test_exact[direct-f64]`" in text and "- skipped, 2: needs 30 GiB" in text
    assert "| memcheck | skipped: compute-sanitizer is not installed | 0 |" in text
    assert "- a: numbaconv is WRONG: very" in text and "### float32" in text and "`x --csv float32.csv`" in text
    assert "No tables; the end of its output:\n\n```\nno GPU\n```" in text
    assert report["steps"][1]["found"]["csv"] == [{"layer": "a", "seconds": "1"}] and report["versions"]["numpy"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.json", "report.md", "log.txt"}
    assert "bench others: passed" in capsys.readouterr().out
