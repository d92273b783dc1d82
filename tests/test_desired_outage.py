"""Kafka away: what is in force stays, time still counts, a restart finds it again, the way back is short."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import free_port
from desired_host import Host, Recorder, check, config_of, until

from collector import desired as state_module
from fleet.desired import Board, Draft
from schemas.config import Config
from schemas.desired import Kind, Scope
from schemas.signing import PrivateKey
from sinks.kafka_server import KafkaServer

KEY = PrivateKey(b"k" * 32, "ops")
RULE = Kind("rule", check, must_expire=True)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[KafkaServer]:
    server = KafkaServer(tmp_path, free_port())
    server.start()
    try:
        server.wait_ready()
        yield server
    finally:
        server.kill()


@pytest.fixture
def config(tmp_path: Path, broker: KafkaServer) -> Config:
    return config_of(tmp_path, broker.servers, "h1", trusted_keys=[str(KEY.public)], signed_kinds=["rule"])


@pytest.fixture
def hosts() -> Iterator[list[Host]]:
    made: list[Host] = []
    yield made
    for each in made:
        each.stop()


def begin(hosts: list[Host], config: Config) -> Host:
    hosts.append(Host(config, Recorder(RULE)).start())
    return hosts[-1]


def publish(config: Config, *drafts: Draft) -> None:
    board = Board(config, KEY)
    board.publish(drafts)
    board.close()


def test_kafka_dies_and_returns(broker: KafkaServer, config: Config, hosts: list[Host]) -> None:
    host = begin(hosts, config)
    until(lambda: host.desired.settled, 20)
    publish(config, Draft(RULE, "long", {"say": 1}, ttl_s=3600), Draft(RULE, "short", {"say": 2}, ttl_s=4))
    until(lambda: host.handlers[0].now == {"long": 1, "short": 2})
    broker.kill()
    until(lambda: host.handlers[0].now == {"long": 1}, 6, "time counts without Kafka")
    broker.start()
    broker.wait_ready()
    back = time.monotonic()
    publish(config, Draft(RULE, "new", {"say": 3}, ttl_s=3600))
    published = time.monotonic()
    until(lambda: host.handlers[0].now == {"long": 1, "new": 3}, 10)
    heard = time.monotonic() - published
    print(
        f"\nafter Kafka's return: published in {published - back:.2f} s, in force {heard * 1000:.0f} ms later"
    )
    until(lambda: [state for state, _ in host.said("rule/short")] == ["applied", "expired"])
    broker.pause()
    time.sleep(1)
    broker.resume()
    publish(config, Draft(RULE, "new", {"say": 4}, ttl_s=3600))
    until(lambda: host.handlers[0].now == {"long": 1, "new": 4}, 10)


def test_a_restart_without_kafka_keeps_the_state(
    broker: KafkaServer, config: Config, hosts: list[Host]
) -> None:
    host = begin(hosts, config)
    until(lambda: host.desired.settled, 20)
    publish(config, Draft(RULE, "a", {"say": 1}, ttl_s=3600), Draft(RULE, "b", {"say": 2}, ttl_s=8),
            Draft(RULE, "far", {"say": 3}, Scope(("elsewhere",)), 3600))  # fmt: skip
    until(lambda: host.handlers[0].now == {"a": 1, "b": 2})
    host.stop()
    broker.kill()
    begun = time.monotonic()
    second = begin(hosts, config)
    until(lambda: second.handlers[0].now == {"a": 1, "b": 2})
    took = time.monotonic() - begun
    print(f"\nstate from disk in force {took:.2f} s after the start")
    assert state_module.GRACE_S <= took < state_module.GRACE_S + 1.5
    assert {row["source"] for row in second.sent if row["stream"] == "applied"} <= {"disk"}
    until(lambda: second.handlers[0].now == {"a": 1}, 10)
    second.stop()
    file = Path(config.state_dir) / "desired" / "accepted.jsonl"
    file.write_bytes(file.read_bytes().replace(b'"say":1', b'"say":9'))
    third = begin(hosts, config)
    until(lambda: third.handlers[0].now == {}, what="a state that was tampered with is not put in force")
    until(lambda: any("changed after it was signed" in reason for _, reason in third.said("rule/a")))
    broker.start()
    broker.wait_ready()
    until(lambda: third.handlers[0].now == {"a": 1}, 15, "Kafka has the true one")


def test_what_was_removed_meanwhile_is_not_put_in_force_first(
    broker: KafkaServer, config: Config, hosts: list[Host]
) -> None:
    host = begin(hosts, config)
    until(lambda: host.desired.settled, 20)
    publish(config, Draft(RULE, "a", {"say": 1}, ttl_s=3600))
    until(lambda: host.handlers[0].now == {"a": 1})
    host.stop()
    board = Board(config, KEY)
    board.delete(["rule/a"])
    board.close()
    second = begin(hosts, config)
    until(lambda: second.desired.settled, 10)
    until(lambda: second.said("rule/a") == [("removed", "it was not in force here")])
    assert second.handlers[0].calls == [{}]


def test_a_topic_that_vanished_is_not_an_order(
    broker: KafkaServer, config: Config, hosts: list[Host], tmp_path: Path
) -> None:
    """Another, empty cluster at the same address: nobody said that anything should end."""
    host = begin(hosts, config)
    until(lambda: host.desired.settled, 20)
    publish(config, Draft(RULE, "a", {"say": 1}, ttl_s=3600))
    until(lambda: host.handlers[0].now == {"a": 1})
    host.stop()
    broker.kill()
    empty = KafkaServer(tmp_path / "empty", broker.port)
    empty.start()
    try:
        empty.wait_ready()
        second = begin(hosts, config)
        until(lambda: second.handlers[0].now == {"a": 1}, 20)
        publish(config, Draft(RULE, "b", {"say": 2}, ttl_s=3600))
        until(lambda: second.handlers[0].now == {"a": 1, "b": 2}, 20)
    finally:
        empty.kill()


PROCESS = """
import sys, time
sys.path.insert(0, {tests!r})
from desired_host import *
from schemas.desired import Kind
config = config_of(Path({state!r}), {servers!r}, "h1", trusted_keys=[{key!r}], signed_kinds=["rule"])
host = Host(config, Recorder(Kind("rule", check, must_expire=True))).start()
while True:
    print(host.handlers[0].now, flush=True)
    time.sleep(0.02)
