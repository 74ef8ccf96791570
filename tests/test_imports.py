"""What importing costs, which module may import which, and that no public name is a submodule's."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import numbaconv

from .conftest import Python

PACKAGE = Path(numbaconv.__file__).parent
HEAVY = ("numba", "llvmlite", "torch", "scipy", "dask", "matplotlib", "ml_dtypes", "safetensors", "nibabel")

# From the bottom to the top: a module may import from lines above its own alone.
LAYERS = """
    arguments grammar
    device padding problem
    arrays axes
    layouts memory reference choose
    sample
    cpu/compile cpu/halves cpu/target cpu/winograd_matrices
    cpu/simd
    cpu/elements cpu/gemm cpu/layouts cpu/threads cpu/winograd_vectors
    cpu/copies cpu/winograd_factors cpu/winograd_transforms
    cpu/depthwise_kernel cpu/fft_kernel cpu/filter_kernel cpu/gemm_costs cpu/pack_tap cpu/pack_weight
    cpu/turned_tile
    cpu/pack cpu/rows cpu/turned_shape cpu/turned_worker cpu/weight_tiles cpu/winograd_products
    cpu/winograd_tables
    cpu/weight_fields
    cpu/weight_bands cpu/weight_groups cpu/weight_stores
    cpu/weight_channels
    cpu/calls cpu/depthwise_tasks cpu/direct_weight cpu/gemm_worker cpu/fft_layout cpu/filter_layout cpu/weight_kernels cpu/winograd_weight
    cpu/winograd_kernels
    cpu/weight_blocking
    cpu/weight_grad
    cpu/direct cpu/fft_tasks cpu/gemm_shape cpu/filter_tasks
    cpu/gemm_place
    cpu/depthwise cpu/filter_forward cpu/implicit_gemm cpu/winograd
    cpu/filter_gradient
    cpu/filter
    cpu/fft
    cpu
    cuda/dlpack cuda/launch cuda/ptx cuda/reduce
    cuda/driver cuda/elements cuda/geometry
    cuda/arrays
    cuda/columns cuda/copies cuda/launches cuda/sums
    cuda/repeat cuda/transfers
    cuda/direct_weight cuda/finite cuda/implicit_gemm_write cuda/depthwise_march cuda/weight_kernels
    cuda/depthwise_kernels cuda/implicit_gemm_gather
    cuda/implicit_gemm_kernel
    cuda/depthwise cuda/direct cuda/implicit_gemm cuda/weight_grad
    cuda/filter_weight
    cuda/algorithms cuda/memory
    cuda
    explanation
    plans
    grad columns parameters
    functional
    training
    jax modules torch
    lazy
    .
    bench demo
    warmup
    __main__
