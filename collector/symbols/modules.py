"""Files with symbols, opened once for all processes that map them; bounded in memory and descriptors."""

import os
import time
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass

from collector.symbols import call_frames, elf, opening, perf_map
from collector.symbols.elf import Elf, InvalidElf
from collector.symbols.space import DELETED, PROC, Mapped
from collector.symbols.vdso import vdso

BYTES = 12 << 20  # of symbol arrays in memory; frames that were named are kept apart
FILES = 96  # open at once
AGAIN_S = 30.0  # after which a file that could not be read is tried again
DEBUG = "/usr/lib/debug/.build-id"


@dataclass
class Module:
    """An opened file. ``elf`` None: it could not be read, until :attr:`until` (monotonic)."""

    elf: Elf | None
    fd: int  # where the names are; -1 without
    until: float = float("inf")
    starts: call_frames.Starts | None = None  # read when an address has no symbol

    def function(self, address: int) -> str:
        """The mangled name of the function at a virtual address, or ""."""
        if self.elf is None:
            return ""
        at = self.elf.find(address)
        return self.elf.name(self.fd, at) if at >= 0 else ""

    def begin(self, address: int) -> int:
        """The beginning of the function at a virtual address that has no symbol; itself where unknown."""
        if self.starts is None:
            self.starts = call_frames.starts(self.fd)
        return self.starts.before(address) or address

    @property
    def bytes(self) -> int:
        """Memory it takes."""
        return (self.elf.bytes if self.elf else 0) + (self.starts.places.nbytes if self.starts else 0)

    def close(self) -> None:
        """Give the file back."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Modules:
    """Opened files by what they are (device and inode), the least recently used leave first."""

    def __init__(self, limit: int = BYTES, files: int = FILES) -> None:
        self._limit, self._files = limit, files
        self._known: OrderedDict[tuple[str, int, str], Module] = OrderedDict()

    @property
    def bytes(self) -> int:
        """Memory of all symbol arrays."""
        return sum(each.bytes for each in self._known.values())

    def of(self, pid: int, file: Mapped) -> Module:
        """The module that ``pid`` has mapped; one without symbols if it cannot be read."""
        key = file.device, file.inode, file.path if not file.inode else ""
        found = self._known.get(key)
        if found is not None and time.monotonic() < found.until:
            self._known.move_to_end(key)
            return found
        if found is not None:
            found.close()
        made = self._known[key] = self._open(pid, file)
        self._known.move_to_end(key)
        self._make_room()
        return made

    def _make_room(self) -> None:
        while len(self._known) > 1 and (len(self._known) > self._files or self.bytes > self._limit):
            self._known.popitem(last=False)[1].close()

    def _open(self, pid: int, file: Mapped) -> Module:
        try:
            fd = vdso() if file.path == "[vdso]" else open_mapped(pid, file)
        except OSError:
            return Module(None, -1, time.monotonic() + AGAIN_S)
        try:
            found = elf.read(fd)
        except (InvalidElf, OSError, MemoryError):
            os.close(fd)
            return Module(None, -1, time.monotonic() + AGAIN_S)
        if not found.full and found.build_id:
            return _with_debug_file(pid, found, fd)
        return Module(found, fd)

    def close(self) -> None:
        """Give everything back."""
        while self._known:
            self._known.popitem()[1].close()


def open_mapped(pid: int, file: Mapped) -> int:
    """A descriptor of the very file that is mapped. Raises OSError when it was replaced, or is gone."""
    gone = file.path.endswith(DELETED)
    fd = opening.open_program(pid) if gone else opening.open_inside(pid, file.path)
    status = os.fstat(fd)
    # Overlay file systems may show another inode in maps: a file older than the process is the same, too.
    if status.st_ino != file.inode and status.st_ctime >= (PROC / str(pid)).stat().st_ctime:
        os.close(fd)
        raise OSError("the file was replaced")
    return fd


def _with_debug_file(pid: int, stripped: Elf, fd: int) -> Module:
    """The file, with the symbols of its debug file where the container or the host has that."""
    path = f"{DEBUG}/{stripped.build_id[:2]}/{stripped.build_id[2:]}.debug"
    for who in (pid, os.getpid()):
        with suppress(OSError, InvalidElf, MemoryError):
            other = opening.open_inside(who, path)
            try:
                found = elf.read(other)
            except BaseException:
                os.close(other)
                raise
            if found.full and found.build_id == stripped.build_id:
                os.close(fd)
                whole = Elf(
                    found.build_id, stripped.segments, found.addresses, found.sizes, found.names,
                    found.strings, True,
                )  # fmt: skip
                return Module(whole, other)
            os.close(other)
    return Module(stripped, fd)


class PerfMaps:
    """The perf maps of processes with a JIT; read again when they have grown."""

    AGAIN_S: float = 5.0
    KEPT = 64
    BYTES = 16 << 20

    def __init__(self) -> None:
        self._known: OrderedDict[int, tuple[perf_map.PerfMap, int, float]] = OrderedDict()
        self._without: OrderedDict[int, float] = OrderedDict()  # processes with no map, until when

    def name(self, pid: int, address: int) -> str:
        """The JIT's name for an address of a process, or ""."""
        if time.monotonic() < self._without.get(pid, 0.0):
            return ""
        known = self._known.get(pid)
        found = known[0].name(known[1], address) if known else ""
        if found or (known and time.monotonic() < known[2]):
            return found
        known = self._read(pid)
        return known[0].name(known[1], address) if known else ""

    def lacks(self, pid: int) -> bool:
        """Whether it is known that a process has no map, as of a moment ago."""
        return time.monotonic() < self._without.get(pid, 0.0)

    def has_more(self, pid: int) -> bool:
        """Whether a map has come, or has grown, since it was read; then the next name is looked up in it."""
        try:
            fd = opening.open_inside(pid, f"/tmp/perf-{inner_pid(pid)}.map")
        except OSError:
            return False
        size = os.fstat(fd).st_size
        os.close(fd)
        known = self._known.get(pid)
        if size <= (known[0].read_bytes if known else 0):
            return False
        self._without.pop(pid, None)
        if known:
            self._known[pid] = known[0], known[1], 0.0
        return True

    def _read(self, pid: int) -> tuple[perf_map.PerfMap, int, float] | None:
        try:
            fd = opening.open_inside(pid, f"/tmp/perf-{inner_pid(pid)}.map")
        except OSError:
            self._without[pid] = time.monotonic() + self.AGAIN_S
            if len(self._without) > self.KEPT * 8:
                self._without.popitem(last=False)
            return self._known.get(pid)
        before = self._known.pop(pid, None)
        same = before is not None and os.fstat(fd).st_size == before[0].read_bytes
        table = before[0] if before and same else perf_map.read(fd)
        if before:
            os.close(before[1])
        self._known[pid] = table, fd, time.monotonic() + self.AGAIN_S
        while len(self._known) > 1 and (
            len(self._known) > self.KEPT or sum(each[0].bytes for each in self._known.values()) > self.BYTES
        ):
            os.close(self._known.popitem(last=False)[1][1])
        return self._known.get(pid)

    def close(self) -> None:
        """Give everything back."""
        while self._known:
            os.close(self._known.popitem()[1][1])


def inner_pid(pid: int) -> int:
    """What a process is called in its own pid namespace."""
    try:
        for line in (PROC / str(pid) / "status").read_text().splitlines():
            if line.startswith("NSpid:"):
                return int(line.split()[-1])
    except (OSError, ValueError):
        pass
    return pid
