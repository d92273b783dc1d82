"""Topics made when missing, and schemas published: what everyone who writes to Kafka does first."""

import time
from collections.abc import Iterable, Mapping
from typing import Any

from schemas import topics
from schemas.config import Config, kafka_options
from schemas.declare import Stream
from schemas.errors import BpfleetError

PATIENCE = 10.0  # seconds for one answer
HOUR_MS = 3_600_000
COMPACTED = (1, {"cleanup.policy": "compact"})  # one partition that keeps the last message of each key
Wanted = Mapping[str, tuple[int, Mapping[str, str]]]


def _quiet(_: Any) -> None:
    pass


# Nobody here writes in transactions: who leaves one open holds up nobody.
ANYONE = {"isolation.level": "read_uncommitted"}
QUIET: dict[str, Any] = {"error_cb": _quiet, "log_level": 0}  # their errors come back from their calls too


def watermarks(consumer: Any, place: Any) -> tuple[int, int]:
    """(low, high) offsets of a partition; one that was made a moment ago may have no leader yet.

    Raises KafkaException when Kafka does not answer.
    """
    from confluent_kafka import KafkaError, KafkaException

    passing = (KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE)
    end = time.monotonic() + PATIENCE
    while True:
        try:
            low, high = consumer.get_watermark_offsets(place, timeout=PATIENCE)
            return int(low), int(high)
        except KafkaException as error:
            if error.args[0].code() not in passing or time.monotonic() > end:
                raise
            time.sleep(0.05)


def unpackable(error: Any) -> bool:
    """Whether a consumer met a batch that it cannot unpack: it would come to it again for ever.

    Whoever reads on asks for the next offset: a batch of a few kilobytes that swells to gigabytes, or is
    damaged, must not keep what follows from its readers.
    """
    from confluent_kafka import KafkaError

    return error.code() in (KafkaError._BAD_COMPRESSION, KafkaError._BAD_MSG)


def prepare(config: Config, streams: Iterable[Stream], others: Wanted | None = None) -> None:
    """Make the topics of ``streams``, ``others`` and the schemas topic; publish the schemas.

    Raises :class:`BpfleetError` when Kafka does not answer or does not let us.
    """
    from confluent_kafka import KafkaException

    streams = list(streams)
    settings = {
        "retention.ms": str(config.kafka.retention_hours * HOUR_MS),
        "compression.type": "zstd",
    }
    wanted = {topics.topic(each.name): (config.kafka.partitions, settings) for each in streams}
    make_topics(config, {**wanted, topics.SCHEMAS: COMPACTED, **(others or {})})
    options = kafka_options(config.kafka)
    try:
        publish(options, streams)
    except KafkaException as error:
        raise topics.unreachable(options, error) from None


def make_topics(config: Config, wanted: Wanted) -> None:
    """Make those that are missing. Raises :class:`BpfleetError`."""
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

    options = {**kafka_options(config.kafka), **QUIET}
    admin = AdminClient(options)
    try:
        there = admin.list_topics(timeout=PATIENCE).topics
    except KafkaException as error:
        raise topics.unreachable(options, error, admin) from None
    missing = [
        NewTopic(name, partitions, config.kafka.replication, config=dict(settings))
        for name, (partitions, settings) in wanted.items()
        if name not in there
    ]
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


def publish(options: dict[str, Any], streams: Iterable[Stream]) -> None:
    """Put the schemas of ``streams`` on their topic. Raises :class:`BpfleetError`."""
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
