"""What the kernels' machine code is made of, on this processor and on others that it is compiled for."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..conftest import Python, run_python


def host_features() -> set[str]:
    from llvmlite import binding

    return {name for name, there in binding.get_host_cpu_features().items() if there}


AVX2 = "+avx,+avx2,+bmi,+bmi2,+f16c,+fma,+lzcnt,+movbe,+popcnt,+sse,+sse2,+sse3,+sse4.1,+sse4.2,+ssse3"
HASWELL = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": AVX2}
without_avx512 = pytest.mark.skipif(not {"avx2", "fma", "f16c"} <= host_features(), reason="this processor lacks AVX2")


@pytest.fixture(scope="module")
def haswell(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], str]:
    """The environment of a processor with AVX2 and no AVX-512, with a cache folder, and the machine code that was first compiled there."""
    environment = HASWELL | {"NUMBA_CACHE_DIR": str(tmp_path_factory.mktemp("haswell"))}
    assembly = run_python("""
        import warnings
        warnings.filterwarnings("ignore", message="Inspection disabled for cached code")
        from numbaconv import Problem
        from tests.cases import case
        from tests.checks import check_exact
        for name in ("implicit_gemm", "filter"):
            check_exact(Problem.parse(case("fwd", (20, 21), (3, 3), ic=9, oc=18, p=1, b=1)), name)
    """, NUMBA_DUMP_ASSEMBLY="1", **environment)  # fmt: skip
    return environment, assembly


@without_avx512
def test_without_avx512_no_register_of_it_is_used(haswell: tuple[dict[str, str], str]) -> None:
    assembly = haswell[1]
    assert "vfmadd" in assembly and "ymm" in assembly and "zmm" not in assembly


def check_other_vectors(dtypes: tuple[str, ...], **environment: str) -> None:
    """Implicit GEMM with other vectors and tiles."""
    run_python(f"""
        from numbaconv import Problem
        from tests.cases import case
        from tests.checks import check_exact
        for problem in (
            case("fwd", (5, 21), (3, 3), ic=23, oc=9, p=1, b=1),
            case("fwd", (5, 21), (3, 3), ic=3, oc=4, p=1, s=2, mode="reflect"),
            case("fwd", (9, 13), (2, 3), ic=3, oc=7, s=3, p=1),
            case("igrad", (5, 6), (3, 3), ic=3, oc=9, s=2, op=1),
        ):
            for dtype in {dtypes}:
                check_exact(Problem.parse(problem.replace("f32", dtype)), "implicit_gemm")
    """, **environment)  # fmt: skip


@without_avx512
def test_implicit_gemm_without_avx512(haswell: tuple[dict[str, str], str]) -> None:
    check_other_vectors(("f32", "c64", "f16", "bf16", "s8", "s32"), **haswell[0])


def test_implicit_gemm_with_vectors_of_four(tmp_path: Path) -> None:
    """Without FMA and conversions of halves, too."""
    if "sse4.2" not in host_features():
        pytest.skip("this processor lacks SSE4.2")
    check_other_vectors(("f32", "c64"), NUMBA_CPU_FEATURES="+sse4.2", NUMBA_CACHE_DIR=str(tmp_path))


@pytest.mark.parametrize("dtype, lanes", [("float32", 4), ("float64", 2)])
def test_neon_keeps_the_tile_in_registers(python: Python, dtype: str, lanes: int) -> None:
    """The microkernel compiled for aarch64: its inner loop multiplies and adds a whole tile and touches no stack."""
    loop = python(f"""
        import re
        from llvmlite import binding, ir
        triple = "aarch64-unknown-linux-gnu"
        binding.initialize_all_targets()
        binding.initialize_all_asmprinters()
        try:
            found = binding.Target.from_triple(triple)
        except RuntimeError:
            print("absent")
            raise SystemExit
        binding.get_process_triple = lambda: triple
        from numba.core import types
        from numbaconv.cpu import gemm
        from numbaconv.cpu.target import target

        assert target().vector_bytes == 16 and gemm.Vectors(ir.IRBuilder(), types.{dtype}).lanes == {lanes}
        module, word = ir.Module(), ir.IntType(64)
        module.triple, element = triple, gemm.Vectors(ir.IRBuilder(), types.{dtype}).element.as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [word.as_pointer()] + 3 * [element] + 10 * [word])
        function = ir.Function(module, kind, "tile")
        builder = ir.IRBuilder(function.append_basic_block())
        tile = gemm.Tile(builder, types.{dtype})
        tile.runs, tile.panel, tile.result, tile.bias, tile.run_count, tile.factors, tile.factor_row, tile.factor_step = function.args[:8]
        tile.row_step, tile.rows, tile.columns, tile.ahead, tile.ahead_step = function.args[8:13]
        tile.accumulate = builder.icmp_signed("!=", function.args[13], word(0))
        tile.emit()
        builder.ret_void()
        code = found.create_target_machine(cpu="generic", features="+neon", opt=3).emit_assembly(binding.parse_assembly(str(module)))
        loop = max(re.split(r"^\\S+:", code, flags=re.M), key=lambda block: block.count("fmla"))
        print(loop.count("fmla") == gemm.TILE_ROWS * gemm.TILE_VECTORS, loop.count("[sp"))
    """, NUMBA_CPU_FEATURES="+neon")  # fmt: skip
    if loop.strip() == "absent":
        pytest.skip("llvmlite does not compile for aarch64 here")
    assert loop.split() == ["True", "0"]


@without_avx512
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_winograd_without_avx512(dtype: str, haswell: tuple[dict[str, str], str]) -> None:
    """Vectors of 8 and of 4: one of tiles or more, for every remainder of the channels."""
    worst = run_python(f"""
        import numpy as np, numbaconv
        from numbaconv import Problem, reference
        from tests.cases import case
        rng, worst = np.random.default_rng(0), 0.0
        for channels, size in ((16, (12, 12)), (17, (28, 29)), (19, (28, 29)), (19, (8, 9)), (46, (28, 29))):
            x = rng.standard_normal((1, channels, *size)).astype({dtype!r})
            w = rng.standard_normal((17, channels, 3, 3)).astype({dtype!r})
            problem = Problem.parse(case("fwd", size, (3, 3), ic=channels, oc=17, p=1, t={"f" + dtype[5:]!r}))
            exact = reference.convolve(problem, x, w, None, rounded=False)
            worst = max(worst, float(abs(numbaconv.conv2d(x, w, padding=1, algorithm="winograd") - exact).max()))
        print(worst / np.finfo({dtype!r}).eps)
    """, PYTHONWARNINGS="ignore", **haswell[0])  # fmt: skip
    assert float(worst) < 2000
