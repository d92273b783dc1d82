"""The cgroups a probe's pattern means on this host: their ids, and the processes in them."""

import os
from fnmatch import fnmatchcase
from pathlib import Path

from collector.cgroup import find_mount
from collector.ondemand.binary import processes

MAX_HOMES = 16_000


class Homes:
    """Looked up anew each time: cgroups come and go."""

    def __init__(self) -> None:
        self._mount = find_mount()

    def directories(self, pattern: str) -> list[Path]:
        """Those whose path fits, as ``/system.slice/*``; what is below them is not listed."""
        if self._mount is None:
            return []
        found: list[Path] = []
        for place, below, _ in os.walk(self._mount):
            path = "/" + os.path.relpath(place, self._mount)
            if fnmatchcase("/" if path == "/." else path, pattern):
                found.append(Path(place))
                below.clear()
        return found

    def ids(self, pattern: str) -> set[int]:
        """The ids of those that fit, and of all below them."""
        ids: set[int] = set()
        for directory in self.directories(pattern):
            for place, _, _ in os.walk(directory):
                try:
                    ids.add(Path(place).stat().st_ino)
                except OSError:
                    continue  # it is gone
                if len(ids) == MAX_HOMES:
                    return ids
        return ids

    def pids(self, pattern: str) -> list[int]:
        """The processes in them."""
        return [pid for each in self.directories(pattern) for pid in processes(each)]
