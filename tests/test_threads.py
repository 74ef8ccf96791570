"""Threads and processes: concurrent calls, forked children, and bits that depend on neither.

Each scene runs in a fresh process with a time limit, so that an abort or a hang is a failure.
"""

from __future__ import annotations

import os
import sys

import numpy as np
import pytest

import numbaconv
from numbaconv import Problem
from numbaconv.choose import registry

from .cases import FLOAT_NAMES, PROBLEMS, call, case, normal_arrays
from .checks import always_parallel, every
from .conftest import Python

SCENE = Problem.parse(case("fwd", (18, 20), (3, 3), mb=3, ic=16, oc=24, p=1))
ALGORITHMS = [algorithm.name for algorithm in registry("cpu") if algorithm.supports(SCENE) is None]
# "omp" and "workqueue" come with Numba ("omp" not on macOS, where it needs libomp); "tbb" is its own package.
LAYERS = ["default", "workqueue", *(["omp"] if sys.platform != "darwin" else [])]

SETUP = """
import os, sys, threading, numpy as np, numbaconv
from numbaconv.cpu import threads
threads.SERIAL_BELOW = 0.0  # every call opens a parallel region
rng = np.random.default_rng(0)
x, w = (rng.standard_normal(shape).astype(np.float32) for shape in ((3, 16, 18, 20), (24, 16, 3, 3)))

def compute(algorithm):
    return numbaconv.conv2d(x, w, padding=1, algorithm=algorithm).tobytes()

ALGORITHMS = {algorithms}
expected = {{algorithm: compute(algorithm) for algorithm in ALGORITHMS}}
assert threads.team_size(1.0) == 2
"""


def scene(python: Python, layer: str, code: str, timeout: float = 240) -> None:
    """Run ``code`` after SETUP on two threads of Numba, of the given threading layer."""
    environment = {"NUMBA_NUM_THREADS": "2"} | ({} if layer == "default" else {"NUMBA_THREADING_LAYER": layer})
    assert python(SETUP.format(algorithms=ALGORITHMS) + code + "\nprint('done')", timeout=timeout, **environment).endswith("done\n")


@pytest.mark.parametrize("layer", LAYERS)
def test_python_threads_call_at_once(python: Python, layer: str) -> None:
    scene(python, layer, """
wrong = []
def repeat(algorithm):
    for _ in range(30):
        if compute(algorithm) != expected[algorithm]:
            wrong.append(algorithm)
team = [threading.Thread(target=repeat, args=(algorithm,)) for algorithm in ALGORITHMS for _ in range(3)]
for thread in team: thread.start()
for thread in team: thread.join()
assert not wrong, wrong
""")  # fmt: skip


@pytest.mark.parametrize("layer", LAYERS)
def test_first_calls_from_many_threads(python: Python, layer: str) -> None:
    """Compiling and choosing are safe to begin in several threads at once: here for a dtype not yet seen."""
    scene(python, layer, """
results = []
def first():
    results.append(numbaconv.conv2d(np.ones((1, 2, 6, 6)), np.ones((3, 2, 3, 3))).sum())
team = [threading.Thread(target=first) for _ in range(4)]
for thread in team: thread.start()
for thread in team: thread.join()
assert results == [18 * 3 * 16] * 4, results
""")  # fmt: skip


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("layer", LAYERS)
def test_forked_child_calls_after_a_parallel_call(python: Python, layer: str) -> None:
    """The parent has computed in parallel; child and grandchild compute, and the parent still does."""
    scene(python, layer, """
def right():
    return all(compute(algorithm) == expected[algorithm] for algorithm in ALGORITHMS)
def fork(then):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if then() else 2
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert fork(right)
assert fork(lambda: right() and fork(right))
assert right()
""", timeout=120)  # fmt: skip


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("layer", LAYERS)
def test_multiprocessing_fork_pool(python: Python, layer: str) -> None:
    scene(python, layer, """
import multiprocessing
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map(compute, ALGORITHMS * 4) == [expected[algorithm] for algorithm in ALGORITHMS] * 4
""", timeout=120)  # fmt: skip


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_fork_while_another_thread_computes(python: Python) -> None:
    """A lock that another thread held at the fork does not stop the child."""
    scene(python, "workqueue", """
stop = threading.Event()
def busy():
    while not stop.is_set():
        compute(ALGORITHMS[0])
team = [threading.Thread(target=busy) for _ in range(2)]
for thread in team: thread.start()
codes = []
for _ in range(10):
    child = os.fork()
    if child == 0:
        os._exit(0 if threads.team_size(1.0) and not threads._one_at_a_time.locked() else 3)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
stop.set()
for thread in team: thread.join()
assert codes == [0] * 10, codes
""", timeout=120)  # fmt: skip


