"""Rows of `cpu_time`: what the kernel accounts to each cgroup, and how often a quota stopped it.

Usage comes from cpu.stat of the unified hierarchy, which every cgroup there has, or from v1's cpuacct; quotas
from whichever hierarchy has the cpu controller. The kernel's usage is with all cgroups below; a row is
without them, so that rows sum to the host's.
"""

from collections.abc import Callable, Iterator, Mapping

from collector.companion import Row
from collector.pressure_cgroup import mounts, walk
from collector.pressure_controllers import Numbers, read, table

CGROUPS = 1_000  # read, in order of their path
RESCAN = 2  # look for cgroups that came or went at every so many reads
USAGE = ("usage_us", "user_us", "system_us")
COUNTERS = (*USAGE, "periods", "throttled_periods", "throttled_us")


class CpuTime:
    """What each cgroup gained between two calls of :meth:`rows`."""

    def __init__(self, places: Mapping[str, str] | None = None) -> None:
        found = mounts() if places is None else places
        self._places = {name: found[name] for name in READERS if name in found}
        self._paths: list[str] = []
        self._before: dict[str, Numbers] = {}
        self._calls = 0

    def rows(self) -> Iterator[Row]:
        """A row for each cgroup that used a CPU, or wanted to; at first all of its time."""
        if self._calls % RESCAN == 0:
            self._paths = sorted({"", *(path for place in self._places.values() for path in walk(place))})
            del self._paths[CGROUPS:]
        self._calls += 1
        now = {path: self._numbers(path) for path in self._paths}
        new: Numbers = {}
        gained = {
            path: {name: max(each[name] - self._before.get(path, new).get(name, 0), 0) for name in COUNTERS}
            for path, each in now.items()
        }
        self._before = now
        for path, below in gained.items():
            if path:
                _without(gained[_parent(path, gained)], below)
        for path, numbers in gained.items():
            if any(numbers.values()):
                yield {
                    "cgroup": path or "/", "quota_us": now[path]["quota_us"],
                    "period_us": now[path]["period_us"], **numbers,
                }  # fmt: skip

    def _numbers(self, path: str) -> Numbers:
        """Counters of one cgroup since it was made, with all below it, and its quota as it is now."""
        numbers = dict.fromkeys((*COUNTERS, "period_us"), 0) | {"quota_us": -1}
        for controller, place in self._places.items():
            numbers |= READERS[controller](f"{place}{path}")
        return numbers


def _parent(path: str, known: Mapping[str, object]) -> str:
    """The nearest cgroup above that is read too."""
    while path:
        path = path.rpartition("/")[0]
        if path in known:
            return path
    return ""


def _without(above: Numbers, below: Numbers) -> None:
    """Take a cgroup's usage out of that of the one above. Children come after parents, so each once."""
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
