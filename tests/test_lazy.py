"""Lazy layers: what they are before, at and after their first call."""

from __future__ import annotations

import concurrent.futures
from typing import Any

import numpy as np
import pytest

import numbaconv
from numbaconv import Conv2d, LazyConv2d, LazyConvTranspose2d

from .layers import CONVS, TRANSPOSED, whole


# ---- lazy ------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("plain", CONVS + TRANSPOSED)
def test_lazy_layers_become_the_plain_ones(plain: Any) -> None:
    rank = int(plain.__name__[-2])
    lazy = getattr(numbaconv, f"Lazy{plain.__name__}")(4, 2, stride=2, groups=2, rng=3)
    direct = plain(2, 4, 2, stride=2, groups=2, rng=3)
    assert isinstance(lazy, plain) and lazy.in_channels == 0
    x = whole(2, 2, *range(4, 4 + rank)).astype(np.float32)
    np.testing.assert_array_equal(lazy(x), direct(x))
    assert type(lazy) is plain and repr(lazy) == repr(direct) and vars(lazy).keys() == vars(direct).keys()
    np.testing.assert_array_equal(lazy.weight, direct.weight)
    np.testing.assert_array_equal(lazy.bias, direct.bias)


def test_lazy_output_size_at_the_first_call() -> None:
    assert LazyConvTranspose2d(3, 3, stride=2)(np.zeros((2, 3, 4), np.float32), output_size=(8, 10)).shape == (3, 8, 10)


def test_lazy_refusals_leave_it_lazy() -> None:
    lazy = LazyConv2d(4, 3, groups=2, rng=0, bias=False)
    assert repr(lazy) == "LazyConv2d(0, 4, kernel_size=(3, 3), stride=(1, 1), groups=2, bias=False)"
    for x, error, message in (
        (np.zeros((3, 5, 5), np.float32), ValueError, r"^in_channels must be divisible by groups, got 3 and groups 2"),
        (np.zeros((5, 5), np.float32), ValueError, r"^input must have 3 \(unbatched\) or 4 \(batched\) dimensions for LazyConv2d"),
        (np.zeros((2, 5, 5)), TypeError, r"^input must have the layer's dtype float32, got float64"),
        (None, TypeError, r"^input must be a numpy.ndarray"),
    ):
        with pytest.raises(error, match=message):
            lazy(x)
    for ask in (
        lambda: lazy.weight,
        lambda: lazy.bias,
        lazy.state_dict,
        lambda: lazy.load_state_dict({}),
        lambda: setattr(lazy, "weight", np.zeros((4, 1, 3, 3), np.float32)),
    ):
        with pytest.raises(ValueError, match=r"^LazyConv2d must be called once before it has weight and bias"):
            ask()
    lazy(np.zeros((2, 5, 5), np.float32))
    np.testing.assert_array_equal(lazy.weight, Conv2d(2, 4, 3, groups=2, rng=0).weight)


def test_lazy_first_calls_from_many_threads() -> None:
    x = np.ones((3, 6, 6), np.float32)
    for seed in range(5):
        lazy = LazyConv2d(4, 3, rng=seed)
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            results = list(pool.map(lambda _, layer=lazy: layer(x), range(8)))
        expected = Conv2d(3, 4, 3, rng=seed)(x)
        for result in results:
            np.testing.assert_array_equal(result, expected)
