"""Layers that take in_channels from their first input.

Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.modules.lazy.LazyModuleMixin.html
"""

from __future__ import annotations

import threading
from typing import Any, ClassVar

import numpy as np

from .arrays import AnyArray, check_array, name_of
from .modules import Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d, _Conv, _ConvNd, _ConvTranspose
from .problem import split_shape


class _Lazy(_ConvNd):
    """A layer that takes in_channels from its first input, and is an ordinary one from then on."""

    _plain: ClassVar[Any]  # the class to become
    _rng: np.random.Generator

    def __call__(self, input: AnyArray, *args: Any, **kwargs: Any) -> AnyArray:
        """Take in_channels from ``input``, draw weight and bias, become the plain class, and compute as it does."""
        with _FIRST_CALL:
            if self._weight is None:  # not so where another thread was first
                self._materialise(input)
        return self(input, *args, **kwargs)

    def _materialise(self, input: Any) -> None:
        x = check_array("input", input)
        channels = split_shape(type(self).__name__, self._rank, x.shape)[1]
        if name_of(x) != self._dtype.name:
            raise TypeError(f"input must have the layer's dtype {self._dtype.name}, got {name_of(x)}: convert it with .astype")
        self.in_channels = super()._checked_channels(channels)
        super()._initialise(self._bias is not None, self._rng)
        del self._rng
        self.__class__ = self._plain

    def _checked_channels(self, in_channels: Any) -> int:
        return 0  # as torch shows it

    def _initialise(self, bias: bool, rng: np.random.Generator) -> None:
        self._weight, self._bias = None, np.zeros(self.out_channels, self._dtype) if bias else None
        self._rng = rng


# One for all lazy layers, so that they can be pickled; it is held only while a first call draws the weights.
_FIRST_CALL = threading.Lock()


class _LazyConv(_Lazy, _Conv):
    def __init__(
        self,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: str | None = None,
        dtype: Any = None,
        *,
        rng: int | np.random.Generator | None = None,
    ) -> None:
        super().__init__(
            0, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype, rng=rng
        )  # fmt: skip


class _LazyConvTranspose(_Lazy, _ConvTranspose):
    def __init__(
        self,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Any = 1,
        padding_mode: str = "zeros",
        device: str | None = None,
        dtype: Any = None,
        *,
        rng: int | np.random.Generator | None = None,
    ) -> None:
        super().__init__(
            0, out_channels, kernel_size, stride, padding, output_padding, groups, bias, dilation, padding_mode, device, dtype, rng=rng
        )  # fmt: skip


class LazyConv1d(_LazyConv, Conv1d):
    """:class:`Conv1d` that takes in_channels from its first input and is a Conv1d from then on; it has no parameters before."""

    _plain = Conv1d


class LazyConv2d(_LazyConv, Conv2d):
    """:class:`Conv2d` that takes in_channels from its first input and is a Conv2d from then on; it has no parameters before."""

    _plain = Conv2d


class LazyConv3d(_LazyConv, Conv3d):
    """:class:`Conv3d` that takes in_channels from its first input and is a Conv3d from then on; it has no parameters before."""

    _plain = Conv3d


class LazyConvTranspose1d(_LazyConvTranspose, ConvTranspose1d):
    """:class:`ConvTranspose1d` that takes in_channels from its first input and becomes one then; it has no parameters before."""

    _plain = ConvTranspose1d


class LazyConvTranspose2d(_LazyConvTranspose, ConvTranspose2d):
    """:class:`ConvTranspose2d` that takes in_channels from its first input and becomes one then; it has no parameters before."""

    _plain = ConvTranspose2d


class LazyConvTranspose3d(_LazyConvTranspose, ConvTranspose3d):
    """:class:`ConvTranspose3d` that takes in_channels from its first input and becomes one then; it has no parameters before."""

    _plain = ConvTranspose3d
