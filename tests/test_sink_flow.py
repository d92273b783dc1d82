"""The sink end to end: broker, process, store."""

import time
from typing import Any

import numpy as np
from confluent_kafka import Consumer, TopicPartition
from sinking import Place, Sender, batch, declared, eventually, make_topics

from schemas import topics
from sinks.intent import Intent, read

STREAM = declared("flow")
TOPIC = topics.topic("flow")


def started(place: Place, partitions: int = 1) -> Sender:
    make_topics(place.servers, topics.SCHEMAS)
    make_topics(place.servers, TOPIC, partitions=partitions)
    sender = Sender(place.servers)
    sender.schema(STREAM)
    return sender


def test_rows_arrive_once_and_the_offset_follows(place: Place) -> None:
    sender = started(place)
    sender.send(TOPIC, (batch(STREAM, 100 * n, 100, n) for n in range(50)))
    sink = place.sink()
    eventually(lambda: place.once(STREAM, 5_000))
    eventually(lambda: place.committed(TOPIC) == (50, ""))
    assert sink.metrics()['bpfleet_sink_rows_total{stream="flow"}'] == 5_000
    assert eventually(
        lambda: 'bpfleet_sink_lag_messages{partition="0",topic="bpfleet.flow.v1"}' in sink.metrics()
    )
    began = time.monotonic()
    assert sink.stop() == 0 and time.monotonic() - began < 5
    assert "Traceback" not in sink.said()


def test_a_new_topic_is_picked_up_within_seconds(place: Place) -> None:
    sender = started(place)
    place.sink()
    sender.send(TOPIC, [batch(STREAM, 0, 1, 0)])
    eventually(lambda: place.once(STREAM, 1))
    late = declared("late", probe="late")
    make_topics(place.servers, topics.topic("late"))
    sender.schema(late)
    began = time.monotonic()
    sender.send(topics.topic("late"), [batch(late, 0, 10, 0)])
    eventually(lambda: place.once(late, 10))
    assert time.monotonic() - began < 5


def test_several_sinks_share_the_partitions(place: Place) -> None:
    sender = started(place, partitions=4)
    place.settings["session_timeout_ms"] = 3_000
    sinks = [place.sink(), place.sink()]

    def owners() -> list[int]:
        lag = [each.metrics() for each in sinks]
        return [sum(name.startswith("bpfleet_sink_lag") for name in samples) for samples in lag]

    for partition in range(4):
        sender.send(TOPIC, [batch(STREAM, 10 * partition, 10, partition)], partition)
    eventually(lambda: place.once(STREAM, 40))
    eventually(lambda: owners() == [2, 2])
    assert sinks[0].stop() == 0
    eventually(lambda: owners() == [0, 4])
    sender.send(TOPIC, [batch(STREAM, 40, 10, 9)], 0)
    eventually(lambda: place.once(STREAM, 50))


def test_days_become_inserts_of_their_own(place: Place) -> None:
    sender = started(place)
    day = 86_400_000_000
    midnight = time.time_ns() // 1000 // day * day
    sender.send(
        TOPIC, [batch(STREAM, 3 * n, 3, n, ts=midnight + np.array([-1, 0, -day - 1])) for n in range(7)]
    )
    place.settings["flush_ms"] = 1_000
    sink = place.sink()
    eventually(lambda: place.once(STREAM, 21))
    assert place.ask("SELECT uniqExact(_partition_id), countIf(seq > 6) FROM DB.flow") == [(3, 0)]
    assert sink.metrics()['bpfleet_sink_inserts_total{stream="flow"}'] == 3


