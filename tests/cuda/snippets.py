"""Short kernels written by hand, for the tests of the emulator."""

from __future__ import annotations

from typing import Any

import numpy as np

from .emulator import Memory, Program, launch

ORDERS = ("forward", "reverse", "random:1", "together")
REGISTERS = """
    .reg .pred %p<20>; .reg .b16 %h<20>; .reg .b32 %r<40>; .reg .f32 %f<40>; .reg .b64 %d<40>; .reg .f64 %g<20>;
    .reg .pred carry;
"""


def kernel(body: str, parameters: str = "u64 out", declarations: str = "") -> Program:
    """A kernel with ``parameters`` such as ``"u64 out, u32 n"``.  %d0 is the first one, %r0 the thread's number in its block."""
    declared = ", ".join(f".param .{parameter.strip()}" for parameter in parameters.split(","))
    first = parameters.split(",")[0].split()[1]
    return Program(f"""
        .version 8.0
        .target sm_80
        .address_size 64
        {declarations}
        .visible .entry snippet({declared})
        {{
            {REGISTERS}
            ld.param.u64 %d0, [{first}];
            mov.u32 %r0, %tid.x;
            {body}
            ret;
        }}
    """)


def run(
    program: Program,
    *arrays: np.ndarray,
    numbers: tuple[Any, ...] = (),
    grid: int = 1,
    block: int = 32,
    shared_bytes: int = 0,
    order: str = "forward",
) -> list[np.ndarray]:
    """Launch with the addresses of the arrays, then the numbers; the arrays afterwards."""
    memory = Memory(1 << 22)
    addresses = [memory.allocate(array.nbytes) for array in arrays]
    for address, array in zip(addresses, arrays):
        memory.write(address, array)
    launch(program, [*addresses, *numbers], grid, block, shared_bytes, memory=memory, order=order)
    return [memory.read(address, array.shape, array.dtype) for address, array in zip(addresses, arrays)]


LETTERS = {"16": "%h", "32": "%r", "64": "%d"}


def evaluate(instruction: str, result: str, *operands: tuple[str, np.ndarray]) -> np.ndarray:
    """One instruction, one thread an element: ``evaluate("add.f32 $, $, $;", "f32", ("f32", x), ("f32", y))``.

    ``$`` stands for the result and the operands, in order (%f10, %f11, ...); the types are those of the registers.
    """
    count = len(operands[0][1])
    pieces, names, final = [], [], ""
    for at, kind in enumerate([result, *(kind for kind, _ in operands)]):
        bits = kind.lstrip("busf")
        letter = {"f32": "%f", "f64": "%g"}.get(kind, LETTERS[bits])
        names.append(name := f"{letter}{at + 10}")
        moved = kind if letter in "%f%g" else f"b{bits}"
        if at:
            pieces.append(f"ld.param.u64 %d1, [p{at}]; mad.wide.u32 %d1, %r0, {int(bits) // 8}, %d1; ld.global.{moved} {name}, [%d1];")
        else:
            final = f"mad.wide.u32 %d0, %r0, {int(bits) // 8}, %d0; st.global.{moved} [%d0], {name};"
    parts = iter(names)
    text = "".join(next(parts) if character == "$" else character for character in instruction)
    program = kernel("\n".join([*pieces, text, final]), ", ".join(f"u64 p{at}" for at in range(len(names))))
    letter = {"b": "u", "u": "u", "s": "i", "f": "f"}["u" if result == "bf16" else result[0]]
    out = np.zeros(count, f"{letter}{int(result.lstrip('busf')) // 8}")
    return run(program, out, *(array for _, array in operands), block=count)[0]