# ---- same bits -----------------------------------------------------------------------------------------------------------
BITS = [p for p in PROBLEMS if p.dtype in FLOAT_NAMES and p.batch > 0][::7]
BITS += [
    Problem.parse(text)
    for text in (
        case("fwd", (20, 49), (3, 3), ic=70, oc=50, p=1, b=1),
        case("fwd", (9, 10, 11), (3, 3, 3), ic=20, oc=30, p=1, t="f64"),
        case("igrad", (12, 13), (4, 4), ic=30, oc=40, s=2, p=1, b=1),
    )
]


@every(BITS, registry("cpu"))
def test_same_bits_at_any_place_of_a_batch(algorithm: str, problem: Problem) -> None:
    x, w, b = normal_arrays(problem)
    alone = call(problem, x[:1], w, b, algorithm=algorithm, precision="fast")
    for n in (2, 5):
        batch = np.repeat(x[:1], n, axis=0)
        batch[1::2] *= 3  # neighbours of other values
        together = call(problem, batch, w, b, algorithm=algorithm, precision="fast")
        for image in together[::2]:
            assert image.tobytes() == alone.tobytes()


@every(BITS, registry("cpu"))
def test_same_bits_on_all_threads_as_on_one(algorithm: str, problem: Problem) -> None:
    """One thread and two, where the machine has two (the next test does, anyway)."""
    import numba

    x, w, b = normal_arrays(problem)
    x = np.concatenate([x, x])
    threads = numba.get_num_threads()
    bits = []
    for count in {1, min(2, threads), threads}:
        numba.set_num_threads(count)
        try:
            with always_parallel():
                bits.append(call(problem, x, w, b, algorithm=algorithm, precision="fast").tobytes())
        finally:
            numba.set_num_threads(threads)
    assert len(set(bits)) == 1


def test_same_bits_in_a_process_of_two_threads_and_in_one_of_one(python: Python) -> None:
    code = f"""
    import hashlib, numpy as np, numbaconv
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 16, 180, 41), (48, 16, 3, 3)))
    for algorithm in {ALGORITHMS}:
        print(hashlib.sha256(numbaconv.conv2d(x, w, algorithm=algorithm).tobytes()).hexdigest())
    """
    assert python(code, NUMBA_NUM_THREADS="1") == python(code, NUMBA_NUM_THREADS="2")


def test_a_plan_is_shared_by_threads() -> None:
    import threading

    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal((2, 16, 15, 16)).astype(np.float32) for _ in range(4)]
    w = rng.standard_normal((24, 16, 3, 3)).astype(np.float32)
    for algorithm in ALGORITHMS:
        plan = numbaconv.plan(inputs[0], w, padding=1, algorithm=algorithm)
        expected = [plan(x).tobytes() for x in inputs]
        wrong: list[int] = []

        def repeat(i: int, plan: numbaconv.Plan = plan, expected: list[bytes] = expected, wrong: list[int] = wrong) -> None:
            wrong.extend(i for _ in range(50) if plan(inputs[i]).tobytes() != expected[i])

        team = [threading.Thread(target=repeat, args=(i,)) for i in range(4)]
        for thread in team:
            thread.start()
        for thread in team:
            thread.join()
        assert wrong == []
