"""The collector's administrative side of Kafka: topics, published schemas, and what became of batches.

All of it runs in a thread of its own while events are spooled: nothing here may delay a read of a ring.
"""

import logging
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from collector.losses import Loss
from schemas import topics, wire
from schemas.columns import InvalidBatch
from schemas.config import Config, kafka_options
from schemas.declare import Stream
from schemas.errors import BpfleetError

log = logging.getLogger("bpfleet.collector")
HOUR_MS = 3_600_000
PATIENCE = 10.0  # seconds for one answer
LOOK_BACK_MS = 60_000  # clocks of host and broker may differ


@dataclass(frozen=True)
class Found:
    """What Kafka said of one loss: the numbers it does have."""

    loss: Loss
    delivered: set[int]

    def remaining(self) -> list[Loss]:
        """The ranges that are lost for certain."""
        missing = [n for n in range(self.loss.first, self.loss.last + 1) if n not in self.delivered]
        ranges: list[Loss] = []
        for number in missing:
            if ranges and ranges[-1].last + 1 == number:
                ranges[-1] = replace(ranges[-1], last=number)
            else:
                ranges.append(replace(self.loss, first=number, last=number, open=False))
        return ranges


def _quiet(_: Any) -> None:
    pass


QUIET: dict[str, Any] = {"error_cb": _quiet, "log_level": 0}  # their errors come back from their calls too


def prepare(config: Config, streams: Iterable[Stream]) -> None:
    """Make the topics that are missing and publish the schemas. Raises :class:`BpfleetError`."""
    from confluent_kafka import KafkaException

    options = kafka_options(config.kafka)
    streams = list(streams)
    try:
        _make_topics(options, config, streams)
        _publish(options, streams)
    except KafkaException as error:
        raise topics.unreachable(options, error) from None


def _make_topics(options: dict[str, Any], config: Config, streams: list[Stream]) -> None:
    from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

    admin = AdminClient({**options, **QUIET})
    there = admin.list_topics(timeout=PATIENCE).topics
    settings = {
        "retention.ms": str(config.kafka.retention_hours * HOUR_MS),
        "compression.type": "zstd",
    }
    wanted = [
        NewTopic(topics.topic(each.name), config.kafka.partitions, config.kafka.replication, config=settings)
        for each in streams
    ]
    wanted.append(NewTopic(topics.SCHEMAS, 1, config.kafka.replication, config={"cleanup.policy": "compact"}))
    missing = [each for each in wanted if each.topic not in there]
    if not missing:
        return
    for name, future in admin.create_topics(missing, operation_timeout=PATIENCE).items():
        _created(name, future)


def _created(name: str, future: Any) -> None:
    from confluent_kafka import KafkaError, KafkaException

    try:
        future.result(PATIENCE)
    except KafkaException as error:
        fault = error.args[0]
        if fault.code() != KafkaError.TOPIC_ALREADY_EXISTS:
            raise BpfleetError(
                f"cannot create topic {name}: {fault.str()}; create it, or allow this user to"
            ) from None


def _publish(options: dict[str, Any], streams: list[Stream]) -> None:
    from confluent_kafka import Producer

    failed: list[str] = []

    def heard(error: Any, _: Any) -> None:
        if error is not None:
            failed.append(error.str())

    producer = Producer({**options, "enable.idempotence": True, "message.timeout.ms": int(PATIENCE * 1000),
                         **QUIET})  # fmt: skip
    for stream in streams:
        key, value = topics.schema_record(stream)
        producer.produce(topics.SCHEMAS, value, key, on_delivery=heard)
    if producer.flush(PATIENCE) or failed:
        raise BpfleetError(f"cannot publish schemas to {topics.SCHEMAS}: {', '.join(failed) or 'no answer'}")


def look_up(config: Config, host: str, losses: list[Loss]) -> list[Found]:
    """Ask Kafka which of these batches it has. Raises :class:`BpfleetError` when it does not answer.

    A batch is found behind the newest one known to be delivered, in the same partition, as keys stay with
    theirs. What a dead collector's socket may still deliver later is not found: it is then in Kafka once and
    declared lost as well, which is why nothing is ever sent again.
    """
    from confluent_kafka import Consumer, KafkaException

    options = kafka_options(config.kafka)
    consumer = Consumer(
        {**options, "group.id": f"bpfleet-collector-{host}", "enable.auto.commit": False,
         "auto.offset.reset": "earliest", "enable.partition.eof": True, **QUIET}
    )  # fmt: skip
    try:
        return [Found(each, _delivered(consumer, host, each)) for each in losses]
    except KafkaException as error:
        raise topics.unreachable(options, error) from None
    finally:
        consumer.close()


