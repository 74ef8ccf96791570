"""Who takes part, one function each: it gets a layer's problem and arrays and returns the call that is timed.

Everything that a user does once is done before: weights are packed, graphs compiled, layouts converted, inputs bound.  A function
returns None where the library has no such operation; what a library itself refuses it raises.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any, NamedTuple, Protocol

import numpy as np

from .. import __version__, functional
from ..arrays import AnyArray, dtype_named
from ..plans import Plan, plan
from ..problem import Problem


class Place(Protocol):
    """A device that arrays are copied to and from."""

    def put(self, array: AnyArray) -> Any: ...

    def get(self, array: Any) -> AnyArray: ...

    def full(self, shape: tuple[int, ...], dtype: str, value: float) -> Any: ...


class Task(NamedTuple):
    """One convolution or gradient to be computed, on so many threads; ``bias`` is None without one, ``grad_output`` but for gradients.

    The arrays are NumPy's, or those of a ``place``.
    """

    problem: Problem
    input: Any
    weight: Any
    bias: Any | None
    threads: int
    grad_output: Any | None = None
    place: Place | None = None

    def on(self, place: Place) -> Task:
        """The same with copies of the arrays there."""
        x, w, b, g = (None if a is None else place.put(a) for a in (self.input, self.weight, self.bias, self.grad_output))
        return self._replace(input=x, weight=w, bias=b, grad_output=g, place=place)

    def poisoned(self) -> Any:
        """An array for the result, NaN where nobody writes (85 for integers)."""
        shape, dtype = self.problem.result_shape, self.problem.out_dtype
        value = 85 if "int" in dtype else np.nan
        return np.full(shape, value, dtype_named(dtype)) if self.place is None else self.place.full(shape, dtype, value)

    def to_host(self, result: Any) -> AnyArray:
        return np.asarray(result) if self.place is None else self.place.get(result)

    @property
    def device(self) -> str:
        """Whose algorithms compute it."""
        return "cpu" if self.place is None else "cuda"

    @property
    def stride(self) -> tuple[int, ...]:
        return self.problem.stride[3 - self.problem.rank :]

    @property
    def dilation(self) -> tuple[int, ...]:
        return self.problem.dilation[3 - self.problem.rank :]

    @property
    def padding(self) -> tuple[int, ...]:
        """Cells before the first one of each axis; every layer has as many after the last one."""
        return tuple(low for low, _ in self.problem.padding[3 - self.problem.rank :])

    @property
    def channel_bias(self) -> AnyArray | None:
        """The bias in a shape that broadcasts over results."""
        return None if self.bias is None else self.bias.reshape(1, -1, *(1,) * self.problem.rank)


class Prepared(NamedTuple):
    """``call()`` computes the convolution; ``answer`` turns what it returns into a (N, C, ...) NumPy array."""

    call: Callable[[], Any]
    answer: Callable[[Any], AnyArray]
    note: str = ""


def _itself(result: AnyArray) -> AnyArray:
    return result


# ---- numbaconv ---------------------------------------------------------------------------------------------------------------
def numbaconv(task: Task) -> Prepared:
    """A frozen plan, called with an array; each call returns a fresh one."""
    apply = frozen(task)
    return Prepared(lambda: apply(task.input), task.to_host, apply.algorithm)


def numbaconv_out(task: Task) -> Prepared:
    """A frozen plan that writes into the same array in each call."""
    apply, out = frozen(task), task.poisoned()
    return Prepared(lambda: apply(task.input, out=out), task.to_host, apply.algorithm)


def numbaconv_function(task: Task) -> Prepared:
    """The plain function, which packs the weight in each call."""
    function = (functional.conv1d, functional.conv2d, functional.conv3d)[task.problem.rank - 1]
    arguments = (task.input, task.weight, task.bias, task.stride, task.padding, task.dilation, task.problem.groups)
    return Prepared(lambda: function(*arguments), task.to_host)


def frozen(task: Task, algorithm: str = "auto") -> Plan:
    """The plan with the task's weight packed."""
    return plan(
        task.input, task.weight, task.bias, task.stride, task.padding, task.dilation, task.problem.groups, algorithm=algorithm
    )  # fmt: skip


# ---- neural networks ---------------------------------------------------------------------------------------------------------
def torch(task: Task) -> Prepared:
    """torch.nn.functional.conv*d on contiguous tensors: what NumPy arrays become by torch.from_numpy."""
    import torch

    torch.set_num_threads(task.threads)
    function = getattr(torch.nn.functional, f"conv{task.problem.rank}d")
    x, w = to_tensor(task.input), to_tensor(task.weight)
    b = None if task.bias is None else to_tensor(task.bias)
    stride, padding, dilation, groups = task.stride, task.padding, task.dilation, task.problem.groups

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def call() -> Any:
        return function(x, w, b, stride, padding, dilation, groups)

    return Prepared(call, from_tensor)


