"""Shipping against a real broker: order, outages, refusals; each number in Kafka once or declared lost."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from collecting import assert_accounted, declared, read_topic, rows, wait_for

from collector import ship as ship_module
from collector.clock import now_us
from collector.health import loss_row
from collector.kafka import Desk, Found
from collector.losses import Loss, Reason
from collector.recovery import State, open_state, resolve
from collector.ship import Shipper
from schemas import declare
from schemas.config import Config
from schemas.errors import BpfleetError
from schemas.rows import columns
from sinks.kafka_server import KafkaServer

STREAMS = declare.streams()
STREAM = STREAMS["cgroup"]
HEALTH = STREAMS["collector_health"]


class Shipping:
    """A shipper with its state, as the agent drives it, without probes."""

    def __init__(self, directory: Path, servers: str, host: str, spool_mb: int = 4) -> None:
        self.config = Config()
        self.config.host, self.config.state_dir, self.config.kafka.servers = host, str(directory), servers
        self.config.collector.spool_mb = spool_mb
        self.state: State = open_state(self.config)
        self.desk = Desk(self.config, host, STREAMS.values())
        self.shipper = Shipper(
            self.config, self.state.sequences, self.state.spool, self.state.losses, self.desk
        )

    def ship(self, count: int = 1, size: int = 10) -> None:
        for number in range(count):
            made = [{"ts": number, "cgroup": os.urandom(size).hex()}]
            self.shipper.ship(STREAM, columns(STREAM, made))
            self.pump()

    def pump(self) -> None:
        self.shipper.pump()
        self.desk.ask(self.state.losses.open())
        resolve(self.state, self.desk.answers())
        pending = self.state.losses.pending() if self.shipper.is_up else []
        if pending:
            made = columns(HEALTH, [loss_row(each, now_us()) for each in pending])
            self.state.losses.declare(pending, self.shipper.ship(HEALTH, made)[-1])

    def settle(self, seconds: float = 40) -> None:
        """Until everything is in Kafka or declared."""

        def settled() -> bool:
            self.pump()
            flying = self.shipper._flying
            return (
                not flying and not len(self.shipper.spool) and not self.state.losses.all and self.desk.ready
            )

        wait_for(settled, seconds, "everything settled")

    def end(self) -> None:
        self.desk.stop()
        self.shipper.close(0.1)
        self.state.lock.close()


@pytest.fixture
def made() -> Iterator[list[Shipping]]:
    every: list[Shipping] = []
    yield every
    for each in every:
        each.end()


def stop_broker(kafka: KafkaServer) -> None:
    assert kafka.process
    kafka.process.send_signal(signal.SIGKILL)
    kafka.process.wait()


def start_broker(kafka: KafkaServer) -> None:
    kafka.start()
    kafka.wait_ready()


def test_batches_arrive_in_order(kafka: KafkaServer, tmp_path: Path, made: list[Shipping]) -> None:
    one = Shipping(tmp_path, kafka.servers, "in-order")
    made.append(one)
    one.ship(5)
    assert len(one.shipper.spool) == 5, "no topic is certain yet: nothing goes out"
    one.desk.start()
    one.settle()
    one.ship(20)
    one.settle()
    numbers = [each.envelope.seq for each in read_topic(kafka.servers, "cgroup", "in-order")]
    assert numbers == list(range(25))
    assert one.shipper.streams["cgroup"].delivered == 25
    batch = read_topic(kafka.servers, "cgroup", "in-order")[0]
    assert batch.envelope.boot == one.state.sequences.boot and batch.rows == 1


def test_the_broker_is_killed_and_comes_back(
    kafka: KafkaServer, tmp_path: Path, made: list[Shipping]
) -> None:
    one = Shipping(tmp_path, kafka.servers, "outage")
    made.append(one)
    one.desk.start()
    one.settle()
    for _ in range(2):
        end = time.monotonic() + 0.4
        while time.monotonic() < end:
            one.ship(5)
            time.sleep(0.01)
        stop_broker(kafka)
        try:
            end = time.monotonic() + 1.5
            while time.monotonic() < end:
                one.ship(2)
                time.sleep(0.01)
            assert len(one.shipper.spool) > 5
        finally:
            start_broker(kafka)
        one.ship(10)
        one.settle()
    numbers = [each.envelope.seq for each in read_topic(kafka.servers, "cgroup", "outage")]
    assert numbers == list(range(len(numbers))), "in order, each once"
    assert len(numbers) == one.shipper.streams["cgroup"].batches


def test_a_broker_that_hangs_is_like_one_that_is_away(
    kafka: KafkaServer, tmp_path: Path, made: list[Shipping]
) -> None:
    one = Shipping(tmp_path, kafka.servers, "hangs")
    made.append(one)
    one.desk.start()
    one.settle()
    assert kafka.process
    kafka.process.send_signal(signal.SIGSTOP)
    try:
        end = time.monotonic() + 2.5
        while time.monotonic() < end:
            one.ship(2)
            time.sleep(0.02)
        assert len(one.shipper.spool) > 10 and not one.shipper.is_up
    finally:
        kafka.process.send_signal(signal.SIGCONT)
    one.settle()
    numbers = [each.envelope.seq for each in read_topic(kafka.servers, "cgroup", "hangs")]
    assert numbers == list(range(one.shipper.streams["cgroup"].batches))


def test_the_bound_of_the_spool_sheds_the_oldest_and_says_so(
    kafka: KafkaServer, tmp_path: Path, made: list[Shipping]
) -> None:
    one = Shipping(tmp_path, kafka.servers, "shed", spool_mb=1)
    made.append(one)
    one.ship(60, size=20_000)
    shed = one.shipper.streams["cgroup"].shed
    assert 20 < shed < 50
    one.desk.start()
    one.settle()
    assert assert_accounted(kafka.servers, "shed", ["cgroup"]) == {"cgroup": (60 - shed, shed)}
    told = rows(read_topic(kafka.servers, "collector_health", "shed"))
    assert declared(told) == {"cgroup": set(range(shed))}
    assert sum(row["lost"] for row in told) == shed
    assert {row["reason"] for row in told} == {"shed"}


def test_shedding_a_segment_of_many_small_batches_is_quick(tmp_path: Path, made: list[Shipping]) -> None:
    one = Shipping(tmp_path, "127.0.0.1:1", "many", spool_mb=1)
    made.append(one)
    slowest = 0.0
    for _ in range(9000):
        begun = time.monotonic()
        one.ship()
        slowest = max(slowest, time.monotonic() - begun)
    assert one.shipper.streams["cgroup"].shed > 200
    assert slowest < 0.3, "the rings are not read meanwhile"
    assert len(one.state.losses.all) == 1


def test_a_full_disk_sheds_and_says_so(
    kafka: KafkaServer, tmp_path: Path, made: list[Shipping], monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    one = Shipping(tmp_path, kafka.servers, "disk-full")
    made.append(one)
    one.ship(3)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        one.ship(4)
    one.ship(2)
    assert len([each for each in caplog.messages if "No space left" in each]) == 1
    one.desk.start()
    one.settle()
    assert assert_accounted(kafka.servers, "disk-full", ["cgroup"]) == {"cgroup": (5, 4)}


def test_a_batch_too_large_for_kafka_becomes_several(
    kafka: KafkaServer, tmp_path: Path, made: list[Shipping], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ship_module, "MESSAGE_BYTES", 5_000)
    one = Shipping(tmp_path, kafka.servers, "large")
    made.append(one)
    one.desk.start()
    one.shipper.ship(STREAM, columns(STREAM, [{"ts": n, "cgroup": f"{n:0200}"} for n in range(100)]))
    one.settle()
    batches = read_topic(kafka.servers, "cgroup", "large")
    assert [each.envelope.seq for each in batches] == list(range(len(batches))) and len(batches) > 4
    assert sorted(int(row["id"]) for row in rows(batches)) == [0] * 100
    assert np.concatenate([each.columns["ts"] for each in batches]).tolist() == list(range(100))


def test_what_kafka_refuses_is_declared(
    kafka: KafkaServer, tmp_path: Path, made: list[Shipping], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ship_module.PRODUCER, "message.max.bytes", 20_000)
    one = Shipping(tmp_path, kafka.servers, "refused")
    made.append(one)
    one.desk.start()
    one.settle()
    one.ship(2)
    one.ship(1, size=30_000)
    one.ship(2)
    one.settle()
    assert assert_accounted(kafka.servers, "refused", ["cgroup"]) == {"cgroup": (4, 1)}
    told = rows(read_topic(kafka.servers, "collector_health", "refused"))
    assert [(row["reason"], row["seq_from"], row["seq_to"]) for row in told] == [("refused", 2, 2)]


def test_after_a_kill_kafka_is_asked_before_anything_is_declared(
    kafka: KafkaServer, tmp_path: Path, made: list[Shipping]
) -> None:
    one = Shipping(tmp_path, kafka.servers, "asked")
    one.desk.start()
    one.settle()
    one.ship(10)
    one.settle()
    # As if killed before the answers to 6… were heard, and with 10, 11 numbered and never sent.
    row = one.state.sequences._rows[one.state.sequences._place("cgroup")]
    row["settled"] = 6
    row["offset"] -= 4
    one.state.sequences.take("cgroup", 0), one.state.sequences.take("cgroup", 0)
    one.end()
    two = Shipping(tmp_path, kafka.servers, "asked")
    made.append(two)
    assert [(each.first, each.last) for each in two.state.losses.open()] == [(6, 11)]
    two.ship(3)
    two.desk.start()
    two.settle()
    assert assert_accounted(kafka.servers, "asked", ["cgroup"]) == {"cgroup": (13, 2)}
    told = declared(rows(read_topic(kafka.servers, "collector_health", "asked")))
    assert told == {"cgroup": {10, 11}}, "what Kafka has is not declared lost"


def test_a_stream_that_never_had_an_answer_is_looked_up_by_time(
    kafka: KafkaServer, tmp_path: Path, made: list[Shipping]
) -> None:
    one = Shipping(tmp_path, kafka.servers, "by-time")
    one.desk.start()
    one.ship(4)
    one.settle()
    row = one.state.sequences._rows[one.state.sequences._place("cgroup")]
    row["settled"], row["offset"], row["partition"] = 0, -1, -1
    one.end()
    two = Shipping(tmp_path, kafka.servers, "by-time")
    made.append(two)
    two.desk.start()
    two.settle()
    assert not declared(rows(read_topic(kafka.servers, "collector_health", "by-time")))


def test_a_producer_that_fails_for_good_is_replaced(
    kafka: KafkaServer, tmp_path: Path, made: list[Shipping]
) -> None:
    one = Shipping(tmp_path, kafka.servers, "fatal")
    made.append(one)
    one.desk.start()
    one.ship(3)
    one.settle()
    first = one.shipper._producer
    one.ship(20)
    from confluent_kafka import KafkaError

    one.shipper._error(KafkaError(KafkaError._FATAL, "as a test has it", True))
    one.ship(5)
    one.settle()
    assert one.shipper._producer is not first
    there, lost = assert_accounted(kafka.servers, "fatal", ["cgroup"])["cgroup"]
    assert there + lost == 28 and there >= 8


def test_an_unreachable_broker_is_one_line(tmp_path: Path, made: list[Shipping]) -> None:
    one = Shipping(tmp_path, "127.0.0.1:1", "nowhere")
    made.append(one)
    one.desk.start()
    one.ship(2)
    wait_for(lambda: one.desk.trouble, 30)
    assert "cannot reach Kafka at 127.0.0.1:1" in one.desk.trouble and "\n" not in one.desk.trouble
    assert not one.shipper.is_up and len(one.shipper.spool) == 2


def test_a_password_that_is_wrong_has_a_file_to_check(tmp_path: Path) -> None:
    config = Config()
    config.kafka.password_file = str(tmp_path / "absent")
    with pytest.raises(BpfleetError, match="password file"):
        from schemas.admin import prepare

        prepare(config, [])


def test_ranges_that_remain() -> None:
    loss = Loss(Reason.KILLED, "s", "00", 3, 9, 0, 0, True)
    found: Any = [(each.first, each.last, each.open) for each in Found(loss, {3, 6, 7}).remaining()]
    assert found == [(4, 5, False), (8, 9, False)]
    assert not Found(loss, set(range(20))).remaining()
