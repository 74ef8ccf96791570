"""PTX text to statements: the entry's name and parameters, its registers, its variables, its instructions and labels.

The grammar is that of NVIDIA's "PTX ISA"; only what a compiler writes for one kernel is read: one ``.entry``, no ``.func``.  Inline PTX
opens scopes with braces of its own, with registers and labels that are visible only there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

# PTX types of registers, memory and immediate values.  bfloat16 and packed pairs have no NumPy type: they are handled as their bits.
DTYPES: dict[str, np.dtype] = {
    name: np.dtype(kind)
    for kind, names in {
        "?": "pred", "u1": "b8 u8", "i1": "s8", "u2": "b16 u16 bf16", "i2": "s16", "u4": "b32 u32 f16x2 bf16x2 tf32", "i4": "s32",
        "u8": "b64 u64", "i8": "s64", "f2": "f16", "f4": "f32", "f8": "f64",
    }.items()
    for name in names.split()
}  # fmt: skip

Scope = tuple[int, ...]  # the braces around a statement, outermost first


class Unsupported(NotImplementedError):
    """The PTX holds something this emulator does not know."""


@dataclass(frozen=True)
class Instruction:
    opcode: tuple[str, ...]  # ("ld", "global", "v4", "f32")
    operands: tuple[str, ...]
    guard: str  # "%p1", "!%p1", or "" where there is none
    scope: Scope
    line: int
    text: str

    @property
    def type(self) -> str:
        return self.opcode[-1]

    def __str__(self) -> str:
        return f"line {self.line}: {self.text}"


@dataclass(frozen=True)
class Variable:
    name: str
    space: str  # "shared", "local", "global", "const"
    align: int
    nbytes: int
    dynamic: bool  # extern shared memory, whose size the launch gives
    data: bytes  # initial contents, "" where there are none


def split(operands: str) -> tuple[str, ...]:
    """``a, {b, c}, [d, {e}]`` at its outer commas."""
    parts, depth, start = [], 0, 0
    for at, character in enumerate(operands):
        if character in "{[(":
            depth += 1
        elif character in "}])":
            depth -= 1
        elif character == "," and depth == 0:
            parts.append(operands[start:at].strip())
            start = at + 1
    parts.append(operands[start:].strip())
    return tuple(part for part in parts if part)


def inner(operand: str) -> tuple[str, ...]:
    """The elements of a vector operand ``{a, b}``; a scalar is a vector of one."""
    return split(operand[1:-1]) if operand.startswith("{") else (operand,)


def without_comments(ptx: str) -> str:
    """Comments become blank; lines keep their numbers."""
    return re.sub(r"//[^\n]*|/\*.*?\*/", lambda found: "\n" * found[0].count("\n"), ptx, flags=re.DOTALL)


class Source:
    """One kernel's PTX, read once.

    Attributes
    ----------
    name : the entry's name
    parameters : (name, PTX type, bytes) of each kernel parameter, in order
    limits : {"maxntid": (x, y, z)} and the like, from the entry's header
    instructions : in textual order
    labels : (scope, label) -> number of the instruction after it
    tables : (scope, label) -> the labels of a ``.branchtargets`` list
    variables : name -> :class:`Variable`
    """

    def __init__(self, ptx: str) -> None:
        text = without_comments(ptx)
        entry = re.search(r"\.entry\s+([\w$.]+)\s*\(([^)]*)\)([^{]*)\{", text)
        if entry is None:
            raise Unsupported("no .entry in this PTX")
        if len(re.findall(r"\.entry\b", text)) > 1 or re.search(r"^\s*(\.visible\s+)?\.func\b", text, re.MULTILINE):
            raise Unsupported("only PTX of a single .entry without .func is read")
        self.name = entry[1]
        self.parameters = [_parameter(declared) for declared in split(entry[2])]
        self.limits = {
            name: tuple(int(part) for part in sizes.split(",")) for name, sizes in re.findall(r"\.(\w+)\s+(\d+(?:\s*,\s*\d+)*)", entry[3])
        }
        self.variables: dict[str, Variable] = {}
        self.instructions: list[Instruction] = []
        self.labels: dict[tuple[Scope, str], int] = {}
        self.tables: dict[tuple[Scope, str], tuple[str, ...]] = {}
        self._families: dict[tuple[Scope, str], str] = {}  # (scope, prefix of numbered registers) -> type
        self._registers: dict[tuple[Scope, str], str] = {}
        for declaration in text[: entry.start()].split(";"):
            self._variable(declaration.strip())
        self._body(text, entry.end())

    def _body(self, text: str, start: int) -> None:
        scope: Scope = (0,)
        scopes, depth = 0, 0  # depth: braces of operands
        for mark in re.compile(r"[{}:;]").finditer(text, start):
            at, character = mark.start(), mark[0]
            statement = text[start:at].strip()
            if character == "{":
                if statement:
                    depth += 1
                    continue
                scopes += 1
                scope = (*scope, scopes)
            elif character == "}":
                if depth:
                    depth -= 1
                    continue
                if len(scope) == 1:
                    return
                scope = scope[:-1]
            elif character == ":":
                if depth or text[at + 1] == ":" or not re.fullmatch(r"[\w$]+", statement):
                    continue  # part of a name such as shared::cta
                self.labels[scope, statement] = len(self.instructions)
            elif depth:
                continue
            elif statement:
                line = text.count("\n", 0, at - len(text[start:at].lstrip())) + 1
                self._statement(statement, scope, line)
            start = at + 1

    def _statement(self, statement: str, scope: Scope, line: int) -> None:
        text = " ".join(statement.split())
        if text.startswith("."):
            directive, _, rest = text.partition(" ")
            if directive == ".reg":
                kind, _, names = rest.partition(" ")
                for name in split(names):
                    if (family := re.fullmatch(r"(.+)<\d+>", name)) is not None:
                        self._families[scope, family[1]] = kind[1:]
                    else:
                        self._registers[scope, name] = kind[1:]
            elif directive == ".branchtargets":
                *_, label = self.labels  # the latest one names this list
                self.tables[label] = split(rest)
            elif directive not in (".loc", ".pragma"):
                self._variable(text)
            return
        guard = ""
        if text.startswith("@"):
            guard, _, text = text[1:].partition(" ")
        opcode, _, operands = text.partition(" ")
        self.instructions.append(Instruction(tuple(opcode.split(".")), split(operands), guard, scope, line, text))

    def _variable(self, declaration: str) -> None:
        found = re.search(
            r"\.(shared|const|global|local)\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$]+)\s*(\[\d*\])?\s*(?:=\s*(.*))?$",
            declaration,
            re.DOTALL,
        )
        if found is None:
            return
        space, align, kind, name, size, initial = found.groups()
        dtype = DTYPES[kind]
        count = 0 if size == "[]" else int(size[1:-1]) if size else 1
        data = np.array([number(item, kind) for item in inner(initial.strip())], dtype).tobytes() if initial else b""
        nbytes = count * dtype.itemsize
        self.variables[name] = Variable(
            name, space, int(align or dtype.itemsize), nbytes, size == "[]", data.ljust(nbytes, b"\0") if data else b""
        )

    def register(self, name: str, scope: Scope) -> tuple[Scope, str, str] | None:
        """(scope, name, type) of the register that ``name`` means in ``scope``; None where it is no register."""
        prefix = name.rstrip("0123456789")
        for depth in range(len(scope), 0, -1):
            where = scope[:depth]
            kind = self._registers.get((where, name)) or self._families.get((where, prefix))
            if kind is not None:
                return where, name, kind
        return None

    def label(self, name: str, scope: Scope) -> int:
        for depth in range(len(scope), 0, -1):
            if (scope[:depth], name) in self.labels:
                return self.labels[scope[:depth], name]
        raise Unsupported(f"no label {name}")


def _parameter(declared: str) -> tuple[str, str, int]:
    found = re.search(r"\.param\s+(?:\.align\s+\d+\s+)?\.(\w+)\s+(?:\.ptr\b.*\s)?([\w$]+)\s*(?:\[(\d+)\])?$", declared, re.DOTALL)
    if found is None:
        raise Unsupported(f"parameter {declared}")
    kind, name, count = found.groups()
    return name, kind, DTYPES[kind].itemsize * int(count or 1)


def number(text: str, kind: str) -> int | float:
    """An immediate operand of PTX type ``kind``: as a float for floating-point types, else as an integer."""
    bits = re.fullmatch(r"(-?)0([fFdD])([0-9a-fA-F]+)", text)
    if bits is None:
        value = float(text) if re.search(r"[.eE]", text) and not text.lower().startswith("0x") else int(text.rstrip("U"), 0)
        return float(value) if kind in ("f16", "f32", "f64") else int(value)
    width = 4 if bits[2] in "fF" else 8
    raw = np.frombuffer(int(bits[3], 16).to_bytes(width, "little"), f"u{width}")
    if kind in ("f16", "f32", "f64"):
        value = float(raw.view(f"f{width}")[0])
        return -value if bits[1] else value
    return int(raw[0])
