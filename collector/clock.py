"""Kernel time to wall clock: the offset between the two, read again as clocks step and slew."""

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

REREAD_NS = 1_000_000_000


class Clock:
    """CLOCK_MONOTONIC nanoseconds (``bpf_ktime_get_ns``) to microseconds of the epoch.

    The offset is at most a second old, so that a step of the wall clock reaches the next batch, and what
    NTP slews meanwhile is below a millisecond. Time asleep does not count in either.
    """

    def __init__(self) -> None:
        self._offset_ns = 0
        self._read_at: int | None = None

    def offset_ns(self) -> int:
        """Wall clock minus monotonic clock."""
        now = time.monotonic_ns()
        if self._read_at is None or now - self._read_at >= REREAD_NS:
            self._offset_ns, self._read_at = measure_offset(), now
        return self._offset_ns

    def wall_us(self, ktime: NDArray[Any]) -> NDArray[np.int64]:
        """Microseconds of the epoch for kernel times."""
        return (ktime.astype(np.int64) + self.offset_ns()) // 1000


def measure_offset() -> int:
    """The offset, from the tightest of five readings (a preemption between two clocks spoils one)."""
    best = (1 << 62, 0)
    for _ in range(5):
        before = time.monotonic_ns()
        wall = time.time_ns()
        after = time.monotonic_ns()
        best = min(best, (after - before, wall - (before + after) // 2))
    return best[1]


def now_us() -> int:
    """The wall clock in microseconds."""
    return time.time_ns() // 1000
