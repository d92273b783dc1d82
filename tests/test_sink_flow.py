"""The sink end to end: broker, process, store."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import StoreProcess
from sinking import Place, Sender, batch, declared, delete_topics, eventually, make_topics

from schemas import topics
from sinks.kafka_server import KafkaServer

STREAM = declared("flow")
TOPIC = topics.topic("flow")


@pytest.fixture
def place(
    kafka: KafkaServer, store: StoreProcess, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Place]:
    delete_topics(kafka.servers)
    made = Place(kafka.servers, store.url, f"t_{abs(hash(request.node.nodeid)) % 10**8}", tmp_path)
    try:
        yield made
    finally:
        made.close()


def test_rows_arrive_once_and_the_offset_follows(place: Place) -> None:
    make_topics(place.servers, topics.SCHEMAS, TOPIC)
    sender = Sender(place.servers)
    sender.schema(STREAM)
    sender.send(TOPIC, (batch(STREAM, 100 * n, 100, n) for n in range(50)))
    sink = place.sink()
    eventually(lambda: place.once(STREAM, 5_000))
    eventually(lambda: place.committed(TOPIC) == (50, ""))
    assert sink.metrics()['bpfleet_sink_rows_total{stream="flow"}'] == 5_000
    assert sink.stop() == 0
    assert "Traceback" not in sink.said()
