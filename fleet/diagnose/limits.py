"""Thresholds, with units and reasons: one place, so that a verdict can be argued with.

A figure is past its threshold when it exceeds ``floor`` (what hurts on any host) and, where the host has a
history, what is usual on it: ``times`` its median plus ``spreads`` scaled median absolute deviations.
``ceiling`` is what is never in order, however usual. A host without a history is measured by ``fresh``, or
by the floor.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limit:
    """The threshold of one metric, in its unit."""

    floor: float
    fresh: float = 0.0  # the floor where there is no history; 0: the same
    times: float = 1.5
    spreads: float = 6.0
    ceiling: float = float("inf")

    def threshold(self, baseline: float | None, spread: float) -> float:
        """What a value must exceed; ``baseline`` None: no history."""
        if baseline is None:
            return self.fresh or self.floor
        return max(self.floor, min(self.times * baseline + self.spreads * spread, self.ceiling))


LIMITS = {
    # A quarter of the time somebody wants a CPU and has none: half as many again would be twice as slow.
    "pressure.cpu_some": Limit(25, ceiling=90),
    # Without PSI: tasks that wait, per CPU.
    "runq.waiting": Limit(0.5, ceiling=2),
    # A cgroup's tasks wait for so much of each second, together (% of one task's time). One that wakes up
    # twenty times a second beside hogs waits 20 %, and is hardly slower for it.
    "runq.wait": Limit(30, ceiling=200),
    # Of the periods in which it wanted to run, those cut short.
    "cgroup.throttled": Limit(25, ceiling=75),
    # A tenth of the time a task waits for memory that it had: below that PSI is hardly felt.
    "cgroup.memory_some": Limit(10, ceiling=50),
    "pressure.memory_some": Limit(10, ceiling=50),
    # 1 MB/s of pages that were just thrown out; counted where the reads wait, see REFAULT_WAIT.
    "cgroup.refaults": Limit(300, ceiling=5000),
    "cgroup.oom_kills": Limit(0.1),
    "pressure.oom_kills": Limit(0.1),
    # A rotating disk needs 10 ms; 30 is a queue. A host that knows its disk to be fast is told sooner.
    "block.await": Limit(20, fresh=30, times=4),
    # At its limit, as far as one second's rounding lets it be seen.
    "io_limit.used": Limit(70, ceiling=70),
    # One segment in fifty sent again: TCP's throughput halves well before.
    "tcp.loss": Limit(2, times=3),
    # A rise by 60 ms: more than a delayed acknowledgement (40 ms) explains. See Rules.latency.
    "tcp.rtt": Limit(60, fresh=200, times=2),
    # Answers without the network's part. Known servers are told sooner than new ones.
    "server.answer": Limit(100, fresh=200, times=4),
}
RTT_RISE_MS = 60.0  # on top of the remote's usual round trip
BUSY = 90.0  # % of all CPUs: with less, nobody waits for want of CPUs
NOISY_BUSY = 85.0  # % of all CPUs while a neighbour is to blame
NEIGHBOUR = 40.0  # % of all CPUs that one other cgroup has, at least
NEIGHBOUR_TIMES = 2.0  # as much CPU as its victim
SLOWED = 35.0  # % of its time that a victim's tasks waited rather than ran
THROTTLED_S = 0.03  # seconds a second that a quota kept CPUs from a cgroup
IO_WAIT = 10.0  # % of the time that somebody waits for I/O: a slow disk that nobody waits for is none
LIMIT_WAIT = 20.0  # the same of a cgroup at its limit
REFAULT_WAIT = 10.0  # % of the time that tasks of a cgroup that reads its pages again wait for memory or I/O
FULL = 85.0  # % of a limit in use: a cgroup with room to spare reads again for reasons of its own
REQUESTS = 1.0  # a second: fewer say nothing of a disk
RETRANSMITS = 0.6  # a second: three in a window
SLOW_SHARE = 50.0  # % of a server's answers that are slow: a lost segment delays a few
WAITED_MS = 100.0  # a second, for one server's answers: less is no trouble
LOCAL_TIMES = 4.0  # servers on this very host, while its own resources are short
LONG_POLLS = frozenset((9092, 9093, 9094))  # Kafka holds a question until there are rows, or half a second
