"""Schemas as they arrive on their topic, and the tables that follow from them.

One thread of its own reads the schemas topic from its beginning and makes or extends tables, so that
the consumer never waits for either; until a table is ready its messages wait in their partition.
Reading comes before making, and tables whose messages wait come before all others.
"""

import json
import logging
import threading
import time
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, TopicPartition

from schemas import ddl, topics, wire
from schemas.admin import ANYONE, unpackable
from schemas.columns import InvalidBatch, packing, packing_name
from schemas.config import Clickhouse, Config, kafka_options
from schemas.declare import Stream
from schemas.errors import UsageError
from sinks import native
from sinks.judge import Refused
from sinks.writer import Known, Rejected, ServerTrouble, Table, Writer

log = logging.getLogger("bpfleet.sink")
RETRY_SECONDS = 1.0
LISTEN_SECONDS, ANSWER_SECONDS = 0.5, 5.0
REFUSED_SECONDS = 30.0  # an operator may have mended the table


class SchemaTables:
    """Fingerprint → table, kept up to date by a thread between start() and stop()."""

    def __init__(self, config: Config, writer: Writer) -> None:
        self._config = config
        self._writer = writer
        self._catalog = topics.Catalog()
        self.schemas = self._catalog.schemas
        self._streams: dict[int, Stream] = {}
        self._settled: dict[int, Table | Refused] = {}
        self._due: dict[int, float] = {}  # schema → when to try its table (again)
        self._wanted: dict[int, None] = {}  # schemas that messages wait for, in the order they were asked for
        self._trouble = ""  # told of the store
        self._known: Known | None = None  # the tables there were when it was last asked
        self._asked = False  # for a schema that has not arrived
        self._heard = 0.0
        self._read_to = -1  # the end of the topic when it was reached
        self._passed = -1  # the last offset of the topic that could not be unpacked
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="schemas", daemon=True)
        for stream in self._catalog.streams.values():
            self._add(wire.fingerprint(wire.batch_schema(stream)), stream)

    def start(self) -> None:
        """Begin to read the schemas topic, which must exist."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; a statement under way is waited for, briefly."""
        self._stopping.set()
        self._thread.join(2)

    def known(self, schema: int) -> bool:
        """Whether the schema has arrived."""
        self._asked = self._asked or schema not in self._streams
        return schema in self._streams

    def heard(self) -> float:
        """When it was last certain that nothing on the schemas topic is unread (``time.monotonic``)."""
        return self._heard

    def of(self, schema: int) -> Table | Refused | None:
        """Where its rows go; None until the store has settled it."""
        table = self._settled.get(schema)
        if table is None:
            self._wanted[schema] = None
        return table

    def renew(self, schema: int) -> None:
        """The table of that schema has gone, or lacks a column: look, and make it again."""
        self._known = None
        self._due.setdefault(schema, 0.0)

    # ── The thread ───────────────────────────────────────────────────────────────────────────────

    def _run(self) -> None:
        consumer = Consumer({
            **kafka_options(self._config.kafka), **ANYONE, "group.id": f"{self._config.sink.group}-schemas",
            "enable.auto.commit": False, "auto.offset.reset": "earliest", "enable.partition.eof": True,
        })  # fmt: skip
        consumer.assign([TopicPartition(topics.SCHEMAS, 0, OFFSET_BEGINNING)])
        while not self._stopping.is_set():
            try:
                while self._read(consumer, 0.2 if self._next_due() is None else 0.01):
                    pass
                self._listen(consumer)
            except KafkaException as error:
                log.warning("schemas: %s", error)
                self._stopping.wait(RETRY_SECONDS)
            self._make_next_table()
        consumer.close()

    def _read(self, consumer: Consumer, seconds: float) -> bool:
        """Learn what is there; whether there may be more at once."""
        messages = consumer.consume(500, timeout=seconds)
        for message in messages:
            error = message.error()
            if error is None and (value := message.value()):
                self._learn(value)
            elif error is not None and error.code() == KafkaError._PARTITION_EOF:
                self._read_to = message.offset() or 0
            elif error is not None and unpackable(error):
                self._passed = max(self._passed, message.offset() or 0) + 1
                consumer.seek(TopicPartition(topics.SCHEMAS, 0, self._passed))
        return len(messages) > 1

    def _listen(self, consumer: Consumer) -> None:
        """When a message's schema is not known: make certain that all is read."""
        if self._asked and time.monotonic() - self._heard > LISTEN_SECONDS:
            begun = time.monotonic()
            _, end = consumer.get_watermark_offsets(TopicPartition(topics.SCHEMAS, 0), timeout=ANSWER_SECONDS)
            if self._read_to >= end:
                self._heard, self._asked = begun, False

    def _learn(self, value: bytes) -> None:
        try:
            schema, stream = self._catalog.learn(value)
            _check_packings(json.loads(json.loads(value)["schema"]), stream)
        except InvalidBatch as error:
            log.error("schemas: %s; ignored", error)
            return
        if schema not in self._streams:
            self._add(schema, stream)

    def _add(self, schema: int, stream: Stream) -> None:
        self._due[schema] = 0.0
        self._streams[schema] = stream

    def _next_due(self) -> int | None:
        """The schema whose table comes next: messages wait for it, or else it was learned last."""
        now = time.monotonic()
        due = [each for each, when in list(self._due.items()) if when <= now]
        waited_for = (each for each in list(self._wanted) if each in due)
        return next(waited_for, due[-1] if due else None)

    def _make_next_table(self) -> None:
        """One at a time: a schema that its messages wait for must not stand behind dozens of tables."""
        schema = self._next_due()
        if schema is None:
            return
        stream = self._streams[schema]
        try:
            if self._known is None:  # once, rather than for each of dozens of tables
                self._known = {} if self._config.clickhouse.cluster else self._writer.tables()
            self._settled[schema] = make(stream, self._config.clickhouse, self._writer, self._known)
            del self._due[schema]
            self._trouble = ""
        except (UsageError, Rejected) as error:
            if schema not in self._settled:
                log.error("schema refused, its messages go to %s: %s", topics.DEAD, error)
            self._settled[schema] = Refused(str(error))
            self._due[schema] = time.monotonic() + REFUSED_SECONDS
        except ServerTrouble as error:
            self._known = None
            self._complain(stream.name, error)
            later = time.monotonic() + RETRY_SECONDS
            for each, when in list(self._due.items()):
                self._due[each] = max(when, later)
        if schema in self._settled:
            self._wanted.pop(schema, None)

    def _complain(self, table: str, error: ServerTrouble) -> None:
        """Once an outage, not once a table and attempt."""
        reason = str(error.code or "unreachable")
        if reason != self._trouble:
            log.warning("table %s is not ready, will try again: %s", table, error)
        self._trouble = reason


