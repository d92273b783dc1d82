"""Put one batch into the store, whatever it takes; then its dead letters. Runs in a thread of its own.

A batch may need several inserts: one for each day (a ClickHouse partition) and schema. Each carries a token
made of where its messages are, so that whoever sends it a second time adds nothing.
"""

import logging
import random
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from enum import Enum

from schemas.wire import Batch
from sinks import native
from sinks.dead import DeadLetters, Letter
from sinks.judge import Dead, Good
from sinks.metrics import Metrics
from sinks.partition import Flight
from sinks.presence import absent
from sinks.writer import Rejected, ServerTrouble, Table, Writer

log = logging.getLogger("bpfleet.sink")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0  # seconds between attempts
UNKNOWN_TABLE = {16, 36, 60, 81}  # no such column, bad arguments, no such table, no such database


class Outcome(Enum):
    """How far a flight came."""

    LANDED = "landed"
    COMMIT_AGAIN = "commit again"  # the intent grew, or it is so old that another may own the partition


class _Stop(Exception):
    """The flight must not go on as it is."""


def now() -> float:
    """Seconds on a clock that also runs while the process is stopped or the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Inserter:
    """Lands flights. ``fresh_seconds``: an older intent is committed again before another attempt, because
    its partition may have a new owner by now. ``renew`` is called with a schema whose table has gone."""

    def __init__(
        self, writer: Writer, dead: DeadLetters, metrics: Metrics, fresh_seconds: float,
        renew: Callable[[int], None],
    ) -> None:  # fmt: skip
        self._writer = writer
        self._dead = dead
        self._metrics = metrics
        self._fresh_seconds = fresh_seconds
        self._renew = renew

    def land(self, flight: Flight) -> Outcome:
        """Insert all that is not in the store yet, deliver the dead letters."""
        try:
            for name, day, parts in plan(flight):
                if name in flight.landed:
                    continue
                if name in flight.intent.alone:
                    self._one_by_one(flight, name, day, parts)
                else:
                    self._together(flight, name, day, parts)
                flight.landed.add(name)
            self._deliver(flight)
        except _Stop:
            return Outcome.COMMIT_AGAIN
        return Outcome.LANDED

    def _together(self, flight: Flight, name: str, day: int, parts: list[tuple[int, Good]]) -> None:
        try:
            self._attempt(flight, parts, f"{_range(flight)}:{name}")
        except Rejected as error:
            if len(parts) == 1:
                flight.reject({parts[0][0]: str(error)})
            else:
                log.warning("%s: rejected whole, going message by message: %s", _range(flight), error)
                flight.part_ways(name)
            raise _Stop from None

    def _one_by_one(self, flight: Flight, name: str, day: int, parts: list[tuple[int, Good]]) -> None:
        rejected: dict[int, str] = {}
        for offset, good in parts:
            try:
                self._attempt(flight, [(offset, good)], f"{_range(flight)}:{name}:{offset}")
            except Rejected as error:
                rejected[offset] = str(error)
        if rejected:
            flight.reject(rejected)
            raise _Stop

    def _attempt(self, flight: Flight, parts: list[tuple[int, Good]], token: str) -> None:
        """Until the store has these rows. Raises :class:`Rejected`, or _Stop when the intent is too old."""
        table, batches = parts[0][1].table, [good.batch for _, good in parts]
        doubtful = flight.recovered
        pause = FIRST_PAUSE
        while True:
            if flight.abandoned.is_set() or now() - flight.committed_at > self._fresh_seconds:
                raise _Stop
            try:
                self._insert(table, batches, token)
                if doubtful:
                    self._make_sure(table, batches, token)
                return
            except ServerTrouble as error:
                doubtful = True  # it may have happened all the same
                self._metrics.retries.inc()
                if pause in (FIRST_PAUSE, LONGEST_PAUSE):  # the first, and then not too often
                    log.warning("insert into %s failed, will try again: %s", table.stream, error)
                if error.code in UNKNOWN_TABLE:
                    self._renew(parts[0][1].schema)
            flight.abandoned.wait(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, LONGEST_PAUSE)

    def _insert(self, table: Table, batches: Sequence[Batch], token: str) -> None:
        began = time.monotonic()
        sent = self._writer.insert(table, batches, token)
        self._metrics.inserted(table.stream, batches, sent, time.monotonic() - began)

    def _make_sure(self, table: Table, batches: list[Batch], token: str) -> None:
        """A server killed between noting a token and publishing its rows would ignore the second attempt:
        where that can have happened, look, and send what is missing under another token."""
        missing = absent(self._writer, table, batches)
        if missing:
            log.warning("%s: the store knows the token but not the rows; sending them again", token)
            self._insert(table, missing, token + ":again")

    def _deliver(self, flight: Flight) -> None:
        letters = [
            Letter(
                flight.topic, flight.partition, each.message.offset, each.message.key, each.message.value,
                each.verdict.reason, each.verdict.detail,
            )
            for each in flight.items
            if isinstance(each.verdict, Dead)
        ]  # fmt: skip
        while letters and not self._dead.deliver(letters):
            if flight.abandoned.wait(1) or now() - flight.committed_at > self._fresh_seconds:
                raise _Stop
        for letter in letters:
            self._metrics.dead.labels(letter.reason).inc()
            where = f"{letter.topic}:{letter.partition}:{letter.offset}"
            log.warning("dead letter %s, %s: %s", where, letter.reason, letter.detail)


def plan(flight: Flight) -> list[tuple[str, int, list[tuple[int, Good]]]]:
    """The inserts of a flight in order: name (day and schema), day, and each message's rows of it."""
    inserts: dict[tuple[int, int], list[tuple[int, Good]]] = {}
    for offset, good in flight.good():
        for day, part in native.split(good.batch):
            inserts.setdefault((day, good.schema), []).append((offset, Good(part, good.table, good.schema)))
    return [
        (f"{EPOCH + timedelta(day):%Y-%m-%d}:{schema:016x}", day, inserts[day, schema])
        for day, schema in sorted(inserts)
    ]


def _range(flight: Flight) -> str:
    return f"{flight.label}:{flight.partition}:{flight.start}-{flight.intent.end}"