def torch_cl(task: Task) -> Prepared | None:
    """The same with input and weight converted to channels_last beforehand."""
    converted = channels_last(task)
    return None if converted is None else torch(converted)


def channels_last(task: Task) -> Task | None:
    """The task with tensors in channels_last; None in one dimension, which has no such layout."""
    if task.problem.rank == 1:
        return None
    x, w, g = (None if a is None else to_channels_last(to_tensor(a)) for a in (task.input, task.weight, task.grad_output))
    return task._replace(input=x, weight=w, grad_output=g)


def to_channels_last(tensor: Any) -> Any:
    import torch

    return tensor.to(memory_format=torch.channels_last if tensor.ndim == 4 else torch.channels_last_3d)


def from_tensor(result: Any) -> AnyArray:
    import torch

    result = result.contiguous().cpu()
    if result.dtype == torch.bfloat16:
        return np.asarray(result.view(torch.uint16).numpy().view(dtype_named("bfloat16")))
    return np.asarray(result.numpy())


def to_tensor(array: Any) -> Any:
    """A NumPy array as a tensor of the same memory; a tensor itself."""
    import torch

    if isinstance(array, torch.Tensor):
        return array
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def ort(task: Task) -> Prepared | None:
    """ONNX Runtime with input and output bound: it writes into the same memory in each call."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    p = task.problem
    if p.dtype != "float32":
        return None  # its CPU provider convolves nothing else
    constants = [numpy_helper.from_array(task.weight, "w")]
    constants += [] if task.bias is None else [numpy_helper.from_array(task.bias, "b")]
    node = helper.make_node(
        "Conv", ["x"] + [constant.name for constant in constants], ["y"], kernel_shape=task.weight.shape[2:], strides=task.stride,
        pads=task.padding * 2, dilations=task.dilation, group=p.groups,
    )  # fmt: skip
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in (("x", p.source_shape), ("y", p.result_shape))]
    graph = helper.make_graph([node], "convolution", values[:1], values[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = task.threads, 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    result = onnxruntime.OrtValue.ortvalue_from_shape_and_type(p.result_shape, np.float32)
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", onnxruntime.OrtValue.ortvalue_from_numpy(task.input))
    binding.bind_ortvalue_output("y", result)
    return Prepared(lambda: session.run_with_iobinding(binding), lambda _: np.asarray(result.numpy()))


def openvino(task: Task) -> Prepared | None:
    """OpenVINO in float32 with the input shared: it writes into the same memory in each call."""
    import openvino
    from openvino import opset8

    p = task.problem
    if p.dtype != "float32":
        return None  # the others it would compute in a precision of its choice
    source = opset8.parameter(p.source_shape, np.float32)
    window = {"strides": task.stride, "pads_begin": task.padding, "pads_end": task.padding, "dilations": task.dilation}
    lists = {name: list(values) for name, values in window.items()}
    if p.groups == 1:
        node = opset8.convolution(source, opset8.constant(task.weight), **lists)
    else:
        grouped = task.weight.reshape(p.groups, p.out_per_group, *task.weight.shape[1:])
        node = opset8.group_convolution(source, opset8.constant(grouped), **lists)
    if task.bias is not None:
        node = opset8.add(node, opset8.constant(task.channel_bias))
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": str(task.threads), "PERFORMANCE_HINT": "LATENCY"}
    request = openvino.Core().compile_model(openvino.Model([node], [source]), "CPU", settings).create_infer_request()
    request.set_input_tensor(openvino.Tensor(task.input, shared_memory=True))
    return Prepared(request.infer, lambda _: np.array(request.get_output_tensor().data))


def jax(task: Task) -> Prepared | None:
    """jax.jit of conv_general_dilated and the bias, on arrays that lie on its device."""
    import jax
    from jax import lax

    p = task.problem
    if p.dtype in ("float64", "complex128", "int64"):
        return None  # switched off unless the whole process asks for them
    axes = "DHW"[3 - p.rank :]
    names = ("NC" + axes, "OI" + axes, "NC" + axes)
    padding, bias = [(n, n) for n in task.padding], task.channel_bias

    def convolve(x: Any, w: Any) -> Any:
        y = lax.conv_general_dilated(
            x, w, task.stride, padding, rhs_dilation=task.dilation, dimension_numbers=names, feature_group_count=p.groups
        )
        return y if bias is None else y + bias

    cpu = jax.devices("cpu")[0]
    compiled, x, w = jax.jit(convolve), jax.device_put(task.input, cpu), jax.device_put(task.weight, cpu)
    return Prepared(lambda: compiled(x, w).block_until_ready(), np.asarray)


# ---- images ------------------------------------------------------------------------------------------------------------------
def oaconvolve(task: Task) -> Prepared | None:
    """scipy.signal.oaconvolve, a channel at a time: tiles by FFT."""
    import scipy.fft
    from scipy import signal

    if not _is_image_filter(task):
        return None
    kernels = [task.weight[c, 0][(slice(None, None, -1),) * task.problem.rank] for c in range(len(task.weight))]

    def call() -> AnyArray:
        out: AnyArray = np.empty_like(task.input)
        with scipy.fft.set_workers(task.threads):
            for c, kernel in enumerate(kernels):
                np.add(signal.oaconvolve(task.input[0, c], kernel, mode="same"), _bias(task, c), out=out[0, c])
        return out

    return Prepared(call, _itself)


def ndimage(task: Task) -> Prepared | None:
    """scipy.ndimage.correlate, a channel at a time."""
    from scipy.ndimage import correlate

    if not _is_image_filter(task):
        return None

    def call() -> AnyArray:
        out: AnyArray = np.empty_like(task.input)
        for c in range(len(task.weight)):
            correlate(task.input[0, c], task.weight[c, 0], output=out[0, c], mode="constant")
            if task.bias is not None:
                out[0, c] += task.bias[c]
        return out

    return Prepared(call, _itself)


def opencv(task: Task) -> Prepared | None:
    """cv2.filter2D, a channel at a time; one fresh image each."""
    import cv2

    if not _is_image_filter(task) or task.problem.rank != 2:
        return None
    cv2.setNumThreads(task.threads)
    images = [np.ascontiguousarray(image) for image in task.input[0]]

    def call() -> list[Any]:
        return [
            cv2.filter2D(image, -1, task.weight[c, 0], delta=float(_bias(task, c)), borderType=cv2.BORDER_CONSTANT)
            for c, image in enumerate(images)
        ]

    return Prepared(call, lambda images: np.stack(images)[None])


def _is_image_filter(task: Task) -> bool:
    """Whether each of at most 3 channels is filtered for itself, into a result of the same size, as functions for images do."""
    p = task.problem
    alone = p.in_channels == p.out_channels == p.groups <= 3 and p.batch == 1
    same = all(k % 2 and pair == (k // 2, k // 2) for k, pair in zip(p.kernel, p.padding))
    return alone and same and p.stride == p.dilation == (1, 1, 1) and p.dtype in ("float32", "float64")


def _bias(task: Task, channel: int) -> Any:
    return 0 if task.bias is None else task.bias[channel]


# ---- the lists ---------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Contender:
    """prepare : the function; modules : what it imports, the first also the name of a group in --against; packages : what to install.

    reuses_output : whether it writes into the same memory in each call, which spares it the cost of fresh pages.
    """

    name: str
    prepare: Callable[[Task], Prepared | None]
    modules: tuple[str, ...] = ()
    packages: str = "numpy numba"
    reuses_output: bool = False

    def rotating(self, tasks: Sequence[Task]) -> Prepared | None:
        """Prepared for all of these tasks, which differ in where their arrays lie; each call computes the next one."""
        prepared = [self.prepare(task) for task in tasks]
        ready = [one for one in prepared if one is not None]
        if len(ready) < 2:
            return ready[0] if ready else None
        calls = cycle([one.call for one in ready])
        return Prepared(lambda: next(calls)(), ready[0].answer, ready[0].note)

    @property
    def installed(self) -> bool:
        return all(importlib.util.find_spec(module) for module in self.modules)

    @property
    def version(self) -> str:
        """Names and versions of its packages."""
        versions = [f"{package} {importlib.metadata.version(package)}" for package in self.packages.split()]
        return ", ".join([*versions, f"numbaconv {__version__}"] if self.name.startswith("numbaconv") else versions)


OURS = (
    Contender("numbaconv", numbaconv),
    Contender("numbaconv_out", numbaconv_out, reuses_output=True),
    Contender("numbaconv_function", numbaconv_function),
)
PEERS = (
    Contender("torch", torch, ("torch",), "torch"),
    Contender("torch_cl", torch_cl, ("torch",), "torch"),
    Contender("ort", ort, ("onnxruntime", "onnx"), "onnxruntime onnx", reuses_output=True),
    Contender("openvino", openvino, ("openvino",), "openvino", reuses_output=True),
    Contender("jax", jax, ("jax",), "jax"),
    Contender("oaconvolve", oaconvolve, ("scipy",), "scipy"),
    Contender("ndimage", ndimage, ("scipy",), "scipy"),
    Contender("opencv", opencv, ("cv2",), "opencv-python-headless"),
)


def find_peers(names: Sequence[str] | None = None, peers: Sequence[Contender] = PEERS) -> list[Contender]:
    """Peers by name, "scipy" for both of its own; all without ``names``.  ValueError for a name that none has."""
    found: dict[str, Contender] = {}
    for name in names or [peer.name for peer in peers]:
        named = [peer for peer in peers if peer.name == name] or [peer for peer in peers if peer.modules[0] == name]
        if not named:
            known = dict.fromkeys(name for peer in peers for name in (peer.name, peer.modules[0]))
            raise ValueError(f"--against must be names out of {', '.join(known)}, got {name!r}")
        found.update({peer.name: peer for peer in named})
    return list(found.values())
