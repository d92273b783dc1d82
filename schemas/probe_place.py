"""What a program at a point can read there: names to C, bound to the running kernel and machine.

A place answers ``number(name)`` with C of type s64, ``text(name)`` with its size and a statement that fills a
buffer. Both are made of checked names and numbers only; None says that the point has no
such thing. ``known`` lists what it has, for people.
"""

import platform
import re
from dataclasses import dataclass, field
from typing import Protocol

from schemas.errors import UsageError
from schemas.probe_point import Point

Filling = tuple[int, str]  # bytes, and the statement with {to} for the buffer
DATA_LOC = 64  # bytes taken of a text whose length varies


@dataclass(frozen=True)
class Machine:
    """Where a processor keeps what a function takes and gives: members of pt_regs, as C behind ``ctx->``."""

    arguments: tuple[str, ...]
    result: str
    stack: str
    frame: str  # the frame pointer
    here: str  # the next instruction
    members: tuple[str, ...]  # of the kernel's struct
    return_pops: int  # bytes that returning takes off the stack


MACHINES = {
    "x86_64": Machine(
        ("di", "si", "dx", "cx", "r8", "r9"), "ax", "sp", "bp", "ip",
        ("di", "si", "dx", "cx", *(f"r{n}" for n in range(8, 16)), "ax", "bx", "bp", "sp", "ip"),
        8,
    ),
    "aarch64": Machine(
        tuple(f"regs[{n}]" for n in range(6)), "regs[0]", "sp", "regs[29]", "pc", ("regs", "sp", "pc"), 0
    ),
}  # fmt: skip


def machine() -> Machine:
    """This one. Raises :class:`UsageError`."""
    name = platform.machine()
    if name not in MACHINES:
        raise UsageError(f"arguments of functions are not known on {name}; use a tracepoint")
    return MACHINES[name]


class Place(Protocol):
    """See the module."""

    @property
    def hook(self) -> str:
        """The head of its program: ``TRACEPOINT(sched, sched_switch)``."""

    @property
    def context(self) -> str:
        """The C type of ctx."""

    @property
    def needs(self) -> str:
        """C that precedes the programs."""

    @property
    def known(self) -> tuple[str, ...]:
        """What it has, for people."""

    def number(self, name: str) -> str | None:
        """The C of a number."""

    def text(self, name: str) -> Filling | None:
        """How to read a text."""


@dataclass(frozen=True)
class FormatField:
    """A field of a tracepoint, from its format file."""

    type: str
    name: str
    offset: int
    size: int
    signed: bool


_FIELD = re.compile(r"\tfield:(.+?);\toffset:(\d+);\tsize:(\d+);\tsigned:([01]);")


def read_format(text: str) -> tuple[FormatField, ...]:
    """The fields of /sys/kernel/tracing/events/…/format; those every tracepoint has are left out."""
    found = []
    for declared, offset, size, signed in _FIELD.findall(text):
        match = re.fullmatch(r"(.*?)\s*\b(\w+)(\[[^\]]*\])?", declared.strip())
        if match and not match[2].startswith("common_"):
            kind = " ".join((match[1] + (match[3] or "")).split())
            found.append(FormatField(kind, match[2], int(offset), int(size), signed == "1"))
    return tuple(found)


