"""Just enough of an ELF file to put a probe into it: where a function lies, and what markers it has.

    with Elf(Path("/usr/lib/x86_64-linux-gnu/libc.so.6")) as elf:
        elf.functions("malloc")             # offsets in the file
        elf.markers("libstdcxx", "throw")   # [Marker(offset, semaphore, "8@%rdi -4@%esi"), …]

Only 64-bit little-endian files; layout: elf(5). Markers are the notes that <sys/sdt.h> leaves.
"""

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from collector.ondemand.instruction import cheap
from schemas.errors import BpfleetError

_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = np.dtype(
    [("name", "<u4"), ("info", "u1"), ("other", "u1"), ("section", "<u2"), ("value", "<u8"), ("size", "<u8")]
)
_SYMTAB, _DYNSYM, _NOTE, _LOAD = 2, 11, 7, 1
_FUNCTION, _CHOSEN_AT_RUN_TIME = 2, 10  # STT_FUNC, STT_GNU_IFUNC
MAX_BYTES = 4 << 30


@dataclass(frozen=True)
class Marker:
    """A place that the program's authors marked (USDT)."""

    offset: int
    semaphore: int  # offset in the file of the counter that switches it on; 0: it has none
    arguments: str


@dataclass(frozen=True)
class _Section:
    name: str
    kind: int
    address: int
    offset: int
    size: int
    link: int


class Elf:
    """An open file. Raises :class:`BpfleetError` when it is none of these."""

    def __init__(self, file: Path) -> None:
        self.file = file
        try:
            with file.open("rb") as opened:
                self._map = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or "it is empty"
            raise BpfleetError(f"cannot read {file}: {why.lower()}") from None
        if self._map[:6] != b"\x7fELF\x02\x01" or len(self._map) < 64:
            self._map.close()
            raise BpfleetError(f"{file} is not a 64-bit program or library; name the one that runs")
        try:
            self._read()
        except (struct.error, IndexError, ValueError, UnicodeDecodeError) as error:
            self._map.close()
            raise BpfleetError(f"{file} is damaged: {error}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._map.close()

    def _read(self) -> None:
        programs, sections = struct.unpack_from("<QQ", self._map, 32)
        size, count, section_size, section_count, names = struct.unpack_from("<HHHHH", self._map, 54)
        self._loads = [
            (address, offset, length)
            for kind, _, offset, address, _, length, _, _ in (
                struct.unpack_from("<IIQQQQQQ", self._map, programs + n * size) for n in range(count)
            )
            if kind == _LOAD
        ]
        raw = [_SECTION.unpack_from(self._map, sections + n * section_size) for n in range(section_count)]
        table = raw[names] if raw else None
        self._sections = [
            _Section(
                self._string(table[4] + each[0]) if table else "", each[1], each[3], each[4], each[5], each[6]
            )
            for each in raw
        ]

    def _string(self, at: int) -> str:
        end = self._map.find(b"\0", at)
        return self._map[at:end].decode()

    def offset(self, address: int) -> int:
        """Where in the file what is loaded at ``address`` lies."""
        for start, offset, length in self._loads:
            if start <= address < start + length:
                return int(address - start + offset)
        raise BpfleetError(f"{self.file}: address {address:#x} is in no part that is loaded")

    def has(self, name: str) -> bool:
        """Whether there is a function of that name."""
        return any(self._addresses(name)[0])

    def _addresses(self, name: str) -> tuple[list[int], bool]:
        """(where functions of that name lie, whether one is chosen at run time)."""
        for section in self._sections:
            if section.kind not in (_SYMTAB, _DYNSYM):
                continue
            symbols = np.frombuffer(self._map, _SYMBOL, section.size // _SYMBOL.itemsize, section.offset)
            found = symbols[np.isin(symbols["name"], self._places(section, name)) & (symbols["section"] != 0)]
            kinds = found["info"] & 15
            addresses = np.unique(found["value"][kinds == _FUNCTION]).tolist()
            chosen = bool((kinds == _CHOSEN_AT_RUN_TIME).any())
            del symbols, found, kinds  # views of the file: it could not be closed
            if addresses or chosen:
                return addresses, chosen
        return [], False

    def functions(self, name: str) -> list[int]:
        """The offsets of all functions of that name: versions of it, or of several units.

        Raises :class:`BpfleetError` when there is none.
        """
        addresses, chosen = self._addresses(name)
        if chosen:  # programs call that; another of the name is for old ones only
            raise BpfleetError(f"{name} of {self.file.name} is chosen at run time; probe what calls it")
        if not addresses:
            raise BpfleetError(f"{self.file} has no function {name}; `nm -D {self.file}` lists what it has")
        return [self.offset(each) for each in addresses]

    def entries(self, name: str) -> list[tuple[int, bool]]:
        """(where to probe a function's entry at least cost, whether that is cheap), of each."""
        return [self._entry(offset) for offset in self.functions(name)]

    def _entry(self, offset: int) -> tuple[int, bool]:
        shift, is_cheap = cheap(self._map[offset : offset + 32])
        return offset + shift, is_cheap

    def _places(self, section: _Section, name: str) -> list[int]:
        """Offsets of a name in the section's strings; it may be the tail of a longer one."""
        strings = self._sections[section.link]
        wanted, places = name.encode() + b"\0", []
        at = self._map.find(wanted, strings.offset, strings.offset + strings.size)
        while at >= 0:
            places.append(at - strings.offset)
            at = self._map.find(wanted, at + 1, strings.offset + strings.size)
        return places

    def markers(self, provider: str, name: str) -> list[Marker]:
        """All places of a marker. Raises :class:`BpfleetError` that lists those there are."""
        base = next((each.address for each in self._sections if each.name == ".stapsdt.base"), 0)
        found, known = [], set()
        for owner, content in self._notes():
            if owner != b"stapsdt" or len(content) < 24:
                continue
            place, link_base, semaphore = struct.unpack_from("<QQQ", content)
            texts = content[24:].split(b"\0")
            if len(texts) < 3:
                continue
            known.add(b":".join(texts[:2]).decode(errors="replace"))
            if texts[:2] == [provider.encode(), name.encode()]:
                shift = base - link_base if base else 0  # prelinked since
                counter = self.offset(semaphore + shift) if semaphore else 0
                found.append(Marker(self.offset(place + shift), counter, texts[2].decode(errors="replace")))
        if not found:
            has = f"it has {', '.join(sorted(known)[:20])}" if known else "it has no markers at all"
            raise BpfleetError(f"{self.file} has no marker {provider}:{name}; {has}")
        return found

    def _notes(self) -> list[tuple[bytes, bytes]]:
        notes = []
        for section in self._sections:
            at, end = section.offset, section.offset + section.size
            while section.kind == _NOTE and at + 12 <= end:
                name, size, _ = struct.unpack_from("<III", self._map, at)
                start = at + 12 + (name + 3 & ~3)
                notes.append(
                    (self._map[at + 12 : at + 12 + name].rstrip(b"\0"), self._map[start : start + size])
                )
                at = start + (size + 3 & ~3)
        return notes
