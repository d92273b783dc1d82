"""Waits for a CPU of cgroups that only v1's hierarchies know: summed from their tasks.

The unified hierarchy names the cgroups of `runq_latency`; tasks that were put into a cgroup of v1's cpu
controller alone are in that one's root. The kernel keeps what each task ran and waited, in its schedstat.
"""

from pathlib import Path

from collector.pressure_controllers import read

MOST = 1000  # tasks of all such cgroups that are looked at; more would cost too much
JOINED_NS = 1_000_000_000  # what a task that was not there a second ago can have run or waited here, at most
Times = tuple[int, int]  # ns that a task ran, ns that it waited


class TaskTimes:
    """Sums that only grow, like the kernel's counters; of a task that ends, its last moments are missing."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._tasks: dict[str, dict[str, Times]] = {}
        self._sums: dict[str, Times] = {}
        self._left = MOST

    def begin(self) -> None:
        """Of a pass over all cgroups."""
        self._left = MOST

    def read(self, path: str, directory: str) -> Times:
        """µs that the tasks of a cgroup ran and waited, since it was first read."""
        before = self._tasks.get(path)
        now: dict[str, Times] = {}
        ran, waited = self._sums.get(path, (0, 0))
        for task in read(f"{directory}/tasks").split()[: self._left]:
            words = read(self._proc / task / "schedstat").split()
            if len(words) < 2:
                continue  # it ended
            at = now[task] = int(words[0]), int(words[1])
            if before is not None:
                then = before.get(task, (max(at[0] - JOINED_NS, 0), max(at[1] - JOINED_NS, 0)))
                ran, waited = ran + max(at[0] - then[0], 0), waited + max(at[1] - then[1], 0)
        self._left -= len(now)
        self._tasks[path], self._sums[path] = now, (ran, waited)
        return ran // 1000, waited // 1000

    def keep(self, paths: set[str]) -> None:
        """Forget cgroups that are gone."""
        self._tasks = {path: each for path, each in self._tasks.items() if path in paths}
        self._sums = {path: each for path, each in self._sums.items() if path in paths}
