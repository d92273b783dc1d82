"""The collector: from ring bytes to Avro, what it needs when nothing happens, what it carries.

Encoding is compared with the same events through struct, dict and fastavro. The process is a real one, with
its own broker; events of the flood come from a tracepoint of the running kernel.
"""

import io
import os
import platform
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import psutil
import yaml
import zstandard

from bench import flood
from bench.common import Row, cpu_seconds, free_port, in_turns, ratio, ratio_text
from collector.cgroup import Cgroups
from collector.clock import Clock
from collector.decode import Decoders
from collector.ksym import Symbols
from collector.ship import PRODUCER
from schemas import declare, dtype, layout, topics, wire
from schemas.rows import avro_rows
from sinks.kafka_server import KafkaServer

EVENTS = 5_000
RATE, SECONDS = 200_000, 8.0
START_S, WARM_S, QUIET_S = 5.0, 20.0, 20.0


def run() -> list[Row]:
    """Encoding, then the process."""
    rows = encoding()
    with tempfile.TemporaryDirectory() as place:
        server = KafkaServer(place, free_port())
        server.start()
        try:
            server.wait_ready()
            rows += quiet(Path(place), server.servers)
            rows += throughput(Path(place), server.servers)
        finally:
            server.stop()
    return rows


# ── Encoding ─────────────────────────────────────────────────────────────────────────────────────


def events(count: int = EVENTS, seed: int = 1) -> "np.ndarray[Any, np.dtype[np.void]]":
    """Events as traffic makes them: few programs, some hundred addresses."""
    chance = np.random.default_rng(seed)
    made = np.zeros(count, dtype.event(flood.stream()))
    made["ts"] = time.monotonic_ns() + np.cumsum(chance.integers(1_000, 90_000, count))
    for side, hosts in (("source", 500), ("destination", 8)):
        made[side][:, 10:12] = 255
        made[side][:, 12] = 10
        host = chance.zipf(1.4, count) % hosts
        made[side][:, 14], made[side][:, 15] = host >> 8, host & 255
    made["source_port"] = chance.integers(32_768, 61_000, count)
    made["destination_port"] = chance.choice([443, 80, 53], count, p=[0.8, 0.15, 0.05])
    for name, many in (("protocol", 3), ("verdict", 3), ("reason", 20), ("cpu", 2), ("queue", 4)):
        made[name] = chance.integers(0, many, count)
    made["place"] = 4096 * chance.integers(1, 30, count)
    made["cgroup"] = 1
    made["comm"] = chance.choice([b"nginx", b"postgres", b"curl", b"kworker/0:1"], count)
    made["pid"] = made["tid"] = chance.integers(300, 340, count)
    made["length"] = chance.choice([60, 64, 1_500], count)
    made["ttl"], made["window"] = 64, 65_535
    made["number"] = np.arange(count)
    made["wait_ns"] = chance.exponential(9_000, count)
    return made


def encoding() -> list[Row]:
    """Nanoseconds an event, ours and through fastavro, and bytes an event as the broker keeps them."""
    stream, ring = flood.stream(), events().tobytes()
    names = {n: f"REASON_{n}" for n in range(40)}
    decoders = Decoders(Clock(), Cgroups(), Symbols(Path("/nonexistent")), {"skb_drop_reason": names})
    envelope = wire.Envelope("host-1", bytes(16), 7)

    def ours() -> bytes:
        array = np.frombuffer(ring, dtype.event(stream))
        return wire.encode(stream, envelope, decoders.columns(stream, array))

    schemas = wire.Schemas()
    schemas.add(wire.batch_schema(stream))
    schema = fastavro.parse_schema(wire.row_schema(stream))
    reader, fields = _unpacker(stream)
    texts = next(avro_rows(stream, schemas.decode(ours())))

    def rowwise() -> int:
        out = io.BytesIO()
        shared: dict[str, Any] = {"host": envelope.host, "boot": envelope.boot, "seq": 7, "sample_rate": 1}
        for values in reader.iter_unpack(ring):
            row = shared | dict(zip(fields, values, strict=True))
            for field in TEXTS:
                row[field] = texts[field]
            row["ts"] //= 1000
            fastavro.schemaless_writer(out, schema, row)
        return out.tell()

    times = in_turns(
        {"ours": lambda: cpu_seconds(ours) / EVENTS, "rows": lambda: cpu_seconds(rowwise) / EVENTS}
    )
    least, median = ratio(times["rows"], times["ours"])
    size = len(zstandard.ZstdCompressor(PRODUCER["compression.level"]).compress(ours())) / EVENTS
    return [
        Row("ring bytes to Avro, 25 columns, one event", times["ours"].text("ns", 1e9), "", "", "≤ 1000 ns",
            times["ours"].median <= 1e-6),
        Row("the same through struct, dict, fastavro", times["ours"].text("ns", 1e9),
            f"fastavro {times['rows'].text('ns', 1e9)}", ratio_text(times["rows"], times["ours"]), "≥ 10×",
            min(least, median) >= 10),
        Row("one event at the broker (zstd)", f"{size:.1f} B", f"in the ring {len(ring) // EVENTS} B", "",
            "≤ 35 B", size <= 35),
    ]  # fmt: skip


TEXTS = [each.name for each in flood.stream().fields if each.avro_kind == "string"]


