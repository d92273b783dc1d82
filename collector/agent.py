"""The collector's main loop: rings and aggregates → columns → batches → Kafka (or standard output).

One thread reads, decodes and ships; librdkafka, the Kafka desk and the metrics endpoint have their own.
A ring wakes the loop only as each quarter of it fills (a wake-up an event would cost the traced program);
otherwise it is read every ``collector.batch_ms``, when all there is becomes batches. A handful of events
waits in the ring, three times as long at most: a batch costs collector, Kafka and sink as much as hundreds.
While all rings have but a handful they are looked at less often.
"""

import logging
import os
import select
import signal
import time
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from typing import Any

from collector import inventory, memory, metrics, overhead, privileges, probes, profiler, tracefs
from collector.clock import now_us
from collector.companion import Companion
from collector.health import Health, Row, RunTimes, loss_row, restart_row
from collector.losses import Losses
from collector.output import Output
from collector.overhead_brake import Brakes
from collector.probes import Attached
from collector.reading import Reading
from collector.sequence import Sequences
from collector.timing import Timing
from schemas import declare
from schemas.config import Config
from schemas.errors import BpfleetError
from schemas.rows import columns

log = logging.getLogger("bpfleet.collector")
BUSY_S = 0.002  # between two passes while a ring is filling, or the spool draining
FEW_CUTS = 3  # few events wait so many batches' age; while no ring has many, none is looked at sooner
HEALTH_S = 5.0
HEARTBEAT_S = 30.0
STOP_S = 5.0
DETACH_S = 0.02  # programs that run at that moment come to their end


