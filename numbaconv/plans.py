"""Plans: a problem with its algorithm chosen and its weight packed, ready to be applied to any batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .arguments import check_padding_mode, integer, per_axis, shown, shown_shape
from .arrays import (
    ELEMENTS,
    HOST,
    check_alike,
    check_array,
    check_memory,
    check_out_dtype,
    device_number,
    device_of,
    dtype_name,
    name_of,
    place_of,
)
from .choose import Choice, choose
from .explanation import Explanation
from .memory import Memory, memory_of
from .problem import Problem, forward_problem, transposed_problem


def check_arguments(input: Any, weight: Any, bias: Any) -> tuple[Any, Any, Any]:
    """The three arrays of a call, of one dtype."""
    x, w = check_array("input", input), check_array("weight", weight)
    check_alike("input", x, "weight", w)
    if bias is None:
        return x, w, None
    b = check_array("bias", bias)
    check_alike("input", x, "bias", b)
    return x, w, b


def execute(
    problem: Problem, choice: Choice, input: Any, weight: Any, bias: Any, out: Any = None, stream: Any = None, gradient: bool = False
) -> Any:
    """Pack and run once; nothing is kept, so that a changed weight is always seen.

    gradient : an input gradient is asked for: ``input`` is the caller's grad_output, and the weight is conjugated.
    """
    first = "grad_output" if gradient else "input"
    given = {first: input, "weight": weight} if bias is None else {first: input, "weight": weight, "bias": bias}
    memory = memory_of(input)
    arguments = memory.begin(given, stream)
    batched = input.ndim == problem.rank + 2
    shape = problem.result_shape if batched else problem.result_shape[1:]
    result = memory.result(shape, problem.out_dtype, out, arguments, choice.memory)
    if result.size:
        w = arguments["weight"]
        used = memory.conjugate(w) if gradient and name_of(w).startswith("complex") else w
        pack = getattr(choice.setup, "pack_once", choice.setup.pack)
        packed = pack(memory.weight(used, problem.rank), memory.bias(arguments.get("bias")))
        _run(choice, problem, memory, arguments[first], packed, result)
    return memory.finish(result)


def execute_weight_grad(
    problem: Problem,
    choice: Choice,
    input: Any,
    grad_output: Any,
    out: Any = None,
    stream: Any = None,
    names: tuple[str, str] = ("input", "grad_output"),
    conjugated: bool = False,
) -> Any:
    """The gradient with respect to the weight; ``input`` is what the forward convolution reads, ``names`` the caller's of the two.

    conjugated : the result's complex conjugate is asked for.
    """
    memory = memory_of(input)
    arguments = memory.begin(dict(zip(names, (input, grad_output))), stream)
    result = memory.result(problem.result_shape, problem.out_dtype, out, arguments, choice.memory)
    if result.size:
        read, grad = arguments.values()
        _run(choice, problem, memory, read, (memory.readable(grad, problem.rank),), result)
        if conjugated and problem.dtype.startswith("complex"):
            memory.conjugate(result, result)
    return memory.finish(result)


class Plan:
    """A convolution with everything decided that does not depend on the input's values or batch size.

    Made by :func:`plan` or a module's ``freeze()``.  Holds the packed weight and a copy of the bias: later changes of either are
    not seen.  Calling it is thread-safe.
    """

    def __init__(self, problem: Problem, choice: Choice, weight: Any, bias: Any) -> None:
        self.problem = problem.per_image
        self._choice = choice
        self._memory, self._device = memory_of(weight), device_number(weight)
        self._source, self._result = problem.source_shape[1:], problem.result_shape[1:]
        if self._device == HOST:  # a device has memory of its own, and its allocator refuses
            check_memory(choice.setup.packed_bytes)
        self._packed = choice.setup.pack(self._memory.weight(weight, problem.rank), self._memory.bias(bias))
        self._memory.settle(self._packed)
        self._repeat = self._memory.repeating(choice.setup, problem.rank, self._packed)

    @property
    def algorithm(self) -> str:
        """Name of the algorithm taken."""
        return self._choice.name

    @property
    def arithmetic(self) -> str:
        """What products are formed and summed in: ``"IEEE float32"`` also where ``precision="tf32"`` was asked for."""
        return self._choice.arithmetic

    @property
    def workspace(self) -> int:
        """Upper bound, in bytes, of the memory that a call allocates beside its result."""
        return self._choice.setup.workspace

    @property
    def packed_bytes(self) -> int:
        """Bytes of the packed weight and bias that the plan holds."""
        return sum(part.nbytes for part in self._packed)

    def __call__(self, input: Any, out: Any = None, *, stream: Any = None) -> Any:
        """Apply the plan to ``input`` of shape (N, C, *size) or (C, *size), with the planned C and size and any N.

        Returns a fresh C-contiguous array, or ``out``.  Raises TypeError and ValueError as the function does.  On a CUDA device the work is
        put on the input's stream, or on ``stream``, and not waited for; with ``out`` nothing is allocated where ``workspace`` is 0.
        """
        x = check_array("input", input)
        if stream is None and self._repeat is not None:
            repeated = self._repeat(x, out)
            if repeated is not None:
                return repeated
        if name_of(x) != self.problem.dtype:
            raise TypeError(f"input must have dtype {self.problem.dtype} for this plan, got {name_of(x)}")
        if device_number(x) != self._device:
            self._refuse_place(x)
        if x.shape == self._source:
            shape = self._result
        elif x.shape[1:] == self._source:
            shape = (x.shape[0], *self._result)
        else:
            raise ValueError(f"input must have shape (N, {shown_shape(self._source)[1:]} for this plan, got {shown_shape(x.shape)}")
        arguments = self._memory.begin({"input": x}, stream)
        result = self._memory.result(shape, self.problem.out_dtype, out, arguments, self._choice.setup.workspace)
        if result.size:
            _run(self._choice, self.problem, self._memory, arguments["input"], self._packed, result)
            if self._repeat is not None:
                self._repeat.remember(arguments["input"], result)
        return self._memory.finish(result)

    def _refuse_place(self, x: Any) -> None:
        place = f"the memory of cuda:{self._device}" if self._device != HOST else "host memory"
        error = TypeError if HOST in (self._device, device_number(x)) else ValueError
        raise error(f"input must live where the plan's weight does, in {place}, got input in {place_of(x)}")

    def __repr__(self) -> str:
        return (
            f"Plan({self.problem}, algorithm={self.algorithm!r}, arithmetic={self.arithmetic!r}, workspace={self.workspace}, "
            f"packed_bytes={self.packed_bytes})"
        )


def plan(
    input_or_shape: Any | Sequence[int],
    weight: Any,
    bias: Any | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    transposed: bool = False,
    output_padding: Any = 0,
    padding_mode: str = "zeros",
    dtype: Any = None,
    out_dtype: Any = None,
    precision: str | None = None,
    algorithm: str = "auto",
) -> Plan:
    """Decide and pack once, for many calls with the same weight.

    input_or_shape : the input, or its shape, (N, C, *size) or (C, *size); N does not matter.
    weight : array (out_channels, in_channels / groups, *kernel); with ``transposed=True`` (in_channels, out_channels / groups, *kernel).
        Its rank tells 1-D, 2-D or 3-D.
    dtype : the input's dtype where only its shape is given; must be the weight's (the default).
    The other arguments are those of :func:`conv3d` and :func:`conv_transpose3d`.

    Returns a :class:`Plan`.  Raises ValueError and TypeError as the function itself would.
    """
    w = check_array("weight", weight)
    b = None if bias is None else check_array("bias", bias)
    if b is not None:
        check_alike("weight", w, "bias", b)
    if not isinstance(input_or_shape, (tuple, list)):
        check_alike("weight", w, "input", check_array("input_or_shape", input_or_shape))
    problem = describe(
        input_or_shape, w, b, stride, padding, dilation, groups, transposed=transposed, output_padding=output_padding,
        padding_mode=padding_mode, dtype=dtype, out_dtype=out_dtype,
    )  # fmt: skip
    return Plan(problem, choose(problem, precision, algorithm, device_of(w)), w, b)


def explain(
    input_or_shape: Any | Sequence[int],
    weight: Any | Sequence[int],
    bias: Any | Sequence[int] | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    transposed: bool = False,
    output_padding: Any = 0,
    padding_mode: str = "zeros",
    dtype: Any = None,
    out_dtype: Any = None,
    precision: str | None = None,
    algorithm: str = "auto",
    device: str | None = None,
) -> Explanation:
    """What a call with these arguments would do, without doing it: ``print(numbaconv.explain(x, w, padding=1))``.

    Takes the arguments of :func:`plan`; weight and bias may be shapes too.  ``device`` is ``"cpu"`` or ``"cuda"``, or None for that of the
    arrays (``"cpu"`` for shapes); ``"cuda"`` needs no GPU, but the packages of the extra.  The text shows shapes, the formula and the
    output size, FLOPs, bytes, the algorithm taken with its workspace, and why each other one was not.
    """
    problem = describe(
        input_or_shape, weight, bias, stride, padding, dilation, groups, transposed=transposed, output_padding=output_padding,
        padding_mode=padding_mode, dtype=dtype, out_dtype=out_dtype,
    )  # fmt: skip
    if device is None:
        arrays = [a for a in (input_or_shape, weight, bias) if a is not None and not isinstance(a, (tuple, list))]
        device = device_of(check_array("weight", arrays[0])) if arrays else "cpu"
    return Explanation(problem, choose(problem, precision, algorithm, device))


def describe(
    input_or_shape: Any,
    weight_or_shape: Any,
    bias_or_shape: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    *,
    transposed: bool,
    output_padding: Any,
    padding_mode: Any,
    dtype: Any,
    out_dtype: Any,
) -> Problem:
    """The Problem of a plan's arguments, arrays or shapes."""
    input_shape, input_dtype = _shape_and_dtype("input_or_shape", input_or_shape)
    weight_shape, weight_dtype = _shape_and_dtype("weight", weight_or_shape)
    bias_shape, bias_dtype = (None, None) if bias_or_shape is None else _shape_and_dtype("bias", bias_or_shape)
    wanted = None if dtype is None else dtype_name("dtype", dtype)
    if not isinstance(transposed, (bool, np.bool_)):
        raise TypeError(f"transposed must be True or False, got {shown(transposed)}")
    name = wanted or weight_dtype or input_dtype or "float32"
    for what, other in (("input", input_dtype), ("weight", weight_dtype), ("bias", bias_dtype)):
        if other not in (None, name):
            raise TypeError(f"{what} must have dtype {name} like the other arguments, got {other}")
    if name not in ELEMENTS:
        raise TypeError(f"dtype must be one of {', '.join(ELEMENTS)}, got {name}")
    rank = len(weight_shape) - 2
    if rank not in (1, 2, 3):
        raise ValueError(f"weight must have 3, 4 or 5 dimensions, got shape {shown_shape(weight_shape)}")
    result = check_out_dtype(out_dtype, name)
    if not transposed:
        if any(per_axis("output_padding", output_padding, rank, 0)):
            raise ValueError(f"output_padding must be 0 without transposed=True, got {output_padding!r}")
        return forward_problem(
            rank, input_shape, weight_shape, bias_shape, stride, padding, dilation, groups,
            padding_mode=padding_mode, dtype=name, out_dtype=result,
        )  # fmt: skip
    if check_padding_mode(padding_mode) != "zeros":
        raise ValueError(f"padding_mode must be 'zeros' with transposed=True, got {padding_mode!r}")
    return transposed_problem(
        rank, input_shape, weight_shape, bias_shape, stride, padding, output_padding, groups, dilation, dtype=name, out_dtype=result
    )


def _shape_and_dtype(name: str, value: Any) -> tuple[tuple[int, ...], str | None]:
    if isinstance(value, (tuple, list)):
        return tuple(integer(f"{name}[{i}]", n, 0, " of a shape") for i, n in enumerate(value)), None
    array = check_array(name, value)
    return array.shape, name_of(array)


def _run(choice: Choice, problem: Problem, memory: Memory, input: Any, packed: tuple[Any, ...], result: Any) -> None:
    rank = problem.rank
    choice.setup.run(memory.readable(input, rank), packed, memory.writable(result, rank))
