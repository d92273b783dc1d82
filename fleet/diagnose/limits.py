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

    def threshold(self, baseline: float | None, spread: float, *, mature: bool = True) -> float:
        """What a value must exceed; ``baseline`` None: no history.

        One that is not ``mature`` may be a trouble's own beginning: it makes nothing usual, and can only tell
        what used to be well below the floor from what is merely not known.
        """
        if baseline is None:
            return self.fresh or self.floor
        usual = min(self.times * baseline + self.spreads * spread, self.ceiling)
        return max(self.floor, usual if mature else min(usual, self.fresh))


LIMITS = {
    # A quarter of the time somebody wants a CPU and has none: half as many again would be twice as slow.
    "pressure.cpu_some": Limit(25, ceiling=90),
    # Without PSI: tasks that wait, per CPU.
    "runq.waiting": Limit(0.5, ceiling=2),
    # A cgroup's tasks wait for so much of each second, together (% of one task's time). One that wakes up
    # twenty times a second beside hogs waits 20 %, and is hardly slower for it.
    "runq.wait": Limit(30, ceiling=200),
    "cgroup.waited": Limit(30, ceiling=200),
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
    "block.await": Limit(20, fresh=30, times=4, ceiling=200),
    "block.read_await": Limit(20, fresh=30, times=4, ceiling=200),
    # The same, of waits that no device explains: an I/O limit, a remote file system, a layer above.
    "io.wait_each": Limit(30),
    # At its limit, as far as one second's rounding lets it be seen.
    "io_limit.used": Limit(70, ceiling=70),
    # One segment in fifty sent again: TCP's throughput halves well before.
    "tcp.loss": Limit(2, times=3),
    "tcp.openings": Limit(0.6, times=3),  # three in a window
    # What a host's own queues throw away of datagrams nobody sends again. A burst loses a few.
    "udp.dropped": Limit(10, times=3),
    # A rise by 60 ms: more than a delayed acknowledgement (40 ms) explains. See Rules.latency.
    "tcp.rtt": Limit(60, fresh=200, times=2),
    # Answers without the network's part. Known servers are told sooner than new ones.
    "server.answer": Limit(100, fresh=200, times=4),
    # One answer in twenty that takes over a quarter of a second: what a page of twenty parts always meets.
    "server.long": Limit(5, times=3),
    # Seconds without any answer of a server that has been giving them, while questions are open.
    "server.silence": Limit(3),
}
MATURE = 30  # buckets of 10 s: with fewer, a history is too short to say what is usual
RTT_RISE_MS = 60.0  # on top of the remote's usual round trip
BUSY = 90.0  # % of all CPUs: with less, nobody waits for want of CPUs
NOISY_BUSY = 85.0  # % of all CPUs while a neighbour is to blame
NEIGHBOUR = 40.0  # % of all CPUs that one other cgroup has, at least
KEPT = 50.0  # % of a victim's waits that ended when one other cgroup left the CPU: whatever else is idle
NEIGHBOUR_TIMES = 2.0  # as much CPU as its victim
SLOWED = 35.0  # % of its time that a victim's tasks waited rather than ran
THROTTLED_S = 0.03  # seconds a second that a quota kept CPUs from a cgroup
IO_WAIT = 10.0  # % of the time that somebody waits for I/O: a slow disk that nobody waits for is none
LIMIT_WAIT = 20.0  # the same of a cgroup at its limit
REFAULT_WAIT = 10.0  # % of the time that tasks of a cgroup that reads its pages again wait for memory or I/O
FULL = 85.0  # % of a limit in use: a cgroup with room to spare reads again for reasons of its own
# Bytes a second that a slow disk does not move. Past it requests queue because somebody reads or writes in
# bulk, and waits for his own queue: of those, only small reads tell of others who wait.
BULK = 32e6
IO_WAIT_ALONE = 40.0  # the same where no device is slow and nothing but the wait is seen
REQUESTS = 0.4  # a second, two in a window: a single one says nothing of a disk
RETRANSMITS = 0.6  # a second: three in a window
OPENINGS = 0.8  # of what is sent again: with so many, what is open has no loss
GONE = 2  # segments sent again to who sends nothing back: fewer may be the last of a connection
SLOW_SHARE = 50.0  # % of a server's answers that are slow: a lost segment delays a few
WAITED_MS = 100.0  # a second, for one server's answers: less is no trouble
LONG_ANSWERS = 0.6  # a second: three in a window
LONG_RTT_MS = 100.0  # of a remote: its answers take long for the way's sake
LONG_MS = 262.0  # the least that server.long counts
# A silence means something of a server that answered so often in so many seconds, in each of the last few.
ANSWERED, BUSY_S, STEADY_S = 20, 10, 2
LONG_POLLS = frozenset((9092, 9093, 9094))  # Kafka holds a question until there are rows, or half a second
