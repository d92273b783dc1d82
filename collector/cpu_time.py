"""Rows of `cpu_time`: what the kernel accounts to each cgroup, and how often a quota stopped it.

Usage comes from cpu.stat of the unified hierarchy, which every cgroup there has, or from v1's cpuacct; quotas
from whichever hierarchy has the cpu controller. The kernel's usage is with all cgroups below; a row is
without them, so that rows sum to the host's. Cgroups that did not run are not read.
"""

from collections.abc import Callable, Iterator, Mapping

from collector.cgroup_tree import Tree, mounts
from collector.companion import Row
from collector.pressure_controllers import Numbers, read, table

CGROUPS = 1_000  # read, in order of their path
USAGE = ("usage_us", "user_us", "system_us")
COUNTERS = (*USAGE, "periods", "throttled_periods", "throttled_us")


class CpuTime:
    """What each cgroup gained between two calls of :meth:`rows`."""

    def __init__(self, places: Mapping[str, str] | None = None) -> None:
        found = mounts() if places is None else places
        self._tree = Tree({name: found[name] for name in READERS if name in found}, CGROUPS)
        self._known: dict[str, Numbers] = {}

    def rows(self) -> Iterator[Row]:
        """A row for each cgroup that used a CPU, or wanted to; at first all of its time."""
        gains: dict[str, Numbers] = {}
        new: Numbers = {}
        for path, _ in self._tree.active():
            before, now = self._known.get(path, new), self._numbers(path)
            self._known[path] = now
            gains[path] = {name: max(now[name] - before.get(name, 0), 0) for name in COUNTERS}
            above = _parent(path, gains)
            if above is not None:
                _without(gains[above], gains[path])
        for path, numbers in gains.items():
            if any(numbers.values()):
                now = self._known[path]
                quota = {name: now[name] for name in ("quota_us", "period_us")}
                yield {"cgroup": path or "/", **quota, **numbers}
        for path in self._known.keys() - self._tree.paths.keys():
            del self._known[path]

    def _numbers(self, path: str) -> Numbers:
        """Counters of one cgroup since it was made, with all below it, and its quota as it is now."""
        numbers = dict.fromkeys((*COUNTERS, "period_us"), 0) | {"quota_us": -1}
        for controller, reader in READERS.items():
            if controller in self._tree.paths[path]:
                numbers |= reader(f"{self._tree.places[controller]}{path}")
        return numbers


def _parent(path: str, known: Mapping[str, object]) -> str | None:
    """The nearest cgroup above that is read too."""
    while path:
        path = path.rpartition("/")[0]
        if path in known:
            return path
    return None


def _without(above: Numbers, below: Numbers) -> None:
    """Take a cgroup's usage out of that of the one above."""
    for name in USAGE:
        above[name] = max(above[name] - below[name], 0)


def _unified(directory: str) -> Numbers:
    stat = table(read(f"{directory}/cpu.stat"))
    words = read(f"{directory}/cpu.max").split()
    found = {
        f"{name}_us": stat[f"{name}_usec"] for name in ("usage", "user", "system") if "usage_usec" in stat
    }
    if "nr_periods" in stat:
        found |= {"periods": stat["nr_periods"], "throttled_periods": stat["nr_throttled"]}
        found["throttled_us"] = stat["throttled_usec"]
    if len(words) == 2:
        found |= {"quota_us": int(words[0]) if words[0].isdigit() else -1, "period_us": int(words[1])}
    return found


def _v1_cpu(directory: str) -> Numbers:
    stat = table(read(f"{directory}/cpu.stat"))
    if "nr_periods" not in stat:
        return {}
    return {
        "periods": stat["nr_periods"],
        "throttled_periods": stat["nr_throttled"],
        "throttled_us": stat["throttled_time"] // 1000,
        "quota_us": int(read(f"{directory}/cpu.cfs_quota_us") or -1),
        "period_us": int(read(f"{directory}/cpu.cfs_period_us") or 0),
    }


def _v1_cpuacct(directory: str) -> Numbers:
    """Used where the unified hierarchy lacks this cgroup; read first, so that it has the last word."""
    used = read(f"{directory}/cpuacct.usage")
    return {"usage_us": int(used) // 1000} if used else {}


READERS: dict[str, Callable[[str], Numbers]] = {"cpuacct": _v1_cpuacct, "cpu": _v1_cpu, "": _unified}
