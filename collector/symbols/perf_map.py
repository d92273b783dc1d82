"""Names of code that a JIT made: ``/tmp/perf-PID.map``, lines of ``start size name`` in hexadecimal.

Written by the process itself (Node with --perf-basic-prof, Python with -X perf, Java with an agent), in its
own mount and pid namespace. What overlaps is newer the further down it stands. Names stay in the file.
"""

import os
from array import array
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BYTES = 64 << 20  # of a map that are read
CHUNK = 1 << 20
LINES = 1_000_000
NAME_BYTES = 512
LINE_BYTES = 4096


@dataclass(frozen=True)
class PerfMap:
    """The entries of a map in order of address."""

    starts: NDArray[np.uint64]
    sizes: NDArray[np.uint32]
    places: NDArray[np.uint32]  # of the names in the file
    read_bytes: int  # size of the file when it was read

    @property
    def bytes(self) -> int:
        """Memory of the arrays."""
        return self.starts.nbytes + self.sizes.nbytes + self.places.nbytes

    def name(self, fd: int, address: int) -> str:
        """The name of the code an address lies in, or ""."""
        at = int(np.searchsorted(self.starts, np.uint64(address), side="right")) - 1
        if at < 0 or address - int(self.starts[at]) >= int(self.sizes[at]):
            return ""
        try:
            raw = os.pread(fd, NAME_BYTES, int(self.places[at]))
        except OSError:
            return ""
        return raw.partition(b"\n")[0].decode("utf-8", "replace").strip()


def read(fd: int) -> PerfMap:
    """Read a map. Lines that are none are left out. Raises OSError."""
    starts, sizes, places = array("Q"), array("Q"), array("Q")
    at, rest = 0, b""
    while at < BYTES and len(starts) < LINES:
        chunk = os.pread(fd, CHUNK, at)
        if not chunk:
            break
        base = at - len(rest)
        at += len(chunk)
        lines = (rest + chunk).split(b"\n")
        rest = lines.pop()
        if len(rest) > LINE_BYTES:
            rest = b""
        _take(lines, base, starts, sizes, places)
    begin = np.frombuffer(starts, np.uint64) if starts else np.empty(0, np.uint64)
    order = np.argsort(begin, kind="stable")
    order = order[np.append(np.diff(begin[order]) != 0, True)] if len(order) else order
    return PerfMap(
        begin[order],
        np.array(sizes, np.uint64)[order].astype(np.uint32),
        np.array(places, np.uint64)[order].astype(np.uint32),
        at,
    )


def _take(
    lines: list[bytes], base: int, starts: "array[int]", sizes: "array[int]", places: "array[int]"
) -> None:
    """Enter lines that begin at ``base`` of the file."""
    for line in lines:
        part = line.split(None, 2)
        if len(part) == 3:
            try:
                start, size = int(part[0], 16), int(part[1], 16)
            except ValueError:
                start, size = 0, 0
            if 0 < start < 1 << 64 and 0 < size < 1 << 32:
                starts.append(start)
                sizes.append(size)
                places.append(base + len(line) - len(part[2]))
        base += len(line) + 1
