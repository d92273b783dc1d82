"""What the sink's tests share: a stream, numbered rows, sinks as processes, questions in SQL."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

from bench.common import free_port
from schemas import declare, topics, wire
from schemas.clickhouse import connect
from schemas.columns import Dictionary
from schemas.config import Clickhouse
from schemas.declare import Stream

TIME = {"type": "long", "logicalType": "timestamp-micros"}
BOOT = bytes(range(16))


def declared(name: str, *extra: dict[str, Any], probe: str = "numbered") -> Stream:
    """A stream of numbered rows: ``id``, and what a test appends."""
    fields = [
        {"name": "ts", "type": TIME, "decode": "now"},
        {"name": "id", "type": "long"},
        {"name": "word", "type": "string"},
        *extra,
    ]
    return declare.parse(probe, {"type": "record", "name": name, "fields": fields}).streams[0]


def batch(
    stream: Stream, first: int, rows: int, seq: int, host: str = "a", ts: Any = None, **columns: Any
) -> bytes:
    """One message with rows ``first … first + rows - 1``; ``ts`` in µs, one or one a row."""
    times = np.full(rows, time.time_ns() // 1000 if ts is None else ts, np.int64)
    body = {"ts": times, "id": np.arange(first, first + rows, dtype=np.int64), **columns}
    body["word"] = Dictionary(["odd", "even"], (1 - body["id"] % 2).astype(np.uint32))
    return wire.encode(stream, wire.Envelope(host, BOOT, seq), body)


def eventually(check: Callable[[], Any], seconds: float = 20.0, pause: float = 0.05) -> Any:
    """The first true answer of ``check``; an assertion that shows the last answer when none comes."""
    deadline = time.monotonic() + seconds
    while not (answer := check()):
        assert time.monotonic() < deadline, f"still {answer!r} after {seconds} s"
        time.sleep(pause)
    return answer


def make_topics(servers: str, *names: str, partitions: int = 1) -> None:
    """Make topics; those of the schemas are compacted."""
    admin = AdminClient({"bootstrap.servers": servers})
    new = [
        NewTopic(name, 1 if name == topics.SCHEMAS else partitions, 1,
                 config={"cleanup.policy": "compact"} if name == topics.SCHEMAS else {})
        for name in names
    ]  # fmt: skip
    for future in admin.create_topics(new).values():
        future.result(15)


def delete_topics(servers: str) -> None:
    """Remove every topic of bpfleet's, so that a sink of the next test finds only its own."""
    admin = AdminClient({"bootstrap.servers": servers})
    ours = [name for name in admin.list_topics(timeout=10).topics if name.startswith("bpfleet.")]
    for future in (admin.delete_topics(ours) if ours else {}).values():
        future.result(15)
    eventually(lambda: not set(ours) & set(admin.list_topics(timeout=10).topics))


class Sender:
    """A producer that waits until the broker has what was sent."""

    def __init__(self, servers: str) -> None:
        self.producer = Producer({"bootstrap.servers": servers, "acks": "all", "linger.ms": 0})

    def schema(self, *streams: Stream) -> None:
        """Publish schemas as a collector does."""
        for stream in streams:
            key, value = topics.schema_record(stream)
            self.producer.produce(topics.SCHEMAS, value, key)
        assert self.producer.flush(20) == 0

    def send(self, topic: str, messages: Iterable[bytes], partition: int = 0) -> None:
        for each in messages:
            self.producer.produce(topic, each, b"a", partition)
        assert self.producer.flush(20) == 0