"""
LEVEL = {name: level for level, names in enumerate(LAYERS.strip().splitlines()) for name in names.split()}
# The side of a device, loaded inside a function when it is first asked for.
UPWARDS = {
    ("choose", "cpu"), ("choose", "cuda"), ("arrays", "cuda/arrays"), ("memory", "cuda/memory"), ("memory", "cpu/calls"),
    ("columns", "cuda/columns"), ("parameters", "cuda"), ("parameters", "cuda/transfers"),
}  # fmt: skip
COMMANDS = {"bench", "demo", "warmup", "__main__"}  # may look into cpu, to say what it compiles for
LLVMLITE = {"copies", "elements", "filter_kernel", "halves", "simd", "target", "winograd_weight"}  # of cpu; cuda/ptx too
# Optional packages, each imported in one place, inside a function.
OPTIONAL = {"ml_dtypes", "safetensors", "matplotlib", "PIL", "scipy", "nibabel", "nilearn", "tqdm"}
PEERS = {"torch", "jax", "onnx", "onnxruntime", "openvino", "cv2", "scipy"}  # that bench/contenders compares with, inside functions


def module_name(path: Path) -> str:
    """A file's place below the package: "problem", "cpu/simd", "cpu" (its __init__) and "." (the package's own)."""
    inside = path.relative_to(PACKAGE)
    return (inside.parent if path.stem == "__init__" else inside.with_suffix("")).as_posix()


FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(module: str) -> list[tuple[str, bool, bool]]:
    """(name, whether it is in the package, whether at module level) of every import of a file, TYPE_CHECKING blocks excepted."""
    path = FILES[module]
    found = []

    def visit(node: ast.AST, top: bool) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            found.extend((alias.name, False, top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.append((node.module, False, top))
        elif isinstance(node, ast.ImportFrom):
            folder = path.parents[node.level - 1]
            names = [node.module.replace(".", "/")] if node.module else [alias.name for alias in node.names]
            places = [module_name(folder / f"{name}.py") for name in names]
            found.extend((place if place in FILES else module_name(folder / "__init__.py"), True, top) for place in places)
        for child in ast.iter_child_nodes(node):
            visit(child, top and not isinstance(node, (ast.FunctionDef, ast.Lambda)))

    visit(ast.parse(path.read_text("utf-8")), True)
    return found


def layer(module: str) -> str:
    """Folders other than cpu and cuda are one layer."""
    return module if module in LEVEL or module.startswith(("cpu/", "cuda/")) else module.partition("/")[0]


@pytest.mark.parametrize("module", FILES)
def test_arrows_point_downwards(module: str) -> None:
    own = layer(module)
    assert own in LEVEL, f"{module} has no layer yet: give it one"
    for name, inside, top in imports(module):
        if not inside or layer(name) == own or (not top and (own, name) in UPWARDS):
            continue
        assert LEVEL[layer(name)] < LEVEL[own], f"{module} imports {name}"
        for side in ("cpu", "cuda"):
            assert own.startswith(side) or own in COMMANDS or not name.startswith(side), f"{module} imports {name}: ask choose"


@pytest.mark.parametrize("module", FILES)
def test_only_numba_and_numpy_are_required(module: str) -> None:
    for name, inside, top in imports(module):
        root = name.partition(".")[0]
        if inside or root in sys.stdlib_module_names or root == "numpy":
            continue
        if root == "llvmlite":
            assert module == "cuda/ptx" or module.removeprefix("cpu/") in LLVMLITE, f"{module} imports {name}"
        elif module == "bench/contenders" and root in PEERS:
            assert not top, f"{module} imports {name}"
        elif root in ("cuda", "cupy"):
            assert module.startswith("cuda/") and not top, f"{module} imports {name}"
        elif root in ("jax", "torch"):
            assert module == root or not top, f"{module} imports {name}"
        elif root == "numba":
            assert module.startswith(("cpu/", "cuda/")) or not top, f"{module} imports {name}"
        else:
            assert root in OPTIONAL and not top, f"{module} imports {name}"


def test_import_is_light(python: Python) -> None:
    loaded = python("import sys, numbaconv; print(*sorted({name.partition('.')[0] for name in sys.modules}))").split()
    assert "numpy" not in loaded, "not even NumPy: nothing is loaded until it is used"
    assert set(loaded) & set(HEAVY) == set()


def test_names_load_no_compiler(python: Python) -> None:
    """Looking up every public name, validating and building layers need NumPy alone."""
    loaded = python(
        """
        import sys, numbaconv
        for name in numbaconv.__all__:
            getattr(numbaconv, name)
        numbaconv.Conv3d(2, 3, 3)
        try:
            numbaconv.conv2d(None, None)
        except TypeError:
            pass
        print(*sorted({name.partition('.')[0] for name in sys.modules}))
        """
    ).split()
    assert "numpy" in loaded and set(loaded) & set(HEAVY) == set()


def test_a_cpu_convolution_loads_no_cuda(python: Python) -> None:
    loaded = python(
        """
        import sys, numpy, numbaconv
        numbaconv.conv2d(numpy.ones((1, 1, 5, 5)), numpy.ones((1, 1, 3, 3)))
        print(*sorted(sys.modules))
        """
    ).split()
    assert "numba" in loaded
    unwanted = {"torch", "dask", "matplotlib", "ml_dtypes"}  # (Numba itself looks for scipy)
    assert [name for name in loaded if name.startswith("numba.cuda") or name in unwanted] == []


def test_no_public_name_is_a_submodules(python: Python) -> None:
    """`numbaconv.plan` is a function, and importing or using the package does not put a module in its place."""
    on_purpose = {"grad", "cuda", "torch", "jax", "dask"}
    submodules = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert set(numbaconv.__all__) & submodules <= on_purpose
    assert numbaconv.__all__ == sorted(numbaconv.__all__) and set(numbaconv.__all__) <= set(dir(numbaconv))
    kinds = python(
        """
        import numpy, types, numbaconv
        x, w = numpy.ones((1, 1, 5, 5)), numpy.ones((1, 1, 3, 3))
        numbaconv.plan(x, w)(x); str(numbaconv.explain(x, w)); numbaconv.unfold(x, 3); numbaconv.LazyConv2d(3, 3)
        print(*[name for name in numbaconv.__all__ if isinstance(getattr(numbaconv, name), types.ModuleType)])
        """
    ).split()
    assert set(kinds) <= on_purpose


@pytest.mark.parametrize("package", ["jax", "torch"])
def test_a_module_whose_package_is_missing_says_what_to_install(package: str, python: Python) -> None:
    message = python(
        f"""
        import sys
        sys.modules[{package!r}] = None
        try:
            import numbaconv.{package}
        except ImportError as error:
            print(error)
        """
    )
    assert message.strip() == f'numbaconv.{package} needs the package {package}: pip install "numbaconv[{package}]"'


def test_unknown_names() -> None:
    with pytest.raises(AttributeError, match="'numbaconv' has no attribute 'conv4d'"):
        numbaconv.conv4d  # noqa: B018


def test_the_package_is_typed() -> None:
    assert (PACKAGE / "py.typed").is_file()
