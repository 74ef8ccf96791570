"""Plans, explain, and what a call may keep and allocate."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import numbaconv
from numbaconv import Problem, explain, plan
from numbaconv.choose import registry

from .cases import PROBLEMS, arguments, call, dtype_of, integer_arrays
from .checks import DEFINITION, assert_same, poisoned, taking
from .conftest import Python

GROUPLESS = Problem.parse("f32_fwd_mb2g1_ic16ih10iw11_oc16kh3kw3_s1x1_p1:1x1:1_d1x1_zeros_b0")
ONE_EACH = Problem.parse("f32_fwd_mb2g16_ic16ih10iw11_oc16kh3kw3_s1x1_p1:1x1:1_d1x1_zeros_b0")


def planned(p: Problem, w: np.ndarray, b: np.ndarray | None, input_or_shape: object = None, **options: object) -> numbaconv.Plan:
    """The plan of a case, from its shape alone unless an input is given."""
    given = p.source_shape if input_or_shape is None else input_or_shape
    return plan(given, w, b, transposed=p.transposed, out_dtype=dtype_of(p.out_dtype), **arguments(p), **options)


@pytest.mark.parametrize("problem", PROBLEMS[::8], ids=str)
def test_a_plan_computes_what_the_function_computes(problem: Problem) -> None:
    """Bit for bit, made from the input, its shape or an unbatched shape, for any batch, into a result or ``out``."""
    x, w, b = integer_arrays(problem)
    expected = call(problem, x, w, b)
    p = planned(problem, w, b)
    assert p(x).tobytes() == expected.tobytes()
    for other in (planned(problem, w, b, x), planned(problem, w, b, problem.source_shape[1:])):
        assert other.algorithm == p.algorithm and other.problem == p.problem
    more = np.concatenate([x, x, x])
    assert p(more).tobytes() == expected.tobytes() * 3
    if len(x):
        assert p(x[0]).tobytes() == expected[0].tobytes()
    _, out = poisoned(expected.shape, expected.dtype)
    assert p(x, out) is out and p(x, out=out) is out
    assert_same(out, expected)


@pytest.mark.parametrize(
    "groups, algorithm", [(1, name) for name in taking(str(GROUPLESS))] + [(16, name) for name in taking(str(ONE_EACH))]
)  # fmt: skip
def test_later_calls_do_what_first_ones_do(groups: int, algorithm: str) -> None:
    """A plan remembers layouts that it has met.  Whatever comes then is taken or refused as a plan does that has met none."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((16, 16 // groups, 3, 3)).astype(np.float32)
    x = rng.standard_normal((2, 16, 10, 11)).astype(np.float32)
    shape = (2, 16, 10, 11)

    def fresh() -> numbaconv.Plan:
        return plan(x, w, None, padding=1, groups=groups, algorithm=algorithm)

    def outcome(p: numbaconv.Plan, make: Callable[[], tuple[object, ...]]) -> object:
        arguments = make()
        try:
            result = p(*arguments)
        except (TypeError, ValueError) as error:
            return type(error), str(error)
        assert len(arguments) == 1 or result is arguments[1]
        return type(result), result.dtype, result.strides, result.tobytes()

    def shared(step: int) -> tuple[object, ...]:
        """An input and an ``out`` that overlap, or touch."""
        memory = np.zeros(2 * x.size, np.float32)
        memory[: x.size] = x.ravel()
        return memory[: x.size].reshape(x.shape), memory[x.size - step : 2 * x.size - step].reshape(shape)

    def misaligned(array: np.ndarray) -> np.ndarray:
        memory = np.zeros(array.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(array.shape)
        memory[...] = array
        return memory

    def locked(array: np.ndarray) -> np.ndarray:
        array.flags.writeable = False
        return array

    scenes: dict[str, Callable[[], tuple[object, ...]]] = {
        "same": lambda: (x,),
        "other values": lambda: (2 * x,),
        "out": lambda: (x, np.full(shape, np.nan, np.float32)),
        "read-only": lambda: (locked(x.copy()),),
        "read-only out": lambda: (x, locked(np.zeros(shape, np.float32))),
        "one image": lambda: (x[0],),
        "one of a batch": lambda: (x[:1],),
        "no images": lambda: (x[:0],),
        "channels last": lambda: (np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2),),
        "backwards": lambda: (x[:, :, ::-1, ::-1],),
        "broadcast": lambda: (np.broadcast_to(x[:1, :1], x.shape),),
        "misaligned": lambda: (misaligned(x),),
        "misaligned out": lambda: (x, misaligned(np.zeros(shape, np.float32))),
        "the other byte order": lambda: (x.astype(">f4"),),
        "out of the other byte order": lambda: (x, np.zeros(shape, ">f4")),
        "channels last out": lambda: (x, np.zeros((2, 10, 11, 16), np.float32).transpose(0, 3, 1, 2)),
        "another dtype": lambda: (x.astype(np.float64),),
        "out of another dtype": lambda: (x, np.zeros(shape)),
        "another size": lambda: (x[..., 1:],),
        "out of another size": lambda: (x, np.zeros((2, 16, 10, 10), np.float32)),
        "in place": lambda: (lambda a: (a, a))(x.copy()),
        "overlapping": lambda: shared(1),
        "touching": lambda: shared(0),
        "a list": lambda: (x.tolist(),),
        "a subclass": lambda: (x.view(type("Sub", (np.ndarray,), {})),),
    }
    expected = {name: outcome(fresh(), make) for name, make in scenes.items()}
    assert [name for name, found in expected.items() if isinstance(found[1], np.dtype)]  # type: ignore[index]
    p = fresh()
    for _ in range(3):
        for name, make in scenes.items():
            assert outcome(p, make) == expected[name], name


