"""Rows of the operator's side into Kafka: batches like a collector's; one sink and one SQL serve both.

    Events(config).ship("attack_event", [{"ts": now_us(), "attack": "…", …}])

There is no spool here: :meth:`Events.ship` returns when Kafka has the rows, and raises when it has not.
"""

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from schemas import declare, rows, topics, wire
from schemas.admin import PATIENCE, QUIET, prepare
from schemas.config import Config, kafka_options
from schemas.declare import Stream
from schemas.errors import BpfleetError

Row = Mapping[str, Any]
BATCH_BYTES = 700_000  # of texts in one batch: a message of Kafka's is at most 1 MB
ROW_BYTES = 500  # of a row beside its texts, generously
# Not idempotent: asking for a producer id takes most of a second. A batch heard twice has the same number.
PRODUCER = {"acks": "all", "max.in.flight": 1, "linger.ms": 0, "message.timeout.ms": int(PATIENCE * 1000),
            "compression.type": "zstd"}  # fmt: skip


class Events:
    """A pen. For one thread; may stay open for days. ``session`` stands for the boot id in its batches."""

    def __init__(self, config: Config) -> None:
        """Touches no server yet."""
        self._config, self._options = config, kafka_options(config.kafka)
        self._producer: Any = None
        self._failed: list[str] = []
        self._numbers: dict[str, int] = {}  # batches so far, by stream
        self._ready: set[str] = set()  # streams whose topic is there
        self.session = uuid.uuid4().bytes

    def ship(self, stream_name: str, made: Sequence[Row]) -> None:
        """Have Kafka take the rows; what a row leaves out is 0 or empty.

        Raises :class:`BpfleetError` when Kafka does not take them: then none, or some, are there.
        """
        if not made:
            return
        stream = declare.streams()[stream_name]
        if stream_name not in self._ready:
            prepare(self._config, [stream])
            self._ready.add(stream_name)
        self.put(stream, made)
        self.settle()

    def put(self, stream: Stream, made: Sequence[Row]) -> None:
        """Begin to send rows of a stream whose topic exists; :meth:`settle` ends it."""
        for batch in _cut(made):
            self.produce(topics.topic(stream.name), self._encode(stream, batch), self._config.host.encode())

    def produce(self, topic: str, value: bytes | None, key: bytes) -> None:
        """Begin to send any message."""
        from confluent_kafka import KafkaException, Producer

        try:
            if self._producer is None:
                self._producer = Producer({**self._options, **PRODUCER, **QUIET})
            _patient(lambda: self._producer.produce(topic, value, key, on_delivery=self._heard),
                     lambda: self._producer.poll(0.1))  # fmt: skip
        except KafkaException as error:
            raise topics.unreachable(self._options, error) from None

    def settle(self) -> None:
        """Wait until Kafka has all that was sent. Raises :class:`BpfleetError`; the rest is given up then."""
        left = self._producer.flush(PATIENCE + 1) if self._producer is not None else 0
        failed, self._failed = self._failed, []
        if failed or left:
            self._producer.purge()
            reason = failed[0] if failed else "no answer"
            raise BpfleetError(f"Kafka did not take all of it: {reason}; publish it again")

    def _heard(self, error: Any, _: Any) -> None:
        if error is not None:
            self._failed.append(error.str())

    def _encode(self, stream: Stream, batch: Sequence[Row]) -> bytes:
        number = self._numbers.get(stream.name, 0)
        self._numbers[stream.name] = number + 1
        envelope = wire.Envelope(self._config.host, self.session, number)
        return wire.encode(stream, envelope, rows.columns(stream, batch))


def _patient(send: Callable[[], None], wait: Callable[[], Any]) -> None:
    while True:
        try:
            return send()
        except BufferError:  # the queue is full: let it flow
            wait()


def _cut(made: Sequence[Row]) -> Iterator[list[Row]]:
    batch: list[Row] = []
    size = 0
    for row in made:
        weight = ROW_BYTES + sum(len(each) for each in row.values() if isinstance(each, str))
        if batch and size + weight > BATCH_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(row)
        size += weight
    if batch:
        yield batch
