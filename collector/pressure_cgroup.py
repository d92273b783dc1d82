"""Counters of cgroups, from the unified hierarchy and from v1's controllers: one path is one cgroup.

Hosts of today have cgroup2 with controllers; hybrid ones have the controllers in hierarchies of their own
and cgroup2 beside them, where pressure is still kept. A cgroup that used no CPU since it was last read had
nothing happen to it: it costs one read.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress

from collector.companion import Row
from collector.pressure_controllers import READERS, Numbers, read, table
from collector.pressure_tasks import TaskTimes

CGROUPS = 500  # looked at, in order of their path; a host with more is looked at in part
RESCAN = 2  # look for cgroups that came or went at every so many calls
GAUGES = {"quota_us", "memory_bytes", "memory_limit_bytes", "io_limit_requests", "io_limit_bytes"}
COUNTERS = (
    "cpu_us", "periods", "throttled_periods", "throttled_us", "cpu_some_us", "memory_some_us",
    "memory_full_us", "io_some_us", "io_full_us", "limit_hits", "refaults", "major_faults", "oom_kills",
    "read_bytes", "written_bytes", "requests", "waited_us",
)  # fmt: skip


def gained(before: Mapping[str, int], now: Mapping[str, int], gauges: set[str]) -> Row:
    """What each counter gained; gauges as they are. A counter that fell (it began anew) gained all it has."""
    return {
        name: value if name in gauges or value < before.get(name, 0) else value - before.get(name, 0)
        for name, value in now.items()
    }


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


class CgroupReader:
    """What each cgroup gained between two calls of :meth:`rows`."""

    def __init__(self, places: Mapping[str, str] | None = None) -> None:
        self._places = mounts() if places is None else dict(places)
        self._paths: dict[str, list[str]] = {}  # path → hierarchies that have it
        self._before: dict[str, Numbers] = {}
        self._tasks = TaskTimes()
        self._calls = 0

    def rows(self) -> list[Row]:
        """A row for each cgroup in which something happened since the last call; the first has none."""
        if self._calls % RESCAN == 0:
            self._scan()
        self._calls += 1
        self._tasks.begin()
        made = []
        for path, hierarchies in self._paths.items():
            before = self._before.get(path)
            used = self._used(path, hierarchies)
            if before is not None and before["cpu_us"] == used:
                continue
            now, device = self._numbers(path, hierarchies, used)
            self._before[path] = now
            row = gained(before or dict.fromkeys(COUNTERS, 0), now, GAUGES)
            if (before is not None or self._calls > 1) and any(row[name] for name in COUNTERS):
                made.append(row | {"cgroup": path, "io_device": device})
        return made

    def _scan(self) -> None:
        paths: dict[str, list[str]] = {}
        for controller, place in self._places.items():
            for path in walk(place):
                paths.setdefault(path, []).append(controller)
        self._paths = dict(sorted(paths.items())[:CGROUPS])
        self._before = {path: numbers for path, numbers in self._before.items() if path in self._paths}
        self._tasks.keep(set(self._paths))

    def _used(self, path: str, hierarchies: list[str]) -> int:
        """CPU time so far, in µs; where no hierarchy counts it, something that always changes."""
        if "" in hierarchies:
            return table(read(f"{self._places['']}{path}/cpu.stat")).get("usage_usec", 0)
        if "cpuacct" in hierarchies:
            return int(read(f"{self._places['cpuacct']}{path}/cpuacct.usage") or 0) // 1000
        return self._calls

    def _numbers(self, path: str, hierarchies: list[str], used: int) -> tuple[Numbers, str]:
        """Everything of one cgroup, and the device that it has a limit on."""
        total = dict.fromkeys((*COUNTERS, *sorted(GAUGES)), 0)
        device = ""
        for controller in hierarchies:
            for name, value in READERS[controller](f"{self._places[controller]}{path}").items():
                if isinstance(value, str):
                    device = device or value
                else:
                    total[name] += value
        total["cpu_us"] = used if {"", "cpuacct"} & set(hierarchies) else 0
        if "cpu" in hierarchies and "" not in hierarchies:
            ran, total["waited_us"] = self._tasks.read(path, f"{self._places['cpu']}{path}")
            total["cpu_us"] = total["cpu_us"] or ran
        return total, device


def walk(place: str) -> Iterator[str]:
    """Paths of the cgroups below the root."""
    waiting = [place]
    while waiting:
        with suppress(OSError), os.scandir(waiting.pop()) as entries:
            for each in entries:
                if each.is_dir(follow_symlinks=False):
                    waiting.append(each.path)
                    yield each.path[len(place) :]
