"""The running kernel's own types, from /sys/kernel/btf/vmlinux. Standard library only.

    btf = Btf.read()
    btf.member("task_struct", "sched_info.run_delay")   # Member(offset=1016, …), sees through anonymous parts
    btf.arguments("kfree_skb")                          # ["skb", "location", "reason", "rx_sk"]
    btf.tracepoint_id("sched_switch")                   # what a tp_btf program attaches to
    btf.enum("skb_drop_reason")                         # {"SKB_NOT_DROPPED_YET": 0, …}

Format: kernel's Documentation/bpf/btf.rst. A parse takes about 0.1 s and 30 MB for a while: it happens in the
loader's child, never in the collector. What is not there is a :class:`MissingError`.
"""

import struct
from array import array
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path

from schemas.errors import BpfleetError

VMLINUX = Path("/sys/kernel/btf/vmlinux")
_MAGIC = 0xEB9F


class Kind(IntEnum):
    """``BTF_KIND_*``."""

    INT = 1
    PTR = 2
    ARRAY = 3
    STRUCT = 4
    UNION = 5
    ENUM = 6
    FWD = 7
    TYPEDEF = 8
    VOLATILE = 9
    CONST = 10
    RESTRICT = 11
    FUNC = 12
    FUNC_PROTO = 13
    VAR = 14
    DATASEC = 15
    FLOAT = 16
    DECL_TAG = 17
    TYPE_TAG = 18
    ENUM64 = 19


# 32-bit words that follow the three common ones: (always, for each of vlen)
_TAIL = {
    Kind.INT: (1, 0), Kind.ARRAY: (3, 0), Kind.STRUCT: (0, 3), Kind.UNION: (0, 3), Kind.ENUM: (0, 2),
    Kind.FUNC_PROTO: (0, 2), Kind.VAR: (1, 0), Kind.DATASEC: (0, 3), Kind.DECL_TAG: (1, 0),
    Kind.ENUM64: (0, 3),
}  # fmt: skip
_ALIASES = {Kind.TYPEDEF, Kind.VOLATILE, Kind.CONST, Kind.RESTRICT, Kind.TYPE_TAG}
_COMPOUND = {Kind.STRUCT, Kind.UNION}


class MissingError(BpfleetError):
    """The running kernel's BTF has no such type, member, argument or value."""


@dataclass(frozen=True)
class Member:
    """A member of a struct: bytes from the start of the outermost, type id, width if a bit field."""

    offset: int
    type: int
    bits: int