@dataclass
class Place:
    """Where one test's sinks work: broker, store, database, group."""

    servers: str
    url: str
    database: str
    directory: Path
    settings: dict[str, Any] = field(default_factory=dict)  # of `sink:`
    sinks: "list[SinkProcess]" = field(default_factory=list)

    def sink(self, **environment: str) -> "SinkProcess":
        """Start another sink process of the group."""
        process = SinkProcess(self, len(self.sinks), environment)
        self.sinks.append(process)
        process.start()
        return process

    def close(self) -> None:
        for each in self.sinks:
            each.kill()

    def client(self) -> Any:
        return connect(Clickhouse(url=self.url), database="")

    def ask(self, query: str) -> list[tuple[Any, ...]]:
        """Rows of a query in which ``DB`` is this test's database; none while the table is missing."""
        try:
            client = self.client()
            try:
                rows: list[tuple[Any, ...]] = client.query(query.replace("DB", self.database)).result_rows
            finally:
                client.close()
        except Exception as error:
            if "UNKNOWN_TABLE" in str(error) or "UNKNOWN_DATABASE" in str(error) or "reach" in str(error):
                return []
            raise
        return rows

    def count(self, stream: Stream) -> int:
        rows = self.ask(f"SELECT count() FROM DB.{stream.name}")
        return int(rows[0][0]) if rows else 0

    def once(self, stream: Stream, rows: int) -> bool:
        """Whether ids 0 … rows-1 are there, each once."""
        got = self.ask(f"SELECT count(), uniqExact(id), min(id), max(id) FROM DB.{stream.name}")
        return got == [(rows, rows, 0, rows - 1)]

    def committed(self, topic: str, partition: int = 0) -> tuple[int, str]:
        """Offset and metadata that the group has committed."""
        consumer = Consumer({"bootstrap.servers": self.servers, "group.id": self.group})
        try:
            (place,) = consumer.committed([TopicPartition(topic, partition)], timeout=10)
            return place.offset, place.metadata or ""
        finally:
            consumer.close()

    @property
    def group(self) -> str:
        return f"sink-{self.database}"

    def letters(self) -> list[Any]:
        """All messages of the dead-letter topic."""
        consumer = Consumer({"bootstrap.servers": self.servers, "group.id": "letters"})
        try:
            _, high = consumer.get_watermark_offsets(TopicPartition(topics.DEAD, 0), timeout=10)
            consumer.assign([TopicPartition(topics.DEAD, 0, 0)])
            found: list[Any] = []
            while len(found) < high:
                found += [each for each in consumer.consume(100, timeout=1) if each.error() is None]
            return found
        finally:
            consumer.close()


class SinkProcess:
    """`bpfleet sink` as a process of its own."""

    def __init__(self, place: Place, number: int, environment: dict[str, str]) -> None:
        self.place = place
        self.port = free_port()
        self.log = place.directory / f"sink{number}.log"
        self.config = place.directory / f"sink{number}.yaml"
        self.environment = environment
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        tree = {
            "kafka": {"servers": self.place.servers},
            "clickhouse": {"url": self.place.url, "database": self.place.database},
            "sink": {"group": self.place.group, "metrics_port": self.port, **self.place.settings},
        }
        self.config.write_text(yaml.safe_dump(tree))
        clean = {name: text for name, text in os.environ.items() if not name.startswith("BPFLEET_")}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "fleet", "--config", str(self.config), "sink"],
                stdout=log, stderr=log, env={**clean, **self.environment},
            )  # fmt: skip

    def send_signal(self, number: signal.Signals) -> None:
        assert self.process
        self.process.send_signal(number)

    def wait(self, seconds: float = 15) -> int:
        assert self.process
        return self.process.wait(seconds)

    def stop(self) -> int:
        self.send_signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def metrics(self) -> dict[str, float]:
        """Every sample by name and labels, as Prometheus reads them."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=2) as answer:
                lines = answer.read().decode().splitlines()
        except OSError:
            return {}
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line[0] != "#"}


def reasons(letters: Iterable[Any]) -> list[str]:
    """Why each dead letter is there."""
    return [dict(each.headers())["reason"].decode() for each in letters]


def intent_of(metadata: str) -> dict[str, Any]:
    """A commit's metadata as a tree."""
    return json.loads(metadata) if metadata else {}
