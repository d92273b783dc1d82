"""The sink: Kafka into ClickHouse, against the engine's own reader of Avro files.

Ours: a sink takes batches of packet-like events from Kafka and inserts them; CPU time of the sink and of the
store together. Peer: the store alone, told to `INSERT … FORMAT Avro` a container file of the same rows.
"""

import io
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

from bench import packets
from bench.common import Row, Times, free_port, in_turns, ratio, ratio_text
from schemas import config, ddl, rows, topics, wire
from schemas.clickhouse import connect
from sinks import heap
from sinks.kafka_server import KafkaServer
from sinks.metrics import Metrics
from sinks.sink import Sink

# Enough that starting a sink, a tenth of a second of CPU, counts for little.
MESSAGES, PER_MESSAGE = 800, 5_000
EVENTS = MESSAGES * PER_MESSAGE
AVRO_EVENTS = 200_000  # of the container file: a row in it costs several times as much
ROUNDS = 4
FLAT_ROUNDS = 3  # × EVENTS rows through one sink
TICKS = os.sysconf("SC_CLK_TCK")
TOPIC = topics.topic(packets.STREAM.name)


@dataclass
class Stage:
    """A broker and a store of the benchmark's own."""

    kafka: KafkaServer
    config: config.Config
    store: "subprocess.Popen[bytes]"
    client: Any
    groups: int = 0
    held: list[bytes] = field(default_factory=list)

    def store_cpu(self) -> float:
        """CPU seconds of the store's process so far."""
        fields = Path(f"/proc/{self.store.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def count(self) -> int:
        try:
            query = f"SELECT count() FROM {self.config.clickhouse.database}.{packets.STREAM.name}"
            return int(self.client.query(query).result_rows[0][0])
        except Exception:
            return 0

    def clear(self, boot: str = "UUID") -> None:
        """An empty table; no merges, which would cost both sides the same, but at random times."""
        database = self.config.clickhouse.database
        self.client.command(ddl.database(self.config.clickhouse))
        self.client.command(f"DROP TABLE IF EXISTS {database}.{packets.STREAM.name} SYNC")
        (create,) = ddl.create(packets.STREAM, self.config.clickhouse)
        self.client.command(create.replace("`boot` UUID", f"`boot` {boot}"))
        self.client.command(f"SYSTEM STOP MERGES {database}.{packets.STREAM.name}")


@contextmanager
def stage() -> Iterator[Stage]:
    with tempfile.TemporaryDirectory() as directory:
        kafka = KafkaServer(directory, free_port())
        settings = config.load(None, {})
        settings.state_dir = directory
        settings.kafka.servers = kafka.servers
        settings.store.port = free_port()
        settings.clickhouse.url = f"http://127.0.0.1:{settings.store.port}"
        settings.clickhouse.database = "bench"
        environment = {name: text for name, text in os.environ.items() if not name.startswith("BPFLEET_")}
        environment |= {"BPFLEET_STATE_DIR": directory, "BPFLEET_STORE_PORT": str(settings.store.port)}
        log = Path(directory, "store.log").open("wb")  # noqa: SIM115
        store = subprocess.Popen(
            [sys.executable, "-m", "fleet", "store"], env=environment, stdout=log, stderr=log
        )
        try:
            kafka.start()
            kafka.wait_ready()
            yield Stage(kafka, settings, store, _client(settings))
        finally:
            store.kill()
            store.wait()
            kafka.kill()
            log.close()


def _client(settings: config.Config) -> Any:
    deadline = time.monotonic() + 30
    while True:
        try:
            return connect(settings.clickhouse, database="")
        except Exception:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def fill(on: Stage) -> None:
    """The batches, and their schema, as a collector sends them."""
    admin = AdminClient({"bootstrap.servers": on.kafka.servers})
    new = [NewTopic(TOPIC, 2, 1), NewTopic(topics.SCHEMAS, 1, 1, config={"cleanup.policy": "compact"})]
    for future in admin.create_topics(new).values():
        future.result(15)
    producer = Producer({"bootstrap.servers": on.kafka.servers, "compression.type": "zstd", "linger.ms": 5})
    key, value = topics.schema_record(packets.STREAM)
    producer.produce(topics.SCHEMAS, value, key)
    today = time.time_ns() // 1000 // 86_400_000_000 * 86_400_000_000
    for number, message in enumerate(packets.messages(MESSAGES, PER_MESSAGE, today)):
        producer.produce(TOPIC, message, partition=number % 2)
        producer.poll(0)
    producer.flush(30)


@dataclass
class Drained:
    """What one sink needed for all that is in the topic."""

    cpu: float  # seconds, sink and store
    store_cpu: float
    wall: float


def drain(on: Stage) -> Drained:
    """A new group's sink reads the topic from its beginning into a new table."""
    on.clear()
    on.groups += 1
    on.config.sink.group = f"bench-{on.groups}"
    stop = threading.Event()
    metrics = Metrics()
    done = metrics.rows.labels(packets.STREAM.name)
    sink = threading.Thread(target=Sink(on.config, metrics).run, args=(stop,))
    ours, theirs, begun = time.process_time(), on.store_cpu(), time.monotonic()
    sink.start()
    while done._value.get() < EVENTS:
        time.sleep(0.05)
    wall = time.monotonic() - begun
    stop.set()
    sink.join()
    assert on.count() == EVENTS
    store_cpu = on.store_cpu() - theirs
    return Drained(time.process_time() - ours + store_cpu, store_cpu, wall)


def container() -> bytes:
    """An Avro container file of the same rows, uncompressed: the quickest to read."""
    known = wire.Schemas()
    known.add(wire.batch_schema(packets.STREAM))
    out = io.BytesIO()
    batches = packets.messages(AVRO_EVENTS // PER_MESSAGE, PER_MESSAGE, time.time_ns() // 1000)
    records = (row for each in batches for row in rows.avro_rows(packets.STREAM, known.decode(each)))
    fastavro.writer(out, packets.row_schema(), records)
    return out.getvalue()


def avro_insert(on: Stage, file: bytes) -> float:
    """CPU seconds of the store for the container file."""
    on.clear(boot="FixedString(16)")  # what its reader makes of it
    table = f"{on.config.clickhouse.database}.{packets.STREAM.name}"
    begun = on.store_cpu()
    on.client.raw_insert(table, insert_block=file, fmt="Avro")
    assert on.count() == AVRO_EVENTS
    return on.store_cpu() - begun


def run() -> list[Row]:
    """Rows a core, CPU a row, and memory over a long run."""
    heap.keep()  # as the sink's own process does
    with stage() as on:
        fill(on)
        file = container()
        walls: list[float] = []
        shares: list[float] = []

        def ours() -> float:
            drained = drain(on)
            walls.append(EVENTS / drained.wall)
            shares.append(drained.store_cpu / drained.cpu)
            return drained.cpu / EVENTS

        measured = in_turns({"ours": ours, "peer": lambda: avro_insert(on, file) / AVRO_EVENTS}, ROUNDS)
        speed = {name: Times(tuple(1 / each for each in times.values)) for name, times in measured.items()}
        least, median = ratio(measured["peer"], measured["ours"])
        rate = Row(
            "consume and insert, rows per second of CPU",
            f"{speed['ours'].median / 1e6:.2f} M ({measured['ours'].text('µs a row', 1e6)})",
            f"{speed['peer'].median / 1e6:.2f} M, FORMAT Avro ({measured['peer'].text('µs a row', 1e6)})",
            ratio_text(measured["peer"], measured["ours"]), "≥ 2 (aim: 1 M rows)", median >= 2 and least >= 2,
        )  # fmt: skip
        share = Row("of that, the store's part", f"{np.median(shares):.0%}", "", "", "", None)
        clock = Row("rows per second of wall clock, 2 partitions", f"{np.median(walls) / 1e6:.2f} M",
                    "", "", "", None)  # fmt: skip
        return [rate, share, clock, memory(on)]


def memory(on: Stage) -> Row:
    """RSS of a sink process after each million rows; the first ones fill pools."""
    on.clear()
    on.groups += 1
    environment = {name: text for name, text in os.environ.items() if not name.startswith("BPFLEET_")}
    environment |= {
        "BPFLEET_KAFKA": on.kafka.servers, "BPFLEET_CLICKHOUSE": on.config.clickhouse.url,
        "BPFLEET_CLICKHOUSE_DATABASE": "bench", "BPFLEET_SINK_GROUP": f"bench-{on.groups}",
        "BPFLEET_SINK_METRICS_PORT": str(free_port()),
    }  # fmt: skip
    sink = subprocess.Popen(
        [sys.executable, "-m", "fleet", "sink"], env=environment, stderr=subprocess.DEVNULL
    )
    producer = Producer({"bootstrap.servers": on.kafka.servers, "compression.type": "zstd"})
    today = time.time_ns() // 1000 // 86_400_000_000 * 86_400_000_000
    batches = packets.messages(MESSAGES, PER_MESSAGE, today)
    used = []
    try:
        for lap in range(1, FLAT_ROUNDS + 1):
            while on.count() < lap * EVENTS:
                time.sleep(0.1)
            status = Path(f"/proc/{sink.pid}/status").read_text()
            used.append(int(status.split("VmRSS:")[1].split()[0]) / 1024)
            if lap < FLAT_ROUNDS:
                for number, message in enumerate(batches):
                    producer.produce(TOPIC, message, partition=number % 2)
                    producer.poll(0)
                producer.flush(60)
    finally:
        sink.terminate()
        sink.wait()
    growth = used[-1] - used[1]
    return Row(
        f"memory of a sink over {FLAT_ROUNDS * EVENTS // 10**6} M rows",
        " → ".join(f"{each:.0f}" for each in used) + " MB", "", "", "flat", growth < 0.15 * used[1],
    )  # fmt: skip
