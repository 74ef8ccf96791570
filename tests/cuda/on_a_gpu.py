"""Everything that a GPU is needed for, in one command, on a machine that may be offline.

    python tests/cuda/on_a_gpu.py pack FOLDER [--wheels]     here: copies what that machine needs
    PYTHONPATH=FOLDER:FOLDER/site python tests/cuda/on_a_gpu.py run [--output FOLDER] [--minutes N]     there, in the packed folder

``run`` writes report.json, report.md and log.txt: versions, the tests of the CUDA side on the GPU, the benchmark beside torch, and some of
the tests under compute-sanitizer.  Each step has a limit of its own, and what fails or takes too long does not stop the others; the
reports are written anew after each step.

That machine needs numba-cuda, pytest, pytest-xdist and hypothesis; torch and CuPy for what concerns them.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import datetime
import importlib.metadata
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("numba", "numba-cuda", "cuda-bindings", "numpy", "torch", "cupy-cuda13x", "cupy-cuda12x", "nvidia-cudnn-cu13")
MINUTES = 8.0
TOOLKIT = Path("/usr/local/cuda")
SITE = '''"""What numba-cuda 0.30 needs: of NumPy 2.5 a row_stack, and of a folder on PYTHONPATH its .pth, which is not read."""
import contextlib

import numpy

if tuple(map(int, numpy.__version__.split(".")[:2])) >= (2, 5):
    numpy.row_stack = numpy.vstack
with contextlib.suppress(ImportError):
    import _numba_cuda_redirector
'''
WHEELS = ("numba-cuda==0.30.4",)

# Layers of the benchmark in other dtypes than float32: one of each algorithm and number of axes.
OTHER_DTYPES = "float16,bfloat16,float64"
OTHER_LAYERS = "r50_3x3_128_28,r50_1x1_64_256_56,mb_dw3s1_128_56,unet3d_3_64_64_32c,speech_k5_80_512"
SANITIZED = 40  # tests


# ---- packing -------------------------------------------------------------------------------------------------------------------
def pack(folder: Path, wheels: bool) -> None:
    """Copy the package, its tests and the site folder; with ``wheels`` numba-cuda for Python 3.12 on Linux x86_64 too."""
    for name in ("numbaconv", "tests"):
        shutil.copytree(ROOT / name, folder / name, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__", "results"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    revision = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    (folder / "REVISION").write_text(revision.stdout.strip() or "unknown", encoding="utf-8")
    site = folder / "site"
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text(SITE, encoding="utf-8")
    if wheels:
        platforms = [f"--platform=manylinux_2_{n}_x86_64" for n in (28, 27, 24, 17)] + ["--platform=manylinux2014_x86_64"]
        where = ["--target", str(site), "--upgrade", "--no-deps", "--only-binary=:all:", "--python-version=3.12", "--implementation=cp"]
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *where, *platforms, *WHEELS], check=True)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {size / 2**20:.1f} MiB")
    print(f"there: cd {folder} && PYTHONPATH=$PWD:$PWD/site python3 tests/cuda/on_a_gpu.py run --output OUTPUT")


# ---- steps ---------------------------------------------------------------------------------------------------------------------
@dataclass
class Step:
    """One command and what became of it.  seconds : its limit; found : what was read from what it wrote."""

    name: str
    command: list[str]
    seconds: float
    read: Callable[[Step, str], dict[str, Any]]
    status: str = "not begun"
    took: float = 0.0
    found: dict[str, Any] = field(default_factory=dict)
    tail: str = ""

    def run(self, log: Path, seconds: float) -> None:
        """Run the command for at most so many seconds; interrupted then, and ended if it does not stop within ten more."""
        start = time.monotonic()
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
            try:
                process = subprocess.Popen(self.command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
            except OSError as error:
                self.status = f"not run: {error}"
                return
            try:
                code = process.wait(seconds)
                self.status = "passed" if code == 0 else f"failed, exit status {code}"
            except subprocess.TimeoutExpired:
                self.status = f"stopped after its limit of {seconds:.0f} s"
                process.send_signal(signal.SIGINT)  # pytest and the benchmark then report on what they have
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(10)
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            self.took = time.monotonic() - start
            output.seek(0)
            text = output.read()
        with log.open("a", encoding="utf-8") as file:
            file.write(f"\n==== {self.name}: {' '.join(self.command)}\n{text}\n==== {self.status}, {self.took:.0f} s\n")
        self.tail = "\n".join(text.splitlines()[-25:])
        try:
            self.found = self.read(self, text)
        except Exception as error:  # a report with a hole is better than none
            self.found = {"unreadable": f"{type(error).__name__}: {error}"}


def steps(folder: Path, minutes: float) -> list[Step]:
    """All steps, with limits that add up to so many minutes; what they write goes to ``folder``."""
    unit, python = 60 * minutes / MINUTES, [sys.executable, "-m"]
    gpu_tests = [*python, "pytest", "--gpu", "-W", "default", "-p", "no:cacheprovider"]
    workers = str(min(12, os.cpu_count() or 1))
    junit = f"--junitxml={folder / 'tests.xml'}"
    found = [
        Step("tests", [*gpu_tests, "tests/cuda", "-vv", "-n", workers, "--dist", "load", junit], 2.6 * unit, _read_tests),
        _bench(folder, "float32", ["--direction", "forward,input_grad,weight_grad", "--rounds", "5"], 3.1 * unit),
        _bench(folder, "others", ["--dtype", OTHER_DTYPES, "--layers", OTHER_LAYERS, "--rounds", "5"], 0.9 * unit),
    ]
    sanitizer = shutil.which("compute-sanitizer", path=os.pathsep.join([os.environ.get("PATH", ""), str(TOOLKIT / "bin")]))
    for tool in ("memcheck", "racecheck"):
        quiet = ["--report-api-errors", "no"] if tool == "memcheck" else []  # asking for a context that is not there is no error
        command = [str(sanitizer), "--tool", tool, *quiet, "--error-exitcode", "9", *gpu_tests, "-n", "0"]
        step = Step(tool, [*command, "-p", "tests.cuda.on_a_gpu", "tests/cuda/test_cases.py"], 0.6 * unit, _read_sanitizer)
        if sanitizer is None:
            step.command, step.status = [], "skipped: compute-sanitizer is not installed"
        found.append(step)
    return found


def _bench(folder: Path, name: str, options: list[str], seconds: float) -> Step:
    files = [part for kind in ("csv", "markdown", "costs") for part in (f"--{kind}", str(folder / f"{name}.{kind}"))]
    limit = ["--seconds", f"{0.85 * seconds:.0f}"]
    command = [sys.executable, "-m", "numbaconv", "bench", "--device", "cuda", *options, *limit, *files]

    def read(step: Step, text: str) -> dict[str, Any]:
        wrong = [line for line in text.splitlines() if re.search("numbaconv (is WRONG|FAILED)|are left out|not compiled ahead", line)]
        refused = re.findall(r"^\S+: \w+: \w+: .*$", text, re.MULTILINE)
        tables = {kind: folder / f"{name}.{kind}" for kind in ("csv", "costs")}
        rows = {kind: list(csv.DictReader(text_of(path).splitlines())) for kind, path in tables.items()}
        markdown = folder / f"{name}.markdown"
        return {"remarks": wrong + refused, **rows, "markdown": text_of(markdown).replace(f"{folder}{os.sep}", "")}

    return Step(f"bench {name}", command, seconds, read)


def text_of(path: Path) -> str:
    return path.read_text("utf-8").strip() if path.is_file() else ""


def _read_tests(step: Step, text: str) -> dict[str, Any]:
    path = next(Path(part.partition("=")[2]) for part in step.command if part.startswith("--junitxml="))
    if not path.is_file():  # it was stopped: the lines that it printed on the way
        lines = re.findall(r" (PASSED|FAILED|ERROR|SKIPPED) (tests/.*)$", text, re.MULTILINE)
        count = {kind: sum(found == kind for found, _ in lines) for kind in ("PASSED", "FAILED", "ERROR", "SKIPPED")}
        bad = [name.strip() for kind, name in lines if kind in ("FAILED", "ERROR")]
        return {"passed": count["PASSED"], "failed": len(bad), "skipped": count["SKIPPED"], "failures": bad, "reasons": {}}
    suites = list(ElementTree.parse(path).getroot().iter("testsuite"))
    count = {name: sum(int(suite.get(name, 0)) for suite in suites) for name in ("tests", "failures", "errors", "skipped")}
    bad, why = [], dict[str, int]()
    for case in (case for suite in suites for case in suite.iter("testcase")):
        if any(case.find(kind) is not None for kind in ("failure", "error")):
            bad.append(f"{case.get('classname')}::{case.get('name')}")
        skipped = case.find("skipped")
        if skipped is not None:
            reason = skipped.get("message", "")
            why[reason] = why.get(reason, 0) + 1
    passed = count["tests"] - count["failures"] - count["errors"] - count["skipped"]
    return {"passed": passed, "failed": count["failures"] + count["errors"], "skipped": count["skipped"], "failures": bad, "reasons": why}


def _read_sanitizer(step: Step, text: str) -> dict[str, Any]:
    lines = [line.strip("= ") for line in text.splitlines() if "SUMMARY" in line or "Device not supported" in line]
    tested = re.findall(r"^.*\d+ (?:passed|failed).*$", text, re.MULTILINE)
    return {"summary": [*lines, *(line.strip("= ") for line in tested)]}


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """Where pytest takes this file as a plugin, for the sanitizer: a spread of the tests of each algorithm, SANITIZED in all."""
    exact = [item for item in items if item.name.startswith("test_exact[")]
    kinds: dict[str, list[Any]] = {}
    for item in exact:
        kinds.setdefault(item.name.partition("[")[2].rpartition("-")[0], []).append(item)
    share = max(1, SANITIZED // max(1, len(kinds)))
    items[:] = [item for kind in kinds.values() for item in kind[:: max(1, len(kind) // share)][:share]]


# ---- the report ----------------------------------------------------------------------------------------------------------------
def machine() -> dict[str, Any]:
    """Date, GPU, driver and versions."""
    asked = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        gpu = subprocess.run(asked, capture_output=True, text=True, timeout=30).stdout.strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        gpu = f"nvidia-smi: {error}"
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "date": datetime.date.today().isoformat(), "revision": text_of(ROOT / "REVISION"), "gpu": gpu,
        "python": platform.python_version(), "system": platform.platform(), "cpus": os.cpu_count(), "versions": versions,
    }  # fmt: skip


def markdown(about: dict[str, Any], done: Sequence[Step]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    lines = [
        "# numbaconv on a GPU",
        "",
        f"Date: {about['date']}, revision {about['revision'] or 'of a checkout'}  ",
        f"GPU, driver, memory: {about['gpu']}  ",
        f"Python {about['python']}, {about['system']}, {about['cpus']} CPUs  ",
        f"Versions: {versions}",
        "",
        "| step | what became of it | s |",
        "| --- | --- | ---: |",
        *(f"| {step.name} | {_in_words(step)} | {step.took:.0f} |" for step in done),
        "",
    ]
    for step in done:
        if step.name == "tests" and (step.found.get("failures") or step.found.get("reasons")):
            lines += ["## Tests", "", *(f"- failed: `{name}`" for name in step.found["failures"][:60])]
            lines += [*(f"- skipped, {count}: {reason}" for reason, count in step.found["reasons"].items()), ""]
        elif step.name.startswith("bench"):
            lines += [f"## {step.name.capitalize()}", "", *(f"- {remark}" for remark in step.found.get("remarks", []))]
            lines += ["", step.found.get("markdown") or f"No tables; the end of its output:\n\n```\n{step.tail}\n```", ""]
    return "\n".join(lines)


def _in_words(step: Step) -> str:
    found = step.found
    counts = [f"{found[name]} {name}" for name in ("passed", "failed", "skipped") if name in found]
    return "; ".join([step.status, *counts, *found.get("summary", []), *([found["unreadable"]] if "unreadable" in found else [])])


def write_reports(output: Path, about: dict[str, Any], done: Sequence[Step]) -> None:
    plain = [{name: value for name, value in asdict(step).items() if name != "read"} for step in done]
    (output / "report.json").write_text(json.dumps({**about, "steps": plain}, indent=1), encoding="utf-8")
    (output / "report.md").write_text(markdown(about, done), encoding="utf-8")


def run(output: Path, minutes: float) -> int:
    """All steps in turn, within so many minutes together; 1 where one did not pass."""
    output.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("NUMBA_CACHE_DIR", tempfile.mkdtemp(prefix="numbaconv-cache-"))
    if TOOLKIT.is_dir():
        os.environ.setdefault("CUDA_HOME", str(TOOLKIT))  # where numba-cuda finds NVVM if no package of this Python has it
    os.environ.update(NUMBA_CUDA_LOW_OCCUPANCY_WARNINGS="0", PYTHONUNBUFFERED="1")
    end, about = time.monotonic() + 60 * minutes, machine()
    with tempfile.TemporaryDirectory() as folder:
        planned = steps(Path(folder), minutes)
        for step in planned:
            left = end - time.monotonic() - 10
            if step.command and left > 5:
                print(f"{step.name}: at most {min(step.seconds, left):.0f} s", flush=True)
                step.run(output / "log.txt", min(step.seconds, left))
            elif step.command:
                step.status = "not begun: the time is over"
            print(f"{step.name}: {_in_words(step)}, {step.took:.0f} s", flush=True)
            write_reports(output, about, planned)
    return int(any(step.status != "passed" and not step.status.startswith("skipped") for step in planned))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack", help="copy what an offline GPU machine needs")
    packing.add_argument("folder", type=Path)
    packing.add_argument("--wheels", action="store_true", help="with numba-cuda, where that machine has none")
    running = commands.add_parser("run", help="tests, sanitizer and benchmark on this machine's GPU, and a report")
    running.add_argument("--output", type=Path, default=Path("gpu_report"))
    running.add_argument("--minutes", type=float, default=MINUTES, help="for all of it (default: %(default)g)")
    options = parser.parse_args(arguments)
    if options.command == "run":
        return run(options.output.absolute(), options.minutes)
    pack(options.folder.absolute(), options.wheels)
    return 0


if __name__ == "__main__":
    sys.exit(main())
