"""Feed messages to their tables again: a topic's range, or the dead letters.

What is in the store stays as it is: a message of which a table has a row of that day is left out, so that a
replay that is repeated, or overlaps another, adds nothing. It never runs ahead of the sinks: a range ends
where their group has committed.
"""

import hashlib
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from confluent_kafka import Consumer, KafkaException, TopicPartition

from schemas import topics
from schemas.config import Config, kafka_options
from schemas.errors import BpfleetError, UsageError
from sinks import native
from sinks.dead import Letter, read_letter
from sinks.judge import SCHEMA_SECONDS, Dead, Good, Judge
from sinks.presence import absent
from sinks.tables import SchemaTables
from sinks.writer import Rejected, ServerTrouble, Writer

ANSWER_SECONDS = 10.0
Place = tuple[str, int, int]  # topic, partition, offset


@dataclass
class Report:
    """What a replay did, counted in messages."""

    inserted: int = 0
    rows: int = 0
    present: int = 0
    dead: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        dead = ", ".join(f"{count} {reason}" for reason, count in sorted(self.dead.items()))
        return (
            f"{self.inserted} messages inserted ({self.rows} rows), {self.present} were in the store, "
            f"{sum(self.dead.values())} cannot be stored{f' ({dead})' if dead else ''}"
        )