def _check_packings(schema: dict[str, Any], stream: Stream) -> None:
    """Raises :class:`InvalidBatch` when a column's values are not of the shape that its declaration says."""
    for field, column in zip(stream.fields, schema["fields"][wire.ENVELOPE_FIELDS :], strict=True):
        kind = column["type"] if isinstance(column["type"], str) else column["type"]["name"]
        sent, wanted = packing(kind.removeprefix("bpfleet.column.")), packing(packing_name(field))
        if (sent and (sent.dtype, sent.width)) != (wanted and (wanted.dtype, wanted.width)):
            raise InvalidBatch(
                f"{stream.name}.{field.name} travels as {kind}, which does not fit its declaration"
            )


def make(stream: Stream, config: Clickhouse, writer: Writer, known: Known | None = None) -> Table:
    """Make or extend a stream's table; safe to run from many sinks at once.

    ``known``: what :meth:`Writer.tables` told a moment ago; a table that is not in it is asked for.
    Raises :class:`UsageError` when the table is of another shape, :class:`ServerTrouble` to try again.
    """
    types = {name: kind for name, (kind, _) in ddl.columns(stream).items()}
    for name, kind in types.items():
        if not native.insertable(kind):
            raise UsageError(f"{stream.name}.{name}: no way to insert into {kind}; use another ch.type")
    existing, extras = (known or {}).get(stream.name) or (writer.columns(stream.name), None)
    if not existing:
        for statement in (ddl.database(config), *ddl.create(stream, config)):
            writer.execute(statement)
        existing = writer.columns(stream.name)
    statements = list(ddl.evolve(stream, existing, config))
    if extras is None or not ddl.extra_names(stream) <= extras:
        statements += ddl.extras(stream, config)
    for statement in statements:
        writer.execute(statement)
    return Table(stream.name, types, tuple(stream.order))


def ensure_topics(config: Config, admin: Any) -> None:
    """Make the topics that the sink itself needs: schemas (compacted) and dead letters (kept)."""
    from confluent_kafka.admin import NewTopic  # type: ignore[attr-defined]

    replication = config.kafka.replication
    wanted = {
        topics.SCHEMAS: (1, {"cleanup.policy": "compact"}),
        # Dead letters wait for a person; a letter is its message plus headers, so it may be larger.
        topics.DEAD: (1, {"retention.ms": "-1", "max.message.bytes": str(32 << 20)}),
    }
    present = admin.list_topics(timeout=10).topics
    new = [
        NewTopic(name, partitions, replication, config=settings)
        for name, (partitions, settings) in wanted.items()
        if name not in present
    ]
    for future in (admin.create_topics(new) if new else {}).values():
        try:
            future.result(15)
        except KafkaException as error:
            if error.args[0].name() != "TOPIC_ALREADY_EXISTS":
                raise