@dataclass
class Btf:
    """A parsed BTF blob; type ids are positions in it, id 0 is void."""

    words: "array[int]"
    strings: bytes
    positions: "array[int]"
    names: "array[int]"
    _found: dict[tuple[str, Kind], int] = field(default_factory=dict)

    @classmethod
    def read(cls, file: Path = VMLINUX) -> "Btf":
        """Parse ``file``. Raises :class:`BpfleetError` where the kernel offers none."""
        try:
            raw = file.read_bytes()
        except OSError:
            raise BpfleetError(
                f"this kernel offers no BTF at {file}; boot one built with CONFIG_DEBUG_INFO_BTF=y"
            ) from None
        if len(raw) < 24 or struct.unpack_from("=H", raw)[0] != _MAGIC:
            raise BpfleetError(f"{file} is not BTF of this machine's byte order")
        header, types, types_size, strings, strings_size = struct.unpack_from("=5I", raw, 4)
        words = array("I", raw[header + types : header + types + types_size])
        positions = _walk(words)
        names = array("I", [words[at] for at in positions])
        return cls(words, raw[header + strings : header + strings + strings_size], positions, names)

    def name(self, offset: int) -> str:
        """The string at ``offset`` of the string section."""
        return self.strings[offset : self.strings.index(b"\0", offset)].decode()

    def type_name(self, number: int) -> str:
        """A type's own name, "" if it has none."""
        return self.name(self.names[number])

    def find(self, name: str, kind: Kind) -> int | None:
        """Id of the first type of that name and kind."""
        if (name, kind) in self._found:
            return self._found[name, kind]
        offset = self.strings.find(b"\0" + name.encode() + b"\0") + 1
        start = 0
        while offset:
            try:
                start = self.names.index(offset, start)
            except ValueError:
                return None
            if self.kind(start) == kind:
                self._found[name, kind] = start
                return start
            start += 1
        return None

    def kind(self, number: int) -> Kind:
        """The kind of a type."""
        return Kind(self.words[self.positions[number] + 1] >> 24 & 31)

    def target(self, number: int) -> int:
        """The type (or size, where the kind has one) that a type names in its third word."""
        return self.words[self.positions[number] + 2]

    def strip(self, number: int) -> int:
        """The type behind typedefs, const, volatile and tags."""
        while number and self.kind(number) in _ALIASES:
            number = self.target(number)
        return number

    def rows(self, number: int, width: int) -> list["array[int]"]:
        """The entries that follow a type, ``width`` words each."""
        at = self.positions[number]
        count = self.words[at + 1] & 0xFFFF
        return [self.words[at + 3 + n * width : at + 3 + (n + 1) * width] for n in range(count)]

    def struct_id(self, name: str) -> int:
        """Id of a struct or union."""
        for kind in (Kind.STRUCT, Kind.UNION):
            found = self.find(name, kind)
            if found is not None:
                return found
        raise MissingError(f"this kernel has no struct {name}")

    def member(self, struct_name: str, path: str) -> Member:
        """A member, also one of a nested struct (``a.b``). Raises :class:`MissingError`."""
        number, offset, bits = self.struct_id(struct_name), 0, 0
        for part in path.split("."):
            found = self._member(self.strip(number), part)
            if found is None:
                raise MissingError(f"this kernel's struct {struct_name} has no member {path}")
            number, offset, bits = found.type, offset + found.offset, found.bits
        return Member(offset, number, bits)

    def _member(self, number: int, name: str) -> Member | None:
        """A direct member, or one of an anonymous struct or union inside."""
        if not number or self.kind(number) not in _COMPOUND:
            return None
        has_bits = self.words[self.positions[number] + 1] >> 31
        for string, kind, place in self.rows(number, 3):
            offset, bits = (place & 0xFFFFFF, place >> 24) if has_bits else (place, 0)
            if string and self.name(string):
                if self.name(string) == name:
                    return Member(offset // 8, kind, bits or offset % 8)
                continue
            inner = self._member(self.strip(kind), name)
            if inner is not None:
                return Member(offset // 8 + inner.offset, inner.type, inner.bits)
        return None

    def size(self, number: int) -> int:
        """Bytes of a type."""
        number = self.strip(number)
        kind = self.kind(number) if number else Kind.INT
        if kind is Kind.PTR:
            return 8
        if kind is Kind.ARRAY:
            element, _, count = self.array(number)
            return self.size(element) * count
        return self.target(number) if number else 0

    def array(self, number: int) -> tuple[int, int, int]:
        """(element type, index type, count) of an array."""
        at = self.positions[number] + 3
        return self.words[at], self.words[at + 1], self.words[at + 2]

    def is_signed(self, number: int) -> bool:
        """Whether an integer or enum type is signed."""
        at = self.positions[number]
        if self.kind(number) is Kind.INT:
            return bool(self.words[at + 3] >> 24 & 1)
        return bool(self.words[at + 1] >> 31)

    def tracepoint_id(self, name: str) -> int:
        """The type a tp_btf program names as its target. Raises :class:`MissingError`."""
        found = self.find(f"btf_trace_{name}", Kind.TYPEDEF)
        if found is None:
            raise MissingError(f"this kernel has no raw tracepoint {name}")
        return found

    def arguments(self, tracepoint: str) -> list[str]:
        """Names of a raw tracepoint's arguments, in the order of its context."""
        for prefix in ("__traceiter_", "__bpf_trace_", "__probestub_"):
            found = self.find(prefix + tracepoint, Kind.FUNC)
            if found is not None:
                return [self.name(string) for string, _ in self.rows(self.target(found), 2)][1:]
        raise MissingError(f"this kernel does not name the arguments of tracepoint {tracepoint}")

    def enum(self, name: str) -> dict[str, int]:
        """Values of an enum by its own name or, if it has none, by the name of one of its values."""
        for kind in (Kind.ENUM, Kind.ENUM64):
            found = self.find(name, kind)
            if found is None:
                found = self._enum_with(name, kind)
            if found is not None:
                return self._values(found)
        raise MissingError(f"this kernel has no enum {name}")

    def _enum_with(self, value: str, kind: Kind) -> int | None:
        offset = self.strings.find(b"\0" + value.encode() + b"\0") + 1
        width = 2 if kind is Kind.ENUM else 3
        for number in range(1, len(self.positions)) if offset else ():
            if self.kind(number) is kind and any(row[0] == offset for row in self.rows(number, width)):
                return number
        return None

    def _values(self, number: int) -> dict[str, int]:
        width = 2 if self.kind(number) is Kind.ENUM else 3
        signed = self.is_signed(number)
        values = {}
        for row in self.rows(number, width):
            value = row[1] if width == 2 else row[1] | row[2] << 32
            if signed and value >> (31 if width == 2 else 63):
                value -= 1 << (32 if width == 2 else 64)
            values[self.name(row[0])] = value
        return values


def _walk(words: "array[int]") -> "array[int]":
    """Where each type starts; the void type, number 0, borrows the first place."""
    always = [_TAIL.get(kind, (0, 0))[0] + 3 for kind in range(32)]  # type: ignore[call-overload]
    each = [_TAIL.get(kind, (0, 0))[1] for kind in range(32)]  # type: ignore[call-overload]
    positions, at, end = [0], 0, len(words)
    append = positions.append
    while at < end:
        append(at)
        info = words[at + 1]
        kind = info >> 24 & 31
        at += always[kind] + (each[kind] * (info & 0xFFFF) if each[kind] else 0)
    return array("I", positions)
