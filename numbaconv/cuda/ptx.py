"""What a kernel cannot say in Numba's Python: typed access to raw addresses, asynchronous copies, narrow floats.

Every function here is an intrinsic of numba-cuda 0.30; no other module of the CUDA side knows llvmlite.  Global memory is addressed by
uint64, shared memory by the uint32 address that :func:`shared_address` returns.  Loads from global memory are through the read-only
cache: a kernel must not read what it writes.

Source: https://docs.nvidia.com/cuda/parallel-thread-execution/
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba.cuda import types
from numba.cuda.extending import intrinsic

_I16, _I32, _I64, _F32, _F64 = ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType(), ir.DoubleType()
_GLOBAL, _SHARED = 1, 3  # address spaces

STORED = {
    "float64": (types.float64, _F64),
    "float32": (types.float32, _F32),
    "int8": (types.int8, ir.IntType(8)),
    "int16": (types.int16, _I16),
    "int32": (types.int32, _I32),
    "int64": (types.int64, _I64),
    "uint8": (types.uint8, ir.IntType(8)),
    "uint16": (types.uint16, _I16),
    "uint32": (types.uint32, _I32),
}
"""The real dtypes that one load or store instruction moves."""


def _sizeof(kind: ir.Type) -> int:
    return {_F32: 4, _F64: 8}.get(kind) or kind.width // 8


def _asm(builder: Any, result: ir.Type, arguments: Sequence[Any], text: str, constraints: str, *, effect: bool) -> Any:
    """Inline PTX; with ``effect`` it is neither moved nor dropped."""
    kind = ir.FunctionType(result, [a.type for a in arguments])
    return builder.asm(kind, text, constraints, list(arguments), effect)


def _pointer(builder: Any, address: Any, kind: ir.Type, space: int) -> Any:
    return builder.inttoptr(address, ir.PointerType(kind, space))


# ---- global and shared memory ------------------------------------------------------------------------------------------
@functools.cache
def load(name: str, lanes: int = 1) -> Any:
    """``load(name)(address)``: the element of this dtype at a global address that no thread of the kernel writes.

    With ``lanes`` of 2 or 4, a tuple of so many neighbours in one instruction, whose address is a multiple of its size.
    """
    return _loader(name, lanes, types.uint64, _GLOBAL)


@functools.cache
def load_where(name: str, lanes: int = 1) -> Any:
    """``load_where(name, lanes)(address, taken)``: 1, 2 or 4 neighbours as a tuple; zeros, and nothing is read, where not taken."""
    element, kind = STORED[name]
    letter = {_F32: "f", _F64: "d"}.get(kind) or {16: "h", 32: "r", 64: "l"}[kind.width]
    bits = _sizeof(kind) * 8
    names = ["$0", "$1", "$2", "$3"][:lanes]
    vector, group = f".v{lanes}" * (lanes > 1), ", ".join(names)
    text = f"{{ .reg .pred p; setp.ne.u32 p, ${lanes + 1}, 0; "
    text += "".join(f"mov.b{bits} {name}, 0; " for name in names)
    text += f"@p ld.global.nc{vector}.b{bits} " + (f"{{{group}}}" if lanes > 1 else group) + f", [${lanes}]; }}"
    constraints = ",".join([f"=&{letter}"] * lanes + ["l", "r"])

    @intrinsic
    def read(typing, address, taken):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            whole = kind if lanes == 1 else ir.LiteralStructType([kind] * lanes)
            wanted = builder.zext(arguments[1], _I32)
            value = _asm(builder, whole, [arguments[0], wanted], text, constraints, effect=False)
            parts = [value] if lanes == 1 else [builder.extract_value(value, i) for i in range(lanes)]
            return context.make_tuple(builder, signature.return_type, parts)

        return types.UniTuple(element, lanes)(address, types.boolean), generate

    return read


@functools.cache
def load_shared(name: str, lanes: int = 1) -> Any:
    """The same from shared memory."""
    return _loader(name, lanes, types.uint32, _SHARED)


def _loader(name: str, lanes: int, address_type: Any, space: int) -> Any:
    element, kind = STORED[name]
    whole = kind if lanes == 1 else ir.VectorType(kind, lanes)
    returned = element if lanes == 1 else types.UniTuple(element, lanes)

    @intrinsic
    def read(typing, address):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            value = builder.load(_pointer(builder, arguments[0], whole, space), align=_sizeof(kind) * lanes)
            if space == _GLOBAL:  # makes it ld.global.nc
                value.set_metadata("invariant.load", builder.module.add_metadata([]))
            if lanes == 1:
                return value
            parts = [builder.extract_element(value, _I32(i)) for i in range(lanes)]
            return context.make_tuple(builder, signature.return_type, parts)

        return returned(address_type), generate

    return read


@functools.cache
def store(name: str, lanes: int = 1) -> Any:
    """``store(name)(address, value)`` writes to global memory; with ``lanes`` of 2 or 4 a tuple of neighbours at once."""
    return _writer(name, lanes, types.uint64, _GLOBAL)


@functools.cache
def store_shared(name: str, lanes: int = 1) -> Any:
    """The same to shared memory."""
    return _writer(name, lanes, types.uint32, _SHARED)


def _writer(name: str, lanes: int, address_type: Any, space: int) -> Any:
    element, kind = STORED[name]
    whole = kind if lanes == 1 else ir.VectorType(kind, lanes)
    taken = element if lanes == 1 else types.UniTuple(element, lanes)

    @intrinsic
    def write(typing, address, value):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            place, given = arguments
            if lanes > 1:
                vector = ir.Constant(whole, ir.Undefined)
                for i in range(lanes):
                    vector = builder.insert_element(vector, builder.extract_value(given, i), _I32(i))
                given = vector
            builder.store(given, _pointer(builder, place, whole, space), align=_sizeof(kind) * lanes)
            return context.get_dummy_value()

        return types.void(address_type, taken), generate

    return write


@intrinsic
def shared_address(typing, array):  # type: ignore[no-untyped-def]
    """The uint32 address, within shared memory, of the first element of a ``cuda.shared.array``."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        generic = builder.ptrtoint(data, _I64)
        address = _asm(builder, _I64, [generic], "cvta.to.shared.u64 $0, $1;", "=l,l", effect=False)
        return builder.trunc(address, _I32)

    return types.uint32(array), generate


