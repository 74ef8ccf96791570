"""Vectors of numbers for kernels: LLVM code behind numba intrinsics.

Numba has no vector type, and its vectoriser keeps no block of accumulators in registers.  The intrinsics here and in ``gemm`` and
``pack`` emit LLVM vectors; :class:`Vectors` is the common vocabulary.  They must stay module globals: a kernel that closes over an
intrinsic never hits the disk cache.

Memory is addressed by int64 byte addresses, so that one compiled signature serves every layout and read-only arrays; the dtype comes from
an argument of array type.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from .target import target

I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
FLOATS = {"float32": ir.FloatType(), "float64": ir.DoubleType()}


def int64(value: int) -> ir.Constant:
    return ir.Constant(I64, value)


class Vectors:
    """Emits operations on vectors of ``lanes`` elements of one Numba type into an LLVM builder: floating-point numbers and integers.

    A record of one field stands for the dtype that the field is named after: float16 and bfloat16, as their bits, are possible so.

    Pointers are to elements and need only an element's alignment.  Masks are vectors of ``lanes`` bits; lanes whose bit is
    clear are never read or written.
    """

    def __init__(self, builder: Any, dtype: Any, lanes: int | None = None) -> None:
        self.builder = builder
        self.name: str = next(iter(dtype.fields)) if isinstance(dtype, types.Record) else dtype.name
        self.bits: int = dtype.size * 8 if isinstance(dtype, types.Record) else dtype.bitwidth
        self.bytes = self.bits // 8
        self.floating = self.name in FLOATS
        self.element = FLOATS.get(self.name, ir.IntType(self.bits))
        self.lanes = lanes or target().lanes(dtype.name)
        self.vector = ir.VectorType(self.element, self.lanes)
        self.mask = ir.VectorType(I1, self.lanes)
        self.indices = ir.VectorType(I64, self.lanes)
        self.suffix = f"v{self.lanes}{'f' if self.floating else 'i'}{self.bits}"
        self.zero = self.constant(0.0 if self.floating else 0)
        self.no_lane = ir.Constant(self.mask, [0] * self.lanes)
        self.every_second = ir.Constant(self.mask, [lane % 2 == 0 for lane in range(self.lanes)])
        self.iota = ir.Constant(self.indices, list(range(self.lanes)))
        self._alignment = ir.Constant(I32, self.bytes)

    # ---- addresses -----------------------------------------------------------------------------------------------
    def pointer(self, address: Any) -> Any:
        """Element pointer from an int64 byte address."""
        return self.builder.inttoptr(address, self.element.as_pointer())

    def at(self, pointer: Any, index: Any) -> Any:
        """Pointer to the element ``index`` (int or LLVM int64) further on."""
        return self.builder.gep(pointer, [int64(index) if isinstance(index, int) else index])

    def nth(self, address: Any, multiples: dict[int, Any], n: int) -> Any:
        """Pointer to the n-th of elements that are as far apart as ``multiples`` tell: see :func:`odd_multiples`."""
        pointer = self.builder.inttoptr(address, I8.as_pointer())
        if n:
            scale = n & -n
            unit = self.builder.bitcast(pointer, ir.IntType(8 * scale).as_pointer())
            pointer = self.builder.gep(unit, [multiples[n // scale]])
        return self.builder.bitcast(pointer, self.element.as_pointer())

    # ---- values --------------------------------------------------------------------------------------------------
    def splat(self, value: Any) -> Any:
        """All lanes equal to a scalar, of the element type or int64."""
        vector = ir.VectorType(value.type, self.lanes)
        first = self.builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(I32, 0))
        return self.builder.shuffle_vector(
            first, ir.Constant(vector, ir.Undefined), ir.Constant(ir.VectorType(I32, self.lanes), [0] * self.lanes)
        )

    def constant(self, value: float) -> Any:
        return ir.Constant(self.vector, [value] * self.lanes)

    def scalar(self, pointer: Any) -> Any:
        """One element, unaligned."""
        return self.builder.load(pointer, align=self.bytes)

    def broadcast(self, pointer: Any) -> Any:
        """All lanes equal to the element at ``pointer``."""
        return self.splat(self.scalar(pointer))

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        """a * b + c, rounded once; on a target without the instruction rounded twice, in every lane alike."""
        if not target().fma:
            return self.builder.fadd(self.builder.fmul(a, b), c)
        return self._call("llvm.fma." + self.suffix, self.vector, [a, b, c])

    def add(self, a: Any, b: Any) -> Any:
        return (self.builder.fadd if self.floating else self.builder.add)(a, b)

    def multiply_add(self, a: Any, b: Any, c: Any) -> Any:
        """a * b + c: floating-point as :meth:`fma`, integers modulo 2**bits, and uint32 as pairs of int16 (see :meth:`pair_products`)."""
        if self.floating:
            return self.fma(a, b, c)
        return self.builder.add(c, self.pair_products(a, b) if self.name == "uint32" else self.builder.mul(a, b))

    def pair_products(self, a: Any, b: Any) -> Any:
        """Sums of the two products of pairs of int16, modulo 2**32: pmaddwd, which LLVM and a following addition make one vpdpwssd."""
        if target().pairs_instruction:
            pairs = ir.VectorType(ir.IntType(16), 2 * self.lanes)
            return self._call(target().pairs_instruction, self.vector, [self.builder.bitcast(x, pairs) for x in (a, b)])
        low, high = (self.builder.mul(half(a), half(b)) for half in (self._low_half, self._high_half))
        return self.builder.add(low, high)

    def _low_half(self, pair: Any) -> Any:
        return self._high_half(self.builder.shl(pair, self.constant(16)))

    def _high_half(self, pair: Any) -> Any:
        return self.builder.ashr(pair, self.constant(16))

    def shuffle(self, a: Any, b: Any, lanes: Sequence[int]) -> Any:
        """Lanes picked from the concatenation of two vectors."""
        return self.builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, len(lanes)), list(lanes)))

    def interleave(self, a: Any, b: Any) -> Any:
        """Lanes of two vectors by turns: twice as many."""
        return self.shuffle(a, b, [lane + half * self.lanes for lane in range(self.lanes) for half in range(2)])

    def transposed(self, rows: list[Any]) -> list[Any]:
        """The columns of a square of vectors: blocks of 1, 2, 4, ... lanes change places."""
        width, lanes = 1, range(self.lanes)
        while width < self.lanes:
            new = list(rows)
            for i in lanes:
                if not i & width:
                    low = [lane if not lane & width else self.lanes + lane - width for lane in lanes]
                    high = [lane + width if not lane & width else self.lanes + lane for lane in lanes]
                    new[i], new[i + width] = (self.shuffle(rows[i], rows[i + width], order) for order in (low, high))
            rows, width = new, 2 * width
        return rows

    @property
    def picks(self) -> bool:
        """Whether there is :meth:`pick`."""
        return self.bits * self.lanes == 512

    def pick(self, a: Any, b: Any, pointer: Any, offset: int = 0) -> Any:
        """Lanes picked from the concatenation of two vectors by the ``lanes`` int32 numbers at ``pointer``, plus ``offset``.

        One instruction of AVX-512, known at run time what :meth:`shuffle` must know before.
        """
        narrow = ir.VectorType(I32, self.lanes)
        numbers = self.builder.load(self.builder.bitcast(pointer, narrow.as_pointer()), align=4)
        numbers = self.builder.add(numbers, ir.Constant(narrow, [offset] * self.lanes))
        if self.bits == 64:
            numbers = self.builder.zext(numbers, self.indices)
        return self._call(f"llvm.x86.avx512.vpermi2var.p{'s' if self.bits == 32 else 'd'}.512", self.vector, [a, numbers, b])

    # ---- memory --------------------------------------------------------------------------------------------------
    def load(self, pointer: Any) -> Any:
        return self.builder.load(self._vector_pointer(pointer), align=self.bytes)

    def store(self, value: Any, pointer: Any) -> None:
        self.builder.store(value, self._vector_pointer(pointer), align=self.bytes)

    def masked_load(self, pointer: Any, mask: Any, otherwise: Any = None) -> Any:
        arguments = [self._vector_pointer(pointer), self._alignment, mask, otherwise or self.zero]
        return self._call(f"llvm.masked.load.{self.suffix}.p0", self.vector, arguments)

    def masked_store(self, value: Any, pointer: Any, mask: Any) -> None:
        arguments = [value, self._vector_pointer(pointer), self._alignment, mask]
        self._call(f"llvm.masked.store.{self.suffix}.p0", ir.VoidType(), arguments)

    def gather(self, pointer: Any, indices: Any, mask: Any, otherwise: Any = None) -> Any:
        """Elements at int64 vector ``indices`` (in elements, of any sign) from ``pointer``."""
        arguments = [self._addresses(pointer, indices), self._alignment, mask, otherwise or self.zero]
        return self._call(f"llvm.masked.gather.{self.suffix}.v{self.lanes}p0", self.vector, arguments)

    def scatter(self, value: Any, pointer: Any, indices: Any, mask: Any) -> None:
        """The opposite of :meth:`gather`."""
        arguments = [value, self._addresses(pointer, indices), self._alignment, mask]
        self._call(f"llvm.masked.scatter.{self.suffix}.v{self.lanes}p0", ir.VoidType(), arguments)

    def prefetch_for_reading(self, pointer: Any, level: int = 1) -> None:
        """Ask for the cache line at ``pointer``, into the cache of a level; any address is allowed."""
        arguments = [self.builder.bitcast(pointer, I8.as_pointer()), ir.Constant(I32, 0), ir.Constant(I32, 4 - level), ir.Constant(I32, 1)]
        self._call("llvm.prefetch.p0", ir.VoidType(), arguments)

    def prefetch_for_writing(self, pointer: Any) -> None:
        """Ask for the cache line at ``pointer``; any address is allowed."""
        arguments = [self.builder.bitcast(pointer, I8.as_pointer()), ir.Constant(I32, 1), ir.Constant(I32, 3), ir.Constant(I32, 1)]
        self._call("llvm.prefetch.p0", ir.VoidType(), arguments)

    # ---- masks ---------------------------------------------------------------------------------------------------
    def first(self, count: Any, start: int = 0) -> Any:
        """Mask of the lanes l with start + l < count (an LLVM int64)."""
        lanes = ir.Constant(self.indices, [start + lane for lane in range(self.lanes)])
        return self.builder.icmp_signed("<", lanes, self.splat(count))

    def mask_of(self, bits: Any) -> Any:
        """Mask from the low bits of an LLVM int64: bit l for lane l."""
        return self.builder.bitcast(self.builder.trunc(bits, ir.IntType(self.lanes)), self.mask)

    def bits_of(self, mask: Any) -> Any:
        """The opposite of :meth:`mask_of`, as an integer of ``lanes`` bits."""
        return self.builder.bitcast(mask, ir.IntType(self.lanes))

    def _addresses(self, pointer: Any, indices: Any) -> Any:
        offsets = self.builder.mul(indices, ir.Constant(self.indices, [self.bytes] * self.lanes))
        addresses = self.builder.add(self.splat(self.builder.ptrtoint(pointer, I64)), offsets)
        return self.builder.inttoptr(addresses, ir.VectorType(self.element.as_pointer(), self.lanes))

    def _vector_pointer(self, pointer: Any) -> Any:
        return self.builder.bitcast(pointer, self.vector.as_pointer())

    def _call(self, name: str, result: Any, arguments: list[Any]) -> Any:
        signature = ir.FunctionType(result, [argument.type for argument in arguments])
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, signature, name), arguments)


def odd_multiples(b: Any, step: Any, count: int) -> dict[int, Any]:
    """1, 3, 5 ... times a step in bytes: with one of these, and a power of two, one load can address each of up to 16 elements."""
    return {odd: b.mul(step, int64(odd)) for odd in range(1, count, 2)}


def counted(b: Any, count: Any, carried: list[Any], body: Callable[[Any, list[Any]], list[Any]]) -> list[Any]:
    """``for i in range(count): carried = body(i, carried)``; the values after it."""
    before = b.block
    head, inside, after = (b.append_basic_block("counted." + name) for name in ("head", "body", "after"))
    b.branch(head)
    b.position_at_end(head)
    i, values = b.phi(I64), [b.phi(value.type) for value in carried]
    b.cbranch(b.icmp_signed("<", i, count), inside, after)
    b.position_at_end(inside)
    new = body(i, list(values))
    for phi, start, end in zip([i, *values], [int64(0), *carried], [b.add(i, int64(1)), *new]):
        phi.add_incoming(start, before)
        phi.add_incoming(end, b.block)
    b.branch(head)
    b.position_at_end(after)
    return list(values)


def outlined(builder: Any, name: str, result: Any, arguments: Sequence[Any], emit: Callable[..., Any]) -> Any:
    """Call a function of the module's own, which ``emit(builder, *arguments)`` writes when it is first asked for by this name.

    It returns what ``emit`` does, of the LLVM type ``result``, or nothing where that is None.  Vectors for which there is no register
    then lie on a stack aligned to them; a kernel that the code were part of could not align its own any more.
    """
    function = builder.module.globals.get(name)
    if function is None:
        kind = ir.FunctionType(result or ir.VoidType(), [argument.type for argument in arguments])
        function = ir.Function(builder.module, kind, name)
        function.linkage = "internal"
        function.attributes.add("noinline")
        function.attributes.alignstack = target().vector_bytes
        body = ir.IRBuilder(function.append_basic_block())
        value = emit(body, *function.args)
        body.ret(value) if result else body.ret_void()
    return builder.call(function, arguments)


Case = tuple[int, Callable[[], None]]


def switch(builder: Any, value: Any, cases: list[Case], otherwise: Callable[[], None]) -> None:
    """Run what emits the code of the case that equals ``value``, each in a block of its own."""
    end, default = builder.append_basic_block("end"), builder.append_basic_block("otherwise")
    table = builder.switch(value, default)
    for number, emit in cases:
        block = builder.append_basic_block(f"case{number}")
        table.add_case(int64(number), block)
        builder.position_at_end(block)
        emit()
        builder.branch(end)
    builder.position_at_end(default)
    otherwise()
    builder.branch(end)
    builder.position_at_end(end)


def data_pointer(context: Any, builder: Any, array_type: Any, array: Any) -> Any:
    """Pointer to the first element of an array argument of an intrinsic."""
    return context.make_array(array_type)(context, builder, array).data


@intrinsic  # type: ignore[untyped-decorator]
def atomic_increment(typingctx: Any, counter: Any) -> Any:
    """counter[0]++ on an int64 array, atomically; the value before."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = data_pointer(context, builder, signature.args[0], arguments[0])
        return builder.atomic_rmw("add", pointer, int64(1), "monotonic")

    return types.int64(counter), codegen


