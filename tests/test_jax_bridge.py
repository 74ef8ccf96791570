"""numbaconv.jax: values, first and second derivatives, transformations.

``NUMBACONV_REQUIRE_JAX=1`` turns a missing jax into a failure.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import numbaconv

from .cases import BFLOAT16
from .conftest import Python

try:
    import jax
    import jax.numpy as jnp
    from jax import lax
    from jax.test_util import check_grads
except ImportError as error:
    if os.environ.get("NUMBACONV_REQUIRE_JAX") == "1":
        raise
    pytest.skip(f"jax is not installed: {error}", allow_module_level=True)

import numbaconv.jax as bridge

jax.config.update("jax_enable_x64", True)

Call = Callable[..., Any]
SIZES = {1: (6,), 2: (5, 4), 3: (3, 4, 3)}


def arrays(*shapes: tuple[int, ...], dtype: Any = np.float64) -> list[jax.Array]:
    rng = np.random.default_rng(0)
    imaginary = 1j if np.dtype(dtype).kind == "c" else 0
    return [jnp.asarray((rng.standard_normal(s) + imaginary * rng.standard_normal(s)).astype(dtype)) for s in shapes]


def by_lax(x: jax.Array, w: jax.Array, b: jax.Array, stride: int, pairs: Any, dilation: int, groups: int) -> jax.Array:
    rank = w.ndim - 2
    y = lax.conv_general_dilated(x, w, (stride,) * rank, pairs, rhs_dilation=(dilation,) * rank, feature_group_count=groups)
    return y + b.reshape(-1, *[1] * rank)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.complex128])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_values_and_gradients_are_jaxs(rank: int, dtype: Any) -> None:
    leaves = arrays((2, 4, *SIZES[rank]), (6, 2, *(2,) * rank), (6,), dtype=dtype)
    pairs = ((1, 2),) * rank

    def ours(x: jax.Array, w: jax.Array, b: jax.Array) -> jax.Array:
        return getattr(bridge, f"conv{rank}d")(x, w, b, 2, pairs, 2, 2)

    y, back = jax.vjp(ours, *leaves)
    expected, expected_back = jax.vjp(lambda x, w, b: by_lax(x, w, b, 2, pairs, 2, 2), *leaves)
    close(y, expected)
    (g,) = arrays(y.shape, dtype=dtype)
    for got, want in zip(back(g), expected_back(g)):
        close(got, want)


def close(got: jax.Array, want: jax.Array) -> None:
    assert got.dtype == want.dtype
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 if got.dtype == np.float32 else 1e-12)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_transposed_convolutions_are_input_gradients(rank: int) -> None:
    x, w = arrays((2, 4, *SIZES[rank]), (4, 3, *(2,) * rank))
    size = tuple(2 * n + 1 for n in SIZES[rank])
    _, back = jax.vjp(lambda z: bridge.__dict__[f"conv{rank}d"](z, w, None, 2), jnp.zeros((2, 3, *size)))
    got = getattr(bridge, f"conv_transpose{rank}d")(x, w, None, 2, output_padding=1)
    np.testing.assert_array_equal(got, back(x)[0])
    np.testing.assert_array_equal(
        got, getattr(numbaconv, f"conv_transpose{rank}d")(np.asarray(x), np.asarray(w), None, 2, output_padding=1)
    )


DERIVATIVES: dict[str, tuple[Call, tuple[tuple[int, ...], ...]]] = {
    "1d": (lambda x, w, b: bridge.conv1d(x, w, b, 2, "same_upper"), ((2, 2, 7), (3, 2, 3), (3,))),
    "2d grouped": (lambda x, w, b: bridge.conv2d(x, w, b, 1, "same", 2, 2), ((4, 5, 4), (2, 2, 2, 2), (2,))),
    "3d": (lambda x, w, b: bridge.conv3d(x, w, b, 2, 1), ((1, 2, 3, 4, 3), (2, 2, 2, 2, 2), (2,))),
    "reflect": (lambda x, w: bridge.conv2d(x, w, None, 2, ((2, 1), (0, 1)), padding_mode="reflect"), ((1, 2, 4, 4), (2, 2, 2, 2))),
    "circular": (lambda x, w: bridge.conv1d(x, w, None, 1, 2, padding_mode="circular"), ((1, 2, 4), (2, 2, 3))),
    "transposed 2d": (lambda x, w, b: bridge.conv_transpose2d(x, w, b, 2, 1, 1, 2), ((1, 4, 3, 3), (4, 1, 3, 3), (2,))),
    "transposed 3d": (lambda x, w: bridge.conv_transpose3d(x, w, None, 2), ((2, 2, 2, 2), (2, 1, 2, 2, 2))),
}


@pytest.mark.parametrize("name", DERIVATIVES)
def test_first_and_second_derivatives(name: str) -> None:
    """Against finite differences, by jax's own check, in reverse mode; through a curve, so that second derivatives are not zero."""
    function, shapes = DERIVATIVES[name]
    check_grads(lambda *leaves: jnp.sin(function(*leaves)), arrays(*shapes), order=2, modes=["rev"])


