"""By how much a process's heap has grown: anonymous memory of those mappings that malloc has used.

Thread stacks, memory that a program maps itself, and other allocators' arenas lie in mappings in which no
address of malloc was seen. /proc/PID/smaps costs the more the larger a process is: it is read as seldom as
keeps that at 1 % of a CPU.
"""

import re
import time
from bisect import bisect_right
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from schemas.errors import BpfleetError

SHARE = 0.01  # of a CPU, for reading
ARENA = 64 << 20  # glibc aligns the parts of threads' arenas to so much
CELL_BITS, CELLS = 16, 65_536  # one address in so many bytes is remembered, so many at most
_MAPPING = re.compile(
    rb"^([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \d+ *(\S*).*$(?:\n(?![0-9a-f]+-).*)*?"
    rb"\nAnonymous: *(\d+) kB(?:\n(?![0-9a-f]+-).*)*?\nSwap: *(\d+) kB",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Mapping:
    """A part of a process's memory, and the bytes of it that are its own."""

    start: int
    end: int
    bytes: int
    is_heap: bool  # by its place: the one that brk(2) makes, or of a thread's arena


def mappings(pid: int) -> list[Mapping]:
    """In order. Raises :class:`BpfleetError` when the process is gone."""
    try:
        text = Path(f"/proc/{pid}/smaps").read_bytes()
    except OSError:
        text = b""
    found = [
        Mapping(int(start, 16), int(end, 16), (int(own) + int(swapped)) << 10, _is_heap(int(start, 16), name))
        for start, end, name, own, swapped in _MAPPING.findall(text)
    ]
    if not found:
        raise BpfleetError(f"there is no process {pid}")
    return found


def _is_heap(start: int, name: bytes) -> bool:
    return name == b"[heap]" or (not name and start % ARENA == 0)


def anonymous(pid: int) -> int:
    """All anonymous memory of a process, swapped or not. Raises :class:`BpfleetError` when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        lines = []
    found = [int(line.split()[1]) for line in lines if line.startswith(("RssAnon:", "VmSwap:"))]
    if not found:
        raise BpfleetError(f"there is no process {pid}")
    return sum(found) << 10


@dataclass
class Growth:
    """Of one process, since this was made. Raises :class:`BpfleetError` when it is gone."""

    pid: int
    first: list[Mapping] = field(init=False)
    bytes: int = 0
    at: int = 0  # all anonymous memory when mappings were read
    due: float = 0.0
    cells: dict[int, int] = field(default_factory=dict)  # where malloc was seen to give: cell → an address

    def __post_init__(self) -> None:
        self.first = mappings(self.pid)

    def see(self, addresses: NDArray[np.uint64]) -> None:
        """Addresses that malloc gave."""
        cells, at = np.unique(addresses >> np.uint64(CELL_BITS), return_index=True)
        if len(self.cells) < CELLS:
            self.cells.update(zip(cells.tolist(), addresses[at].tolist(), strict=True))

    def read(self) -> int:
        """Bytes. Where mappings are dear to read, what came since is taken from the process's total."""
        total = anonymous(self.pid)
        if time.monotonic() >= self.due:
            begun = time.thread_time()
            self.bytes, self.at = self._grown(mappings(self.pid)), total
            self.due = time.monotonic() + (time.thread_time() - begun) / SHARE
        whole = self.at - sum(each.bytes for each in self.first)
        share = min(max(self.bytes / whole, 0.0), 1.0) if whole > 0 else 1.0
        return self.bytes + int((total - self.at) * share)

    def _grown(self, now: list[Mapping]) -> int:
        starts = [each.start for each in now]
        seen = {bisect_right(starts, address) - 1 for address in self.cells.values()}
        ours = [each for at, each in enumerate(now) if each.is_heap or at in seen]
        before = sum(
            each.bytes
            for each in self.first
            if each.is_heap or any(each.start < one.end and one.start < each.end for one in ours)
        )
        return sum(each.bytes for each in ours) - before