@intrinsic  # type: ignore[untyped-decorator]
def lanes_of(typingctx: Any, like: Any) -> Any:
    """Elements in one vector of the dtype of the array ``like``, as a constant of the compiled code."""
    lanes = target().lanes(like.dtype.name)
    return types.int64(like), lambda context, builder, signature, arguments: int64(lanes)


@intrinsic  # type: ignore[untyped-decorator]
def address_of(typingctx: Any, array: Any) -> Any:
    """The int64 byte address of an array's first element, without the reference counting of ``array.ctypes``.

    Nothing then keeps the array alive: take the address again in the loop that uses it.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ptrtoint(data_pointer(context, builder, signature.args[0], arguments[0]), I64)

    return types.int64(array), codegen


@intrinsic  # type: ignore[untyped-decorator]
def borrowed(typingctx: Any, array: Any) -> Any:
    """The same array without an owner: a kernel that takes it counts no references, which are two atomic instructions a call.

    The owner must live longer: borrow again in each turn of the loop that uses the array.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lent = context.make_array(signature.return_type)(context, builder, arguments[0])
        lent.meminfo = context.get_constant_null(types.MemInfoPointer(signature.return_type.dtype))  # type: ignore[attr-defined]
        return lent._getvalue()

    return array(array), codegen


@intrinsic  # type: ignore[untyped-decorator]
def load_element(typingctx: Any, address: Any, like: Any) -> Any:
    """The element at an int64 byte address, of the dtype of the array ``like``."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], context.get_data_type(signature.return_type).as_pointer())
        return builder.load(pointer, align=signature.return_type.bitwidth // 8)

    return like.dtype(types.int64, like), codegen


@intrinsic  # type: ignore[untyped-decorator]
def store_element(typingctx: Any, address: Any, value: Any) -> Any:
    """Write a scalar to an int64 byte address."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], arguments[1].type.as_pointer())
        builder.store(arguments[1], pointer, align=signature.args[1].bitwidth // 8)
        return context.get_dummy_value()

    return types.void(types.int64, value), codegen