@dataclass
class Every:
    """A due time that comes again, at multiples: what comes equally often comes at the same moment."""

    seconds: float
    at: float = 0.0

    def due(self, now: float) -> bool:
        """Whether it is time; then the next time is set."""
        if now < self.at:
            return False
        self._next(now)
        return True

    def _next(self, now: float) -> None:
        self.at = (now // self.seconds + 1) * self.seconds

    def pace(self, seconds: float, now: float) -> None:
        """From now on so often."""
        if seconds != self.seconds:
            self.seconds = seconds
            self._next(now)


class Agent:
    """A collector between start and stop. The constructor touches nothing outside."""

    def __init__(self, config: Config, output: Output, *, sequences: Sequences | None = None,
                 losses: Losses | None = None, killed_since_us: int = 0) -> None:  # fmt: skip
        self.config, self.output = config, output
        self.attached: list[Attached] = []
        self.failed: dict[str, str] = {}
        self._sequences, self._losses = sequences, losses
        self._killed_since_us = killed_since_us
        self._streams = declare.streams()
        self._stopping = False
        self._started_us = now_us()
        self.timing = Timing(None)
        self._endpoint: metrics.Endpoint | None = None
        self._batch_s = config.collector.batch_ms / 1000
        self._cut = Every(self._batch_s)
        self._read = Every(config.collector.aggregate_ms / 1000)
        looks = round(self._read.seconds / (FEW_CUTS * self._batch_s))  # at the same moments as aggregates
        self._few = Every(self._read.seconds / looks if looks else FEW_CUTS * self._batch_s)
        self._tell = Every(HEALTH_S)
        self._beat = Every(HEARTBEAT_S)
        self._timers = (self._cut, self._few, self._read, self._tell, self._beat)
        self.companions: list[Companion] = []
        self.profiler: profiler.Profiler | None = None
        self.costs: dict[str, RunTimes] = {}  # of programs that handlers loaded, by a name for people
        self.resolve: Callable[[], None] = lambda: None  # enters Kafka's answers into the journal

    # ── Start and stop ───────────────────────────────────────────────────────────────────────────

    def start(self) -> None:
        """Load, attach, give up privileges. Raises :class:`BpfleetError` when no probe can run."""
        privileges.require()
        tracefs.mount()
        wanted = probes.chosen(declare.load(), self.config.collector.probes)
        self.timing = Timing.open()
        self.attached, self.failed, enums = probes.load(wanted, self.config.collector)
        for name, reason in self.failed.items():
            log.warning("probe %s does not run: %s", name, reason)
        if not self.attached:
            raise BpfleetError("no probe could be loaded; `bpfleet check` says why for each")
        self._begin_reading(enums)
        stacks = profiler.attach(self.attached, self.reading.symbols, self.config.collector)
        if stacks:
            self.profiler = stacks
            self.companions.append(stacks)
        kinds = self.config.collector.kinds
        privileges.drop(privileges.kept_for(kinds, symbols=stacks is not None or "probe" in kinds))
        if self.config.collector.metrics_port:
            self._endpoint = metrics.Endpoint(self.config.collector.metrics_port)
        self.health = Health(self.attached, self.output.streams, self.output.spooled, self.costs, self.timing)
        self._budget = overhead.Budget(self.config.collector.budget_percent, os.cpu_count() or 1)
        self._brakes = Brakes(self)
        memory.settle()

    def _begin_reading(self, enums: dict[str, dict[int, str]]) -> None:
        self.reading = Reading(self.attached, enums, self.config.collector, self.output)
        for each in self.attached[:]:
            reason = self.reading.left_out.get(each.probe.name)
            if reason:
                log.warning("probe %s does not run: %s", each.probe.name, reason)
                self.failed[each.probe.name] = reason
                self.attached.remove(each)
                each.close()

    def stop(self, *_: Any) -> None:
        """Leave the loop soon (also a signal handler)."""
        self._stopping = True

    def close(self) -> None:
        """Detach, read and count what is left, flush."""
        for each in self.attached:
            each.detach()
        time.sleep(DETACH_S)
        self.reading.look(limit=1 << 30)
        self.reading.aggregates(last=True)
        self.reading.cut()
        for companion in self.companions:
            companion.stop()
        self._hear(self.companions)
        self._ship_cgroups()
        self.tell()
        left = self.output.close(STOP_S)
        if left:
            log.warning("%d batches have no answer from Kafka; the next start asks for them", left)
        for each in self.attached:
            each.close()
        if self._endpoint:
            self._endpoint.close()
        self.timing.close()

    # ── The loop ─────────────────────────────────────────────────────────────────────────────────

    def run(self) -> None:
        """Until :meth:`stop`; a signal that has a handler wakes the loop."""
        wake, wake_in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_in)
        poll = select.epoll()
        poll.register(wake, select.EPOLLIN)
        for each in self.reading.rings:
            # Edge-triggered: a ring with anything in it counts as readable, only its wake-ups matter.
            poll.register(each.ring.fd, select.EPOLLIN | select.EPOLLET)
        for companion in self.companions:
            companion.start()
            poll.register(companion.fd, select.EPOLLIN)
        woken: set[int] = set()
        while not self._stopping:
            busy = self.step(woken)
            woken = {fd for fd, _ in poll.poll(BUSY_S if busy else self._until_due())}
        poll.close()
        signal.set_wakeup_fd(-1)
        os.close(wake)
        os.close(wake_in)

    def _until_due(self) -> float:
        due = min(self.timing.at, *(each.at for each in self._timers))
        return max(due - time.monotonic(), BUSY_S)

    def step(self, woken: Container[int] = ()) -> bool:
        """One pass over everything that is due; whether the next should follow at once.

        ``woken``: descriptors of companions that have something to ship.
        """
        now = time.monotonic()
        few = self._few.due(now)
        cut = self._cut.due(now) or few
        self.output.pump()
        busy = self.reading.look(few=few) if cut else self.reading.look_if_filling()
        if cut or self.reading.has_many:
            self._cut.pace(self._batch_s if self.reading.has_many else self._few.seconds, now)
        if cut:
            self.reading.cut(few=few)
        if self._read.due(now):
            self.reading.aggregates()
        self._hear([each for each in self.companions if few or each.fd in woken])
        if cut:
            self._ship_cgroups()
            self.resolve()
            if self._sequences:
                self._sequences.alive(now_us())
        self.timing.step(now)
        if self._tell.due(now):
            self.tell()
        if self._beat.due(now):
            self.beat()
        self.output.pump()
        return busy or self.output.backlog

    # ── For who must not ship twice ──────────────────────────────────────────────────────────────

    def next_number(self, stream: str) -> int:
        """What the next batch of a stream will be numbered; 0 where nothing is."""
        return self._sequences.peek(stream) if self._sequences else 0

    def fate(self, stream: str, number: int) -> bool | None:
        """Whether a batch that an earlier process of this boot numbered arrives; None: not known yet."""
        boot = self._sequences.boot.hex() if self._sequences else ""
        for loss in self._losses.all if self._losses else []:
            if (loss.stream, loss.boot) == (stream, boot) and loss.first <= number <= loss.last:
                return None if loss.open else False
        return True

    # ── Rows about itself ────────────────────────────────────────────────────────────────────────

    def _hear(self, companions: Iterable[Companion]) -> None:
        for companion in companions:
            for stream, made in companion.rows().items():
                self._ship_rows(stream, made)
            for stream, ready, sample_rate in companion.batches():
                self.output.ship(self._streams[stream], ready, sample_rate)
            for declared, keys, values, interval_us in companion.arrays():
                self.reading.decode(declared, keys, values, interval_us=interval_us)

    def _ship_cgroups(self) -> None:
        fresh = self.reading.fresh_cgroups()
        if fresh:
            self._ship_rows("cgroup", fresh)

    def tell(self) -> None:
        """Ship the health of the interval, and what is lost, once it can arrive."""
        now = now_us()
        told = self.health.rows(now, self._tell.seconds)
        if self._killed_since_us:
            told.append(restart_row(self._killed_since_us, now))
            self._killed_since_us = 0
        pending = self._losses.pending() if self._losses and self.output.is_up else []
        told += [loss_row(each, now) for each in pending]
        numbers = self._ship_rows("collector_health", told)
        if self._losses:
            self._losses.declare(pending, numbers[-1])
            self._losses.retry()
        if not self._stopping:
            self._keep_budget(now)
        if self._endpoint:
            self._endpoint.text = metrics.exposition(self._metrics(told))

    def _keep_budget(self, now: int) -> None:
        seen = overhead.Reading(now, self.health.totals, dict(self.reading.spent_ns))
        steps = self._budget.judge(seen, self._brakes.now())
        for step in steps:
            log.warning("overhead: %s %s: %s", step["probe"] or "bpfleet", step["action"], step["reason"])
        if steps:
            self._ship_rows("overhead_event", steps)

    def _metrics(self, told: list[Row]) -> metrics.Totals:
        process = next(each for each in told if each["kind"] == "process")
        gauges = {name: process[name] for name in ("rss_bytes", "spool_bytes", "spool_batches")}
        state = {"kafka_up": int(self.output.is_up), **gauges}
        totals = dict(self.health.totals)
        totals["process", ""] = totals["process", ""] | state
        return totals

    def beat(self) -> None:
        """Ship a heartbeat."""
        names = [each.probe.name for each in self.attached if each.probe.name not in self.failed]
        labels = self.config.collector.labels
        memory.trim()
        self._ship_rows("host", [inventory.describe(labels, names, self.failed, self._started_us)])

    def _ship_rows(self, name: str, made: list[Row]) -> list[int]:
        stream = self._streams[name]
        return self.output.ship(stream, columns(stream, made))
