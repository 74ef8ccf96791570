"""numbaconv's convolutions for torch's tensors, of the CPU and of CUDA: differentiable once and twice, and known to torch.compile.

``conv1d`` … ``conv_transpose3d`` take the arguments of torch.nn.functional's, and every ``padding`` and ``padding_mode`` of numbaconv's.
:func:`replace_convs` puts them into a torch module.  Tensors share their memory with the arrays that numbaconv reads and returns: no
copies.  The result is contiguous, whatever the memory format of the input.

Underneath lie three custom operators, ``torch.ops.numbaconv.convolution``, ``…_input_grad`` and ``…_weight_grad``; each one's gradients are
the other two.  They take canonical lists of integers, since torch's schemas know no ``int | str``: ``padding`` is (low, high) of each axis.

Imported only on demand; needs torch (``pip install "numbaconv[torch]"``).
Source: https://docs.pytorch.org/docs/stable/library.html
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np

from . import functional, grad
from .arguments import check_padding_mode, integer, padding_pairs, per_axis, resolve_padding
from .arrays import AnyArray, dtype_named

try:
    import torch
    from torch import Tensor
except ImportError as error:
    raise ImportError('numbaconv.torch needs the package torch: pip install "numbaconv[torch]"') from error

_DTYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.complex128,
    torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8,
)  # fmt: skip
_GEOMETRY = (
    "SymInt[] stride, SymInt[] padding, SymInt[] dilation, SymInt[] output_padding, SymInt groups, bool transposed, str padding_mode"
)
_NO_GRADIENTS = (None,) * 7  # of the geometry


# ---- functions -------------------------------------------------------------------------------------------------------
def conv1d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1, *, padding_mode: str = "zeros",
) -> Tensor:  # fmt: skip
    """:func:`numbaconv.conv1d` of tensors; see :func:`conv3d`."""
    return _conv(1, input, weight, bias, stride, padding, dilation, groups, padding_mode)


def conv2d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1, *, padding_mode: str = "zeros",
) -> Tensor:  # fmt: skip
    """:func:`numbaconv.conv2d` of tensors; see :func:`conv3d`."""
    return _conv(2, input, weight, bias, stride, padding, dilation, groups, padding_mode)


def conv3d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1, *, padding_mode: str = "zeros",
) -> Tensor:  # fmt: skip
    """:func:`numbaconv.conv3d` of tensors: the same arguments, shapes, dtypes and errors; differentiable any number of times.

    input : tensor (N, C, D, H, W) or (C, D, H, W); weight : (out_channels, C / groups, kd, kh, kw); bias : (out_channels,) or None
    stride, padding, dilation, groups, padding_mode : as there

    Returns a contiguous tensor.  Raises ValueError and TypeError, naming the argument.
    """
    return _conv(3, input, weight, bias, stride, padding, dilation, groups, padding_mode)


def conv_transpose1d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, output_padding: Any = 0,
    groups: int = 1, dilation: Any = 1,
) -> Tensor:  # fmt: skip
    """:func:`numbaconv.conv_transpose1d` of tensors; see :func:`conv_transpose3d`."""
    return _conv_transpose(1, input, weight, bias, stride, padding, output_padding, groups, dilation)


def conv_transpose2d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, output_padding: Any = 0,
    groups: int = 1, dilation: Any = 1,
) -> Tensor:  # fmt: skip
    """:func:`numbaconv.conv_transpose2d` of tensors; see :func:`conv_transpose3d`."""
    return _conv_transpose(2, input, weight, bias, stride, padding, output_padding, groups, dilation)


def conv_transpose3d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, output_padding: Any = 0,
    groups: int = 1, dilation: Any = 1,
) -> Tensor:  # fmt: skip
    """:func:`numbaconv.conv_transpose3d` of tensors; returns and raises as :func:`conv3d`."""
    return _conv_transpose(3, input, weight, bias, stride, padding, output_padding, groups, dilation)


def _conv(
    rank: int, input: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, groups: Any, padding_mode: Any
) -> Tensor:  # fmt: skip
    _check_tensors(rank, input, weight, bias)
    steps, gaps = per_axis("stride", stride, rank, 1), per_axis("dilation", dilation, rank, 1)
    pairs = resolve_padding(padding, input.shape[input.ndim - rank :], weight.shape[2:], steps, gaps)
    count, mode = integer("groups", groups, 1), check_padding_mode(padding_mode)
    return _convolution(input, weight, bias, steps, _flat(pairs), gaps, (0,) * rank, count, False, mode)


def _conv_transpose(
    rank: int, input: Any, weight: Any, bias: Any, stride: Any, padding: Any, output_padding: Any, groups: Any, dilation: Any
) -> Tensor:  # fmt: skip
    _check_tensors(rank, input, weight, bias)
    steps, gaps = per_axis("stride", stride, rank, 1), per_axis("dilation", dilation, rank, 1)
    extra, count = per_axis("output_padding", output_padding, rank, 0), integer("groups", groups, 1)
    return _convolution(input, weight, bias, steps, _flat(padding_pairs(padding, rank)), gaps, extra, count, True, "zeros")


def _check_tensors(rank: int, input: Any, weight: Any, bias: Any) -> None:
    for name, tensor in (("input", input), ("weight", weight), ("bias", bias)):
        if name == "bias" and tensor is None:
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
        if tensor.device.type not in ("cpu", "cuda") or tensor.layout is not torch.strided:
            raise TypeError(f"{name} must be a dense tensor of the CPU or of CUDA, got device {tensor.device} and layout {tensor.layout}")
        if tensor.dtype not in _DTYPES:
            raise TypeError(f"{name} must have one of the dtypes {', '.join(str(dtype)[6:] for dtype in _DTYPES)}, got {tensor.dtype}")
    if input.ndim not in (rank + 1, rank + 2):
        raise ValueError(f"input must have {rank + 1} (unbatched) or {rank + 2} (batched) dimensions, got shape {tuple(input.shape)}")
    if weight.ndim != rank + 2:
        raise ValueError(f"weight must have {rank + 2} dimensions, got shape {tuple(weight.shape)}")


def _flat(pairs: Sequence[tuple[int, int]]) -> list[int]:
    return [cells for pair in pairs for cells in pair]


# ---- operators -------------------------------------------------------------------------------------------------------
@torch.library.custom_op(
    "numbaconv::convolution", mutates_args=(), device_types=("cpu", "cuda"),
    schema=f"(Tensor input, Tensor weight, Tensor? bias, {_GEOMETRY}) -> Tensor",
)  # fmt: skip
def _convolution(input: Tensor, weight: Tensor, bias: Tensor | None, *geometry: Any) -> Tensor:
    """The convolution, or the transposed one."""
    kind, arguments = _numbaconv_arguments(*geometry)
    function = getattr(functional, f"conv{kind}{weight.ndim - 2}d")
    return _to_torch(function(_to_array(input), _to_array(weight), None if bias is None else _to_array(bias), **arguments))


@torch.library.custom_op(
    "numbaconv::convolution_input_grad", mutates_args=(), device_types=("cpu", "cuda"),
    schema=f"(SymInt[] input_size, Tensor weight, Tensor grad_output, {_GEOMETRY}) -> Tensor",
)  # fmt: skip
def _input_grad(input_size: Sequence[int], weight: Tensor, grad_output: Tensor, *geometry: Any) -> Tensor:
    """The gradient with respect to the input; linear in grad_output, and in the conjugated weight."""
    kind, arguments = _numbaconv_arguments(*geometry)
    function = getattr(grad, f"conv{kind}{weight.ndim - 2}d_input")
    return _to_torch(function(tuple(input_size), _to_array(weight), _to_array(grad_output), **arguments))


@torch.library.custom_op(
    "numbaconv::convolution_weight_grad", mutates_args=(), device_types=("cpu", "cuda"),
    schema=f"(Tensor input, SymInt[] weight_size, Tensor grad_output, {_GEOMETRY}) -> Tensor",
)  # fmt: skip
def _weight_grad(input: Tensor, weight_size: Sequence[int], grad_output: Tensor, *geometry: Any) -> Tensor:
    """The gradient with respect to the weight; linear in grad_output, and in the conjugated input."""
    kind, arguments = _numbaconv_arguments(*geometry)
    function = getattr(grad, f"conv{kind}{len(weight_size) - 2}d_weight")
    return _to_torch(function(_to_array(input), tuple(weight_size), _to_array(grad_output), **arguments))


def _numbaconv_arguments(
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], output_padding: Sequence[int], groups: int,
    transposed: bool, padding_mode: str,
) -> tuple[str, dict[str, Any]]:  # fmt: skip
    """The middle of the function's name and the keyword arguments of an operator's geometry."""
    pairs = tuple(zip(padding[::2], padding[1::2]))
    arguments = {"stride": tuple(stride), "padding": pairs, "dilation": tuple(dilation), "groups": groups}
    own = {"output_padding": tuple(output_padding)} if transposed else {"padding_mode": padding_mode}
    return "_transpose" * transposed, arguments | own


def _to_array(tensor: Tensor) -> Any:
    """What numbaconv takes of the same memory; only a lazily conjugated or negated tensor is copied."""
    plain = tensor.detach().resolve_conj().resolve_neg()
    if plain.is_cuda:
        return plain
    if plain.dtype is not torch.bfloat16:
        return plain.numpy()
    bits: AnyArray = plain.view(torch.int16).numpy()  # NumPy's bfloat16, of ml_dtypes, is unknown to torch
    return bits.view(dtype_named("bfloat16"))


def _to_torch(result: Any) -> Tensor:
    if isinstance(result, Tensor):
        return result
    if result.dtype.name != "bfloat16":
        return torch.from_numpy(result)
    return torch.from_numpy(result.view(np.int16)).view(torch.bfloat16)


# ---- shapes ----------------------------------------------------------------------------------------------------------
@_convolution.register_fake
def _(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, output_padding: Any, groups: Any,
    transposed: bool, padding_mode: str,
) -> Tensor:  # fmt: skip
    rank = weight.ndim - 2
    totals = [lo + hi for lo, hi in zip(padding[::2], padding[1::2])]
    axes = zip(input.shape[-rank:], weight.shape[2:], stride, totals, dilation, output_padding)
    if transposed:
        channels, size = weight.shape[1] * groups, [(i - 1) * s - p + d * (k - 1) + op + 1 for i, k, s, p, d, op in axes]
    else:
        channels, size = weight.shape[0], [(i + p - d * (k - 1) - 1) // s + 1 for i, k, s, p, d, _ in axes]
    return input.new_empty((*input.shape[: -rank - 1], channels, *size))


@_input_grad.register_fake
def _(input_size: Any, weight: Tensor, grad_output: Tensor, *geometry: Any) -> Tensor:
    return grad_output.new_empty(input_size)


@_weight_grad.register_fake
def _(input: Tensor, weight_size: Any, grad_output: Tensor, *geometry: Any) -> Tensor:
    return input.new_empty(weight_size)


# ---- gradients -------------------------------------------------------------------------------------------------------
# With y = convolution(x, w), <y, g> is linear in each of x, w and g (the complex ones conjugated as PyTorch does): the gradient of
# each operator with respect to each of its tensors is one of the three operators, with the incoming gradient in the output's place.
def _save_convolution(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0], inputs[1])
    ctx.geometry = inputs[3:]


def _convolution_backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    (x, w), geometry, needed = ctx.saved_tensors, ctx.geometry, ctx.needs_input_grad
    channel = g.ndim - w.ndim + 1
    return (
        _input_grad(x.shape, w, g, *geometry) if needed[0] else None,
        _weight_grad(x, w.shape, g, *geometry) if needed[1] else None,
        g.sum([axis for axis in range(g.ndim) if axis != channel]) if needed[2] else None,
        *_NO_GRADIENTS,
    )


def _save_input_grad(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1], inputs[2])
    ctx.geometry = inputs[3:]


def _input_grad_backward(ctx: Any, x: Tensor) -> tuple[Any, ...]:
    (w, g), geometry, needed = ctx.saved_tensors, ctx.geometry, ctx.needs_input_grad
    return (
        None,
        _weight_grad(x, w.shape, g, *geometry) if needed[1] else None,
        _convolution(x, w, None, *geometry) if needed[2] else None,
        *_NO_GRADIENTS,
    )


def _save_weight_grad(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0], inputs[2])
    ctx.geometry = inputs[3:]


def _weight_grad_backward(ctx: Any, w: Tensor) -> tuple[Any, ...]:
    (x, g), geometry, needed = ctx.saved_tensors, ctx.geometry, ctx.needs_input_grad
    return (
        _input_grad(x.shape, w, g, *geometry) if needed[0] else None,
        None,
        _convolution(x, w, None, *geometry) if needed[2] else None,
        *_NO_GRADIENTS,
    )


_convolution.register_autograd(_convolution_backward, setup_context=_save_convolution)
_input_grad.register_autograd(_input_grad_backward, setup_context=_save_input_grad)
_weight_grad.register_autograd(_weight_grad_backward, setup_context=_save_weight_grad)


# ---- modules ---------------------------------------------------------------------------------------------------------
def replace_convs(module: torch.nn.Module) -> torch.nn.Module:
    """Let the convolution layers of a torch module run on numbaconv: every ``torch.nn.Conv*d`` and ``ConvTranspose*d`` in it is replaced.

    The new layers share parameters and hooks with the old ones, have the same names in ``state_dict()``, and are subclasses of theirs.
    Subclasses of torch's layers, lazy layers before their first call and parametrised ones are left as they are.

    Changes ``module`` in place and returns it; where it is itself such a layer, returns the new one.
    """
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    return _replaced(module, {})


def _replaced(module: Any, done: dict[int, Any]) -> Any:
    """``module`` or its replacement; ``done`` keeps a layer that is used in several places one layer."""
    if id(module) not in done:
        new = module
        if type(module) in _LAYERS:
            new = copy.copy(module)
            new.__class__ = _LAYERS[type(module)]
        done[id(module)] = new
        for name, child in module._modules.items():
            module._modules[name] = None if child is None else _replaced(child, done)
    return done[id(module)]


class _Conv:
    def forward(self: Any, input: Tensor) -> Tensor:
        return _conv(
            self.weight.ndim - 2, input, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups, self.padding_mode
        )


class _ConvTranspose:
    def forward(self: Any, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        rank = self.weight.ndim - 2
        extra = self._output_padding(input, output_size, self.stride, self.padding, self.kernel_size, rank, self.dilation)
        return _conv_transpose(rank, input, self.weight, self.bias, self.stride, self.padding, extra, self.groups, self.dilation)


class NumbaConv1d(_Conv, torch.nn.Conv1d):
    """torch.nn.Conv1d that runs on numbaconv."""


class NumbaConv2d(_Conv, torch.nn.Conv2d):
    """torch.nn.Conv2d that runs on numbaconv."""


class NumbaConv3d(_Conv, torch.nn.Conv3d):
    """torch.nn.Conv3d that runs on numbaconv."""


class NumbaConvTranspose1d(_ConvTranspose, torch.nn.ConvTranspose1d):
    """torch.nn.ConvTranspose1d that runs on numbaconv."""


class NumbaConvTranspose2d(_ConvTranspose, torch.nn.ConvTranspose2d):
    """torch.nn.ConvTranspose2d that runs on numbaconv."""


class NumbaConvTranspose3d(_ConvTranspose, torch.nn.ConvTranspose3d):
    """torch.nn.ConvTranspose3d that runs on numbaconv."""


_LAYERS = {
    new.__mro__[2]: new for new in (NumbaConv1d, NumbaConv2d, NumbaConv3d, NumbaConvTranspose1d, NumbaConvTranspose2d, NumbaConvTranspose3d)
}
