"""Read a topic without a consumer group: what it holds now, or what comes."""

import time
from collections.abc import Iterator
from typing import Any

from schemas.admin import ANYONE
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
        **options, **ANYONE, "group.id": "bpfleet-cat", "enable.auto.commit": False,
        "enable.partition.eof": True,
    })  # fmt: skip
    try:
        listed = consumer.list_topics(topic, timeout=10).topics[topic]
        if listed.error is not None or not listed.partitions:
            raise UsageError(f"no topic {topic}; `bpfleet status` shows the streams there are")
        start = OFFSET_END if follow else OFFSET_BEGINNING
        places = [TopicPartition(topic, number, start) for number in listed.partitions]
        if since_ms is not None:
            places = _offsets(consumer, [TopicPartition(topic, each.partition, since_ms) for each in places])
        ends = None if follow else _ends(consumer, places)
        consumer.assign(places)
        yield from _values(consumer, ends)
    except KafkaException as error:
        raise unreachable(options, error, consumer) from None
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


def _ends(consumer: Any, places: list[Any]) -> dict[int, int]:
    """Partition → where its log ends now; without those that hold nothing."""
    ends = {}
    for place in places:
        low, high = consumer.get_watermark_offsets(place, timeout=10)
        if high > max(low, place.offset):
            ends[place.partition] = high
    return ends


def _values(consumer: Any, ends: dict[int, int] | None) -> Iterator[bytes]:
    """Values up to ``ends``, however fast more are coming; without ends, for ever."""
    from confluent_kafka import KafkaError, KafkaException

    while ends is None or ends:
        first = consumer.poll(0.5)  # a batch would wait this long for the last of 500
        for message in [*([first] if first else []), *consumer.consume(500, timeout=0)]:
            number, error = message.partition(), message.error()
            if ends is not None and number not in ends:
                continue
            if error is None:
                if message.value() is not None:
                    yield message.value()
                if ends is not None and message.offset() + 1 >= ends[number]:
                    del ends[number]
            elif error.code() == KafkaError._PARTITION_EOF:
                if ends is not None:
                    del ends[number]
            elif error.fatal():
                raise KafkaException(error)