def test_second_derivatives_of_complex_numbers() -> None:
    x, w = arrays((1, 2, 4, 4), (3, 2, 2, 2), dtype=np.complex128)

    def twice(convolve: Call) -> Any:
        def first(x: jax.Array, w: jax.Array) -> Any:
            return sum((g**2).sum() for g in jax.grad(lambda x, w: (convolve(x, w) ** 3).sum(), argnums=(0, 1), holomorphic=True)(x, w))

        return jax.grad(first, argnums=(0, 1), holomorphic=True)(x, w)

    zeros = jnp.zeros(3, np.complex128)
    for got, want in zip(
        twice(lambda x, w: bridge.conv2d(x, w, None, 2, 1)), twice(lambda x, w: by_lax(x, w, zeros, 2, [(1, 1)] * 2, 1, 1))
    ):
        np.testing.assert_allclose(got, want, rtol=1e-10)


# ---- transformations -------------------------------------------------------------------------------------------------
def test_jit_and_vmap() -> None:
    x, w, b = arrays((3, 2, 5, 6), (4, 2, 3, 3), (4,))
    expected = bridge.conv2d(x, w, b, padding=1)
    np.testing.assert_array_equal(jax.jit(lambda *a: bridge.conv2d(*a, padding=1))(x, w, b), expected)
    np.testing.assert_array_equal(jax.vmap(lambda image: bridge.conv2d(image, w, b, padding=1))(x), expected)
    np.testing.assert_array_equal(jax.vmap(lambda image: bridge.conv2d(image[None], w, b, padding=1))(x)[:, 0], expected)

    def loss(w: jax.Array, image: jax.Array) -> jax.Array:
        return jnp.sin(bridge.conv2d(image, w, b, padding=1)).sum()

    each = jax.jit(jax.vmap(jax.grad(loss), in_axes=(None, 0)))(w, x)
    np.testing.assert_allclose(each.sum(0), jax.grad(loss)(w, x), atol=1e-12)


def test_large_arrays_inside_jit() -> None:
    """The callback asks for its arguments' values on a thread of the runtime."""
    x, w = jnp.ones((4, 8, 256, 256), np.float32), jnp.ones((8, 8, 3, 3), np.float32)
    twice = jax.jit(lambda x, w: bridge.conv2d(bridge.conv2d(x, w, padding=1), w, padding=1).sum())
    value, gradients = jax.value_and_grad(twice, argnums=(0, 1))(x, w)
    assert np.isfinite(value) and gradients[0].shape == x.shape and gradients[1].shape == w.shape


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, BFLOAT16, np.complex64, np.int8, np.int32, np.int64, np.uint8])
def test_every_dtype_has_numbaconvs_bits(dtype: Any) -> None:
    x, w, b = ((np.arange(n) % 7).astype(dtype).reshape(shape) for n, shape in ((72, (1, 2, 6, 6)), (54, (3, 2, 3, 3)), (3, (3,))))
    y = bridge.conv2d(jnp.asarray(x), jnp.asarray(w), jnp.asarray(b), 2, "same_lower")
    assert y.dtype == dtype
    assert np.asarray(y).tobytes() == numbaconv.conv2d(x, w, b, 2, "same_lower").tobytes()


# ---- refusals --------------------------------------------------------------------------------------------------------
X, W = np.zeros((1, 2, 5, 5)), np.zeros((3, 2, 3, 3))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: bridge.conv2d(None, W), TypeError, r"^input must be a jax.Array or a numpy.ndarray, got NoneType"),
        (lambda: bridge.conv2d(X, W, 0.0), TypeError, r"^bias must be a jax.Array or a numpy.ndarray, got float"),
        (lambda: bridge.conv2d(X, W.astype(np.float32)), TypeError, r"^weight must have the dtype of input"),
        (lambda: bridge.conv2d(X > 0, W > 0), TypeError, r"^input must have one of the dtypes float64, .* got bool"),
        (lambda: bridge.conv2d(X[0, 0], W), ValueError, r"^input must have 3 \(unbatched\) or 4 \(batched\) dimensions"),
        (lambda: bridge.conv2d(X, W, stride=0), ValueError, r"^stride must be at least 1"),
        (lambda: bridge.conv2d(X, W, padding="full"), ValueError, r"^padding must be integers, pairs or one of"),
        (lambda: bridge.conv2d(X, W, padding_mode=0), TypeError, r"^padding_mode must be one of"),
        (lambda: bridge.conv2d(X, W, groups=2), ValueError, r"^groups must divide weight.shape\[0\]"),
        (lambda: bridge.conv_transpose2d(X, W), ValueError, r"^input must have weight.shape\[0\] = 3 channels, got 2"),
        (lambda: bridge.conv_transpose2d(X, W[:2], output_padding=1), ValueError, r"^output_padding must be smaller"),
        (lambda: jax.jit(bridge.conv2d)(X, W[:, :1]), ValueError, r"^input must have weight.shape\[1\] \* groups = 1 channels, got 2"),
    ],
)
def test_refusals_name_the_argument(call: Call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_jax_is_imported_only_on_demand(python: Python) -> None:
    code = "import sys, numbaconv; a = 'jax' in sys.modules; numbaconv.jax.conv2d; print(a, 'jax' in sys.modules)"
    assert python(code).split() == ["False", "True"]