def test_an_appended_field_and_its_absence_share_a_table(place: Place) -> None:
    old = started(place)
    new = declared("flow", {"name": "more", "type": "long", "default": 7})
    place.sink()
    old.send(TOPIC, [batch(STREAM, 0, 10, 0)])
    eventually(lambda: place.once(STREAM, 10))
    old.schema(new)
    old.send(TOPIC, [batch(new, 10, 10, 1, more=np.full(10, 1)), batch(STREAM, 20, 10, 2)])
    eventually(lambda: place.once(STREAM, 30))
    assert place.ask("SELECT more, count(), min(id) FROM DB.flow GROUP BY more ORDER BY more") == [
        (1, 10, 10), (7, 20, 0),
    ]  # fmt: skip


def plant(place: Place, offset: int, intent: Intent) -> None:
    """Commit as a sink would that died right after."""
    consumer = Consumer({"bootstrap.servers": place.servers, "group.id": place.group})
    consumer.commit(offsets=[TopicPartition(TOPIC, 0, offset, intent.write(offset))], asynchronous=False)
    consumer.close()


def test_an_open_intent_is_finished_as_it_was_begun(place: Place) -> None:
    """Messages 2 … 6 were one batch, 4 of which its owner had given up; 0 and 1 are in the store already."""
    sender = started(place)
    sender.send(TOPIC, (batch(STREAM, 10 * n, 10, n) for n in range(12)))
    plant(place, 2, Intent(7, {4: "unknown_schema"}))
    place.settings["flush_rows"] = 10  # which would make other batches
    sink = place.sink()
    eventually(lambda: place.committed(TOPIC) == (12, ""))
    got = place.ask("SELECT arraySort(groupUniqArray(seq)), count(), uniqExact(id) FROM DB.flow")
    assert got == [([2, 3, 5, 6, 7, 8, 9, 10, 11], 90, 90)]
    (letter,) = place.letters()
    headers = dict(letter.headers())
    assert (headers["offset"], headers["reason"]) == (b"4", b"unknown_schema")
    assert (
        sink.metrics()['bpfleet_sink_inserts_total{stream="flow"}'] == 3
    )  # [2, 7), four that waited, the last


def test_what_had_landed_before_the_crash_is_not_repeated(place: Place) -> None:
    """The batch landed, its owner died before the next commit: the successor's token finds it there."""
    sender = started(place)
    sender.send(TOPIC, (batch(STREAM, 10 * n, 10, n) for n in range(5)))
    sink = place.sink()
    eventually(lambda: place.committed(TOPIC) == (5, ""))
    assert sink.stop() == 0
    plant(place, 0, Intent(5))
    sender.send(TOPIC, [batch(STREAM, 50, 10, 5)])
    sink.start()
    eventually(lambda: place.committed(TOPIC) == (6, ""))
    assert place.once(STREAM, 60)


def test_a_metadata_round_trip() -> None:
    dead = dict.fromkeys((5, 6, 7, 9), "unreadable") | {8: "rejected"}
    intent = Intent(20, dead, frozenset({"2026-01-01:00"}))
    assert read(5, intent.write(5)) == intent
    assert read(5, "") is None and read(5, None) is None and read(20, Intent(20).write(20)) is None


def slow(place: Place, sink: Any) -> bool:
    return bool(sink.metrics().get("bpfleet_sink_paused_partitions", 0) >= 1)


def test_memory_is_bounded_while_the_store_is_away(place: Place, store: Any) -> None:
    """10 MB wait in Kafka, 1 MB may be held: partitions pause, and all of it arrives afterwards."""
    sender = started(place)
    place.settings["buffer_mb"] = 1
    sink = place.sink()
    sender.send(TOPIC, [batch(STREAM, 0, 1, 0)])
    eventually(lambda: place.once(STREAM, 1))
    store.pause()
    try:
        rows = 20_000
        sender.send(TOPIC, (batch(STREAM, 1 + rows * n, rows, 1 + n) for n in range(40)))
        eventually(lambda: slow(place, sink))
        time.sleep(1)
        assert sink.metrics()["bpfleet_sink_held_bytes"] < 3 << 20
    finally:
        store.resume()
    eventually(lambda: place.once(STREAM, 1 + 40 * rows), seconds=40)
