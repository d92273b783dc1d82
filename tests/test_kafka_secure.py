"""A broker that wants TLS and a password: let in with the right ones, told in one line with wrong ones."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from asking import send
from conftest import StoreProcess
from sinking import eventually

from bench.common import free_port
from sinks.kafka_server import KafkaServer

KEYSTORE_PASSWORD = "only-a-test"


class SecureKafka(KafkaServer):
    """The embedded broker with one more listener: SASL/PLAIN over TLS, self-signed."""

    def __init__(self, state_dir: Path, port: int) -> None:
        super().__init__(state_dir, port)
        self.secure = f"localhost:{free_port()}"
        self.store, self.ca = state_dir / "keys.p12", state_dir / "ca.pem"
        common = ["-alias", "broker", "-keystore", self.store, "-storepass", KEYSTORE_PASSWORD]
        subprocess.run(
            ["keytool", "-genkeypair", "-keyalg", "EC", "-dname", "CN=localhost", "-ext", "san=dns:localhost",
             "-storetype", "PKCS12", *common],
            check=True, capture_output=True,
        )  # fmt: skip
        subprocess.run(
            ["keytool", "-exportcert", "-rfc", "-file", self.ca, *common], check=True, capture_output=True
        )

    def _write_properties(self) -> None:
        super()._write_properties()
        jaas = (
            'org.apache.kafka.common.security.plain.PlainLoginModule required username="admin" '
            'password="x" user_fleet="right";'
        )
        file = self.directory / "server.properties"
        text = file.read_text()
        for key in ("listeners=", "advertised.listeners="):
            text = text.replace(f"\n{key}", f"\n{key}SASL_SSL://{self.secure},")
        text = text.replace("security.protocol.map=", "security.protocol.map=SASL_SSL:SASL_SSL,")
        text += (
            f"sasl.enabled.mechanisms=PLAIN\nlistener.name.sasl_ssl.plain.sasl.jaas.config={jaas}\n"
            f"inter.broker.listener.name=PLAINTEXT\n"
            f"ssl.keystore.location={self.store}\nssl.keystore.type=PKCS12\n"
            f"ssl.keystore.password={KEYSTORE_PASSWORD}\n"
        )
        file.write_text(text)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureKafka]:
    server = SecureKafka(tmp_path_factory.mktemp("secure"), free_port())
    server.start()
    try:
        server.wait_ready()
        yield server
    finally:
        server.stop()


def settings(directory: Path, broker: SecureKafka, password: str, **more: Any) -> Path:
    secret = directory / "password"
    secret.write_text(password + "\n")
    options = {
        "security.protocol": "SASL_SSL", "sasl.mechanism": "PLAIN", "sasl.username": "fleet",
        "ssl.ca.location": str(broker.ca), **more,
    }  # fmt: skip
    tree = {
        "host": "tls-host", "state_dir": str(directory), "clickhouse": {"url": "http://127.0.0.1:9"},
        "kafka": {"servers": broker.secure, "password_file": str(secret), "options": options},
        "collector": {"probes": ["runq_latency"], "metrics_port": 0}, "sink": {"metrics_port": 0},
    }  # fmt: skip
    file = directory / "bpfleet.yaml"
    file.write_text(yaml.safe_dump(tree))
    return file


def bpfleet(config: Path, *words: str, seconds: float = 30) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "fleet", *words, "--config", str(config)]
    return subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)


@contextmanager
def sink(config: Path, store: StoreProcess) -> Iterator[None]:
    """From the secure broker into a database of its own."""
    own = {"CLICKHOUSE": store.url, "CLICKHOUSE_DATABASE": "secure", "SINK_METRICS_PORT": str(free_port())}
    environment = os.environ | {f"BPFLEET_{name}": value for name, value in own.items()}
    command = [sys.executable, "-m", "fleet", "sink", "--config", str(config)]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        assert process.wait(30) == 0
        send(store, "DROP DATABASE secure")


def test_with_the_right_password_a_collector_ships_a_sink_inserts_and_people_read(
    broker: SecureKafka, store: StoreProcess, tmp_path: Path
) -> None:
    config = settings(tmp_path, broker, "right")
    command = [sys.executable, "-m", "fleet", "collect", "--config", str(config)]
    with sink(config, store), subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as collector:
        try:
            deadline = time.monotonic() + 40
            rows: list[Any] = []
            while not rows and time.monotonic() < deadline:
                time.sleep(1)
                shown = bpfleet(config, "cat", "host", "-n", "1")
                rows = [json.loads(line) for line in shown.stdout.splitlines()]
            assert [row["host"] for row in rows] == ["tls-host"]
            landed = "SELECT DISTINCT host FROM secure.host"
            assert eventually(lambda: send(store, landed)[2] == b"tls-host\n", 60)
        finally:
            collector.terminate()
        assert collector.stderr is not None
        said = collector.stderr.read()
    assert "right" not in said and "password" not in said


WRONG: list[tuple[str, dict[str, str], str]] = [
    ("wrong", {}, "kafka.password_file"),
    ("right", {"ssl.ca.location": "/etc/ssl/certs/ca-certificates.crt"}, "ssl.ca.location"),
    ("right", {"sasl.mechanism": "SCRAM-SHA-256"}, "kafka.options"),
]


def test_what_is_wrong_is_said_in_one_line(broker: SecureKafka, tmp_path: Path) -> None:
    running = []
    for number, (password, more, advice) in enumerate(WRONG):
        directory = tmp_path / str(number)
        directory.mkdir()
        config = settings(directory, broker, password, **more)
        for words in (["sink"], ["cat", "host"]):
            command = [sys.executable, "-m", "fleet", *words, "--config", str(config)]
            process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
            running.append((process, advice, password))
    try:
        for process, advice, password in running:
            _, said = process.communicate(timeout=60)
            ours = [line for line in said.splitlines() if line.startswith("bpfleet:")]
            assert process.returncode != 0 and len(ours) == 1 and advice in ours[0], (process.args, said)
            assert "Traceback" not in said and password not in said.replace("password", "")
    finally:
        for process, *_ in running:
            process.kill()
            process.wait()


def test_a_collector_that_is_refused_says_so_and_keeps_its_events(
    broker: SecureKafka, tmp_path: Path
) -> None:
    config = settings(tmp_path, broker, "wrong")
    command = [sys.executable, "-m", "fleet", "collect", "--config", str(config)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as collector:
        time.sleep(7)
        assert collector.poll() is None
        collector.terminate()
        assert collector.stderr is not None
        said = collector.stderr.read()
    assert "kafka.password_file" in said and "Traceback" not in said
    assert 1 <= said.count("kafka.password_file") < 10  # told, not repeated with each attempt
    assert sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()) > 20_000
