"""Who acknowledged what: the stream `applied`, straight from Kafka, and the hosts that should have spoken."""

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fleet.topic_reader import read
from schemas import declare, rows, topics, wire
from schemas.admin import ANYONE, PATIENCE, QUIET, prepare, watermarks
from schemas.columns import InvalidBatch
from schemas.config import Config, kafka_options
from schemas.desired import Document, now_us
from schemas.errors import BpfleetError, UsageError
from schemas.topics import Catalog, read_catalog

HEARTBEAT_S = 75  # a host that said nothing for longer is not expected to answer
CONSUMER = {"group.id": "bpfleet-applied", "enable.auto.commit": False, "auto.offset.reset": "latest",
            **ANYONE}  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """A host's last word on a document."""

    host: str
    name: str  # kind/id
    revision: int
    state: str  # applied, refused, failed, expired, removed
    reason: str
    ts: int  # µs, by the host's clock
    heard: int  # µs, by ours
    duration_us: int


class Decoder:
    """Batches to rows; asks the schemas topic once for what the package does not know."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._options, self._catalog, self._asked = options, Catalog(), False

    def rows(self, message: bytes) -> list[dict[str, Any]]:
        """The rows of a message; none when it cannot be read."""
        try:
            if not self._asked and wire.schema_of(message) not in self._catalog.schemas:
                self._catalog, self._asked = read_catalog(self._options), True
            batch = self._catalog.schemas.decode(message)
        except InvalidBatch:
            return []
        stream = self._catalog.streams.get(batch.stream)
        return list(rows.avro_rows(stream, batch)) if stream else []


def live_hosts(config: Config, seconds: float = HEARTBEAT_S) -> dict[str, dict[str, str]]:
    """Hosts whose collectors were heard lately, and their labels. Raises :class:`BpfleetError`."""
    options = kafka_options(config.kafka)
    decoder = Decoder(options)
    hosts: dict[str, dict[str, str]] = {}
    since = int((time.time() - seconds) * 1000)
    try:
        for message in read(options, topics.topic("host"), since_ms=since):
            for row in decoder.rows(message):
                if row["ts"] // 1000 >= since:
                    hosts[row["host"]] = json.loads(row["labels"] or "{}")
    except UsageError:  # no collector ever ran here
        return {}
    return hosts


def in_scope(document: Document, hosts: Mapping[str, Mapping[str, str]]) -> set[str]:
    """Those of the hosts that the document is for."""
    return {host for host, labels in hosts.items() if document.scope.covers(host, labels)}


class Watch:
    """Hears every acknowledgement from the moment it was made: make it before you publish."""

    def __init__(self, config: Config) -> None:
        """Raises :class:`BpfleetError` when Kafka does not answer."""
        from confluent_kafka import Consumer, KafkaException, TopicPartition

        self._options, name = kafka_options(config.kafka), topics.topic("applied")
        self._decoder = Decoder(self._options)
        self._consumer = Consumer({**self._options, **CONSUMER, **QUIET})
        try:
            listed = self._consumer.list_topics(name, timeout=PATIENCE).topics[name]
            if listed.error is not None:
                prepare(config, [declare.streams()["applied"]])
                listed = self._consumer.list_topics(name, timeout=PATIENCE).topics[name]
            places = []
            for number in listed.partitions:
                place = TopicPartition(name, number)
                _, place.offset = watermarks(self._consumer, place)
                places.append(place)
            self._consumer.assign(places)
        except KafkaException as error:
            refused = topics.unreachable(self._options, error, self._consumer)
            self._consumer.close()
            raise refused from None

    def poll(self, seconds: float) -> list[Answer]:
        """Answers that have come; waits that long at most for the first."""
        message = self._consumer.poll(seconds)
        if message is None or message.error() is not None:
            return []
        heard = now_us()
        return [_answer(row, heard) for row in self._decoder.rows(message.value() or b"")]

    def wait(
        self,
        documents: Iterable[Document],
        hosts: Mapping[str, Mapping[str, str]],
        seconds: float,
        on_answer: Callable[[Answer], None] = lambda _: None,
    ) -> dict[tuple[str, str], Answer | None]:
        """Until each host has answered for each document that is for it: (name, host) → its last answer.

        None stands for a host that was not heard in time. A host that answers unexpectedly is listed too.
        """
        revisions = {each.name: each.revision for each in documents}
        answers: dict[tuple[str, str], Answer | None] = {
            (each.name, host): None for each in documents for host in sorted(in_scope(each, hosts))
        }
        end = time.monotonic() + seconds
        while any(each is None for each in answers.values()) and (left := end - time.monotonic()) > 0:
            for answer in self.poll(left):
                if answer.revision >= revisions.get(answer.name, answer.revision + 1):
                    answers[answer.name, answer.host] = answer
                    on_answer(answer)
        return answers

    def close(self) -> None:
        """Give the connection back."""
        self._consumer.close()


def history(config: Config, document: Document) -> dict[str, Answer]:
    """The last answer of each host to this revision or a later one, as far back as the topic reaches."""
    options = kafka_options(config.kafka)
    decoder = Decoder(options)
    found: dict[str, Answer] = {}
    try:
        # A host's clock may be behind: begin a minute early.
        for message in read(options, topics.topic("applied"), since_ms=document.created // 1000 - 60_000):
            for row in decoder.rows(message):
                answer = _answer(row, 0)
                if answer.name == document.name and answer.revision >= document.revision:
                    found[answer.host] = answer
    except UsageError:
        return {}
    return found


def _answer(row: dict[str, Any], heard: int) -> Answer:
    return Answer(
        row["host"], f"{row['kind']}/{row['id']}", row["revision"], row["state"], row["reason"], row["ts"],
        heard, row["duration_us"],
    )  # fmt: skip


def complaint(answers: Mapping[tuple[str, str], Answer | None]) -> BpfleetError | None:
    """What to end a command with when not every host did as it was asked; None when all is well."""
    silent = sum(1 for each in answers.values() if each is None)
    bad = sum(1 for each in answers.values() if each is not None and each.state in ("refused", "failed"))
    if not answers:
        return BpfleetError("no host in scope was heard lately; `bpfleet status` shows who is there")
    parts = [f"{bad} refused or failed"] * bool(bad) + [f"{silent} not heard"] * bool(silent)
    if not parts:
        return None
    return BpfleetError(f"of {len(answers)} answers {' and '.join(parts)}; `bpfleet desired show` says more")
