"""From loaded probes to batches: rings and aggregates are read, decoded, cut and handed to the output."""

import logging
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collector.cgroup import MADE, Cgroups
from collector.clock import Clock, now_us
from collector.decode import Decoders, Enums
from collector.ksym import Symbols
from collector.output import Output, Shipped
from collector.probes import Attached, Counts, RingReader
from schemas.config import Collector
from schemas.declare import Stream
from schemas.errors import BpfleetError
from schemas.rows import Row

log = logging.getLogger("bpfleet.collector")
READ_ROWS = 20_000  # from one ring at a time
BATCH_BYTES = 700_000  # of kernel structs: what becomes of them stays below Kafka's bound
RECLAIM_READS = 600  # reads after which an unchanged key of an aggregate leaves the kernel's map
CROWDED_READS = 4  # and of one that is filling
RECLAIM_EVERY = 16  # reads, at which such keys are looked for
FEW = 100  # fewer events than that wait for others
FILLING, FULL = 1 / 8, 1 / 4  # shares of a ring: worth a look between two cuts; look again at once


class Reading:
    """The readers of all probes. ``left_out``: probes that this kernel loads and cannot name values for."""

    def __init__(self, attached: Iterable[Attached], enums: Enums, config: Collector, output: Output) -> None:
        self.config, self.output = config, output
        self.cgroups = Cgroups()
        self.cgroups.scan()
        self.left_out: dict[str, str] = {}
        attached = list(attached)
        self.symbols = _symbols(attached)
        self.decoders = Decoders(Clock(), self.cgroups, self.symbols, enums)
        self.attached = [each for each in attached if self._is_decodable(each)]
        self.rings = [each for probe in self.attached for each in probe.rings]
        # Cgroups first: what they tell names the rows of all others.
        self.rings.sort(key=lambda each: each.stream.name != "cgroup_event")
        told = [each for each in self.rings if each.stream.name == "cgroup_event"]
        if told:
            self.cgroups.refresh = lambda: self._hear_cgroups(told[0])
        self.pace: dict[str, int] = {}  # probe → its aggregates are read at one pass in so many
        self.spent_ns: Counter[str] = Counter()  # CPU time of this thread, by probe
        self._passes = 0
        names = (stream.name for each in attached for stream, _ in each.aggregates)
        self._read_at = dict.fromkeys(names, time.monotonic())

    def _is_decodable(self, probe: Attached) -> bool:
        try:
            for reader in probe.rings:
                self.decoders.columns(reader.stream, np.empty(0, reader.ring.dtype))
            for stream, aggregate in probe.aggregates:
                empty = np.empty(0, aggregate.key), np.empty(0, aggregate.value)
                self.decoders.columns(stream, *empty)
        except BpfleetError as error:
            self.left_out[probe.probe.name] = str(error)
            return False
        return True

    # ── Rings ────────────────────────────────────────────────────────────────────────────────────

    def look_if_filling(self) -> bool:
        """Read the rings between two cuts, if one fills; whether to come back at once."""
        fullest = max((each.fill for each in self.rings), default=0.0)
        return self.look() if fullest > FILLING else False

    def look(self, limit: int = READ_ROWS, *, few: bool = True) -> bool:
        """Read every ring; whether one is filling fast. Without ``few``, where few events wait they stay."""
        busy = False
        for each in self.rings:
            fill = each.fill
            if not fill:
                continue
            busy = busy or fill > FULL
            if each.stream.name == "cgroup_event":
                self._hear_cgroups(each)
            elif few or fill > FILLING or each.ring.waits(FEW):
                each.read(limit)
            if each.rows >= self._batch_rows(each):
                self._ship(each)
        return busy

    @property
    def has_many(self) -> bool:
        """Whether so many events of a ring were read that they are worth a batch."""
        return any(each.rows >= FEW for each in self.rings)

    def cut(self, *, few: bool = True) -> None:
        """Make batches of all that was read; without ``few``, of as many events as are worth one."""
        for each in self.rings:
            if each.rows >= FEW or (few and each.rows):
                self._ship(each)

    def _batch_rows(self, reader: RingReader) -> int:
        return max(1, min(self.config.batch_rows, BATCH_BYTES // reader.ring.dtype.itemsize))

    def _ship(self, reader: RingReader) -> None:
        events = reader.cut()
        if events is None:
            return
        step = self._batch_rows(reader)
        for start in range(0, len(events), step):
            self.decode(reader.stream, events[start : start + step])

    def decode(self, stream: Stream, *parts: NDArray[Any], interval_us: int = 0) -> None:
        """Kernel arrays to a batch. What cannot be decoded is counted and stops nothing else."""
        begun = time.thread_time_ns()
        try:
            made = self.decoders.columns(stream, *parts, now_us=now_us(), interval_us=interval_us)
            self.output.ship(stream, made)
        except (ValueError, TypeError, LookupError, ArithmeticError):
            count = self.output.streams.setdefault(stream.name, Shipped())
            if not count.invalid:
                log.exception("%s: events cannot be decoded; further ones are only counted", stream.name)
            count.invalid += len(parts[0])
        self.spent_ns[stream.probe] += time.thread_time_ns() - begun

    # ── Aggregates ───────────────────────────────────────────────────────────────────────────────

    def aggregates(self, *, last: bool = False) -> None:
        """Ship what each aggregate gained since the last time; ``last``: of slowed ones too."""
        now = time.monotonic()
        self._passes += 1
        for probe in self.attached:
            counts: dict[str, Counts] = {}
            for stream, aggregate in probe.aggregates:
                pace = self.pace.get(probe.probe.name, 1) * stream.every
                waits = self._passes % pace  # all at the same look: what is sent together costs less
                if waits and not aggregate.crowded and not last:
                    continue
                interval = int((now - self._read_at[stream.name]) * 1e6)
                self._read_at[stream.name] = now
                counts = counts or probe.counts()
                keys, values = aggregate.read(counts[stream.name].used)
                if self._passes // pace % RECLAIM_EVERY == 0:
                    reads = CROWDED_READS if aggregate.crowded else max(RECLAIM_READS // pace, 1)
                    aggregate.reclaim(reads)
                if len(keys):
                    self.decode(stream, keys, values, interval_us=interval)

    # ── Cgroups ──────────────────────────────────────────────────────────────────────────────────

    def _hear_cgroups(self, reader: RingReader) -> None:
        before = len(reader.pending)
        reader.read(READ_ROWS)
        for events in reader.pending[before:]:
            for number, change, path in events[["id", "change", "cgroup"]].tolist():
                if change == MADE:
                    self.cgroups.made(number, path.partition(b"\0")[0].decode("utf-8", "replace"))
                else:
                    self.cgroups.removed(number)

    def fresh_cgroups(self) -> list[Row]:
        """Rows of the `cgroup` stream: what was resolved since the last call."""
        return [
            {"ts": each.at_us, "id": each.id, "cgroup": each.path, **vars(each.tenant)}
            for each in self.cgroups.take_fresh()
        ]


def _symbols(attached: Iterable[Attached]) -> Symbols:
    """The kernel's symbols, read now if a field needs them: later they may be out of reach."""
    symbols = Symbols()
    fields = (field for probe in attached for stream in probe.probe.streams for field in stream.fields)
    if any(each.decode == "ksym" for each in fields) and not symbols.read():
        log.warning("the kernel hides its symbols (kernel.kptr_restrict): places stay addresses")
    return symbols
