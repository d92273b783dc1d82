"""The collector's administrative side of Kafka: topics, published schemas, and what became of batches.

All of it runs in a thread of its own while events are spooled: nothing here may delay a read of a ring.
"""

import logging
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from collector.losses import Loss, ranges
from schemas import topics, wire
from schemas.admin import PATIENCE, QUIET, prepare
from schemas.columns import InvalidBatch
from schemas.config import Config, kafka_options
from schemas.declare import Stream
from schemas.errors import BpfleetError

log = logging.getLogger("bpfleet.collector")
LOOK_BACK_MS = 60_000  # clocks of host and broker may differ


@dataclass(frozen=True)
class Found:
    """What Kafka said of one loss: the numbers it does have."""

    loss: Loss
    delivered: set[int]

    def remaining(self) -> list[Loss]:
        """The ranges that are lost for certain."""
        missing = (n for n in range(self.loss.first, self.loss.last + 1) if n not in self.delivered)
        return [replace(self.loss, first=first, last=last, open=False) for first, last in ranges(missing)]


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
         "auto.offset.reset": "earliest", "enable.partition.eof": True, "fetch.wait.max.ms": 20, **QUIET}
    )  # fmt: skip
    try:
        starts: dict[tuple[str, int], int] = {}
        for each in losses:
            for place, offset in _starts(consumer, each):
                starts[place] = min(offset, starts.get(place, offset))
        return _find(consumer, host, losses, starts)
    except KafkaException as error:
        raise topics.unreachable(options, error, consumer) from None
    finally:
        consumer.close()


def _starts(consumer: Any, loss: Loss) -> Iterator[tuple[tuple[str, int], int]]:
    """(topic, partition) and offset from which a loss's batches can be found."""
    from confluent_kafka import TopicPartition

    topic = topics.topic(loss.stream)
    if loss.offset >= 0:
        yield (topic, loss.partition), loss.offset + 1
        return
    known = consumer.list_topics(topic, timeout=PATIENCE).topics[topic].partitions
    since = max(loss.since_us // 1000 - LOOK_BACK_MS, 0)
    asked = [TopicPartition(topic, each, since) for each in known]
    for found in consumer.offsets_for_times(asked, timeout=PATIENCE):
        if found.offset >= 0:  # below: nothing is that young
            yield (topic, found.partition), found.offset


def _find(consumer: Any, host: str, losses: list[Loss], starts: dict[tuple[str, int], int]) -> list[Found]:
    """Read each partition from its start to its end."""
    from confluent_kafka import KafkaError, TopicPartition

    found = [Found(each, set()) for each in losses]
    consumer.assign([TopicPartition(*place, offset) for place, offset in starts.items()])
    rest = set(starts)
    deadline = time.monotonic() + 6 * PATIENCE
    while rest:
        message = consumer.poll(1.0)
        if time.monotonic() > deadline:
            raise BpfleetError("reading back what a dead collector sent takes too long")
        if message is None:
            continue
        error = message.error()
        if error is None:
            if message.key() == host.encode():
                _note(found, message)
        elif error.code() in (KafkaError._PARTITION_EOF, KafkaError._UNKNOWN_PARTITION):
            rest.discard((message.topic(), message.partition()))
        elif not error.retriable():
            raise BpfleetError(f"cannot read back what a dead collector sent: {error.str()}")
    return found


def _note(found: list[Found], message: Any) -> None:
    for each in found:
        if message.topic() == topics.topic(each.loss.stream):
            number = _number(message.value(), each.loss.boot)
            if number is not None and each.loss.first <= number <= each.loss.last:
                each.delivered.add(number)


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
        if self._thread.is_alive():
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
