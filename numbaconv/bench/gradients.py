"""Who takes part in gradients of the input or the weight: the functions of ``numbaconv.grad``, and torch's own backward."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from .. import grad
from ..choose import choose
from .contenders import Contender, Prepared, Task, channels_last, from_tensor, to_tensor


def numbaconv(task: Task) -> Prepared:
    """The plain function, which packs what it packs in each call; each call returns a fresh array."""
    return Prepared(_function(task), task.to_host, _algorithm(task))


def numbaconv_out(task: Task) -> Prepared:
    """The same, writing into the same array in each call."""
    return Prepared(partial(_function(task), out=task.poisoned()), task.to_host, _algorithm(task))


def _algorithm(task: Task) -> str:
    return choose(task.problem, device=task.device).name


def _function(task: Task) -> Callable[..., Any]:
    p, g = task.problem, task.grad_output
    geometry = {"stride": task.stride, "padding": task.padding, "dilation": task.dilation, "groups": p.groups}
    if p.direction == "weight_grad":
        return partial(getattr(grad, f"conv{p.rank}d_weight"), task.input, tuple(task.weight.shape), g, **geometry)
    return partial(getattr(grad, f"conv{p.rank}d_input"), tuple(task.input.shape), task.weight, g, **geometry)


def torch(task: Task) -> Prepared:
    """torch.ops.aten.convolution_backward for this gradient alone, on contiguous tensors."""
    import torch

    p, nothing = task.problem, [0] * task.problem.rank
    torch.set_num_threads(task.threads)
    g, x, w = (to_tensor(array) for array in (task.grad_output, task.input, task.weight))
    weight = p.direction == "weight_grad"
    mask, geometry = [not weight, weight, False], (list(task.stride), list(task.padding), list(task.dilation), False, nothing, p.groups)

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def call() -> Any:
        return torch.ops.aten.convolution_backward(g, x, w, None, *geometry, mask)[weight]

    return Prepared(call, from_tensor)


def torch_cl(task: Task) -> Prepared | None:
    """The same with all tensors converted to channels_last beforehand."""
    converted = channels_last(task)
    return None if converted is None else torch(converted)


OURS = (Contender("numbaconv", numbaconv), Contender("numbaconv_out", numbaconv_out, reuses_output=True))
PEERS = (Contender("torch", torch, ("torch",), "torch"), Contender("torch_cl", torch_cl, ("torch",), "torch"))
