"""A real collector as a process, and what it left in Kafka."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from schemas import declare, topics, wire

STREAMS = declare.streams()
MAIN = "from fleet.cli import main; main()"


def wait_for(condition: Callable[[], Any], seconds: float = 20, what: str = "") -> Any:
    """The first true value of ``condition``; an assertion with ``what`` when there is none in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds} s: {what or condition}")


@cache
def schemas() -> wire.Schemas:
    known = wire.Schemas()
    for stream in STREAMS.values():
        known.add(wire.batch_schema(stream))
    return known


def read_topic(
    servers: str, stream: str, host: str = "", known: declare.Stream | None = None
) -> list[wire.Batch]:
    """Every batch of a stream (of a host) in Kafka now, in order of partition and offset."""
    from confluent_kafka import Consumer, KafkaError, TopicPartition

    consumer = Consumer(
        {"bootstrap.servers": servers, "group.id": "tests", "enable.partition.eof": True, "log_level": 0,
         "auto.offset.reset": "earliest", "enable.auto.commit": False}
    )  # fmt: skip
    if known:
        schemas().add(wire.batch_schema(known))
    topic = topics.topic(stream)
    found: list[wire.Batch] = []
    try:
        listed = consumer.list_topics(topic, timeout=20).topics[topic]
        if listed.error is not None:
            return []
        parts = set(listed.partitions)
        consumer.assign([TopicPartition(topic, each, 0) for each in parts])
        while parts:
            message = consumer.poll(20)
            assert message is not None, f"{topic}: Kafka is silent"
            error = message.error()
            if error is not None:
                assert error.code() == KafkaError._PARTITION_EOF, error
                parts.discard(message.partition())
            elif not host or message.key() == host.encode():
                found.append(schemas().decode(message.value() or b""))
    finally:
        consumer.close()
    return found


def rows(batches: list[wire.Batch]) -> list[dict[str, Any]]:
    """Batches of one stream as rows for people."""
    from schemas.rows import json_rows

    return [row for batch in batches for row in json_rows(STREAMS[batch.stream], batch)]


def declared(health: list[dict[str, Any]]) -> dict[str, set[int]]:
    """stream → numbers that `collector_health` declares lost."""
    lost: dict[str, set[int]] = {}
    for row in health:
        if row["kind"] == "loss":
            lost.setdefault(row["stream"], set()).update(range(row["seq_from"], row["seq_to"] + 1))
    return lost


def assert_accounted(servers: str, host: str, streams: list[str]) -> dict[str, tuple[int, int]]:
    """Each number is in Kafka once or declared lost; stream → (batches there, batches lost)."""
    lost = declared(rows(read_topic(servers, "collector_health", host)))
    outcome = {}
    for stream in streams:
        numbers = Counter(each.envelope.seq for each in read_topic(servers, stream, host))
        assert not [n for n, times in numbers.items() if times > 1], f"{stream}: twice in Kafka"
        gaps = set(range(max(numbers, default=-1) + 1)) - set(numbers)
        unexplained = gaps - lost.get(stream, set())
        assert not unexplained, f"{stream}: {sorted(unexplained)} neither in Kafka nor declared lost"
        outcome[stream] = (len(numbers), len(gaps))
    return outcome


class CollectorProcess:
    """`bpfleet collect` on its own state directory, over several lives."""

    def __init__(self, directory: Path, servers: str, host: str, **collector: Any) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory, self.host, self.servers = directory, host, servers
        self.log = directory / "collector.log"
        self.config = directory / "bpfleet.yaml"
        self.process: subprocess.Popen[bytes] | None = None
        options = collector.pop("kafka", {})
        settings = {"metrics_port": 0, "spool_mb": 16, **collector}
        tree: dict[str, Any] = {"host": host, "state_dir": str(directory), "collector": settings}
        tree["kafka"] = {"servers": servers, "options": options}
        self.config.write_text(yaml.safe_dump(tree))

    def start(
        self, *arguments: str, wait: bool = True, code: Sequence[str] = (MAIN,)
    ) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-c", *code, "collect", "--config", str(self.config), *arguments]
        environment = {name: text for name, text in os.environ.items() if not name.startswith("BPFLEET_")}
        before = self.said().count("collecting:")
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        if wait:
            wait_for(lambda: self.said().count("collecting:") > before or self._ended(), 90, "collector up")
            assert not self._ended(), self.said()
        return self.process

    def _ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        assert self.process
        try:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            return self.process.wait(20)
        finally:
            self.kill()

    def kill(self) -> None:
        """SIGKILL."""
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None

    def metrics(self, port: int) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            return str(answer.read().decode())
