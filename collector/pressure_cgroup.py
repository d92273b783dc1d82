"""Counters of cgroups, from the unified hierarchy and from v1's controllers: one path is one cgroup.

Hosts of today have cgroup2 with controllers; hybrid ones have the controllers in hierarchies of their own
and cgroup2 beside them, where pressure is still kept. A cgroup that used no CPU since it was last read had
nothing happen to it, and is not read.
"""

from collections.abc import Mapping

from collector.cgroup_tree import Tree, mounts
from collector.companion import Row
from collector.pressure_controllers import READERS, Numbers
from collector.pressure_tasks import TaskTimes

CGROUPS = 500  # looked at, in order of their path; a host with more is looked at in part
GAUGES = {"quota_us", "memory_bytes", "memory_limit_bytes", "io_limit_requests", "io_limit_bytes"}
RATES = ("quota_us", "io_limit_requests", "io_limit_bytes")  # what limits grant each second
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


class CgroupReader:
    """What each cgroup gained between two calls of :meth:`rows`."""

    def __init__(self, places: Mapping[str, str] | None = None) -> None:
        self._tree = Tree(mounts() if places is None else places, CGROUPS)
        self._before: dict[str, Numbers] = {}
        self._tasks = TaskTimes()
        self._first = True

    def rows(self) -> list[Row]:
        """A row for each cgroup in which something happened since the last call; the first has none."""
        self._tasks.begin()
        made = []
        for path, used in self._tree.active():
            if not path:
                continue
            before = self._before.get(path)
            now, device = self._numbers(path, used)
            self._before[path] = now
            row = gained(before or dict.fromkeys(COUNTERS, 0), now, GAUGES)
            if (before is not None or not self._first) and any(row[name] for name in COUNTERS):
                made.append(row | {"cgroup": path, "io_device": device})
        self._first = False
        for path in self._before.keys() - self._tree.paths.keys():
            del self._before[path]
        self._tasks.keep(set(self._before))
        return made

    def _numbers(self, path: str, used: int) -> tuple[Numbers, str]:
        """Everything of one cgroup, and the device that it has a limit on."""
        total = dict.fromkeys((*COUNTERS, *sorted(GAUGES)), 0)
        device = ""
        for controller in self._tree.paths[path]:
            for name, value in READERS[controller](f"{self._tree.places[controller]}{path}").items():
                if isinstance(value, str):
                    device = device or value
                else:
                    total[name] += value
        total["cpu_us"] = used if self._tree.counter(path) != "none" else 0
        if "cpu" in self._tree.paths[path] and self._tree.counter(path):
            ran, total["waited_us"] = self._tasks.read(path, f"{self._tree.places['cpu']}{path}")
            total["cpu_us"] = total["cpu_us"] or ran
        return total, device
