"""Training a layer: the input it keeps for its gradients, and the gradients it accumulates."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np

from . import grad
from .arguments import shown
from .arrays import AnyArray, batched, check_alike, check_array
from .memory import memory_of
from .parameters import Parameters


class Trainable(Parameters):
    """A layer's training mode, :meth:`backward` and the gradients.

    training : bool
        Set by :meth:`train` and :meth:`eval`.  False, the default: a call keeps nothing.  True: a call keeps a reference (no copy) to
        its input until :meth:`backward` or :meth:`eval`, so a training layer is for one thread at a time, and the input must stay as it is.
    weight_grad, bias_grad : arrays like weight and bias, or None
        Sums of the gradients since :meth:`zero_grad`; None before the first (``bias_grad`` always where the layer has no bias).
        Each is replaced, never written into, when a gradient is added.
    """

    _rank: ClassVar[int]
    training: bool = False
    weight_grad: AnyArray | None = None
    bias_grad: AnyArray | None = None
    _calls: int = 0  # in training mode, since the last backward
    _last: tuple[AnyArray, tuple[int, ...]] | None = None  # of the only such call: input and output padding

    def train(self, mode: bool = True) -> Self:
        """Keep the input of each call from now on; with ``mode=False`` as :meth:`eval`.  Returns the layer."""
        if not isinstance(mode, (bool, np.bool_)):
            raise TypeError(f"mode must be True or False, got {shown(mode)}")
        self.training = bool(mode)
        if not mode:
            self._forget()
        return self

    def eval(self) -> Self:
        """Keep no inputs from now on, and drop the one that is kept.  Returns the layer."""
        return self.train(False)

    def zero_grad(self) -> None:
        """Drop the gradients: ``weight_grad`` and ``bias_grad`` become None, as torch's do.  A kept input stays."""
        self.weight_grad = self.bias_grad = None

    def backward(self, grad_output: AnyArray, input: AnyArray | None = None) -> AnyArray:
        """The gradient with respect to the layer's input; those of weight and bias are added to ``weight_grad`` and ``bias_grad``.

        grad_output : array of the result's shape, of the layer's dtype
        input : the input that the gradient is taken at, or None for that of the last call, where the layer was called exactly once in
            training mode since the last backward

        The weight is the present one; a transposed layer's ``output_size`` is that of the kept call, or follows from ``grad_output``.
        The kept input is dropped.  Complex gradients follow PyTorch's convention (see :mod:`numbaconv.grad`).

        Returns a fresh array of the input's shape.  Raises ValueError and TypeError, naming the argument, before anything changes.
        """
        bias = self._parameters()[1]
        weight, g = check_array("weight", self._parameters()[0]), check_array("grad_output", grad_output)
        kept, extra = self._kept_call() if input is None else (input, None)
        x = check_array("input", kept)
        check_alike("weight", weight, "input", x)
        check_alike("weight", weight, "grad_output", g)
        input_grad, weight_grad = self._gradients(x, g, extra)
        bias_grad = None if bias is None else grad.conv_bias(g if g.ndim == self._rank + 2 else batched(g))
        weight_grad = self._added("weight_grad", weight_grad)
        self.bias_grad = None if bias_grad is None else self._added("bias_grad", bias_grad)
        self.weight_grad = weight_grad
        self._forget()
        return input_grad

    def _added(self, name: str, gradient: AnyArray) -> AnyArray:
        total = getattr(self, name)
        if total is None:
            return gradient
        a, b = check_array(name, self._checked_parameter(name, total, gradient.shape)), check_array(name, gradient)
        check_alike(name, a, "grad_output", b)
        result: AnyArray = memory_of(a).added(a, b)
        return result

    def _gradients(self, x: AnyArray, g: AnyArray, extra: tuple[int, ...] | None) -> tuple[AnyArray, AnyArray]:
        """Gradients with respect to input and weight; ``extra`` is the output padding, None where ``g`` tells it."""
        raise NotImplementedError

    def _keep(self, input: AnyArray, output_padding: tuple[int, ...]) -> None:
        """Note a call; does nothing but in training mode."""
        if self.training:
            self._calls += 1
            self._last = (input, output_padding) if self._calls == 1 else None

    def _kept_call(self) -> tuple[AnyArray, tuple[int, ...]]:
        if self._last is not None:
            return self._last
        if self._calls:
            raise ValueError(
                f"input must be given: the layer was called {self._calls} times since the last backward and keeps one input only"
            )
        state = "since the last backward" if self.training else "in training mode: call its train() first"
        raise ValueError(f"input must be given: the layer was not called {state}")

    def _forget(self) -> None:
        self._calls, self._last = 0, None

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled: everything but the kept input."""
        return {name: value for name, value in super().__getstate__().items() if name not in ("_calls", "_last")}
