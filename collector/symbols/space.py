"""What lies where in a process's memory: its executable mappings, from /proc/PID/maps."""

import os
import time
from bisect import bisect_right
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

PROC = Path("/proc")
MAPS_BYTES = 8 << 20  # of one process; what lies beyond is not known
DELETED = " (deleted)"


@dataclass(frozen=True)
class Mapped:
    """A mapped file as a process sees it."""

    path: str  # in its own mount namespace; `[vdso]`, "" for memory of no file
    device: str
    inode: int

    @cached_property
    def is_file(self) -> bool:
        """Whether there is a file to look for."""
        return self.path.startswith("/") and self.inode != 0 and not self.path.startswith("/memfd:")

    @cached_property
    def name(self) -> str:
        """Its short name: ``libc.so.6``."""
        return self.path.removesuffix(DELETED).rpartition("/")[2]


@dataclass(frozen=True)
class Space:
    """The executable mappings of a process, in order."""

    identity: tuple[str, ...]  # changes when the pid is another process, or runs another program
    starts: NDArray[np.uint64]
    ends: NDArray[np.uint64]
    offsets: NDArray[np.uint64]  # in the file
    files: list[Mapped]
    read_at: float = field(default_factory=time.monotonic)
    named: dict[int, Any] = field(default_factory=dict)  # address → frame, as far as it will not change

    @cached_property
    def _starts(self) -> memoryview:
        """As Python's own numbers: one at a time, they are found many times faster than by numpy."""
        return np.ascontiguousarray(self.starts).data

    def following(self, before: "Space") -> "Space":
        """With the frames that were named before, if all that was mapped then still is, where it was."""
        there = set(zip(self.starts.tolist(), self.offsets.tolist(), self.files, strict=True))
        known = zip(before.starts.tolist(), before.offsets.tolist(), before.files, strict=True)
        if self.identity != before.identity or not there.issuperset(known):
            return self
        return replace(self, named=before.named)

    def place(self, address: int) -> int:
        """The mapping an address lies in, -1 where there is none."""
        at = bisect_right(self._starts, address) - 1
        return at if at >= 0 and address < int(self.ends[at]) else -1


def identity(pid: int) -> tuple[str, ...]:
    """What tells this process, running this program, from others of its pid; empty when it is gone."""
    try:
        with open(f"{PROC}/{pid}/stat", "rb", buffering=0) as file:  # noqa: PTH123 (asked often: a Path costs more)
            started = file.read(4096).rpartition(b")")[2].split()[19].decode()
        return started, os.readlink(f"/proc/{pid}/exe")  # noqa: PTH115 (a Path loses " (deleted)")
    except (OSError, IndexError):
        return ()


def read(pid: int) -> Space | None:
    """The mappings of a process; None when it is gone, has no memory of its own, or may not be looked at."""
    name = identity(pid)
    if not name:
        return None
    try:
        with (PROC / str(pid) / "maps").open("rb") as file:
            text = file.read(MAPS_BYTES)
    except OSError:
        return None
    return parse(text, name)


def parse(text: bytes, name: tuple[str, ...] = ()) -> Space:
    """Lines of ``start-end perms offset device inode path``; others are left out."""
    rows: list[tuple[int, int, int]] = []
    files: list[Mapped] = []
    for line in text.splitlines():
        part = line.split(None, 5)
        if len(part) < 5 or b"x" not in part[1]:
            continue
        try:
            start, _, end = part[0].partition(b"-")
            row = int(start, 16), int(end, 16), int(part[2], 16)
            inode = int(part[4])
        except ValueError:
            continue
        if max(row) >> 64 or min(row) < 0:
            continue
        path = part[5].decode("utf-8", "replace") if len(part) > 5 else ""
        rows.append(row)
        files.append(Mapped(path, part[3].decode("ascii", "replace"), inode))
    table = np.array(rows, np.uint64).reshape(-1, 3)
    order = np.argsort(table[:, 0], kind="stable")
    table = table[order]
    return Space(name, table[:, 0], table[:, 1], table[:, 2], [files[at] for at in order.tolist()])