@intrinsic
def opaque(typing, address):  # type: ignore[no-untyped-def]
    """The same global address, which the compiler does not take apart: what is added later stays an offset in the instruction."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return _asm(builder, _I64, arguments, "mov.b64 $0, $1;", "=l,l", effect=False)

    return types.uint64(types.uint64), generate


# ---- asynchronous copies from global to shared memory (sm_80 and later) -----------------------------------------------------
@functools.cache
def copy_async(size: int, again: bool = False) -> Any:
    """``copy_async(size)(shared, address, taken)``: copy ``size`` bytes (4, 8 or 16, both addresses multiples of it).

    again : 16 bytes that are soon read again stay in the first-level cache, as fewer do anyway.

    ``taken`` is ``size`` or 0; with 0 nothing is read and zeros are written.  Visible to this thread after :func:`wait_async`, to the
    block's others after a barrier behind that.
    """
    cache = "cg" if size == 16 and not again else "ca"

    @intrinsic
    def copy(typing, shared, address, taken):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            text = f"cp.async.{cache}.shared.global [$0], [$1], {size}, $2;"
            _asm(builder, ir.VoidType(), arguments, text, "r,l,r,~{memory}", effect=True)
            return context.get_dummy_value()

        return types.void(types.uint32, types.uint64, types.uint32), generate

    return copy


def _statement(text: str) -> Any:
    @intrinsic
    def statement(typing):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            _asm(builder, ir.VoidType(), [], text, "~{memory}", effect=True)
            return context.get_dummy_value()

        return types.void(), generate

    return statement


commit_async = _statement("cp.async.commit_group;")
"""Close a group of this thread's asynchronous copies."""


@functools.cache
def wait_async(pending: int) -> Any:
    """``wait_async(pending)()`` waits until at most ``pending`` of this thread's newest groups are under way."""
    return _statement(f"cp.async.wait_group {pending};")


def _special(register: str) -> Any:
    @intrinsic
    def read(typing):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            return _asm(builder, _I32, [], f"mov.u32 $0, {register};", "=r", effect=True)

        return types.int32(), generate

    return read


thread_anew, block_anew = _special("%tid.x"), _special("%ctaid.x")
"""threadIdx.x and blockIdx.x, read once more: what is computed from them after a long loop takes no registers during it."""


# ---- arithmetic ------------------------------------------------------------------------------------------------------
def _convert(text: str, constraints: str, returned: Any, taken: Any, kind: ir.Type) -> Any:
    @intrinsic
    def convert(typing, value):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            return _asm(builder, kind, arguments, text, constraints, effect=False)

        return returned(taken), generate

    return convert


@functools.cache
def fma_where(name: str) -> Any:
    """``fma_where(name)(a, b, c, taken)``: a * b + c in one rounding, or c as it is; of float32 or float64."""
    element, kind = STORED[name]
    letter, bits = {"float32": ("f", 32), "float64": ("d", 64)}[name]
    text = f"{{ .reg .pred p; setp.ne.u32 p, $4, 0; @p fma.rn.f{bits} $0, $1, $2, $0; }}"

    @intrinsic
    def multiply_add(typing, a, b, c, taken):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            left, right, total, wanted = arguments
            given = [left, right, total, builder.zext(wanted, _I32)]
            return _asm(builder, kind, given, text, f"={letter},{letter},{letter},0,r", effect=False)

        return element(element, element, element, types.boolean), generate

    return multiply_add


half_to_float = _convert("cvt.f32.f16 $0, $1;", "=f,h", types.float32, types.uint16, _F32)
"""float16 bits to float32."""
float_to_half = _convert("cvt.rn.f16.f32 $0, $1;", "=h,f", types.uint16, types.float32, _I16)
"""float32 to float16 bits, to nearest even."""
bfloat_to_float = _convert("mov.b32 $0, {0, $1};", "=f,h", types.float32, types.uint16, _F32)
"""bfloat16 bits to float32."""
float_to_bfloat = _convert("cvt.rn.bf16.f32 $0, $1;", "=h,f", types.uint16, types.float32, _I16)
"""float32 to bfloat16 bits, to nearest even."""
