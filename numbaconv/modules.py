"""Layers: torch's convolution modules with NumPy arrays as weight and bias.

Constructor arguments, repr, attributes, initialisation and state-dict keys are torch's; beyond them, ``rng`` draws the weights and
``padding`` takes what :func:`numbaconv.conv3d` takes.  Bad arguments are refused by the constructor, also those that torch refuses
only when the layer is called.  A layer keeps nothing but its arguments, ``weight`` and ``bias`` (in training mode also the last input,
and the gradients): a changed weight is always seen, in place too.  Layers can be pickled and copied.

Source: https://docs.pytorch.org/docs/stable/nn.html#convolution-layers
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, ClassVar, overload

import numpy as np

from . import functional, grad
from .arguments import bounded, check_padding_mode, check_padding_string, integer, padding_pairs, per_axis, shown
from .arrays import AnyArray, check_array
from .columns import fold, unfold
from .memory import memory_of
from .parameters import device_named, generator, parameter_dtype
from .plans import Plan, plan
from .problem import split_shape
from .training import Trainable

_CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_CONV_INPUT = {1: grad.conv1d_input, 2: grad.conv2d_input, 3: grad.conv3d_input}
_CONV_WEIGHT = {1: grad.conv1d_weight, 2: grad.conv2d_weight, 3: grad.conv3d_weight}
_CONV_TRANSPOSE = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}
_CONV_TRANSPOSE_INPUT = {1: grad.conv_transpose1d_input, 2: grad.conv_transpose2d_input, 3: grad.conv_transpose3d_input}
_CONV_TRANSPOSE_WEIGHT = {1: grad.conv_transpose1d_weight, 2: grad.conv_transpose2d_weight, 3: grad.conv_transpose3d_weight}


class _ConvNd(Trainable):
    """What all convolution layers share."""

    transposed: ClassVar[bool]

    def __init__(
        self,
        in_channels: Any,
        out_channels: Any,
        kernel_size: Any,
        stride: Any,
        padding: Any,
        dilation: Any,
        output_padding: Any,
        groups: Any,
        bias: Any,
        padding_mode: Any,
        device: Any,
        dtype: Any,
        rng: Any,
    ) -> None:
        rank = self._rank
        self.out_channels = integer("out_channels", out_channels, 1)
        self.kernel_size = per_axis("kernel_size", kernel_size, rank, 1)
        self.stride = per_axis("stride", stride, rank, 1)
        self.padding = self._checked_padding(padding)
        self.dilation = per_axis("dilation", dilation, rank, 1)
        self.output_padding = per_axis("output_padding", output_padding, rank, 0)
        self.groups = integer("groups", groups, 1)
        self.padding_mode = check_padding_mode(padding_mode)
        if self.transposed and self.padding_mode != "zeros":
            raise ValueError(f"padding_mode must be 'zeros' for {type(self).__name__}, got {padding_mode!r}")
        self.in_channels = self._checked_channels(in_channels)
        if self.out_channels % self.groups:
            raise ValueError(f"out_channels must be divisible by groups, got {self.out_channels} and groups {self.groups}")
        for k, s, d, op in zip(self.kernel_size, self.stride, self.dilation, self.output_padding):
            bounded("the kernel extent dilation * (kernel_size - 1) + 1", d * (k - 1) + 1)
            if op >= max(s, d):
                raise ValueError(f"output_padding must be smaller than stride or dilation, got {op} with stride {s} and dilation {d}")
        if not isinstance(bias, (bool, np.bool_)):
            raise TypeError(f"bias must be True or False, got {shown(bias)}: assign an array to the layer's bias")
        self._device = device_named(device)
        self._dtype = parameter_dtype(dtype)
        self._initialise(bool(bias), generator(rng))

    def _initialise(self, bias: bool, rng: np.random.Generator) -> None:
        first, second = (self.in_channels, self.out_channels) if self.transposed else (self.out_channels, self.in_channels)
        self._draw((first, second // self.groups, *self.kernel_size), (self.out_channels,) if bias else None, rng)

    # ---- plans -----------------------------------------------------------------------------------------------------
    @overload
    def freeze(self) -> Frozen: ...
    @overload
    def freeze(self, input_or_shape: AnyArray | Sequence[int]) -> Plan: ...
    def freeze(self, input_or_shape: AnyArray | Sequence[int] | None = None) -> Frozen | Plan:
        """The layer for inference, its weight packed ahead: later changes of weight and bias are not seen.

        With an input or its shape, (N, C, *size) or (C, *size), the :class:`Plan` of that spatial size, for any N, packed now; without,
        a :class:`Frozen` that takes every size and packs at the first call with each.
        """
        arguments: dict[str, Any] = {
            "weight": self.weight,
            "bias": self.bias,
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
            "transposed": self.transposed,
            "output_padding": self.output_padding if self.transposed else 0,
            "padding_mode": self.padding_mode,
        }
        if input_or_shape is not None:
            return plan(input_or_shape, **arguments)
        copies = {}
        for name, value in self.state_dict().items():
            array = check_array(name, value)
            copies[name] = memory_of(array).copied(array)
        return Frozen(repr(self), self._rank, arguments | copies)

    def __repr__(self) -> str:
        parts = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"]
        if self.padding != (0,) * self._rank:
            parts.append(f"padding={self.padding}")
        if self.dilation != (1,) * self._rank:
            parts.append(f"dilation={self.dilation}")
        if self.output_padding != (0,) * self._rank:
            parts.append(f"output_padding={self.output_padding}")
        if self.groups != 1:
            parts.append(f"groups={self.groups}")
        if self._bias is None:
            parts.append("bias=False")
        if self.padding_mode != "zeros":
            parts.append(f"padding_mode={self.padding_mode}")
        return f"{type(self).__name__}({', '.join(parts)})"

    # ---- checks ----------------------------------------------------------------------------------------------------
    def _checked_padding(self, padding: Any) -> str | tuple[int, ...] | tuple[tuple[int, int], ...]:
        """Per-axis integers where both sides are equal, pairs where they are not, or the string."""
        if isinstance(padding, str) and not self.transposed:
            check_padding_string(padding, self.stride, self._rank)
            return padding
        pairs = padding_pairs(padding, self._rank)
        return tuple(lo for lo, _ in pairs) if all(lo == hi for lo, hi in pairs) else tuple(pairs)

    def _checked_channels(self, in_channels: Any) -> int:
        # An output cell without input channels is its bias; a transposed convolution without any is refused, as torch does.
        count = integer("in_channels", in_channels, int(self.transposed))
        if count % self.groups:
            raise ValueError(f"in_channels must be divisible by groups, got {count} and groups {self.groups}")
        return count


class _Conv(_ConvNd):
    transposed = False

    def __init__(
        self,
        in_channels: int,
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
            in_channels, out_channels, kernel_size, stride, padding, dilation, 0, groups, bias, padding_mode, device, dtype, rng
        )  # fmt: skip

    def __call__(self, input: AnyArray) -> AnyArray:
        """The convolution of ``input``, (N, in_channels, *size) or (in_channels, *size), of the layer's dtype."""
        result = _CONV[self._rank](
            input, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups, padding_mode=self.padding_mode
        )
        self._keep(input, ())
        return result

    def _gradients(self, x: AnyArray, g: AnyArray, extra: tuple[int, ...] | None) -> tuple[AnyArray, AnyArray]:
        geometry = self.stride, self.padding, self.dilation, self.groups
        input_grad = _CONV_INPUT[self._rank](x.shape, self.weight, g, *geometry, padding_mode=self.padding_mode)
        return input_grad, _CONV_WEIGHT[self._rank](x, self.weight.shape, g, *geometry, padding_mode=self.padding_mode)


