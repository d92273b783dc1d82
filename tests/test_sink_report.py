"""A sink says of itself what it did, in the table that its alerts read."""

import pytest
from sinking import Place, Sender, batch, declared, eventually, make_topics

from schemas import topics
from schemas.config import Config
from sinks import report
from sinks.metrics import Metrics


def test_a_row_tells_the_growth_since_the_last_one() -> None:
    metrics = Metrics()
    made = report.Report(Config(), metrics)
    metrics.messages.labels("a").inc(3)
    metrics.messages.labels("b").inc(4)
    metrics.dead.labels("unreadable").inc()
    metrics.lag.labels("a", "0").set(70)
    metrics.lag.labels("a", "1").set(30)
    metrics.inserts.labels("a").inc(2)
    for seconds in (0.2, 0.4):
        metrics.delay.observe(seconds)
    first = made.row()
    assert {name: first[name] for name in ("messages", "dead", "lag", "inserts")} == {
        "messages": 7, "dead": 1, "lag": 100, "inserts": 2,
    }  # fmt: skip
    assert first["delay_us"] == pytest.approx(300_000, abs=2)
    metrics.messages.labels("a").inc()
    second = made.row()
    assert (second["messages"], second["dead"], second["lag"]) == (1, 0, 100)
    assert second["ts"] >= first["ts"] and second["interval_us"] > 0


def test_rows_arrive_while_a_sink_runs(place: Place) -> None:
    stream = declared("counted")
    make_topics(place.servers, topics.SCHEMAS)
    make_topics(place.servers, topics.topic(stream.name))
    sender = Sender(place.servers)
    sender.schema(stream)
    place.sink()
    sender.send(topics.topic(stream.name), [batch(stream, 0, 500, 0), b"no message of ours"])
    query = "SELECT sum(inserted), sum(dead), sum(messages) >= 2, uniqExact(sink), max(delay_us) > 0 "
    expected = [(500, 1, True, 1, True)]
    eventually(lambda: place.ask(query + "FROM DB.sink_health") == expected, 30)
