"""How much of the time in which a process could run it does: on a full machine it waits for CPUs.

Traps slow a process by their share of the time it runs, not of the clock's.
"""

from collections.abc import Iterable
from itertools import islice
from pathlib import Path

THREADS = 64  # looked at of one process
LEAST = 0.05


def run_and_waited(pid: int) -> tuple[int, int]:
    """Nanoseconds that a process's threads have run, and waited on run queues; zeros when it is gone."""
    run = waited = 0
    for task in islice(Path(f"/proc/{pid}/task").glob("*/schedstat"), THREADS):
        try:
            words = task.read_text().split()
        except OSError:
            continue  # that thread has ended
        run, waited = run + int(words[0]), waited + int(words[1])
    return run, waited


class Pace:
    """Of some processes together."""

    def __init__(self, pids: Iterable[int]) -> None:
        self._pids = list(pids)
        self._before = self._read()
        self._share = 1.0

    def _read(self) -> tuple[int, int]:
        each = [run_and_waited(pid) for pid in self._pids]
        return sum(run for run, _ in each), sum(waited for _, waited in each)

    def share(self) -> float:
        """1 where they never wait for a CPU; lately, half of it since the last call."""
        run, waited = self._read()
        ran, more = run - self._before[0], waited - self._before[1]
        self._before = run, waited
        if ran >= 0 and more >= 0 and ran + more > 0:
            self._share = (self._share + ran / (ran + more)) / 2
        return max(self._share, LEAST)