class _ConvTranspose(_ConvNd):
    transposed = True

    def __init__(
        self,
        in_channels: int,
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
            in_channels, out_channels, kernel_size, stride, padding, dilation, output_padding, groups, bias, padding_mode,
            device, dtype, rng,
        )  # fmt: skip

    def __call__(self, input: AnyArray, output_size: Sequence[int] | None = None) -> AnyArray:
        """The transposed convolution of ``input``, (N, in_channels, *size) or (in_channels, *size), of the layer's dtype.

        output_size : the result's spatial size, or its whole shape (of which, as in torch, only the spatial part is read), or None
            Replaces ``output_padding``; along each axis it may exceed the smallest result by up to stride - 1.
        """
        extra = self.output_padding if output_size is None else self._output_padding(input, output_size)
        result = _CONV_TRANSPOSE[self._rank](input, self.weight, self.bias, self.stride, self.padding, extra, self.groups, self.dilation)
        self._keep(input, extra)
        return result

    def _gradients(self, x: AnyArray, g: AnyArray, extra: tuple[int, ...] | None) -> tuple[AnyArray, AnyArray]:
        geometry = self.stride, self.padding, self._extra_of(x, g) if extra is None else extra, self.groups, self.dilation
        input_grad = _CONV_TRANSPOSE_INPUT[self._rank](x.shape, self.weight, g, *geometry)
        return input_grad, _CONV_TRANSPOSE_WEIGHT[self._rank](x, self.weight.shape, g, *geometry)

    def _extra_of(self, x: AnyArray, g: AnyArray) -> tuple[int, ...]:
        """The output padding that gives the result the spatial size of ``g``."""
        least, size = self._least_size(x)[1], g.shape[max(g.ndim - self._rank, 0) :]
        most = tuple(n + max(s, d) - 1 for n, s, d in zip(least, self.stride, self.dilation))
        if len(size) != self._rank or any(not lo <= n <= hi for lo, n, hi in zip(least, size, most)):
            raise ValueError(f"grad_output must have a spatial size between {least} and {most} for this input, got shape {g.shape}")
        return tuple(n - lo for n, lo in zip(size, least))

    def _output_padding(self, input: Any, output_size: Any) -> tuple[int, ...]:
        rank = self._rank
        x = check_array("input", input)
        size, least = self._least_size(x)
        if not isinstance(output_size, (tuple, list)):
            raise TypeError(f"output_size must be a tuple or list of {rank} or {x.ndim} integers or None, got {shown(output_size)}")
        if len(output_size) not in (rank, x.ndim):
            raise ValueError(f"output_size must have {rank} or {x.ndim} elements for {x.ndim}-dimensional input, got {output_size!r}")
        wanted = per_axis("output_size", output_size[-rank:], rank, 0)
        most = tuple(n + s - 1 for n, s in zip(least, self.stride))
        if any(not lo <= n <= hi for lo, n, hi in zip(least, wanted, most)):
            raise ValueError(f"output_size must lie between {least} and {most} for input of size {size}, got {output_size!r}")
        return tuple(n - lo for n, lo in zip(wanted, least))

    def _least_size(self, x: AnyArray) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Spatial sizes of the input and of its smallest result."""
        size = split_shape(f"conv_transpose{self._rank}d", self._rank, x.shape)[2]
        geometry = zip(size, self.stride, padding_pairs(self.padding, self._rank), self.dilation, self.kernel_size)
        return size, tuple((i - 1) * s - lo - hi + d * (k - 1) + 1 for i, s, (lo, hi), d, k in geometry)


class Conv1d(_Conv):
    """1-D convolution layer: :class:`Conv3d` for input (N, in_channels, W) or (in_channels, W)."""

    _rank = 1


class Conv2d(_Conv):
    """2-D convolution layer: :class:`Conv3d` for input (N, in_channels, H, W) or (in_channels, H, W)."""

    _rank = 2


class Conv3d(_Conv):
    """3-D convolution layer with a learnable weight and bias, called with input (N, in_channels, D, H, W) or (in_channels, D, H, W).

    Parameters
    ----------
    in_channels : int, at least 0
    out_channels : int, at least 1
    kernel_size, stride, dilation : int, or a tuple or list of 1 or 3 ints, at least 1
    padding : int, 1 or 3 ints, 3 pairs (low, high), "valid", "same" (stride 1), "same_upper" or "same_lower" (any stride)
    groups : int that divides in_channels and out_channels
    bias : bool
    padding_mode : "zeros", "reflect", "replicate" or "circular"
    device : None or "cpu", "cuda" (the current device) or "cuda:N"
        Where weight and bias are drawn and the layer computes; :meth:`to` moves it.  Drawn on the host, so the same on every device.
    dtype : float64, float32 (the default), float16, bfloat16, complex64 or complex128, as numpy.dtype takes it; the input's too
    rng : int seed, numpy.random.Generator or None
        Draws weight, then bias, from U(-b, b), b = 1 / sqrt(in_channels / groups * prod(kernel_size)); real and imaginary parts alike.

    Raises
    ------
    ValueError for values and ranges, TypeError for types, MemoryError when the weight passes the physical memory.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.Conv3d.html
    """

    _rank = 3


class ConvTranspose1d(_ConvTranspose):
    """1-D transposed convolution layer: :class:`ConvTranspose3d` for input (N, in_channels, W) or (in_channels, W)."""

    _rank = 1


class ConvTranspose2d(_ConvTranspose):
    """2-D transposed convolution layer: :class:`ConvTranspose3d` for input (N, in_channels, H, W) or (in_channels, H, W)."""

    _rank = 2


class ConvTranspose3d(_ConvTranspose):
    """3-D transposed convolution layer, called with input (N, in_channels, D, H, W) or (in_channels, D, H, W) and output_size.

    Parameters
    ----------
    in_channels, out_channels : int, at least 1
    padding : int, 1 or 3 ints, or 3 pairs (low, high)
        Crops the result, as :func:`numbaconv.conv_transpose3d` says.
    output_padding : int, or 1 or 3 ints, smaller than stride or dilation
        Extra cells at the end of the result; replaced by ``output_size`` in a call.
    padding_mode : "zeros"
    The others are those of :class:`Conv3d`, b = 1 / sqrt(out_channels / groups * prod(kernel_size)).

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.ConvTranspose3d.html
    """

    _rank = 3


class Frozen:
    """A layer for inference, of every spatial size: a :class:`Plan` for each, of which the 8 used last are kept.

    Made by a layer's ``freeze()``, from copies of its weight and bias.  Calling it is thread-safe.  Memory: the weight, and a packed
    weight for each plan.  Pickling leaves the plans out; they are made anew.
    """

    def __init__(self, text: str, rank: int, arguments: dict[str, Any]) -> None:
        self._state = text, rank, arguments
        self._plan = functools.lru_cache(maxsize=8)(functools.partial(plan, **arguments))

    def __call__(self, input: Any, out: Any = None, *, stream: Any = None) -> Any:
        """The layer's result for ``input``, (N, in_channels, *size) or (in_channels, *size); a fresh array, or ``out``."""
        rank, shape = self._state[1], check_array("input", input).shape
        image = shape[1:] if len(shape) == rank + 2 else shape
        return self._plan(image)(input, out, stream=stream)

    def __reduce__(self) -> tuple[type[Frozen], tuple[str, int, dict[str, Any]]]:
        return type(self), self._state

    def __repr__(self) -> str:
        return f"Frozen({self._state[0]})"