def _unpacker(stream: declare.Stream) -> tuple[struct.Struct, list[str]]:
    """What reads the same struct a row at a time."""
    codes = {"u8": "B", "u16": "H", "u32": "I", "u64": "Q", "s32": "i", "s64": "q"}
    text, fields = "=", []
    for member in layout.event(stream.fields).members:
        if member.is_padding:
            text += f"{member.c.size}x"
            continue
        text += codes[member.c.base] if member.c.count is None else f"{member.c.size}s"
        fields.append(member.name)
    return struct.Struct(text), fields


# ── The process ──────────────────────────────────────────────────────────────────────────────────


@contextmanager
def collector(place: Path, servers: str, code: list[str], **settings: Any) -> Iterator[psutil.Process]:
    """A collector that runs, from its first word to its last."""
    file, log = place / f"{code[0][:5]}-{time.monotonic_ns()}.yaml", place / "collector.log"
    tree = {"host": "bench", "state_dir": str(place / file.stem), "kafka": {"servers": servers}}
    file.write_text(yaml.safe_dump(tree | {"collector": {"metrics_port": 0, **settings}}))
    environment = {name: text for name, text in os.environ.items() if not name.startswith("BPFLEET_")}
    log.write_text("")
    with log.open("ab") as out:
        command = [sys.executable, "-c", *code, "collect", "--config", str(file)]
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment)
    try:
        while "collecting:" not in log.read_text():
            if process.poll() is not None:
                raise RuntimeError(log.read_text())
            time.sleep(0.05)
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(20)


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def quiet(place: Path, servers: str) -> list[Row]:
    """All probes, a host with little to do: while all that runs there is new, then steadily."""

    def share(seconds: float) -> float:
        before = _cpu(process)
        time.sleep(seconds)
        return (_cpu(process) - before) / seconds

    with collector(place, servers, ["from fleet.cli import main; main()"]) as process:
        time.sleep(START_S)
        early, steady = share(WARM_S - START_S), share(QUIET_S)
        rss = process.memory_info().rss / 1e6
    name = "CPU of one core, all probes, quiet host"
    return [
        Row("resident memory, all probes", f"{rss:.0f} MB", "", "", "≤ 100 MB (aim 60)", rss <= 100),
        Row(f"{name}, from second {WARM_S:.0f} on", f"{steady:.2%}", "", "", "< 1 %", steady < 0.01),
        Row(f"{name}, seconds {START_S:.0f} to {WARM_S:.0f}", f"{early:.2%}", "", "", "", None),
    ]


def throughput(place: Path, servers: str) -> list[Row]:
    """The flood for some seconds: what was made, shipped and lost, by the collector's own books."""
    generator = flood.generator(RATE, SECONDS)
    files = place / "flood"
    files.mkdir()
    flood.directory(files, generator.pid)
    with collector(place, servers, [flood.COLLECT, str(files)], probes=["flood"], ring_kb=4096) as process:
        time.sleep(2)
        before = _cpu(process)
        made, _ = generator.communicate("go\n")
        time.sleep(2)
        used = _cpu(process) - before
        rss = process.memory_info().rss / 1e6
    books = _books(servers)
    unaccounted = books["made"] - books["lost"] - books["rows"]
    rate = books["made"] / SECONDS
    return [
        Row("ring events a second, unaccounted", f"{rate:,.0f}/s, {unaccounted}", "", "",
            "≥ 190,000/s, 0", rate >= 190_000 and unaccounted == 0),
        Row("of them lost (ring full, counted)", f"{books['lost']:,} of {books['made']:,}", "", "", "", None),
        Row("CPU an event, librdkafka included", f"{used / int(made) * 1e9:.0f} ns", "", "", "", None),
        Row("resident memory after it", f"{rss:.0f} MB", "", "", "≤ 100 MB", rss <= 100),
    ]  # fmt: skip


def _books(servers: str) -> dict[str, int]:
    """made and lost by collector_health, rows by what is in Kafka."""
    from confluent_kafka import Consumer, TopicPartition

    catalog = topics.Catalog([*declare.streams().values(), flood.stream()])
    consumer = Consumer({"bootstrap.servers": servers, "group.id": "bench", "enable.partition.eof": True})
    books = {"made": 0, "lost": 0, "rows": 0}
    for name in ("flood", "collector_health"):
        topic = topics.topic(name)
        parts = set(consumer.list_topics(topic, timeout=10).topics[topic].partitions)
        consumer.assign([TopicPartition(topic, each, 0) for each in parts])
        while parts:
            message = consumer.poll(10)
            if message is None or message.error() is not None:
                parts.discard(message.partition() if message is not None else next(iter(parts)))
            else:
                _enter(books, catalog.schemas.decode(message.value() or b""))
    consumer.close()
    return books


def _enter(books: dict[str, int], batch: wire.Batch) -> None:
    if batch.stream == "flood":
        books["rows"] += batch.rows
        return
    stream: Any = batch.columns["stream"]
    of = np.array([text == "flood" for text in stream.strings()])
    for name in ("made", "lost"):
        column: Any = batch.columns[name]
        books[name] += int(column[of].sum())


if __name__ == "__main__":
    print(platform.release())
    for row in run():
        print(row)
