"""Weight and bias of a layer: initialisation, assignment, state dicts and safetensors files."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from os import PathLike
from typing import Any, Self

import numpy as np

from .arguments import integer, shown, shown_shape
from .arrays import HOST, AnyArray, check_array, check_memory, device_number, dtype_named, name_of, overlaps_itself
from .device import DeviceArray
from .memory import memory_of

_DTYPES = ("float64", "float32", "float16", "bfloat16", "complex64", "complex128")


class Parameters:
    """The two arrays of a layer; its base class."""

    out_channels: int
    _device: int  # where they are drawn: HOST, or the number of a CUDA device
    _dtype: np.dtype[Any]
    _weight: AnyArray | None  # None: a lazy layer that has not been called
    _bias: AnyArray | None

    @property
    def weight(self) -> AnyArray:
        """The filters: (out_channels, in_channels / groups, *kernel_size); transposed (in_channels, out_channels / groups, *kernel_size).

        Any array of that shape and of the layer's dtype can be assigned; it is kept as it is, not copied.
        """
        return self._parameters()[0]

    @weight.setter
    def weight(self, value: AnyArray) -> None:
        self._weight = self._checked_parameter("weight", value, self.weight.shape)

    @property
    def bias(self) -> AnyArray | None:
        """The bias, (out_channels,), or None; such an array or None can be assigned."""
        return self._parameters()[1]

    @bias.setter
    def bias(self, value: AnyArray | None) -> None:
        self._bias = None if value is None else self._checked_parameter("bias", value, (self.out_channels,))

    def _parameters(self) -> tuple[AnyArray, AnyArray | None]:
        if self._weight is None:
            raise ValueError(f"{type(self).__name__} must be called once before it has weight and bias: its input tells in_channels")
        return self._weight, self._bias

    def _checked_parameter(self, name: str, value: Any, shape: tuple[int, ...]) -> AnyArray:
        array = check_array(name, value)
        if name_of(array) != self._dtype.name:
            raise TypeError(f"{name} must have the layer's dtype {self._dtype.name}, got {name_of(array)}: convert it with .astype")
        if array.shape != shape:
            raise ValueError(f"{name} must have shape {shown_shape(shape)}, got {shown_shape(array.shape)}")
        parameter: AnyArray = value
        return parameter

    def _draw(self, weight_shape: tuple[int, ...], bias_shape: tuple[int] | None, rng: np.random.Generator) -> None:
        """torch's initialisation, kaiming_uniform(a=sqrt(5)): U(-b, b) with b = 1 / sqrt(fan_in), the weight first, then the bias.

        fan_in is prod(weight_shape[1:]), for transposed layers too.
        """
        fan_in = math.prod(weight_shape[1:])
        bound = 1 / math.sqrt(fan_in) if fan_in else 0.0
        self._weight = _uniform(rng, bound, weight_shape, self._dtype)
        self._bias = None if bias_shape is None else _uniform(rng, bound, bias_shape, self._dtype)
        self._move()

    # ---- devices ---------------------------------------------------------------------------------------------------
    _ARRAYS = ("_weight", "_bias", "weight_grad", "bias_grad")

    def to(self, device: str) -> Self:
        """Copy weight, bias and their gradients to ``"cpu"``, ``"cuda"`` (the current device) or ``"cuda:N"``; returns the layer.

        What is there already stays as it is.  On a CUDA device the copies are numba.cuda's arrays; any other library's can be assigned.
        """
        self._device = device_named(device)
        self._move()
        return self

    def _move(self) -> None:
        for name in self._ARRAYS:
            value = getattr(self, name, None)
            if value is not None:
                setattr(self, name, moved(value, self._device))

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled: arrays on a device by way of the host."""
        return {name: moved(value, HOST) if name in self._ARRAYS and value is not None else value for name, value in vars(self).items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._move()

    # ---- state -----------------------------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, AnyArray]:
        """``{"weight": weight, "bias": bias}`` (no "bias" where it is None): the arrays themselves, as torch, no copies.

        A lazy layer has no state before its first call: ValueError.
        """
        return {"weight": self.weight} | ({} if self.bias is None else {"bias": self.bias})

    def load_state_dict(self, state_dict: Mapping[str, AnyArray]) -> None:
        """Copy the arrays of ``state_dict`` into ``weight`` and ``bias``, in place, converted to the layer's dtype as torch does.

        Raises ValueError for a missing key, an unexpected one or another shape, TypeError for values that are no arrays or complex
        for a real layer; nothing is written then.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"state_dict must be a mapping from names to arrays, got {shown(state_dict)}")
        parameters = self.state_dict()
        self._check_keys("state_dict", state_dict)
        for name, parameter in parameters.items():
            value, into = check_array(name, state_dict[name]), check_array(name, parameter)
            if value.shape != into.shape:
                raise ValueError(
                    f"{name} must have shape {shown_shape(into.shape)} for {self!r}, got {shown_shape(value.shape)} in state_dict"
                )
            if name_of(value).startswith("complex") and self._dtype.kind != "c":
                raise TypeError(f"{name} must be real for a layer of dtype {self._dtype.name}, got {name_of(value)} in state_dict")
            if not (into if type(into) is DeviceArray else into.flags).writeable or overlaps_itself(into):
                raise ValueError(f"{name} of the layer must be writeable and not overlap itself to load into it: assign it instead")
        with np.errstate(over="ignore"):
            for name, parameter in parameters.items():
                into, value = check_array(name, parameter), moved(state_dict[name], HOST)
                memory_of(into).overwrite(into, value.astype(self._dtype, copy=False))

    def load_safetensors(self, path: str | PathLike[str], prefix: str = "") -> None:
        """Load ``prefix + "weight"`` and ``prefix + "bias"`` of a safetensors file, as :meth:`load_state_dict` does.

        Other names that start with ``prefix`` are unexpected keys: ValueError.  Needs the package safetensors
        (``pip install "numbaconv[safetensors]"``), for bfloat16 also ml_dtypes.  Source of the format: https://huggingface.co/docs/safetensors
        """
        try:
            from safetensors import SafetensorError, safe_open
        except ImportError as error:
            raise ImportError('load_safetensors needs the package safetensors: pip install "numbaconv[safetensors]"') from error
        if not isinstance(prefix, str):
            raise TypeError(f"prefix must be a string, got {shown(prefix)}")
        try:
            with safe_open(path, framework="np") as file:
                names = [name.removeprefix(prefix) for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118  (not a mapping)
                self._check_keys(f"{path} below prefix {prefix!r}", names)
                if any(file.get_slice(prefix + name).get_dtype() == "BF16" for name in names):
                    dtype_named("bfloat16")  # safetensors asks NumPy for that name
                self.load_state_dict({name: file.get_tensor(prefix + name) for name in names})
        except SafetensorError as error:
            raise ValueError(f"path must be a safetensors file, got {path}: {error}") from error

    def _check_keys(self, where: str, names: Iterable[str]) -> None:
        expected, found = self.state_dict().keys(), set(names)
        missing, unexpected = sorted(expected - found), sorted(found - expected, key=str)
        if missing or unexpected:
            problems = [f"{what} {keys}" for what, keys in (("missing", missing), ("unexpected", unexpected)) if keys]
            raise ValueError(f"{where} must have exactly the keys {sorted(expected)} for {self!r}: {', '.join(problems)}")


def device_named(device: Any) -> int:
    """The number of the CUDA device that a layer's ``device`` names, or HOST; ValueError where it names none."""
    if device is None or (isinstance(device, str) and device == "cpu"):
        return HOST
    if not isinstance(device, str):
        raise TypeError(f"device must be None, 'cpu', 'cuda' or 'cuda:N', got {shown(device)}")
    if device.partition(":")[0] != "cuda":
        raise ValueError(f"device must be None, 'cpu', 'cuda' or 'cuda:N', got {device!r}")
    from . import cuda

    reason = cuda.unavailable_reason()
    if reason is not None:
        raise ValueError(f"device must be 'cpu' here, got {device!r}: {reason}")
    from .cuda.transfers import device_index

    return device_index(device)


def moved(value: Any, device: int) -> Any:
    """``value`` itself where it lives on that device already, a copy there where not."""
    array = check_array("array", value)
    if device_number(array) == device:
        return value
    host = memory_of(array).to_host(array)
    if device == HOST:
        return host
    from .cuda.transfers import to_device

    return to_device(host, device)


def generator(rng: Any) -> np.random.Generator:
    if rng is None or isinstance(rng, np.random.Generator):
        return np.random.default_rng(rng)
    return np.random.default_rng(integer("rng", rng, 0, ", a numpy.random.Generator or None"))


def _uniform(rng: np.random.Generator, bound: float, shape: tuple[int, ...], dtype: np.dtype[Any]) -> AnyArray:
    part = np.dtype(np.complex128 if dtype.kind == "c" else np.float64)
    check_memory(math.prod(shape) * (part.itemsize + dtype.itemsize))
    return rng.uniform(-bound, bound, (*shape, part.itemsize // 8)).view(part)[..., 0].astype(dtype)


def parameter_dtype(dtype: Any) -> np.dtype[Any]:
    if dtype is None:
        return np.dtype(np.float32)
    try:
        name = dtype if isinstance(dtype, str) and dtype in _DTYPES else np.dtype(dtype).name
    except (TypeError, ValueError):
        name = None
    if name not in _DTYPES:
        raise TypeError(f"dtype must be one of {', '.join(_DTYPES)}, got {shown(dtype)}")
    return dtype_named(name)
