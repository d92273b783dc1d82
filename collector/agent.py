"""The collector's main loop: rings and aggregates → columns → batches → Kafka (or standard output).

One thread reads, decodes and ships; librdkafka, the Kafka desk and the metrics endpoint have their own.
A ring wakes the loop only as each quarter of it fills (a wake-up an event would cost the traced program);
otherwise it is read every ``collector.batch_ms``, when all there is becomes batches.
"""

import gc
import logging
import os
import select
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from collector import bpf_sys, inventory, metrics, privileges, probes, rows, tracefs
from collector.cgroup import MADE, Cgroups
from collector.clock import Clock, now_us
from collector.decode import Decoders
from collector.health import Health, Row, loss_row, restart_row
from collector.ksym import Symbols
from collector.losses import Losses
from collector.probes import Attached, RingReader
from collector.sequence import Sequences
from collector.ship import Shipped
from schemas import declare
from schemas.columns import Column
from schemas.config import Config
from schemas.declare import Stream
from schemas.errors import BpfleetError

log = logging.getLogger("bpfleet.collector")
BUSY_S = 0.002  # between two passes while a ring is filling, or the spool draining
READ_ROWS = 20_000  # from one ring at a time
BATCH_BYTES = 700_000  # of kernel structs: what becomes of them stays below Kafka's bound
HEALTH_S = 5.0
HEARTBEAT_S = 30.0
RECLAIM_READS = 600  # reads after which an unchanged key of an aggregate leaves the kernel's map
STOP_S = 5.0
DETACH_S = 0.02  # programs that run at that moment come to their end


class Output(Protocol):
    """Where columns go."""

    streams: dict[str, Shipped]

    def ship(self, stream: Stream, columns: Mapping[str, Column], sample_rate: int = 1) -> list[int]:
        """Take equally long columns; the numbers of the batches they became."""

    def pump(self) -> None:
        """Do what is waiting; returns at once."""

    @property
    def backlog(self) -> bool:
        """Whether :meth:`pump` should be called again soon."""

    @property
    def is_up(self) -> bool:
        """Whether what is shipped now arrives now."""

    def spooled(self) -> tuple[int, int]:
        """Bytes and batches on disk."""

    def close(self, seconds: float) -> int:
        """Finish within that time; how many batches are left unanswered."""


