"""Functions of an ELF file as numpy arrays, and its build id. Any bytes may come: nothing here trusts them.

Only what is needed is read, by pread, within the file's size and the limits below; names stay in the file and
are read one by one (:meth:`Elf.name`). 64-bit little-endian files; see
https://refspecs.linuxfoundation.org/elf/gabi4+/.
"""

import os
import struct
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

MAGIC = b"\x7fELF\x02\x01\x01"  # 64 bits, little-endian, version 1
PT_LOAD, PT_NOTE = 1, 4
SHT_SYMTAB, SHT_DYNSYM = 2, 11
FUNCTION, INDIRECT = 2, 10  # STT_FUNC, STT_GNU_IFUNC
NT_BUILD_ID = 3
SEGMENTS, SECTIONS = 256, 20_000  # headers read at most
NOTE_BYTES = 64 << 10
SYMBOLS = 8_000_000  # looked at in one file; the same holds
FUNCTIONS = 600_000  # kept of one file: 10 MB; of one with more, only the build id is known
CHUNK = 65_536  # symbols read at a time
NAME_BYTES = 4096
_SEGMENT = np.dtype(
    [("type", "<u4"), ("flags", "<u4"), ("offset", "<u8"), ("vaddr", "<u8"), ("paddr", "<u8"),
     ("filesz", "<u8"), ("memsz", "<u8"), ("align", "<u8")]
)  # fmt: skip
_SECTION = np.dtype(
    [("name", "<u4"), ("type", "<u4"), ("flags", "<u8"), ("addr", "<u8"), ("offset", "<u8"), ("size", "<u8"),
     ("link", "<u4"), ("info", "<u4"), ("align", "<u8"), ("entsize", "<u8")]
)  # fmt: skip
_SYMBOL = np.dtype(
    [("name", "<u4"), ("info", "u1"), ("other", "u1"), ("section", "<u2"), ("value", "<u8"), ("size", "<u8")]
)


class InvalidElf(ValueError):
    """No ELF file that we can read; the message says why."""


@dataclass(frozen=True)
class Elf:
    """What is kept of a file. ``addresses`` are the file's own (virtual addresses), in order."""

    build_id: str  # hexadecimal; "" if it has none
    segments: "NDArray[np.void]"  # PT_LOAD: offset, vaddr, filesz
    addresses: NDArray[np.uint64]
    sizes: NDArray[np.uint32]
    names: NDArray[np.uint32]  # place in the string table
    strings: tuple[int, int]  # where the string table lies in the file: offset, size
    full: bool  # has .symtab; else only what it exports is known

    @property
    def bytes(self) -> int:
        """Memory of the arrays."""
        return self.addresses.nbytes + self.sizes.nbytes + self.names.nbytes

    def address(self, offset: int) -> int:
        """The virtual address of a place in the file; the place itself where no segment has it."""
        for start, size, address in self._loaded:
            if start <= offset < start + size:
                return (offset - start + address) & (1 << 64) - 1
        return offset

    @cached_property
    def _loaded(self) -> list[tuple[int, int, int]]:
        """What is loaded, the last first: offset, size in the file, address."""
        rows: list[tuple[int, int, int]] = self.segments[["offset", "filesz", "vaddr"]].tolist()
        return rows[::-1]

    @cached_property
    def _numbers(self) -> memoryview:
        """The addresses as Python's own numbers: one at a time, they are found faster than by numpy."""
        return np.ascontiguousarray(self.addresses).data

    def find(self, address: int) -> int:
        """The index of the function an address lies in, or -1."""
        at = bisect_right(self._numbers, address) - 1
        if at < 0:
            return -1
        size = int(self.sizes[at])
        return at if not size or address - int(self.addresses[at]) < size else -1

    def name(self, fd: int, at: int) -> str:
        """The name of function ``at``, read from the file; "" when it cannot be."""
        start, size = self.strings
        place = int(self.names[at])
        if place >= size:
            return ""
        try:
            raw = os.pread(fd, min(NAME_BYTES, size - place), start + place)
        except OSError:
            return ""
        return raw.partition(b"\0")[0].decode("utf-8", "replace")


def read(fd: int) -> Elf:
    """Read an ELF file. Raises :class:`InvalidElf`, OSError."""
    total = os.fstat(fd).st_size
    head = _head(fd)
    (sections_at,) = struct.unpack_from("<Q", head, 40)
    section_size, section_count = struct.unpack_from("<HH", head, 58)
    segments = program_headers(fd)
    sections = _table(fd, sections_at, section_size, min(section_count, SECTIONS), _SECTION, total)
    loads = segments[segments["type"] == PT_LOAD]
    table = _symbol_table(sections)
    functions = _no_functions() if table is None else _functions(fd, table, total)
    strings = (0, 0) if table is None else _strings(sections, table, total)
    full = table is not None and int(table["type"]) == SHT_SYMTAB
    return Elf(_build_id(fd, segments, total), loads, *functions, strings, full)


