"""The whole pipeline under kill -9: collector, broker, sink and store, at random moments, under load.

At the end SQL shows each batch number of each stream exactly once, with exactly the rows that Kafka holds;
every number that is missing stands in `collector_health` as lost, with its reason.
``BPFLEET_SOAK=300`` does so many blows instead of eight.
"""

import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import free_port

from bench.pipeline import generate
from fleet import supervise
from fleet.topic_reader import read
from schemas import config, declare
from schemas.clickhouse import connect
from schemas.config import kafka_options
from schemas.topics import read_catalog, topic

BLOWS = int(os.environ.get("BPFLEET_SOAK", "8"))
STREAMS = ("packet_drop", "packet_drop_count", "runq_latency", "tcp_flow", "block_io", "collector_health")


@pytest.fixture
def whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[config.Config, dict[str, Any]]]:
    kafka, store = free_port(), free_port()
    for name, value in {
        "STATE_DIR": str(tmp_path),
        "HOST": "killed",
        "KAFKA": f"127.0.0.1:{kafka}",
        "CLICKHOUSE": f"http://127.0.0.1:{store}",
        "STORE_PORT": str(store),
        "SINK_METRICS_PORT": str(free_port()),
        "SINK_SESSION_TIMEOUT_MS": "6000",
        "COLLECTOR_METRICS_PORT": str(free_port()),
        "COLLECTOR_DROP_SAMPLES_PER_SECOND": "100000",
    }.items():
        monkeypatch.setenv(f"BPFLEET_{name}", value)
    chosen = config.load(None)
    parts = supervise.parts_of(chosen)
    try:
        supervise.start(parts, lambda _: None)
        yield chosen, {part.name: part for part in parts}
    finally:
        supervise.stop(parts, lambda _: None)


def blow(part: supervise.Part, pause: float) -> None:
    """SIGKILL the part and all it started; after a while it comes back."""
    assert part.process is not None
    os.killpg(part.process.pid, signal.SIGKILL)
    part.process.wait()
    time.sleep(pause)
    part.start()
    part.wait_ready(60)


def in_kafka(chosen: config.Config, stream: str) -> Counter[tuple[str, int]]:
    """(boot, seq) → rows, of every batch that the topic holds; a number twice is an error of its own."""
    options = kafka_options(chosen.kafka)
    catalog = read_catalog(options)
    found: Counter[tuple[str, int]] = Counter()
    for message in read(options, topic(stream)):
        batch = catalog.schemas.decode(message)
        key = (batch.envelope.boot.hex(), batch.envelope.seq)
        assert key not in found, f"{stream} {key} is in Kafka twice"
        found[key] = batch.rows
    return found


def in_store(client: Any, stream: str) -> Counter[tuple[str, int]]:
    rows = client.query(
        f"SELECT replaceAll(toString(boot), '-', ''), seq, count() FROM {stream} GROUP BY boot, seq"
    ).result_rows
    return Counter({(boot, seq): count for boot, seq, count in rows})


def declared_lost(client: Any, stream: str) -> set[int]:
    rows = client.query(
        "SELECT seq_from, seq_to FROM collector_health WHERE kind = 'loss' AND stream = {stream:String}",
        parameters={"stream": stream},
    ).result_rows
    return {seq for first, last in rows for seq in range(first, last + 1)}


@pytest.mark.kill
@pytest.mark.timeout(120 + BLOWS * 20)
def test_every_number_once_whatever_dies(whole: tuple[config.Config, dict[str, Any]]) -> None:
    chosen, parts = whole
    luck = random.Random(os.environ.get("SEED", "4711"))
    load = generate(2_000, BLOWS * 12)
    try:
        for number in range(BLOWS):
            time.sleep(luck.uniform(0.2, 1.5))
            victim = ("collect", "sink", "store", "kafka")[number % 4]
            blow(parts[victim], luck.uniform(0, 1.5))
    finally:
        load.kill()
        load.wait()
    time.sleep(2)
    _declared(Path(chosen.state_dir) / "collector" / "losses.json")
    parts["collect"].stop()
    assert parts["collect"].process.returncode == 0
    client = connect(chosen.clickhouse)
    for stream in STREAMS:
        if stream in declare.streams():
            _same(chosen, client, stream)


def _declared(losses: Path) -> None:
    """The collector has asked Kafka what arrived before it was killed, and told of the rest."""
    deadline = time.monotonic() + 60
    while losses.exists() and json.loads(losses.read_text()) and time.monotonic() < deadline:
        time.sleep(0.2)


def _same(chosen: config.Config, client: Any, stream: str) -> None:
    sent = in_kafka(chosen, stream)
    deadline = time.monotonic() + 90
    while in_store(client, stream) != sent and time.monotonic() < deadline:
        time.sleep(0.5)
    landed = in_store(client, stream)
    assert landed == sent, f"{stream}: differs in {list((sent - landed) + (landed - sent))[:5]}"
    numbers = {seq for _, seq in landed}
    missing = set(range(max(numbers, default=-1) + 1)) - numbers
    unexplained = missing - declared_lost(client, stream)
    assert not unexplained, (
        f"{stream}: {sorted(unexplained)[:5]} of {len(numbers)} are missing without a word"
    )
    assert stream != "packet_drop" or sum(landed.values()) > 1_000
