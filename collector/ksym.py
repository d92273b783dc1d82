"""Kernel addresses to symbol names, from /proc/kallsyms of the running kernel.

122,000 lines become three arrays of about 5 MB, parsed by numpy without a Python statement a line, when
the first address needs a name. A kernel that hides addresses (kptr_restrict) gives hexadecimal.
"""

import time
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

KALLSYMS = Path("/proc/kallsyms")
REREAD_S = 60.0  # a module loaded since gets its names then
CODE = b"tTwW"
PAGE = 1 << 20  # an address further than this from its symbol's start belongs to no symbol


@dataclass(frozen=True)
class Table:
    """Symbols of code in order of address; name i is ``names[starts[i]:ends[i]]``."""

    addresses: NDArray[np.uint64]
    starts: NDArray[np.uint32]
    ends: NDArray[np.uint32]
    names: bytes

    @cached_property
    def _numbers(self) -> memoryview:
        """The addresses as Python's own numbers: one at a time, they are found faster than by numpy."""
        return np.ascontiguousarray(self.addresses).data

    def name(self, address: int) -> str | None:
        """The symbol an address lies in, with its module as ``name [module]``; None if in none."""
        at = bisect_right(self._numbers, address) - 1
        if at < 0 or address - int(self.addresses[at]) > PAGE:
            return None
        return self.names[self.starts[at] : self.ends[at]].decode("ascii", "replace").replace("\t", " ")


def parse(text: bytes) -> Table:
    """The content of kallsyms: ``<16 hex digits> <type> <name>[<tab>[module]]`` lines."""
    raw = np.frombuffer(text, np.uint8)
    ends = np.flatnonzero(raw == 10)
    starts = np.concatenate([[0], ends[:-1] + 1]).astype(np.int64) if len(ends) else ends
    whole = ends - starts > 19
    starts, ends = starts[whole], ends[whole]
    code = np.isin(raw[starts + 17], np.frombuffer(CODE, np.uint8))
    starts, ends = starts[code], ends[code]
    addresses = np.zeros(len(starts), np.uint64)
    for digit in range(16):
        letter = raw[starts + digit]
        value = np.where(letter >= 97, letter - 87, letter - 48).astype(np.uint64)
        addresses = (addresses << np.uint64(4)) | value
    order = np.argsort(addresses, kind="stable")
    order = order[addresses[order] != 0]
    return _gather(raw, addresses[order], starts[order] + 19, ends[order])


def _gather(
    raw: NDArray[np.uint8], addresses: NDArray[np.uint64], starts: NDArray[np.int64], ends: NDArray[np.int64]
) -> Table:
    """Copy only the names that are kept, in order, one after the other."""
    lengths = ends - starts
    stops = np.cumsum(lengths)
    take = np.arange(int(stops[-1]) if len(stops) else 0) + np.repeat(starts - (stops - lengths), lengths)
    kept = (stops - lengths).astype(np.uint32), stops.astype(np.uint32)
    return Table(addresses, kept[0], kept[1], raw[take].tobytes())


class Symbols:
    """Names of kernel addresses; reads kallsyms when first asked, and again when an address is new to it."""

    def __init__(self, file: Path = KALLSYMS) -> None:
        self._file = file
        self._table: Table | None = None
        self._read_at = -REREAD_S

    @property
    def is_read(self) -> bool:
        """Whether the table is there."""
        return self._table is not None

    def name(self, address: int) -> str:
        """The symbol's name; hexadecimal when the kernel does not tell, empty for address 0."""
        if not address:
            return ""
        found = self._table.name(address) if self._table else None
        if found is None and time.monotonic() - self._read_at >= REREAD_S:
            self.read()
            found = self._table.name(address) if self._table else None
        return f"{address:#x}" if found is None else found

    def read(self) -> int:
        """Read the symbols now; returns how many there are (0: hidden or unreadable)."""
        self._read_at = time.monotonic()
        try:
            self._table = parse(self._file.read_bytes())
        except OSError:
            self._table = None
        return len(self._table.addresses) if self._table else 0
