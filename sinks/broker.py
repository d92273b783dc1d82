"""What the sink asks Kafka besides messages: is it there, which topics, where does a partition begin."""

import logging
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]

from schemas.config import Config, kafka_options
from schemas.errors import BpfleetError
from schemas.refusal import refusal
from sinks import intent
from sinks.intent import Intent

log = logging.getLogger("bpfleet.sink")
ANSWER_SECONDS = 10.0


def refuse_fatal(error: KafkaError, servers: str) -> None:
    """Raises :class:`BpfleetError` for an error that no retry will mend."""
    refused = refusal({"bootstrap.servers": servers}, error)
    if refused is not None:
        raise refused


def wait_for_kafka(config: Config, stop: threading.Event) -> AdminClient | None:
    """An admin client once a broker answers; None when stopped before. Raises on wrong credentials."""
    options = {**kafka_options(config.kafka), "log_level": 0}
    try:
        admin = AdminClient(options)
    except KafkaException as error:
        raise BpfleetError(f"kafka.options: {error.args[0].str()}; see librdkafka's settings") from None
    said = False
    while not stop.is_set():
        try:
            admin.list_topics(timeout=2)
            return admin
        except KafkaException as error:
            refused = refusal(options, error.args[0], admin)
            if refused is not None:
                raise refused from None
        if not said:
            log.warning("waiting for Kafka at %s; start it with `bpfleet kafka`", config.kafka.servers)
            said = True
        stop.wait(0.5)
    return None


@dataclass(frozen=True)
class Beginning:
    """Where to begin a partition that was just assigned."""

    topic: str
    number: int
    label: str  # topic's name and identity: a topic made anew counts its offsets anew
    committed: int  # what a commit, or a token, begins with
    fetch: int  # the first message that can still be read from there on
    opened: Intent | None
    expired: int  # messages that retention took before anybody read them


def beginnings(consumer: Any, admin: AdminClient, places: Iterable[TopicPartition]) -> list[Beginning]:
    """Read commits and log ends of newly assigned partitions. Raises KafkaException."""
    places = list(places)
    labels = _labels(admin, sorted({each.topic for each in places}))
    lows = _ends(admin, places, OffsetSpec.earliest())  # type: ignore[no-untyped-call]
    highs = _ends(admin, places, OffsetSpec.latest())  # type: ignore[no-untyped-call]
    found = []
    for place in consumer.committed(places, timeout=ANSWER_SECONDS):
        if place.error is not None:
            raise KafkaException(place.error)
        key = (place.topic, place.partition)
        found.append(_beginning(place, labels[place.topic], lows[key], highs[key]))
    return found


def _ends(admin: AdminClient, places: list[TopicPartition], which: OffsetSpec) -> dict[tuple[str, int], int]:
    """One end of each log, asked at once: hundreds of partitions, one after the other, take seconds."""
    asked = {TopicPartition(each.topic, each.partition): which for each in places}
    futures = admin.list_offsets(asked, request_timeout=ANSWER_SECONDS) if asked else {}
    return {
        (place.topic, place.partition): future.result(ANSWER_SECONDS + 5).offset
        for place, future in futures.items()
    }


def _beginning(place: TopicPartition, label: str, low: int, high: int) -> Beginning:
    where = f"{place.topic}:{place.partition}"
    if place.offset < 0:
        return Beginning(place.topic, place.partition, label, low, low, None, 0)
    if place.offset > high:
        log.error("%s: offset %d is committed but the log ends at %d; going on from there",
                  where, place.offset, high)  # fmt: skip
        return Beginning(place.topic, place.partition, label, high, high, None, 0)
    opened = intent.read(place.offset, place.metadata)
    expired = max(0, low - place.offset)
    if expired:
        log.error("%s: retention took %d messages before they were read", where, expired)
    if opened and opened.end <= low:
        opened = None  # nothing of that batch can be read again; what had landed is in the store
    committed = place.offset if opened else max(low, place.offset)
    return Beginning(place.topic, place.partition, label, committed, max(low, place.offset), opened, expired)


def _labels(admin: AdminClient, names: list[str]) -> dict[str, str]:
    """Topic → its name and Kafka's id of it, for tokens."""
    if not names:
        return {}
    futures = admin.describe_topics(TopicCollection(names), request_timeout=ANSWER_SECONDS)
    return {name: f"{name}@{future.result(ANSWER_SECONDS + 5).topic_id}" for name, future in futures.items()}
