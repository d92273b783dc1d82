"""Read a topic without a consumer group: what it holds now, or what comes."""

import time
from collections.abc import Iterator
from typing import Any

from schemas.errors import UsageError
from schemas.topics import unreachable


def read(
    options: dict[str, Any], topic: str, follow: bool = False, since_ms: int | None = None
) -> Iterator[bytes]:
    """The values of ``topic``: all there are when called, or with ``follow`` all that come from now on.

    Raises :class:`BpfleetError` when Kafka does not answer, :class:`UsageError` when there is no such topic.
    """
    from confluent_kafka import OFFSET_BEGINNING, OFFSET_END, Consumer, KafkaException, TopicPartition

    consumer = Consumer({
        **options, "group.id": "bpfleet-cat", "enable.auto.commit": False, "enable.partition.eof": True,
    })  # fmt: skip
    try:
        listed = consumer.list_topics(topic, timeout=10).topics[topic]
        if listed.error is not None or not listed.partitions:
            raise UsageError(f"no topic {topic}; `bpfleet status` shows the streams there are")
        start = OFFSET_END if follow else OFFSET_BEGINNING
        places = [TopicPartition(topic, number, start) for number in listed.partitions]
        if since_ms is not None:
            places = _offsets(consumer, [TopicPartition(topic, each.partition, since_ms) for each in places])
        consumer.assign(places)
        yield from _values(consumer, len(places), follow)
    except KafkaException as error:
        raise unreachable(options, error) from None
    finally:
        consumer.close()


def _offsets(consumer: Any, places: list[Any]) -> list[Any]:
    """Where those times are; a topic that was just made has no leaders for a moment."""
    from confluent_kafka import KafkaError, KafkaException

    unsettled = (KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE)
    for _ in range(20):
        try:
            return list(consumer.offsets_for_times(places, timeout=10))
        except KafkaException as error:
            if error.args[0].code() not in unsettled:
                raise
            time.sleep(0.1)
    return list(consumer.offsets_for_times(places, timeout=10))


def _values(consumer: Any, partitions: int, follow: bool) -> Iterator[bytes]:
    from confluent_kafka import KafkaError, KafkaException

    at_end: set[int] = set()
    while follow or len(at_end) < partitions:
        for message in consumer.consume(500, timeout=0.5):
            if message.error() is None:
                if message.value() is not None:
                    yield message.value()
            elif message.error().code() == KafkaError._PARTITION_EOF:
                at_end.add(message.partition())
            elif message.error().fatal():
                raise KafkaException(message.error())