class Replay:
    """One replay; use as a context. Entering raises :class:`BpfleetError` when a server is not there."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._held: list[tuple[Place, Good]] = []
        self._rows = 0
        self.report = Report()

    def __enter__(self) -> "Replay":
        self._writer = Writer(self._config.clickhouse)
        self._tables = SchemaTables(self._config, self._writer)
        self._judge = Judge(self._tables)
        self._options = options = {**kafka_options(self._config.kafka), "enable.auto.commit": False}
        self._consumer = Consumer({**options, "group.id": self._config.sink.group, "log_level": 0})
        self._present_topic(topics.SCHEMAS)
        self._tables.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._consumer.close()
        self._tables.stop()
        self._writer.close()

    def topic(self, topic: str, partition: int | None, first: int | None, end: int | None) -> Report:
        """Messages ``[first, end)`` of one or all partitions; by default all that the sinks are done with."""
        if not topics.STREAM_TOPIC.fullmatch(topic):
            raise UsageError(f"{topic} carries no stream; topics are like {topics.topic('tcp_flow')}")
        numbers = self._present_topic(topic)
        if partition is not None and partition not in numbers:
            raise UsageError(f"{topic} has no partition {partition}")
        for number in numbers if partition is None else [partition]:
            low, high = self._done_with(topic, number)
            begin, stop = max(low, first or 0), min(high, high if end is None else end)
            for offset, value, _ in self._read(TopicPartition(topic, number, begin), stop):
                self._add((topic, number, offset), value)
        return self._finish()

    def letters(self, reason: str | None = None) -> Report:
        """The dead letters (of one ``reason``), each once, however often it was delivered."""
        self._present_topic(topics.DEAD)
        place = TopicPartition(topics.DEAD, 0)
        low, high = self._consumer.get_watermark_offsets(place, timeout=ANSWER_SECONDS)
        for letter in _once(self._letters(TopicPartition(topics.DEAD, 0, low), high)):
            if reason in (None, letter.reason):
                self._add((letter.topic, letter.partition, letter.offset), letter.value)
        return self._finish()

    # ── Reading ──────────────────────────────────────────────────────────────────────────────────

    def _present_topic(self, topic: str) -> list[int]:
        try:
            listed = self._consumer.list_topics(topic, timeout=ANSWER_SECONDS).topics[topic]
        except KafkaException as error:
            raise topics.unreachable(self._options, error, self._consumer) from None
        if listed.error is not None:
            raise UsageError(f"no topic {topic}; nothing was ever sent there")
        return sorted(listed.partitions)

    def _done_with(self, topic: str, number: int) -> tuple[int, int]:
        """From where messages are kept, and up to where the sinks have stored them."""
        place = TopicPartition(topic, number)
        low, _ = self._consumer.get_watermark_offsets(place, timeout=ANSWER_SECONDS)
        (committed,) = self._consumer.committed([place], timeout=ANSWER_SECONDS)
        return low, max(low, committed.offset)

    def _letters(self, start: TopicPartition, end: int) -> Iterator[Letter]:
        for _, value, headers in self._read(start, end):
            try:
                yield read_letter(headers, value)
            except ValueError:
                self.report.dead["unreadable"] += 1

    def _read(
        self, start: TopicPartition, end: int
    ) -> Iterator[tuple[int, bytes | None, list[tuple[str, bytes]]]]:
        """Offset, value and headers of each message from ``start`` to before ``end``."""
        if start.offset >= end:
            return
        self._consumer.assign([start])
        quiet_since = time.monotonic()
        while time.monotonic() - quiet_since < 3 * ANSWER_SECONDS:
            for message in self._consumer.consume(500, timeout=1):
                quiet_since = time.monotonic()
                offset = message.offset()
                if message.error() is not None or offset is None:
                    continue
                if offset < end:
                    yield offset, message.value(), message.headers() or []  # type: ignore[misc]
                if offset >= end - 1:
                    self._consumer.unassign()
                    return
        raise BpfleetError(f"Kafka does not deliver {start.topic}:{start.partition}; is it up?")

    # ── Inserting ────────────────────────────────────────────────────────────────────────────────

    def _add(self, place: Place, value: bytes | None) -> None:
        deadline = time.monotonic() + 2 * SCHEMA_SECONDS
        while (verdict := self._judge(place[0], value)) is None:
            if time.monotonic() > deadline:
                raise BpfleetError("the store does not settle its tables; is it up? See `bpfleet status`")
            time.sleep(0.05)
        if isinstance(verdict, Dead):
            self.report.dead[verdict.reason] += 1
            return
        self._held.append((place, verdict))
        self._rows += verdict.batch.rows
        if self._rows >= self._config.sink.flush_rows:
            self._flush()

    def _finish(self) -> Report:
        self._flush()
        return self.report

    def _flush(self) -> None:
        inserts: dict[tuple[int, int], list[tuple[Place, Good]]] = {}
        for place, good in self._held:
            for day, part in native.split(good.batch):
                inserts.setdefault((day, good.schema), []).append(
                    (place, Good(part, good.table, good.schema))
                )
        added: set[Place] = set()
        for (day, schema), parts in sorted(inserts.items(), key=lambda each: each[0]):
            added |= self._insert(f"{day}:{schema:016x}", parts)
        self.report.inserted += len(added)
        self.report.present += len({place for place, _ in self._held} - added)
        self._held, self._rows = [], 0

    def _insert(self, name: str, parts: list[tuple[Place, Good]]) -> set[Place]:
        """Insert what is absent; returns where that was. What the server rejects is counted as dead."""
        table = parts[0][1].table
        try:
            missing = {id(each) for each in absent(self._writer, table, [good.batch for _, good in parts])}
            new = [(place, good.batch) for place, good in parts if id(good.batch) in missing]
            if not new:
                return set()
            token = f"replay:{_digest(place for place, _ in new)}:{name}"
            self._writer.insert(table, [batch for _, batch in new], token)
        except Rejected:
            if len(parts) > 1:
                return set().union(*(self._insert(name, [each]) for each in parts))
            self.report.dead["rejected"] += 1
            return set()
        except ServerTrouble as error:
            raise BpfleetError(f"the store could not take it: {error}; replay again when it can") from None
        self.report.rows += sum(batch.rows for _, batch in new)
        return {place for place, _ in new}


def _once(letters: Iterable[Letter]) -> Iterator[Letter]:
    seen: set[Place] = set()
    for letter in letters:
        place = (letter.topic, letter.partition, letter.offset)
        if place not in seen:
            seen.add(place)
            yield letter


def _digest(places: Iterable[Place]) -> str:
    return hashlib.blake2b(repr(sorted(places)).encode(), digest_size=12).hexdigest()
