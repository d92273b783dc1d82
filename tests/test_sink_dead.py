"""Messages that no table can take: to the dead letters, with a reason, a limit, and a way back."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from confluent_kafka import Producer
from sinking import BOOT, Place, Sender, batch, declared, eventually, make_topics, reasons

from schemas import topics, wire
from schemas.errors import BpfleetError
from sinks.dead import DeadShare, TooManyDead
from sinks.judge import REASONS

STREAM = declared("letter")
TOPIC = topics.topic("letter")


def started(place: Place) -> Sender:
    make_topics(place.servers, topics.SCHEMAS, TOPIC)
    sender = Sender(place.servers)
    sender.schema(STREAM)
    return sender


def replay(place: Place, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "fleet", "--config", str(place.sinks[0].config), "replay", *arguments],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def bad_messages() -> dict[str, bytes]:
    """One message of each reason that a message can bring along by itself."""
    good = batch(STREAM, 0, 10, 0)
    other = declared("other")
    return {
        "unreadable": good[:-3],
        "unknown_schema": batch(
            declared("letter", {"name": "late", "type": "long"}), 0, 1, 0, late=np.zeros(1)
        ),
        "wrong_topic": batch(other, 0, 1, 0),
        "out_of_range": batch(STREAM, 0, 1, 0, ts=-1),
    }


def test_each_reason_is_told_and_neighbours_arrive(place: Place) -> None:
    sender = started(place)
    sender.schema(declared("other"))
    bad = bad_messages()
    messages = [batch(STREAM, 10 * n, 10, n) for n in range(len(bad) + 1)]
    for good, wrong in zip(messages, bad.values(), strict=False):
        sender.send(TOPIC, [good, wrong])
    sender.send(TOPIC, messages[-1:])
    sink = place.sink()
    eventually(lambda: place.once(STREAM, 10 * len(messages)), seconds=40)
    letters = eventually(place.letters)
    assert {each.value(): why for each, why in zip(letters, reasons(letters), strict=True)} == {
        value: reason for reason, value in bad.items()
    }
    assert [dict(each.headers())["offset"] for each in letters] == [b"1", b"3", b"5", b"7"]
    assert {dict(each.headers())["topic"] for each in letters} == {TOPIC.encode()}
    counted = sink.metrics()
    assert all(counted[f'bpfleet_sink_dead_letters_total{{reason="{reason}"}}'] == 1 for reason in bad)
    assert set(bad) | {"incompatible", "rejected"} == set(REASONS)


def test_a_message_that_swells_when_it_is_unpacked_stops_nobody(place: Place) -> None:
    """A few kilobytes on the broker, more than any consumer takes: a dead letter like any other."""
    make_topics(place.servers, topics.SCHEMAS, TOPIC)
    Sender(place.servers).send(TOPIC, [batch(STREAM, 0, 10, 0)])
    swelling = Producer({
        "bootstrap.servers": place.servers, "message.max.bytes": 200_000_000, "compression.type": "zstd",
    })  # fmt: skip
    sender = Sender(place.servers)
    for topic in (topics.SCHEMAS, TOPIC):
        swelling.produce(topic, bytes(120_000_000), b"a", 0)
    assert swelling.flush(30) == 0
    sender.schema(STREAM)
    sender.send(TOPIC, [batch(STREAM, 10, 10, 1)])
    place.sink()
    eventually(lambda: place.once(STREAM, 20), seconds=40)
    (letter,) = eventually(place.letters)
    assert reasons([letter]) == ["unreadable"] and dict(letter.headers())["offset"] == b"1"


def test_an_incompatible_schema_is_refused_and_nothing_lost(place: Place) -> None:
    """A changed type is refused with a clear error; once the table is mended, replay brings the rows."""
    sender = started(place)
    sink = place.sink()
    sender.send(TOPIC, [batch(STREAM, 0, 10, 0)])
    eventually(lambda: place.once(STREAM, 10))
    changed = declared("letter", {"name": "more", "type": "long"})  # no default
    sender.schema(changed)
    sender.send(TOPIC, [batch(changed, 10, 10, 1, more=np.arange(10)), batch(STREAM, 20, 10, 2)])
    eventually(lambda: place.count(STREAM) == 20)
    assert reasons(eventually(place.letters)) == ["incompatible"]
    assert "letter.more is new and has no default" in sink.said()
    assert sink.stop() == 0
    place.client().command(f"ALTER TABLE {place.database}.letter ADD COLUMN more Int64")
    assert replay(place, "--dead").startswith("1 messages inserted (10 rows), 0 were in the store")
    assert place.once(STREAM, 30)
    assert replay(place, "--dead").startswith("0 messages inserted (0 rows), 1 were in the store")
    assert place.once(STREAM, 30)


def test_rows_that_the_server_rejects_are_singled_out(place: Place) -> None:
    sender = started(place)
    place.settings["flush_ms"] = 1_000
    sink = place.sink()
    sender.send(TOPIC, [batch(STREAM, 0, 10, 0)])
    eventually(lambda: place.once(STREAM, 10))
    place.client().command(f"ALTER TABLE {place.database}.letter ADD CONSTRAINT small CHECK id < 1000")
    bad = [batch(STREAM, 5_000, 10, 1), batch(STREAM, 6_000, 10, 2)]
    sender.send(TOPIC, [bad[0], batch(STREAM, 10, 10, 3), bad[1], *(batch(STREAM, 20, 10, 4),)])
    eventually(lambda: place.once(STREAM, 30))
    eventually(lambda: place.committed(TOPIC) == (5, ""))
    letters = place.letters()
    assert [each.value() for each in letters] == bad and reasons(letters) == ["rejected"] * 2
    assert b"VIOLATED_CONSTRAINT" in dict(letters[0].headers())["detail"]
    assert sink.metrics()['bpfleet_sink_dead_letters_total{reason="rejected"}'] == 2
    assert "bpfleet_sink_insert_retries_total" in sink.metrics()


def test_trouble_of_the_server_makes_no_dead_letter(place: Place, store: Any) -> None:
    """Away, out of memory, table dropped: tried again until it works."""
    sender = started(place)
    sink = place.sink()
    sender.send(TOPIC, [batch(STREAM, 0, 10, 0)])
    eventually(lambda: place.once(STREAM, 10))
    store.stop()
    sender.send(TOPIC, [batch(STREAM, 10, 10, 1)])
    eventually(lambda: sink.metrics()["bpfleet_sink_insert_retries_total"] > 1)
    store.start()
    eventually(lambda: place.once(STREAM, 20))
    place.client().command(f"DROP TABLE {place.database}.letter SYNC")
    sender.send(TOPIC, [batch(STREAM, 0, 10, 2)])
    eventually(lambda: place.once(STREAM, 10))
    assert place.letters() == []


def test_a_lost_table_comes_back_from_kafka(place: Place) -> None:
    sender = started(place)
    sender.send(TOPIC, (batch(STREAM, 10 * n, 10, n) for n in range(30)))
    place.sink()
    eventually(lambda: place.once(STREAM, 300))
    eventually(lambda: place.committed(TOPIC) == (30, ""))
    assert replay(place, TOPIC).startswith("0 messages inserted (0 rows), 30 were")
    place.client().command(
        f"ALTER TABLE {place.database}.letter DELETE WHERE seq < 20 SETTINGS mutations_sync = 2"
    )
    assert replay(place, TOPIC, "--from", "5", "--to", "8").startswith(
        "3 messages inserted (30 rows), 0 were"
    )
    assert replay(place, TOPIC).startswith("17 messages inserted (170 rows), 13 were")
    assert place.once(STREAM, 300)


def test_when_most_is_unreadable_the_sink_stops(place: Place) -> None:
    sender = started(place)
    sender.send(TOPIC, [batch(STREAM, 0, 10, 0)])
    sender.send(TOPIC, [b"nonsense %d" % n for n in range(500)])
    sink = place.sink()
    assert sink.wait(30) == 3
    last = sink.said().strip().splitlines()[-1]
    assert last.startswith("bpfleet: ") and "cannot be stored" in last and "sink.dead_share" in last
    assert len(place.letters()) == 0 and place.committed(TOPIC)[0] <= 1  # nothing was drained


def test_the_limit_trips_above_its_share_only() -> None:
    share = DeadShare(0.5)
    for number in range(400):
        share.note(number % 2 == 1)
        share.check()
    share.note(True)
    with pytest.raises(TooManyDead, match="201 of the last 400"):
        share.check()
    few = DeadShare(0.0)
    for _ in range(99):
        few.note(True)
    few.check()  # too few to tell
    assert issubclass(TooManyDead, BpfleetError)
    assert wire.Envelope("h", BOOT, 0).sample_rate == 1