def _head(fd: int) -> bytes:
    head = os.pread(fd, 64, 0)
    if len(head) < 64 or not head.startswith(MAGIC):
        raise InvalidElf("not a 64-bit little-endian ELF file")
    return head


def program_headers(fd: int) -> "NDArray[np.void]":
    """What is loaded where, and other parts. Raises :class:`InvalidElf`, OSError."""
    head = _head(fd)
    (offset,) = struct.unpack_from("<Q", head, 32)
    size, count = struct.unpack_from("<HH", head, 54)
    return _table(fd, offset, size, min(count, SEGMENTS), _SEGMENT, os.fstat(fd).st_size)


def _table(
    fd: int, offset: int, size: int, count: int, dtype: "np.dtype[np.void]", total: int
) -> "NDArray[np.void]":
    """Headers of one kind; none where the file does not hold them as it says."""
    if size != dtype.itemsize or offset > total or count * size > total - offset:
        return np.empty(0, dtype)
    raw = os.pread(fd, count * size, offset)
    return np.frombuffer(raw[: len(raw) // size * size], dtype)


def _symbol_table(sections: "NDArray[np.void]") -> "np.void | None":
    for kind in (SHT_SYMTAB, SHT_DYNSYM):
        found = sections[
            (sections["type"] == kind) & (sections["entsize"] == _SYMBOL.itemsize) & (sections["size"] > 0)
        ]
        if len(found):
            table: np.void = found[0]
            return table
    return None


def _strings(sections: "NDArray[np.void]", table: "np.void", total: int) -> tuple[int, int]:
    link = int(table["link"])
    if link >= len(sections):
        return 0, 0
    offset, size = int(sections[link]["offset"]), int(sections[link]["size"])
    return (offset, min(size, total - offset)) if offset < total else (0, 0)


Functions = tuple[NDArray[np.uint64], NDArray[np.uint32], NDArray[np.uint32]]


def _no_functions() -> Functions:
    return np.empty(0, np.uint64), np.empty(0, np.uint32), np.empty(0, np.uint32)


def _functions(fd: int, table: "np.void", total: int) -> Functions:
    """(addresses, sizes, names) of defined functions in order of address, one each."""
    offset, size = int(table["offset"]), int(table["size"])
    count = min(size, max(total - offset, 0)) // _SYMBOL.itemsize
    if count > SYMBOLS:
        return _no_functions()
    kept: list[NDArray[np.void]] = []
    functions = 0
    for first in range(0, count, CHUNK):
        raw = os.pread(fd, min(CHUNK, count - first) * _SYMBOL.itemsize, offset + first * _SYMBOL.itemsize)
        some = np.frombuffer(raw[: len(raw) // _SYMBOL.itemsize * _SYMBOL.itemsize], _SYMBOL)
        kind = some["info"] & 15
        chosen = ((kind == FUNCTION) | (kind == INDIRECT)) & (some["section"] != 0) & (some["value"] != 0)
        kept.append(some[chosen])
        functions += len(kept[-1])
        if functions > FUNCTIONS:
            return _no_functions()
    if not functions:
        return _no_functions()
    return _in_order(np.concatenate(kept))


def _in_order(symbols: "NDArray[np.void]") -> Functions:
    """Sorted; of several names of one place the longest-reaching, then a global one."""
    sizes = np.minimum(symbols["size"], 0xFFFFFFFF)
    order = np.lexsort((symbols["info"] >> 4 != 1, -sizes.astype(np.int64), symbols["value"]))
    _, first = np.unique(symbols["value"][order], return_index=True)
    order = order[first]
    return (
        symbols["value"][order].astype(np.uint64),
        sizes[order].astype(np.uint32),
        symbols["name"][order].astype(np.uint32),
    )


def _build_id(fd: int, segments: "NDArray[np.void]", total: int) -> str:
    for each in segments[segments["type"] == PT_NOTE]:
        offset, size = int(each["offset"]), int(each["filesz"])
        if offset < total:
            found = _note(os.pread(fd, min(size, NOTE_BYTES), offset))
            if found:
                return found
    return ""


def _note(raw: bytes) -> str:
    """The GNU build id among the notes of a segment, in hexadecimal."""
    at = 0
    while at + 12 <= len(raw):
        name_size, size, kind = struct.unpack_from("<III", raw, at)
        content = at + 12 + (name_size + 3 & ~3)
        if kind == NT_BUILD_ID and raw[at + 12 : at + 16] == b"GNU\0" and 4 <= size <= 64:
            return raw[content : content + size].hex()
        at = content + (size + 3 & ~3)
    return ""