@dataclass
class Every:
    """A due time that comes again."""

    seconds: float
    at: float = 0.0

    def due(self, now: float) -> bool:
        """Whether it is time; then the next time is set."""
        if now < self.at:
            return False
        missed = now - self.at > self.seconds
        self.at = (now if missed else self.at) + self.seconds
        return True


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
        self._stats_fd = -1
        self._endpoint: metrics.Endpoint | None = None
        self._cut = Every(config.collector.batch_ms / 1000)
        self._read = Every(config.collector.aggregate_ms / 1000)
        self._tell = Every(HEALTH_S)
        self._beat = Every(HEARTBEAT_S)
        self._timers = (self._cut, self._read, self._tell, self._beat)
        self._read_at = 0.0
        self.resolve: Callable[[], None] = lambda: None  # enters Kafka's answers into the journal

    # ── Start and stop ───────────────────────────────────────────────────────────────────────────

    def start(self) -> None:
        """Load, attach, give up privileges. Raises :class:`BpfleetError` when no probe can run."""
        privileges.require()
        tracefs.mount()
        wanted = probes.chosen(declare.load(), self.config.collector.probes)
        try:
            self._stats_fd = bpf_sys.enable_stats()
        except bpf_sys.BpfError as error:
            log.warning("%s: programs run untimed", error)
        self.attached, self.failed, enums = probes.load(wanted, self.config.collector)
        for name, reason in self.failed.items():
            log.warning("probe %s does not run: %s", name, reason)
        if not self.attached:
            raise BpfleetError("no probe could be loaded; `bpfleet check` says why for each")
        self._prepare_decoders(enums)
        privileges.drop()
        if self.config.collector.metrics_port:
            self._endpoint = metrics.Endpoint(self.config.collector.metrics_port)
        self._read_at = time.monotonic()
        self.health = Health(self.attached, self.output.streams, self.output.spooled)
        gc.collect()
        gc.freeze()

    def _prepare_decoders(self, enums: dict[str, dict[int, str]]) -> None:
        self.cgroups = Cgroups()
        self.cgroups.scan()
        symbols = Symbols()
        fields = [
            field for probe in self.attached for stream in probe.probe.streams for field in stream.fields
        ]
        if any(each.decode == "ksym" for each in fields) and not symbols.read():
            log.warning("the kernel hides its symbols (kernel.kptr_restrict): places stay addresses")
        self.decoders = Decoders(Clock(), self.cgroups, symbols, enums)
        self.rings = [each for probe in self.attached for each in probe.rings]
        # Cgroups first: what they tell names the rows of all others.
        self.rings.sort(key=lambda each: each.stream.name != "cgroup_event")
        told = [each for each in self.rings if each.stream.name == "cgroup_event"]
        if told:
            self.cgroups.refresh = lambda: self._hear_cgroups(told[0])

    def stop(self, *_: Any) -> None:
        """Leave the loop soon (also a signal handler)."""
        self._stopping = True

    def close(self) -> None:
        """Detach, read and count what is left, flush."""
        for each in self.attached:
            each.detach()
        time.sleep(DETACH_S)
        self._look(limit=1 << 30)
        self._read_aggregates()
        self.cut()
        self._ship_cgroups()
        self.tell()
        left = self.output.close(STOP_S)
        if left:
            log.warning("%d batches have no answer from Kafka; the next start asks for them", left)
        for each in self.attached:
            each.close()
        if self._endpoint:
            self._endpoint.close()
        if self._stats_fd >= 0:
            os.close(self._stats_fd)

    # ── The loop ─────────────────────────────────────────────────────────────────────────────────

    def run(self) -> None:
        """Until :meth:`stop` (SIGTERM, SIGINT and SIGHUP call it)."""
        wake, wake_in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_in)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self.stop)
        poll = select.epoll()
        poll.register(wake, select.EPOLLIN)
        for each in self.rings:
            # Edge-triggered: a ring with anything in it counts as readable, only its wake-ups matter.
            poll.register(each.ring.fd, select.EPOLLIN | select.EPOLLET)
        while not self._stopping:
            poll.poll(BUSY_S if self.step() else self._until_due())
        poll.close()
        signal.set_wakeup_fd(-1)
        os.close(wake)
        os.close(wake_in)

    def _until_due(self) -> float:
        return max(min(each.at for each in self._timers) - time.monotonic(), BUSY_S)

    def step(self) -> bool:
        """One pass over everything that is due; whether the next should follow at once."""
        now = time.monotonic()
        cut = self._cut.due(now)
        busy = self._look(READ_ROWS) if cut else self._look_if_filling()
        if cut:
            self.cut()
        if self._read.due(now):
            self._read_aggregates()
        if cut:
            self._ship_cgroups()
            self.resolve()
            if self._sequences:
                self._sequences.alive(now_us())
        if self._tell.due(now):
            self.tell()
        if self._beat.due(now):
            self.beat()
        self.output.pump()
        return busy or self.output.backlog

    def _look_if_filling(self) -> bool:
        fullest = max((each.fill for each in self.rings), default=0.0)
        return self._look(READ_ROWS) if fullest > 1 / 8 else False

    def _look(self, limit: int) -> bool:
        """Read every ring; whether one has more, or is filling fast."""
        busy = False
        for each in self.rings:
            fill = each.fill
            if each.stream.name == "cgroup_event":
                self._hear_cgroups(each)
            else:
                each.read(limit)
            if each.rows >= self._batch_rows(each):
                self._ship_ring(each)
            busy = busy or fill > 1 / 4
        return busy

    def _batch_rows(self, reader: RingReader) -> int:
        return max(1, min(self.config.collector.batch_rows, BATCH_BYTES // reader.ring.dtype.itemsize))

    def _hear_cgroups(self, reader: RingReader) -> None:
        before = len(reader.pending)
        reader.read(READ_ROWS)
        for events in reader.pending[before:]:
            self._learn_cgroups(events)

    def _learn_cgroups(self, events: NDArray[Any]) -> None:
        for number, change, path in events[["id", "change", "cgroup"]].tolist():
            if change == MADE:
                self.cgroups.made(number, path.partition(b"\0")[0].decode("utf-8", "replace"))
            else:
                self.cgroups.removed(number)

    # ── Batches ──────────────────────────────────────────────────────────────────────────────────

    def cut(self) -> None:
        """Make batches of all that was read."""
        for each in self.rings:
            self._ship_ring(each)

    def _ship_ring(self, reader: RingReader) -> None:
        events = reader.cut()
        if events is None:
            return
        step = self._batch_rows(reader)
        for start in range(0, len(events), step):
            part = events[start : start + step]
            self.output.ship(reader.stream, self.decoders.columns(reader.stream, part))

    def _read_aggregates(self) -> None:
        now = time.monotonic()
        interval = int((now - self._read_at) * 1e6)
        self._read_at = now
        for probe in self.attached:
            for stream, aggregate in probe.aggregates:
                keys, values = aggregate.read()
                aggregate.reclaim(RECLAIM_READS)
                if len(keys):
                    made = self.decoders.columns(stream, keys, values, now_us=now_us(), interval_us=interval)
                    self.output.ship(stream, made)

    def _ship_cgroups(self) -> None:
        fresh = [
            {"ts": each.at_us, "id": each.id, "cgroup": each.path, **vars(each.tenant)}
            for each in self.cgroups.take_fresh()
        ]
        if fresh:
            self._ship_rows("cgroup", fresh)

    def tell(self) -> None:
        """Ship the health of the interval, and what is lost, once it can arrive."""
        now = now_us()
        told = self.health.rows(now)
        if self._killed_since_us:
            told.append(restart_row(self._killed_since_us, now))
            self._killed_since_us = 0
        pending = self._losses.pending() if self._losses and self.output.is_up else []
        told += [loss_row(each, now) for each in pending]
        numbers = self._ship_rows("collector_health", told)
        if self._losses:
            self._losses.declare(pending, numbers[-1])
            self._losses.retry()
        if self._endpoint:
            self._endpoint.text = metrics.exposition(self._metrics(told))

    def _metrics(self, told: list[Row]) -> metrics.Totals:
        process = next(each for each in told if each["kind"] == "process")
        gauges = {name: process[name] for name in ("rss_bytes", "spool_bytes", "spool_batches")}
        state = {"kafka_up": int(self.output.is_up), **gauges}
        totals = dict(self.health.totals)
        totals["process", ""] = totals["process", ""] | state
        return totals

    def beat(self) -> None:
        """Ship a heartbeat."""
        names = [each.probe.name for each in self.attached]
        labels = self.config.collector.labels
        self._ship_rows("host", [inventory.describe(labels, names, self.failed, self._started_us)])

    def _ship_rows(self, name: str, made: list[Row]) -> list[int]:
        stream = self._streams[name]
        return self.output.ship(stream, rows.columns(stream, made))