@dataclass
class TracepointPlace:
    """A classic tracepoint: fields by its format."""

    category: str
    name: str
    fields: tuple[FormatField, ...]
    context: str = "void"
    needs: str = ""

    @property
    def hook(self) -> str:
        """The head of its program."""
        return f"TRACEPOINT({self.category}, {self.name})"

    @property
    def known(self) -> tuple[str, ...]:
        """Names of its fields."""
        return tuple(each.name for each in self.fields)

    def _field(self, name: str) -> FormatField | None:
        return next((each for each in self.fields if each.name == name), None)

    def number(self, name: str) -> str | None:
        """A scalar or pointer field."""
        if name == "retval" and self.category in ("syscalls", "raw_syscalls"):
            name = "ret"
        found = self._field(name)
        if found is None or found.size not in (1, 2, 4, 8) or "[" in found.type:
            return None
        size, signed = found.size, found.signed
        if self.category == "syscalls" and found.type in ("int", "unsigned int", "umode_t"):
            size, signed = 4, found.type == "int"  # kept in a register's width
        kind = f"{'s' if signed else 'u'}{size * 8}"
        return f"(s64)*({kind} *)((u8 *)ctx + {found.offset})"

    def text(self, name: str) -> Filling | None:
        """``char x[16]`` or a text whose place is noted."""
        found = self._field(name)
        if found is None or "char" not in found.type or "[" not in found.type:
            return None
        if found.type.startswith("__data_loc"):
            at = f"(u8 *)ctx + (*(u32 *)((u8 *)ctx + {found.offset}) & 0xffff)"
            return DATA_LOC, f"bpf_probe_read_kernel_str({{to}}, {DATA_LOC}, {at});"
        if found.size > 128:
            return None
        return found.size, f"bpf_probe_read_kernel({{to}}, {found.size}, (u8 *)ctx + {found.offset});"


@dataclass
class RawPlace:
    """A raw tracepoint: arguments by the names that the running kernel's BTF gives them."""

    name: str
    context: str = "u64"
    needs: str = ""
    known: tuple[str, ...] = ("the tracepoint's arguments",)

    @property
    def hook(self) -> str:
        """The head of its program."""
        return f"TP_BTF({self.name})"

    def number(self, name: str) -> str | None:
        """Any argument; the loader refuses those the kernel does not have."""
        return f"(s64)ARG({self.name}, {name})" if re.fullmatch(r"[a-z_][a-z0-9_]*", name) else None

    def text(self, name: str) -> Filling | None:
        """None: texts are behind pointers, kstr() reads them."""
        return None


@dataclass
class FunctionPlace:
    """The entry or return of a function, by registers; or a marker in a binary, by its own list of them."""

    label: str  # names the program
    returns: bool = False
    arguments: dict[str, str] = field(default_factory=dict)  # of a marker: arg0 → C
    is_marker: bool = False
    of_kernel: bool = False
    context: str = "struct pt_regs"

    @property
    def hook(self) -> str:
        """The head of its program."""
        return f"{'UPROBE' if self.of_kernel else 'UPROBE_MULTI'}({self.label})"

    @property
    def needs(self) -> str:
        """The registers."""
        return f"KERNEL_STRUCT(pt_regs, {', '.join(machine().members)})\n"

    @property
    def known(self) -> tuple[str, ...]:
        """Arguments, or the result."""
        if self.is_marker:
            return tuple(self.arguments)
        return ("retval",) if self.returns else tuple(f"arg{n}" for n in range(len(machine().arguments)))

    def number(self, name: str) -> str | None:
        """``arg0`` …, ``retval``."""
        if self.is_marker:
            return self.arguments.get(name)
        if self.returns:
            return f"(s64)ctx->{machine().result}" if name == "retval" else None
        known = {f"arg{n}": each for n, each in enumerate(machine().arguments)}
        return f"(s64)ctx->{known[name]}" if name in known else None

    def text(self, name: str) -> Filling | None:
        """None: texts are behind pointers, str() reads them."""
        return None


@dataclass
class SamplePlace:
    """A perf event: nothing of its own."""

    context: str = "void"
    needs: str = ""
    hook: str = "PERF_EVENT(sample)"
    known: tuple[str, ...] = ()

    def number(self, name: str) -> str | None:
        """None."""
        return None

    def text(self, name: str) -> Filling | None:
        """None."""
        return None


@dataclass(frozen=True)
class Bound:
    """A probe's places on a host: where it begins (or all happens), and where it ends."""

    begin: Place
    end: Place | None = None
    by_stack: bool = False  # pairs meet by thread and stack pointer, so that recursion is told apart


def bind_simple(point: Point, label: str) -> Place:
    """The place of a point that needs no look at the host; tracepoints and markers do."""
    if point.kind == "raw":
        return RawPlace(point.parts[0])
    if point.kind in ("software", "hardware", "profile"):
        return SamplePlace()
    return FunctionPlace(label, point.kind in ("uretprobe", "kretprobe"), of_kernel=not point.is_user)
