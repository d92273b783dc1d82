"""The filter by desired state: a real collector, real Kafka, `bpfleet drop` as operators type it."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from collecting import CollectorProcess, read_topic, rows, wait_for
from test_filter_netns import ATTACKED, Lab, attack, inside, received

from collector import xdp
from fleet.acknowledge import live_hosts
from schemas.config import Config
from schemas.signing import private_key
from sinks.kafka_server import KafkaServer

HOST = f"filter-{os.getpid()}"
NAME = f"bff{os.getpid() % 100_000}"
SCOPED = ("add", "watch", "allow", "set", "apply")
NEAR, FAR = "10.78.0.1", "10.78.0.2"


class Attacked(Lab):
    """A veth pair: this side, where the collector is, is attacked from a namespace."""

    def __init__(self) -> None:
        self.near, self.far = "", f"bpfleet-x{os.getpid()}"
        for command in (
            f"ip netns add {self.far}", f"ip link add {NAME} type veth peer name out0 netns {self.far}",
            f"ip addr add {NEAR}/24 dev {NAME}", f"ip link set {NAME} up",
            f"ip -n {self.far} addr add {FAR}/24 dev out0", f"ip -n {self.far} link set out0 up",
        ):  # fmt: skip
            subprocess.run(command.split(), check=True, capture_output=True)

    def victim(self) -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        made.bind((NEAR, ATTACKED))
        made.setblocking(False)
        return made

    def attacker(self) -> socket.socket:
        with inside(self.far):
            made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            made.connect((NEAR, ATTACKED))
        return made

    def close(self) -> None:
        subprocess.run(["ip", "link", "del", NAME], check=False, capture_output=True)
        subprocess.run(["ip", "netns", "del", self.far], check=False, capture_output=True)


class Operator:
    """Types `bpfleet drop …`."""

    def __init__(self, directory: Path, servers: str) -> None:
        self.config = directory / "operator.yaml"
        key = directory / "ops.key"
        done = subprocess.run(
            [sys.executable, "-m", "fleet", "key", "new", str(key)], capture_output=True, check=True
        )
        assert done.returncode == 0
        self.public = private_key(key).public.text
        tree = {"host": "operator", "state_dir": str(directory), "kafka": {"servers": servers},
                "operator": {"key_file": str(key), "author": "op@test"}}  # fmt: skip
        self.config.write_text(json.dumps(tree))

    def drop(self, *words: str, code: int = 0) -> str:
        command = [sys.executable, "-m", "fleet", "drop", *words, "--config", str(self.config)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout if code == 0 else done.stderr

    def wait(self, *words: str, code: int = 0) -> dict[str, Any]:
        """With --wait: what our host said, and how long after publication in ms."""
        command = [sys.executable, "-m", "fleet", "drop", *words]
        command += ["--host", HOST] if words[0] in SCOPED else []
        command += ["--wait", "--timeout", "20", "--json", "--config", str(self.config)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        answers: list[dict[str, Any]] = json.loads(done.stdout)
        assert {each["host"] for each in answers} == {HOST}
        return answers[0]


@pytest.fixture
def lab() -> Iterator[Attacked]:
    made = Attacked()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def operator(kafka: KafkaServer, tmp_path: Path) -> Operator:
    return Operator(tmp_path, kafka.servers)


@pytest.fixture
def collector(
    lab: Attacked, operator: Operator, kafka: KafkaServer, tmp_path: Path
) -> Iterator[CollectorProcess]:
    made = CollectorProcess(
        tmp_path / "host", kafka.servers, HOST, probes=["runq_latency"], filter_pins=NAME,
        trusted_keys=[operator.public], aggregate_ms=1000,
    )  # fmt: skip
    made.start()
    config = Config(host="operator")
    config.kafka.servers = kafka.servers
    wait_for(lambda: HOST in live_hosts(config), 30, "its heartbeat")
    yield made
    made.kill()
    pins = xdp.PINS / NAME
    if pins.exists():
        for each in pins.iterdir():
            each.unlink()
        pins.rmdir()


def wanted(servers: str, stream: str, **values: object) -> list[dict[str, Any]]:
    found = rows(read_topic(servers, stream, HOST))
    return [row for row in found if all(row[name] == value for name, value in values.items())]


def test_a_night_of_an_operator(
    lab: Attacked, collector: CollectorProcess, operator: Operator, kafka: KafkaServer
) -> None:
    servers = kafka.servers
    victim, attacker = lab.victim(), lab.attacker()
    try:
        assert operator.wait("watch", "--interface", NAME)["state"] == "applied"
        attack(attacker, 200)
        assert received(victim) == 200
        wait_for(
            lambda: wanted(servers, "packet_sample", rule="", interface=NAME), 10, "samples of what passes"
        )

        match = f"udp and dst port {ATTACKED}"
        assert operator.wait("add", match, "--ttl", "10m", "--id", "flood")["state"] == "applied"
        attack(attacker, 100)
        assert received(victim) == 100  # in shadow
        said = operator.wait("enforce", "flood")
        print(f"\nenforce: {said['after_ms']} ms from publication to acknowledged")
        attack(attacker, 500)
        assert received(victim) == 0
        said = operator.wait("add", "--field", "protocol=udp", "--field", "dst_port=7", "--ttl", "3s", "--id",
                             "table", "--enforce")  # fmt: skip
        print(f"a rule of fields: {said['after_ms']} ms")
        assert "exists" in operator.drop("add", match, "--ttl", "1m", "--id", "flood", code=2)
        assert "syntax error" in operator.drop("add", "udp and and", "--ttl", "1m", code=2)
        assert "no address set" in operator.drop("add", "src in @none", "--ttl", "1m", code=2)

        settings = collector.config.read_text()
        collector.kill()  # the data plane goes on
        attack(attacker, 500)
        assert received(victim) == 0
        alone = CollectorProcess(
            collector.directory, "127.0.0.1:9", HOST, probes=["runq_latency"], filter_pins=NAME,
            trusted_keys=[operator.public],
        )  # fmt: skip
        try:  # it goes by its disk: Kafka is away
            alone.start()
            time.sleep(4)
            attack(attacker, 500)
            assert received(victim) == 0
        finally:
            alone.kill()
        collector.config.write_text(settings)
        collector.start()
        wait_for(
            lambda: wanted(servers, "filter_event", rule="table", event="expired"), 15, "the table rule's end"
        )
        attack(attacker, 500)
        assert received(victim) == 0
        assert operator.wait("rm", "flood")["state"] == "removed"
        attack(attacker, 50)
        assert received(victim) == 50

        ended = wait_for(
            lambda: wanted(servers, "filter_event", rule="flood", event="removed"), 10, "its end"
        )
        assert (ended[0]["dropped"], ended[0]["shadowed"], ended[0]["author"]) == (2000, 100, "op@test")
        told = [row["event"] for row in wanted(servers, "filter_event", rule="flood")]
        assert told == ["added", "enforced", "removed"]  # a restart is no event
        counted = wanted(servers, "filter_stats", rule="flood", verdict="drop")
        assert 500 <= sum(row["packets"] for row in counted) <= 2000  # nobody counted while it was dead
        dropped = wanted(servers, "packet_sample", rule="flood", verdict="drop")
        assert dropped and {row["destination_port"] for row in dropped} == {ATTACKED}
    finally:
        victim.close()
        attacker.close()


def test_unsigned_documents_change_nothing(
    lab: Attacked, collector: CollectorProcess, operator: Operator, kafka: KafkaServer, tmp_path: Path
) -> None:
    tree = json.loads(operator.config.read_text())
    tree["operator"]["key_file"] = ""
    operator.config.write_text(json.dumps(tree))
    said = operator.wait("add", "udp", "--ttl", "1m", "--enforce", "--interface", NAME, code=1)
    assert said["state"] == "refused" and "not signed" in said["reason"]
    victim, attacker = lab.victim(), lab.attacker()
    try:
        attack(attacker, 20)
        assert received(victim) == 20
    finally:
        victim.close()
        attacker.close()
