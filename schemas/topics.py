"""Names of topics, and the one that carries the schemas (compacted: fingerprint → schema, declaration)."""

import json
import re
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from schemas import declare, wire
from schemas.columns import InvalidBatch
from schemas.declare import Stream
from schemas.errors import BpfleetError
from schemas.refusal import refusal

SCHEMAS = "bpfleet.schemas.v1"
DEAD = "bpfleet.dead.v1"
DESIRED = "bpfleet.desired.v1"
STREAM_TOPIC = re.compile(r"bpfleet\.([a-z][a-z0-9_]*)\.v1")
# The audit trail of desired state is the stream `desired`; the state itself has the topic of that name.
AUDIT = "bpfleet.desired_audit.v1"


def topic(stream: str) -> str:
    """Where a stream's batches travel."""
    return AUDIT if stream == "desired" else f"bpfleet.{stream}.v1"


def stream_of(name: str) -> str | None:
    """Which stream travels on the topic of that name; None when no stream does."""
    if name in (SCHEMAS, DEAD, DESIRED):
        return None
    match = STREAM_TOPIC.fullmatch(name)
    return "desired" if name == AUDIT else match[1] if match else None


def schema_record(stream: Stream) -> tuple[bytes, bytes]:
    """Key and value that publish a stream's schema."""
    schema = wire.batch_schema(stream)
    value = {"schema": schema, "declaration": stream.declaration, "probe": stream.probe}
    return f"{wire.fingerprint(schema):016x}".encode(), json.dumps(value).encode()


class Catalog:
    """What a reader knows: how to decode each fingerprint, and the newest declaration of each stream."""

    def __init__(self, known: Iterable[Stream] | None = None) -> None:
        self.schemas = wire.Schemas()
        self.streams: dict[str, Stream] = {}
        for stream in declare.streams().values() if known is None else known:
            self._keep(stream)

    def learn(self, value: bytes) -> tuple[int, Stream]:
        """Take one value of the schemas topic; its fingerprint and stream.

        Raises :class:`InvalidBatch` when it is not one.
        """
        try:
            record: dict[str, Any] = json.loads(value)
            tree = json.loads(record["declaration"])
            stream = declare.parse(str(record["probe"]), tree).streams[0]
            sent = [each["name"] for each in json.loads(record["schema"])["fields"]]
        except (ValueError, KeyError, TypeError, BpfleetError) as error:
            raise InvalidBatch(f"not a schema record: {error}") from None
        if sent[wire.ENVELOPE_FIELDS :] != [each.name for each in stream.fields]:
            raise InvalidBatch(f"schema and declaration of {stream.name} do not name the same fields")
        key = self.schemas.add(str(record["schema"]))
        self._keep(stream)
        return key, stream

    def _keep(self, stream: Stream) -> None:
        self.schemas.add(wire.batch_schema(stream))
        known = self.streams.get(stream.name)
        # Fields are only ever appended: the declaration with more of them is the newer one.
        if known is None or len(stream.fields) > len(known.fields):
            self.streams[stream.name] = stream


def read_catalog(options: dict[str, Any], seconds: float = 10.0) -> Catalog:
    """The catalog of a cluster: the packaged declarations and all that the schemas topic holds.

    ``options`` reach the cluster (:func:`schemas.config.kafka_options`). Raises :class:`BpfleetError`
    when it does not answer in time.
    """
    from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, TopicPartition

    catalog = Catalog()
    consumer = Consumer({**options, "group.id": "bpfleet-catalog", "enable.auto.commit": False})
    try:
        listed = consumer.list_topics(SCHEMAS, timeout=seconds).topics[SCHEMAS]
        ends = {}
        for number in listed.partitions:
            low, high = consumer.get_watermark_offsets(TopicPartition(SCHEMAS, number), timeout=seconds)
            if high > low:
                ends[number] = high
        consumer.assign([TopicPartition(SCHEMAS, number, OFFSET_BEGINNING) for number in ends])
        deadline = time.monotonic() + seconds
        while ends and time.monotonic() < deadline:
            message = consumer.poll(0.5)
            if message is None or message.error():
                continue
            number, value = message.partition(), message.value()
            if value:
                with suppress(InvalidBatch):  # whoever may write to the topic keeps nobody from the rest
                    catalog.learn(value)
            if (message.offset() or 0) + 1 >= ends.get(number or 0, 0):
                ends.pop(number or 0, None)
    except KafkaException as error:
        raise unreachable(options, error, consumer) from None
    finally:
        consumer.close()
    return catalog


def unreachable(options: dict[str, Any], error: Exception, client: Any = None) -> BpfleetError:
    """The one line for a broker that does not answer, or does not want us.

    ``options`` are those that ``client`` was made with.
    """
    fault = error.args[0] if error.args and hasattr(error.args[0], "code") else None
    refused = refusal(options, fault, client)
    if refused is not None:
        return refused
    reason = error.args[0].str() if error.args and hasattr(error.args[0], "str") else str(error)
    return BpfleetError(
        f"cannot reach Kafka at {options['bootstrap.servers']}: {reason}; "
        "start it with `bpfleet kafka` or set BPFLEET_KAFKA"
    )