@pytest.mark.parametrize("algorithm", taking("f32_fwd_mb2g1_ic16ih20iw20_oc24kh3kw3_s1x1_p1:1x1:1_d1x1_zeros_b1"))
def test_a_plan_says_what_it_took(algorithm: str) -> None:
    x, w, b = np.ones((2, 16, 20, 20), np.float32), np.ones((24, 16, 3, 3), np.float32), np.ones(24, np.float32)
    p = plan(x, w, b, padding=1, algorithm=algorithm)
    assert p.algorithm == algorithm
    assert isinstance(p.workspace, int) and p.workspace >= 0
    assert w.nbytes + b.nbytes <= p.packed_bytes <= 8 * (w.nbytes + b.nbytes)
    assert p.problem.batch == 1
    assert all(part in repr(p) for part in (algorithm, str(p.problem), str(p.workspace), str(p.packed_bytes)))
    assert explain(x, w, b, padding=1, algorithm=algorithm).algorithm == algorithm
    assert_same(p(x), numbaconv.conv2d(x, w, b, padding=1, algorithm=algorithm))


def test_a_plan_keeps_copies_and_a_call_keeps_nothing() -> None:
    """A plan does not see later changes of weight and bias; a call without a plan sees every one, in place too."""
    x, w, b = np.ones((1, 2, 5, 6), np.float32), np.ones((3, 2, 3, 3), np.float32), np.zeros(3, np.float32)
    for algorithm in DEFINITION:
        if algorithm.supports(explain(x, w, b).problem):
            continue
        w[:], b[:] = 1, 0
        p = plan(x, w, b, algorithm=algorithm.name)
        for weight, bias in ((2, 1), (-3, 5), (0, 0)):
            w[:], b[:] = weight, bias
            assert (numbaconv.conv2d(x, w, b, algorithm=algorithm.name) == 18 * weight + bias).all()
            assert (p(x) == 18).all()


def test_a_plan_is_chosen_from_one_image() -> None:
    """Neither the batch nor the number of threads changes the choice."""
    w = np.ones((32, 32, 3, 3), np.float32)
    taken = {(p.algorithm, p.workspace, p.packed_bytes) for p in (plan((n, 32, 28, 28), w, padding=1) for n in (0, 1, 2, 1000))}
    assert len(taken) == 1


def test_precision() -> None:
    """On the CPU float32 is IEEE float32, "tf32" included: the same bits."""
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(shape).astype(np.float32) for shape in ((1, 24, 15, 17), (20, 24, 3, 3)))
    ieee = numbaconv.conv2d(x, w, precision="ieee")
    assert numbaconv.conv2d(x, w, precision="tf32").tobytes() == ieee.tobytes()
    for precision in ("ieee", "tf32"):
        taken = explain(x, w, precision=precision)
        assert [a.accuracy for a in registry("cpu") if a.name == taken.algorithm] == ["definition"]
    numbaconv.conv2d(x, w, precision="fast")