"""


def test_killed_at_any_moment_the_state_is_whole(broker: KafkaServer, config: Config, tmp_path: Path) -> None:
    """SIGKILL in the middle of a stream of changes: the next start reads back what was accepted."""
    code = PROCESS.format(tests=str(Path(__file__).parent), state=str(tmp_path), servers=broker.servers,
                          key=str(KEY.public))  # fmt: skip
    board = Board(config, KEY)
    number = 0
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            end = time.monotonic() + 20
            while "rule" not in (line := process.stdout.readline()) and line.strip() == "None":
                assert time.monotonic() < end
            for _ in range(40):
                number += 1
                board.publish([Draft(RULE, f"rule{number % 7}", {"say": number}, ttl_s=3600)])
        finally:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            process.stdout.close()
    wanted = {each.document.id: each.document.spec["say"] for each in board.refresh().values()}
    board.close()
    broker.kill()
    host = Host(config, Recorder(RULE)).start()
    try:
        until(lambda: host.desired.settled, 10)
        until(lambda: host.handlers[0].calls)
        found = host.handlers[0].now or {}
        assert found.keys() == wanted.keys()
        # The very last may not have been heard before the kill; nothing is invented or older than that.
        assert all(wanted[name] - found[name] < 40 for name in wanted), (found, wanted)
    finally:
        host.stop()
