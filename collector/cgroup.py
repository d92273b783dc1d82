"""Cgroup ids to paths, also of cgroups that are gone by the time someone asks.

The kernel's cgroup id is the inode number of its directory in the cgroup2 mount. Three sources, in this
order: what is known already; the kernel's own handle of a living one (``open_by_handle_at``, no scan); and
the ``cgroup_event`` stream, which tells of each made and removed cgroup, however short its life.
"""

import ctypes
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from collector.clock import now_us
from collector.container import Tenant, tenant
from schemas.errors import BpfleetError

KEPT = 20_000  # paths in memory; the ones gone longest make room
KERNFS_HANDLE = 0xFE  # FILEID_KERNFS: the handle is the 64-bit id
MADE, REMOVED = 0, 1  # cgroup_event.change
ROOT = 1
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Resolution:
    """A cgroup and what it is, as first seen: a row of the ``cgroup`` stream."""

    at_us: int
    id: int
    path: str
    tenant: Tenant


def find_mount(mountinfo: str | None = None) -> Path | None:
    """Where cgroup2 is mounted (/sys/fs/cgroup, …/unified on hybrid hosts), or None."""
    text = Path("/proc/self/mountinfo").read_text() if mountinfo is None else mountinfo
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        if after.split()[0] == "cgroup2":
            return Path(before.split()[4].replace("\\040", " "))
    return None


class Cgroups:
    """The cgroups of this host, by id.

    ``refresh`` is called when an id is unknown and its directory gone: it feeds :meth:`made` and
    :meth:`removed` with what the kernel has told meanwhile. ``changed`` hears of ids whose name changed.
    """

    def __init__(self, mount: Path | None = None, kept: int = KEPT) -> None:
        self.mount = find_mount() if mount is None else mount
        self.refresh: Callable[[], None] = lambda: None
        self.changed: Callable[[int], None] = lambda _: None
        self._kept = kept
        self._paths: dict[int, str] = {ROOT: "/"}
        self._gone: dict[int, None] = {}  # in order of their end
        self._fresh: list[Resolution] = []
        self._mount_fd = os.open(self.mount, os.O_RDONLY | os.O_DIRECTORY) if self.mount else -1

    def close(self) -> None:
        """Give the mount's descriptor back."""
        if self._mount_fd >= 0:
            os.close(self._mount_fd)
            self._mount_fd = -1

    def name(self, number: int) -> str:
        """The path of a cgroup from its hierarchy's root; ``id:<n>`` if nothing knows it, "" for id 0."""
        if not number:
            return ""
        found = self._paths.get(number) or self._ask_kernel(number)
        if found is None:
            self.refresh()
            found = self._paths.get(number)
        return f"id:{number}" if found is None else found

    def scan(self) -> int:
        """Learn every living cgroup; returns how many there are."""
        if self.mount is None:
            return 0
        root = str(self.mount)
        for directory, names, _ in os.walk(root):
            names.sort()
            try:
                number = Path(directory).stat().st_ino
            except OSError:
                continue  # removed while walking
            self.made(number, directory[len(root) :] or "/")
        return len(self._paths)

    def made(self, number: int, path: str) -> None:
        """A cgroup exists (or did) under this path."""
        if self._paths.get(number) == path and number != ROOT:
            return
        self._paths[number] = path
        self._gone.pop(number, None)
        self._fresh.append(Resolution(now_us(), number, path, tenant(path)))
        self.changed(number)
        self._evict()

    def removed(self, number: int) -> None:
        """A cgroup is gone: it stays resolvable until others need its room."""
        if number in self._paths:
            self._gone[number] = None

    def take_fresh(self) -> list[Resolution]:
        """What was resolved since the last call."""
        fresh, self._fresh = self._fresh, []
        return fresh

    def __len__(self) -> int:
        return len(self._paths)

    def _evict(self) -> None:
        while len(self._paths) > self._kept:
            number = next(iter(self._gone), None) or next(each for each in self._paths if each != ROOT)
            self._gone.pop(number, None)
            del self._paths[number]
        del self._fresh[: -self._kept]

    def _ask_kernel(self, number: int) -> str | None:
        """The path behind a handle made of the id, while the cgroup lives."""
        if self._mount_fd < 0:
            return None
        handle = ctypes.create_string_buffer(struct.pack("=IiQ", 8, KERNFS_HANDLE, number), 16)
        fd = _libc.open_by_handle_at(self._mount_fd, handle, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        if fd < 0:
            return None
        try:
            path = os.readlink(f"/proc/self/fd/{fd}")  # noqa: PTH115 (a Path would lose " (deleted)")
        finally:
            os.close(fd)
        if path.endswith(" (deleted)"):
            return None
        self.made(number, path.removeprefix(str(self.mount)) or "/")
        return self._paths.get(number)


def require_mount(mount: Path | None) -> Path:
    """The mount, or the one line that says what to do without one."""
    if mount is None:
        raise BpfleetError(
            "no cgroup2 mount, so cgroups have no names; run `mount -t cgroup2 cgroup2 /sys/fs/cgroup`"
        )
    return mount
