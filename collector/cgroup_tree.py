"""The cgroups of a host, the hierarchies that have them, and which of them ran since the last look.

The kernel counts a cgroup's CPU time with that of all below it: where that stood still nothing happened,
there and further down, and nothing is read. Of hundreds of cgroups few run in any one second.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress

from collector.pressure_controllers import read, table

RESCAN = 2  # look for cgroups that came or went at every so many calls
LEAF_LINKS = 2  # of a directory that has none below it


def mounts(text: str | None = None) -> dict[str, str]:
    """Where each controller of v1 is mounted, by its name; ``""`` is the unified hierarchy."""
    found: dict[str, str] = {}
    for line in (read("/proc/self/mountinfo") if text is None else text).splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        place = before.split()[4].replace("\\040", " ")
        if kind == "cgroup2":
            found.setdefault("", place)
        elif kind == "cgroup":
            for name in options.split(",") + options.split(" ")[-1].split(","):
                if name in ("cpu", "cpuacct", "memory", "blkio"):
                    found.setdefault(name, place)
    return found


def walk(place: str) -> Iterator[str]:
    """Paths of the cgroups below the root. One without others below it costs one system call."""
    waiting = [place]
    while waiting:
        with suppress(OSError):
            directory = waiting.pop()
            if os.stat(directory).st_nlink == LEAF_LINKS:  # noqa: PTH116 (a Path for each costs as much again)
                continue
            with os.scandir(directory) as entries:
                for each in entries:
                    if each.is_dir(follow_symlinks=False):
                        waiting.append(each.path)
                        yield each.path[len(place) :]


class Tree:
    """The first ``limit`` cgroups, in order of their path; the root is ``""``."""

    def __init__(self, places: Mapping[str, str], limit: int) -> None:
        self.places = dict(places)
        self.paths: dict[str, list[str]] = {}  # path → hierarchies that have it
        self._limit = limit
        self._used: dict[str, int] = {}
        self._calls = 0

    def active(self) -> Iterator[tuple[str, int]]:
        """(path, CPU time so far in µs) of each that ran since the last call; whoever is above comes first.

        One whose CPU time no hierarchy counts always comes, with a number that is no time.
        """
        if self._calls % RESCAN == 0:
            self._scan()
        self._calls += 1
        idle: set[tuple[str, str]] = set()
        for path in self.paths:
            counter = self.counter(path)
            if path in self._used and path and (path.rpartition("/")[0], counter) in idle:
                idle.add((path, counter))
                continue
            used = self._read(path, counter)
            if used == self._used.get(path):
                idle.add((path, counter))
                continue
            self._used[path] = used
            yield path, used

    def counter(self, path: str) -> str:
        """The hierarchy that counts a cgroup's CPU time; ``none``: no one does."""
        return next((each for each in ("", "cpuacct") if each in self.paths[path]), "none")

    def _scan(self) -> None:
        paths: dict[str, list[str]] = {}
        for controller, place in self.places.items():
            for path in ("", *walk(place)):
                paths.setdefault(path, []).append(controller)
        self.paths = dict(sorted(paths.items())[: self._limit])
        self._used = {path: used for path, used in self._used.items() if path in self.paths}

    def _read(self, path: str, counter: str) -> int:
        if counter == "":
            return table(read(f"{self.places['']}{path}/cpu.stat")).get("usage_usec", 0)
        if counter == "cpuacct":
            return int(read(f"{self.places['cpuacct']}{path}/cpuacct.usage") or 0) // 1000
        return self._calls
