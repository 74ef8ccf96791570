"""Whole processes, from start to end: python tests/benchmarks/startup.py [--runs 9]

What `import numbaconv` adds to `import numpy`; a first conv3d with a warm and with an empty cache, beside a process that calls one
trivial cached parallel function of Numba, and beside torch where it is installed.  Medians of interleaved runs, wall clock; the
runs with an empty cache are fewer.  Prints a Markdown table of the limits and what was found; exits with 1 where one is passed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
CONVOLUTION = "numpy.ones((1, 8, 32, 32, 32), numpy.float32), numpy.ones((8, 8, 3, 3, 3), numpy.float32)"
TRIVIAL = """
import numpy
from numba import njit, prange

@njit(parallel=True, cache=True)
def double(x):
    for i in prange(len(x)):
        x[i] *= 2

double(numpy.ones(10000))
"""
PROGRAMS = {
    "numpy": "import numpy",
    "import": "import numpy, numbaconv",
    "trivial": "import trivial",
    "warm": f"import numpy, numbaconv; numbaconv.conv3d({CONVOLUTION})",
    "torch": f"import numpy, torch; x, w = {CONVOLUTION}; torch.nn.functional.conv3d(torch.from_numpy(x), torch.from_numpy(w)).numpy()",
}
EMPTY_RUNS = 2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=9, metavar="N")
    options = parser.parse_args()
    programs = {name: code for name, code in PROGRAMS.items() if name != "torch" or importlib.util.find_spec("torch")}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "trivial.py").write_text(TRIVIAL)
        for code in programs.values():
            run(code, folder, "cache")  # fills the cache, and the system's own of files
        found: dict[str, list[float]] = {name: [] for name in programs}
        for _ in range(options.runs):
            for name, code in programs.items():
                found[name].append(run(code, folder, "cache")[0])
        empty = [run(PROGRAMS["warm"], folder, f"empty{i}") for i in range(EMPTY_RUNS)]
    times = {name: statistics.median(seconds) for name, seconds in found.items()} | {"empty": statistics.median(t for t, _ in empty)}
    for name, seconds in times.items():
        print(f"{name:<8} {seconds:.3f} s")
    notice = empty[0][1].strip()
    print(f"notice with an empty cache: {notice!r}\n")
    return report(times, notice)


def report(times: dict[str, float], notice: str) -> int:
    limits = [
        ("import numbaconv over import numpy, s", times["import"] - times["numpy"], 0.08),
        ("import and first conv3d, warm cache, over a trivial parallel function of Numba, s", times["warm"] - times["trivial"], 0.2),
        ("the same with an empty cache, whole process, s", times["empty"], 8.0),
        ("lines of the notice with an empty cache, away from 1", abs(len(notice.splitlines()) - 1), 0),
    ]
    if "torch" in times:
        limits.append(("import and first conv3d, warm cache, over torch's whole process, times", times["warm"] / times["torch"], 0.6))
    print("| | found | limit |\n|---|---:|---:|")
    for text, value, limit in limits:
        print(f"| {text} | {'' if value <= limit else '**'}{value:.3g}{'' if value <= limit else '**'} | {limit:g} |")
    return int(any(value > limit for _, value, limit in limits))


def run(code: str, folder: str, cache: str) -> tuple[float, str]:
    """Wall-clock seconds of a Python process and what it wrote to stderr."""
    path = os.pathsep.join(filter(None, [folder, str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path, "NUMBA_CACHE_DIR": str(Path(folder, cache))}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package has its bytecode
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    return time.perf_counter() - start, done.stderr


if __name__ == "__main__":
    sys.exit(main())