# ---- explain -----------------------------------------------------------------------------------------------------------
def test_explain_shows_everything() -> None:
    text = str(explain((2, 32, 20, 21, 22), (64, 32, 3, 3, 3), (64,), padding=1, stride=2))
    for part in (
        "f32_fwd_mb2g1_ic32id20ih21iw22_oc64kd3kh3kw3_s2x2x2_p1:1x1:1x1:1_d1x1x1_zeros_b1",
        "(2, 32, 20, 21, 22)",
        "(64, 32, 3, 3, 3)",
        "(2, 64, 10, 11, 11)",
        "weight[o, c, k] * input[n, c, x * stride + k * dilation - padding]",
        "11 = floor((22 + 1 + 1 - 1 * (3 - 1) - 1) / 2) + 1",
        f"{2 * 2 * 64 * 32 * 27 * 10 * 11 * 11 / 1e9:.4g} GFLOP",
        "MiB",
        "workspace at most",
    ):
        assert part in text, part
    for algorithm in registry("cpu"):
        assert any(line.split()[0] == algorithm.name for line in text.splitlines()), f"nothing about {algorithm.name}"
    assert text.count("taken, estimated") >= 1
    assert "\n" in text and not text.endswith("\n")


def test_explain_says_why_not() -> None:
    text = str(explain((1, 2, 5, 6), (3, 2, 3, 3), dtype=np.int8))
    reasons = [line for line in text.splitlines() if "declines:" in line]
    declining = [a.name for a in registry("cpu") if a.supports(explain((1, 2, 5, 6), (3, 2, 3, 3), dtype=np.int8).problem)]
    assert [line.split()[0] for line in reasons] == declining
    for name in declining:
        with pytest.raises(ValueError, match=rf"^algorithm '{name}' declines: \w+"):
            numbaconv.conv2d(np.ones((1, 2, 5, 6), np.int8), np.ones((3, 2, 3, 3), np.int8), algorithm=name)


def test_explain_transposed() -> None:
    text = str(explain((1, 3, 4, 5), (3, 2, 3, 3), stride=2, output_padding=1, transposed=True))
    assert "transposed convolution" in text and "(1, 2, 10, 12)" in text and "12 = (5 - 1) * 2 + 1 * (3 - 1) + 1 + 1 - 0 - 0" in text


def test_explain_computes_nothing() -> None:
    """A problem of 2**47 products and an output beyond any memory is explained at once."""
    explanation = explain((2**20, 1, 2**10, 2**10), (1, 1, 5, 5), padding="same")
    assert explanation.problem.result_shape == (2**20, 1, 2**10, 2**10) and "GFLOP" in str(explanation)


# ---- pickling, and the memory of a call --------------------------------------------------------------------------------
def test_problems_are_pickled() -> None:
    p = explain((1, 2, 5, 6), (3, 2, 3, 3)).problem
    assert pickle.loads(pickle.dumps(p)) == p


MEMORY = """
import numpy as np, numbaconv

def resident(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))

w = np.ones((32, 32, 3, 3, 3), np.float32)
for arguments in ({"transposed": True}, {"padding_mode": "reflect"}, {}):
    arguments |= {"padding": 1, "algorithm": ALGORITHM, "precision": "fast"}
    x, out = (np.ones((1, 32, 48, 48, 48), np.float32) for _ in range(2))
    try:
        p = numbaconv.plan(x, w, **arguments)
    except ValueError as error:
        assert "declines" in str(error)
        continue
    p(x, out)  # compiles, starts the threads
    with open("/proc/self/clear_refs", "w") as peak:
        peak.write("5")
    before = resident("VmRSS:")
    p(x, out)
    print(p.workspace, resident("VmHWM:") - before)
    assert np.allclose(out[0, :, 1:-1, 1:-1, 1:-1], 32 * 27, rtol=1e-5)  # a transform's sums are not whole numbers
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
@pytest.mark.parametrize("algorithm", taking("f32_fwd_mb1g1_ic32id48ih48iw48_oc32kd3kh3kw3_s1x1x1_p1:1x1:1x1:1_d1x1x1_zeros_b0"))
def test_memory_stays_within_the_stated_workspace(python: Python, algorithm: str) -> None:
    """No im2col and no padded copy of the input (13.5 MiB): a call's peak memory is its workspace and some pages."""
    lines = python(MEMORY.replace("ALGORITHM", repr(algorithm))).splitlines()
    assert lines
    for line in lines:
        workspace, growth = map(int, line.split())
        assert workspace < 8 << 20, "most of a copy of the input"
        assert growth < workspace + (3 << 20)
