"""Batches to Kafka: numbered, encoded, in order, each handed to the producer exactly once.

Three places a batch can be: *flying* (librdkafka has it, Kafka has not answered), in the spool, settled.
- librdkafka is idempotent and never times a message out, so whatever it retries, Kafka keeps one.
- It gets only a window of batches: past it, or when Kafka has not answered for a second, or while older
  batches are in the spool, a new one goes to the spool. Spooled batches were never handed over, so sending
  them later cannot repeat one.
- A batch whose fate stays unknown (the collector was killed, the producer failed for good) is never sent
  again: Kafka is asked, and what it lacks is declared lost (collector.recovery, docs/decisions).
"""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from collector.clock import now_us
from collector.kafka import Desk
from collector.losses import Loss, Losses, Reason, ranges
from collector.output import Shipped
from collector.sequence import Sequences
from collector.spool import Label, Record, Spool
from schemas import topics, wire
from schemas.columns import Column, Dictionary
from schemas.config import Config, kafka_options
from schemas.declare import Stream
from schemas.errors import BpfleetError
from schemas.refusal import ADVICE

log = logging.getLogger("bpfleet.collector")
WINDOW_BYTES = 4 << 20
WINDOW_BATCHES = 256
STALL_S = 1.0
MESSAGE_BYTES = 900_000  # Kafka's default bound is 1,048,588 with all overheads
DRAIN_BATCHES = 64  # from the spool at a time, between two looks at the rings
PRODUCER = {
    "compression.type": "zstd",
    "compression.level": 1,  # each batch has a context of its own, of a megabyte at higher levels
    "partitioner": "murmur2_random",  # as Java's: a host's batches of a stream stay in one partition
    "linger.ms": 5,
    "queue.buffering.max.messages": 4 * WINDOW_BATCHES,
    "queue.buffering.max.kbytes": 16 * WINDOW_BYTES // 1024,
    "reconnect.backoff.ms": 100,
    "reconnect.backoff.max.ms": 1000,
    "socket.keepalive.enable": True,
    "log_level": 0,
}
# What no setting may change: without these a batch could be in Kafka twice.
GUARANTEE = {
    "enable.idempotence": True,
    "message.timeout.ms": 0,  # never: a message given up might still be delivered
}


@dataclass(frozen=True)
class _Flight:
    label: Label
    size: int
    at: float


