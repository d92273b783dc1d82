"""The embedded Kafka: keeps its data over stop and SIGKILL, says in one line why it will not start."""

import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from conftest import free_port

from schemas.errors import BpfleetError, UsageError
from sinks import kafka_install
from sinks.kafka_server import KafkaServer, port_of


def make_topic(server: KafkaServer, topic: str) -> None:
    admin = AdminClient({"bootstrap.servers": server.servers})
    admin.create_topics([NewTopic(topic, 1, 1)])[topic].result(30)


def produce(server: KafkaServer, topic: str, values: list[bytes]) -> None:
    """Acknowledged by the broker, each of them."""
    failed: list[object] = []
    producer = Producer({"bootstrap.servers": server.servers})
    for value in values:
        producer.produce(topic, value, on_delivery=lambda error, _: failed.append(error) if error else None)
    assert producer.flush(30) == 0
    assert not failed


def read(server: KafkaServer, topic: str, count: int) -> list[bytes | None]:
    consumer = Consumer({"bootstrap.servers": server.servers, "group.id": f"read-{time.monotonic_ns()}"})
    consumer.assign([TopicPartition(topic, 0, 0)])
    messages = consumer.consume(count, timeout=30)
    consumer.close()
    return [each.value() for each in messages]


@pytest.fixture
def broker(tmp_path: Path):
    server = KafkaServer(tmp_path, free_port())
    server.start()
    try:
        server.wait_ready()
        yield server
    finally:
        server.kill()


def test_what_was_acknowledged_survives_kill_and_stop(broker: KafkaServer) -> None:
    make_topic(broker, "kept")
    for way, value in ((broker.kill, b"one"), (broker.stop, b"two"), (broker.kill, b"three")):
        produce(broker, "kept", [value])
        way()
        broker.start()
        broker.wait_ready()
    assert read(broker, "kept", 3) == [b"one", b"two", b"three"]


def test_commit_metadata_is_kept(kafka: KafkaServer) -> None:
    make_topic(kafka, "metadata")
    consumer = Consumer({"bootstrap.servers": kafka.servers, "group.id": "metadata"})
    consumer.commit(offsets=[TopicPartition("metadata", 0, 5, "to 9")], asynchronous=False)
    (committed,) = consumer.committed([TopicPartition("metadata", 0)], timeout=30)
    consumer.close()
    assert (committed.offset, committed.metadata) == (5, "to 9")


def test_a_half_formatted_directory_is_formatted_again(tmp_path: Path) -> None:
    server = KafkaServer(tmp_path, free_port())
    server.data.mkdir(parents=True)
    (server.data / "bootstrap.checkpoint").write_text("half")
    server.start()
    try:
        server.wait_ready()
    finally:
        server.stop()


def test_dies_with_its_parent(tmp_path: Path) -> None:
    port = free_port()
    script = (
        "import sys; from sinks.kafka_server import KafkaServer as K\n"
        f"k = K({str(tmp_path)!r}, {port}); k.start(); k.wait_ready(); print(k.process.pid, flush=True)\n"
        "sys.stdin.read()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    end = time.monotonic() + 20
    while Path(f"/proc/{child}").exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert not Path(f"/proc/{child}").exists()


def test_a_taken_port_is_said(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(BpfleetError, match=r"port \d+ cannot be used for kafka .*; stop what listens"):
            KafkaServer(tmp_path, other.getsockname()[1]).start()


def test_another_kafka_on_the_port_is_no_answer(kafka: KafkaServer, tmp_path: Path) -> None:
    stranger = KafkaServer(tmp_path, kafka.port)
    stranger.data.mkdir(parents=True)
    (stranger.data / "meta.properties").write_text("cluster.id=somebody-else\n")
    stranger.process = kafka.process
    with pytest.raises(BpfleetError, match="another Kafka answers"):
        stranger.wait_ready(30)


def test_a_directory_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "kafka").write_text("a file")
    with pytest.raises(BpfleetError, match=r"cannot write .*; check its owner"):
        KafkaServer(tmp_path, free_port()).start()


@pytest.mark.parametrize(
    ("version", "said"), [("11.0.2", "Java 11"), ("1.8.0_292", "Java 8"), ("x", "unknown")]
)
def test_an_old_java_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, said: str
) -> None:
    fake = tmp_path / "bin" / "java"
    fake.parent.mkdir()
    fake.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\"' >&2\n")
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(BpfleetError, match=f"{said}.*needs 17 or newer; apt install"):
        KafkaServer(tmp_path, free_port()).start()


def test_no_java_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(BpfleetError, match="no Java runtime"):
        KafkaServer(tmp_path, free_port()).start()


def test_no_maven_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BpfleetError, match="`mvn` is missing"):
        kafka_install.install(tmp_path / "libs")


def test_a_failing_maven_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "mvn"
    fake.write_text(
        "#!/bin/sh\nprintf '[\\033[1;31mERROR\\033[m] no such artifact\\n[ERROR] more\\n'; exit 1\n"
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(BpfleetError, match=r"Maven could not fetch Kafka: \[ERROR\] no such artifact; check"):
        kafka_install.install(tmp_path / "libs")
    assert not kafka_install.installed(tmp_path / "libs")


def test_artifacts_of_another_pom_are_not_installed(kafka: KafkaServer, tmp_path: Path) -> None:
    assert kafka_install.installed(kafka.libs)
    stamp = tmp_path / kafka_install.STAMP
    shutil.copy(kafka.libs / kafka_install.STAMP, stamp)
    assert kafka_install.installed(tmp_path)
    stamp.write_text("another")
    assert not kafka_install.installed(tmp_path)


def test_a_broker_that_cannot_start_gives_its_reason(tmp_path: Path) -> None:
    server = KafkaServer(tmp_path, free_port(), libs=tmp_path / "empty")
    server.libs.mkdir()
    (server.libs / kafka_install.STAMP).write_text((kafka_install.libs_dir() / ".installed").read_text())
    with pytest.raises(BpfleetError, match="kafka could not format"):
        server.start()


def test_servers_elsewhere_are_not_ours_to_start() -> None:
    assert port_of("127.0.0.1:9093") == 9093
    for elsewhere in ("kafka.example.org:9092", "127.0.0.1", "a:1,b:2"):
        with pytest.raises(UsageError, match=re.escape(repr(elsewhere))):
            port_of(elsewhere)


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGHUP])
def test_the_command_runs_it_until_told_to_stop(tmp_path: Path, stop: signal.Signals) -> None:
    port = free_port()
    environment = os.environ | {
        "BPFLEET_STATE_DIR": str(tmp_path),
        "BPFLEET_KAFKA_SERVERS": f"127.0.0.1:{port}",
    }
    command = [sys.executable, "-m", "fleet", "kafka"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout
    said = [process.stdout.readline(), process.stdout.readline()]
    process.send_signal(stop)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert said == [f"kafka: starting in {tmp_path / 'kafka'}\n", f"kafka: ready on 127.0.0.1:{port}\n"]
    assert rest == "kafka: stopped\n"