class _Sliding:
    """Arguments of the sliding blocks of a 2-D image, kept as given."""

    def __init__(self, kernel_size: Any, dilation: Any, padding: Any, stride: Any) -> None:
        per_axis("kernel_size", kernel_size, 2, 1)
        per_axis("dilation", dilation, 2, 1)
        check_padding_string(padding, per_axis("stride", stride, 2, 1), 2)
        self.kernel_size = kernel_size
        self.dilation = dilation
        self.padding = padding
        self.stride = stride

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value}' for name, value in vars(self).items())})"


class Unfold(_Sliding):
    """:func:`numbaconv.unfold` as a layer: (N, C, H, W) to (N, C * kh * kw, L), or without N."""

    def __init__(self, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1) -> None:
        super().__init__(kernel_size, dilation, padding, stride)

    def __call__(self, input: AnyArray) -> AnyArray:
        return unfold(input, self.kernel_size, self.dilation, self.padding, self.stride)


class Fold(_Sliding):
    """:func:`numbaconv.fold` as a layer: (N, C * kh * kw, L) to (N, C, *output_size), or without N."""

    def __init__(self, output_size: Any, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1) -> None:
        per_axis("output_size", output_size, 2, 1)
        self.output_size = output_size
        super().__init__(kernel_size, dilation, padding, stride)

    def __call__(self, input: AnyArray) -> AnyArray:
        return fold(input, self.output_size, self.kernel_size, self.dilation, self.padding, self.stride)