def _delivered(consumer: Any, host: str, loss: Loss) -> set[int]:
    from confluent_kafka import KafkaError

    starts = _starts(consumer, loss)
    consumer.assign(starts)
    open_partitions = {each.partition for each in starts}
    deadline = time.monotonic() + 6 * PATIENCE
    found: set[int] = set()
    while open_partitions:
        message = consumer.poll(1.0)
        if time.monotonic() > deadline:
            raise BpfleetError(f"reading topic {topics.topic(loss.stream)} back takes too long")
        if message is None:
            continue
        error = message.error()
        if error is not None:
            if error.code() in (KafkaError._PARTITION_EOF, KafkaError._UNKNOWN_PARTITION):
                open_partitions.discard(message.partition())
            elif not error.retriable():
                raise BpfleetError(f"cannot read topic {topics.topic(loss.stream)} back: {error.str()}")
        elif message.key() == host.encode():
            number = _number(message.value(), loss.boot)
            if number is not None and loss.first <= number <= loss.last:
                found.add(number)
    return found


def _starts(consumer: Any, loss: Loss) -> list[Any]:
    from confluent_kafka import TopicPartition

    topic = topics.topic(loss.stream)
    if loss.offset >= 0:
        return [TopicPartition(topic, loss.partition, loss.offset + 1)]
    known = consumer.list_topics(topic, timeout=PATIENCE).topics[topic].partitions
    since = max(loss.since_us // 1000 - LOOK_BACK_MS, 0)
    asked = [TopicPartition(topic, each, since) for each in known]
    return list(consumer.offsets_for_times(asked, timeout=PATIENCE))


def _number(message: bytes, boot: str) -> int | None:
    """The sequence number in a batch of that boot, read from its first bytes."""
    try:
        envelope = wire.peek(message)
    except InvalidBatch:
        return None
    return envelope.seq if envelope.boot.hex() == boot else None


class Desk:
    """The thread that prepares Kafka and asks it about open losses, as often as it takes.

    ``ready`` says that batches may go out. :meth:`answers` gives what was found out; the caller, on its own
    thread, tells the journal.
    """

    def __init__(self, config: Config, host: str, streams: Iterable[Stream]) -> None:
        self._config, self._host, self._streams = config, host, list(streams)
        self._wake = threading.Event()
        self._stop = False
        self._open: list[Loss] = []
        self._answers: list[Found] = []
        self.ready = False
        self.trouble = ""  # the reason why not, in one line
        self._thread = threading.Thread(target=self._run, name="kafka", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def ask(self, losses: list[Loss]) -> None:
        """Find out about these (all that are open)."""
        if losses != self._open:
            self._open = losses
            self._wake.set()

    def again(self) -> None:
        """Topics have vanished: prepare anew."""
        self.ready = False
        self._wake.set()

    def answers(self) -> list[Found]:
        """What was found since the last call."""
        taken, self._answers = self._answers, []
        return taken

    def stop(self) -> None:
        """End; waits no longer than a second."""
        self._stop = True
        self._wake.set()
        self._thread.join(1.0)

    def _run(self) -> None:
        while not self._stop:
            self._wake.clear()
            delay = None if self._work() else 1.0
            self._wake.wait(delay)

    def _work(self) -> bool:
        """One attempt at all there is to do; False: try again soon."""
        try:
            if not self.ready:
                prepare(self._config, self._streams)
                self.ready = True
            losses, self._open = self._open, []
            if losses:
                try:
                    self._answers += look_up(self._config, self._host, losses)
                except Exception:
                    self._open = losses
                    raise
        except Exception as error:  # a thread must not end by a fault of the broker's
            self._complain(
                str(error) if isinstance(error, BpfleetError) else f"{type(error).__name__}: {error}"
            )
            return False
        self.trouble = ""
        return True

    def _complain(self, reason: str) -> None:
        if reason != self.trouble:
            log.warning("%s; events are kept in the spool meanwhile", reason)
        self.trouble = reason