class Shipper:
    """One producer and what stands behind it. For one thread."""

    def __init__(
        self, config: Config, sequences: Sequences, spool: Spool, losses: Losses, desk: Desk
    ) -> None:
        self.streams: dict[str, Shipped] = {}
        self.spool = spool
        self._config, self._sequences, self._losses, self._desk = config, sequences, losses, desk
        self._host, self._boot = config.host, sequences.boot
        self._flying: dict[int, _Flight] = {}
        self._flying_bytes = 0
        self._token = 0
        self._producer: Any = None
        self._fatal = ""
        self._refused_by = 0  # the code of the last refusal told
        self._disk_full = False
        self._handed: dict[tuple[str, bytes], int] = {}  # (stream, boot) → the number to come
        spool.on_shed = self._on_shed

    # ── In ───────────────────────────────────────────────────────────────────────────────────────

    def ship(self, stream: Stream, columns: Mapping[str, Column], sample_rate: int = 1) -> list[int]:
        """Number, encode and send equally long columns; the numbers of the batches that became of them."""
        rows = len(columns[stream.fields[0].name])
        if not rows:
            return []
        number = self._sequences.take(stream.name, now_us())
        try:
            message = wire.encode(stream, wire.Envelope(self._host, self._boot, number, sample_rate), columns)
        except Exception:
            self._sequences.untake(stream.name, number)
            raise
        if len(message) > MESSAGE_BYTES and rows > 1:
            return self._ship_halves(stream, columns, rows, number, sample_rate)
        label = Label(stream.name, self._boot, number, rows)
        count = self.streams.setdefault(stream.name, Shipped())
        count.batches += 1
        count.shipped += rows
        count.bytes += len(message)
        self._send(Record(label, self._host, message))
        return [number]

    def _ship_halves(
        self, stream: Stream, columns: Mapping[str, Column], rows: int, number: int, sample_rate: int
    ) -> list[int]:
        """Two batches of what is too large for one; the number already taken is the first half's."""
        self._sequences.untake(stream.name, number)
        half = rows // 2
        first = {name: _slice(column, slice(0, half)) for name, column in columns.items()}
        second = {name: _slice(column, slice(half, rows)) for name, column in columns.items()}
        return [*self.ship(stream, first, sample_rate), *self.ship(stream, second, sample_rate)]

    def _send(self, record: Record) -> None:
        if not len(self.spool) and self._is_open():
            self._produce(record)
            return
        try:
            self.spool.append(record)
            self._disk_full = False
        except OSError as error:
            if not self._disk_full:
                log.warning("cannot write to the spool: %s; batches are shed until it can", error.strerror)
            self._disk_full = True
            self._on_shed([record.label])

    def _on_shed(self, labels: list[Label]) -> None:
        """A whole segment at a time, tens of thousands of small batches: one entry a run in the journal."""
        rows: dict[tuple[str, bytes], dict[int, int]] = {}
        for label in labels:
            rows.setdefault((label.stream, label.boot), {})[label.seq] = label.rows
        for (stream, boot), of in rows.items():
            self.streams.setdefault(stream, Shipped()).shed += sum(of.values())
            for first, last in ranges(sorted(of)):
                events = sum(of[number] for number in range(first, last + 1))
                self._lose(Label(stream, boot, first, events), Reason.SHED, last=last)

    def _lose(self, label: Label, reason: Reason, *, last: int | None = None, is_open: bool = False) -> None:
        last = label.seq if last is None else last
        loss = Loss(reason, label.stream, label.boot.hex(), label.seq, last, label.rows, now_us(), is_open)
        self._losses.add(loss)
        if label.boot == self._boot:
            self._sequences.declared(label.stream, label.seq, last)
            for number in range(label.seq, last + 1):
                self._hear_declaration(label.stream, number, delivered=False)

    def _hear_declaration(self, stream: str, seq: int, *, delivered: bool) -> None:
        if stream == "collector_health":
            self._losses.settle(seq, delivered=delivered)

    # ── Out ──────────────────────────────────────────────────────────────────────────────────────

    def _is_open(self) -> bool:
        """Whether Kafka takes and answers now."""
        if not self._desk.ready or self._fatal:
            return False
        if not self._flying:
            return True
        oldest = next(iter(self._flying.values()))
        return (
            len(self._flying) < WINDOW_BATCHES
            and self._flying_bytes < WINDOW_BYTES
            and time.monotonic() - oldest.at < STALL_S
        )

    @property
    def is_up(self) -> bool:
        """Kafka answers and nothing waits in the spool."""
        return self._is_open() and not len(self.spool)

    @property
    def backlog(self) -> bool:
        """There is something to drain, and Kafka takes it."""
        return bool(len(self.spool)) and self._is_open()

    def spooled(self) -> tuple[int, int]:
        """Bytes and batches on disk."""
        return self.spool.bytes, len(self.spool)

    def pump(self) -> None:
        """Hear Kafka's answers and drain the spool; returns at once. To be called often."""
        if self._producer is not None:
            self._producer.poll(0)
        if self._fatal and not self._flying:
            self._renew()
        for _ in range(DRAIN_BATCHES):
            if not len(self.spool) or not self._is_open():
                break
            record = self.spool.take()
            if record is not None:
                self._produce(record)

    def _produce(self, record: Record) -> None:
        from confluent_kafka import KafkaException

        if self._producer is None:
            self.open()
        self._token += 1
        label, size = record.label, len(record.message)
        self._check_gap(label)
        self._flying[self._token] = _Flight(label, size, time.monotonic())
        self._flying_bytes += size
        try:
            self._producer.produce(
                topics.topic(label.stream), record.message, record.key,
                on_delivery=partial(self._answered, self._token),
            )  # fmt: skip
        except (KafkaException, BufferError) as error:
            self._land(self._token)
            self._refuse(label, str(error))

    def _check_gap(self, label: Label) -> None:
        """What a damaged spool did not give back is missing between two batches of a stream."""
        key = (label.stream, label.boot)
        wanted = self._handed.get(key, label.seq)
        if self.spool.damaged and label.seq > wanted:
            self._lose(label._replace(seq=wanted, rows=0), Reason.BROKEN, last=label.seq - 1)
        self._handed[key] = label.seq + 1

    def open(self) -> None:
        """Make the producer. Raises :class:`BpfleetError` for settings that librdkafka does not know."""
        from confluent_kafka import KafkaException, Producer

        own = {"error_cb": self._error, "client.id": f"bpfleet-{self._host}"}
        try:
            self._producer = Producer({**PRODUCER, **kafka_options(self._config.kafka), **GUARANTEE, **own})
        except KafkaException as error:
            raise BpfleetError(f"kafka.options: {error.args[0].str()}; see librdkafka's settings") from None

    def _land(self, token: int) -> Label:
        flight = self._flying.pop(token)
        self._flying_bytes -= flight.size
        return flight.label

    def _answered(self, token: int, error: Any, message: Any) -> None:
        """Kafka's word on a batch; called by librdkafka, through which no exception may pass."""
        label = self._land(token)
        try:
            self._judge_answer(label, error, message)
        except Exception:
            log.exception("the answer to batch %d of %s was not understood", label.seq, label.stream)
            self._lose(label, Reason.BROKEN, is_open=True)  # in doubt: the next start asks Kafka

    def _judge_answer(self, label: Label, error: Any, message: Any) -> None:
        from confluent_kafka import KafkaError

        if error is None:
            self.streams.setdefault(label.stream, Shipped()).delivered += label.rows
            if label.boot == self._boot:
                self._sequences.delivered(label.stream, label.seq, message.partition(), message.offset())
                self._hear_declaration(label.stream, label.seq, delivered=True)
        elif error.code() in _refusals():
            if error.code() in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC):
                self._desk.again()
            self._refuse(label, error.str())
        else:
            self._lose(label, Reason.BROKEN, is_open=True)

    def _refuse(self, label: Label, reason: str) -> None:
        log.warning("Kafka refuses a batch of %s: %s", label.stream, reason)
        self.streams.setdefault(label.stream, Shipped()).refused += label.rows
        self._lose(label, Reason.REFUSED)

    def _error(self, error: Any) -> None:
        """What librdkafka says of its connections: wrong credentials, and what is fatal."""
        from confluent_kafka import KafkaError

        if error.fatal() or error.code() == KafkaError._FATAL:
            self._fatal = error.str()
            log.warning("the Kafka producer failed for good (%s); a new one takes over", self._fatal)
            self._producer.purge()
        elif (code := error.code()) in ADVICE and code != self._refused_by:
            self._refused_by = code  # once, not with each attempt
            log.warning("Kafka refuses us: %s; %s", error.str(), ADVICE[code])

    def _renew(self) -> None:
        """A fresh producer: the failed one has given back everything it held."""
        self._producer = None
        self._fatal = ""

    def close(self, seconds: float) -> int:
        """Send what can be sent in that time; how many batches are left without an answer.

        They are in doubt, and the next start asks Kafka; what is in the spool stays there.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and (self._flying or (len(self.spool) and not self._desk.trouble)):
            self.pump()
            if self._producer is not None:
                self._producer.poll(0.02)
        if self._producer is not None and self._flying:
            self._producer.purge(in_queue=True, in_flight=True, blocking=False)
        left = len(self._flying)
        self.spool.close()
        return left


@cache
def _refusals() -> set[int]:
    """Answers after which a batch is not in Kafka for certain; after any other it may be."""
    from confluent_kafka import KafkaError

    return {
        KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE, KafkaError.INVALID_RECORD,
        KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION,
        KafkaError.POLICY_VIOLATION,
    }  # fmt: skip


def _slice(column: Column, rows: slice) -> Column:
    if isinstance(column, Dictionary):
        return Dictionary(column.values, column.index[rows])
    return column[rows]
