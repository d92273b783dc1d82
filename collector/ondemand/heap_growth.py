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
    is_heap: bool  # the one that brk(2) makes


def mappings(pid: int) -> list[Mapping]:
    """In order. Raises :class:`BpfleetError` when the process is gone."""
    try:
        text = Path(f"/proc/{pid}/smaps").read_bytes()
    except OSError:
        text = b""
    found = [
        Mapping(int(start, 16), int(end, 16), (int(own) + int(swapped)) << 10, name == b"[heap]")
        for start, end, name, own, swapped in _MAPPING.findall(text)
    ]
    if not found:
        raise BpfleetError(f"there is no process {pid}")
    return found


@dataclass
class Growth:
    """Of one process, since this was made. Raises :class:`BpfleetError` when it is gone."""

    pid: int
    first: list[Mapping] = field(init=False)
    bytes: int = 0
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
        """Bytes; as they were a while ago, where reading is dear."""
        if time.monotonic() >= self.due:
            begun = time.thread_time()
            self.bytes = self._grown(mappings(self.pid))
            self.due = time.monotonic() + (time.thread_time() - begun) / SHARE
        return self.bytes

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
