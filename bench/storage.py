"""Bytes a row on disk, stream by stream and column by column.

Plausible traffic of four hosts over ten minutes: half of the rows from few clients, ephemeral ports
at random, sizes and times log-normal, as on a busy web server; histograms of 30
cgroups and two disks. Loopback would flatter every codec.
"""

import tempfile
import time
from typing import Any

import numpy as np

from bench.common import Row
from bench.pipeline import settings
from fleet import supervise
from schemas import declare
from schemas.clickhouse import connect
from schemas.columns import Dictionary
from schemas.wire import Batch, Envelope
from sinks import tables
from sinks.writer import Writer

HOSTS, SECONDS = 4, 600
BATCH_S = 0.25
START = (
    int(time.time()) // 86_400 * 86_400_000_000 - 43_200_000_000
)  # µs: noon of yesterday, within every retention
Columns = dict[str, Any]


def _clients(rng: np.random.Generator, rows: int, distinct: int = 100_000) -> Any:
    """Addresses of clients: half of the rows from a few that come often, half from anywhere."""
    often = np.minimum(rng.zipf(1.2, rows), distinct)
    rank = np.where(rng.random(rows) < 0.5, often, rng.integers(1, distinct, rows)).astype(np.uint32)
    scrambled = rank * np.uint32(2_654_435_761)  # the same client has the same address
    addresses = np.zeros((rows, 16), np.uint8)
    addresses[:, 10:12] = 0xFF
    addresses[:, 12:] = scrambled.view(np.uint8).reshape(rows, 4)
    return addresses


def _server(rng: np.random.Generator, rows: int) -> Any:
    addresses = np.zeros((rows, 16), np.uint8)
    addresses[:, 10:12] = 0xFF
    addresses[:, 12:] = (192, 0, 2, 10)
    return addresses


def _one_of(rng: np.random.Generator, rows: int, values: list[str], weights: list[float]) -> Dictionary:
    return Dictionary(values, rng.choice(len(values), rows, p=weights).astype(np.uint32))


def _ports(rng: np.random.Generator, rows: int) -> Any:
    return rng.integers(32_768, 61_000, rows).astype(np.uint16)


def _log_normal(rng: np.random.Generator, rows: int, median: float, spread: float, dtype: str) -> Any:
    return np.exp(rng.normal(np.log(median), spread, rows)).astype(dtype)


def tcp_flow(rng: np.random.Generator, ts: Any) -> Columns:
    """Connections of a web server: four of five accepted, the rest to three backends."""
    rows = len(ts)
    accepted = rng.random(rows) < 0.8
    listening = rng.choice(np.array([443, 80], np.uint16), rows, p=[0.9, 0.1])
    backends = rng.choice(np.array([5432, 6379, 9092], np.uint16), rows)
    sent = _log_normal(rng, rows, 6_000, 1.5, "u8")
    return {
        "ts": ts,
        "duration_us": _log_normal(rng, rows, 120_000, 1.8, "i8"),
        "local_address": _server(rng, rows),
        "local_port": np.where(accepted, listening, _ports(rng, rows)),
        "remote_address": np.where(accepted[:, None], _clients(rng, rows), _server(rng, rows)),
        "remote_port": np.where(accepted, _ports(rng, rows), backends),
        "direction": Dictionary(["connected", "accepted"], accepted.astype(np.uint32)),
        "ended": _one_of(rng, rows, ["fin", "reset_by_peer", "reset_by_us"], [0.93, 0.05, 0.02]),
        "state": _one_of(rng, rows, ["LAST_ACK", "FIN_WAIT2", "ESTABLISHED"], [0.55, 0.4, 0.05]),
        "bytes_sent": sent,
        "bytes_received": _log_normal(rng, rows, 700, 0.8, "u8"),
        "retransmits": (rng.random(rows) < 0.02).astype(np.uint32),
        "srtt_us": _log_normal(rng, rows, 25_000, 1.0, "u4"),
        "pid": rng.choice(np.array([812, 813, 814, 815], np.uint32), rows),
        "comm": _one_of(rng, rows, ["nginx", "app"], [0.8, 0.2]),
        "cgroup": _one_of(rng, rows, ["nginx.service", "app.service"], [0.8, 0.2]),
    }


def packet_drop(rng: np.random.Generator, ts: Any) -> Columns:
    """Half a scan of closed ports, half the odd drops of ordinary traffic."""
    rows = len(ts)
    scan = rng.random(rows) < 0.5
    reasons = ["NO_SOCKET", "TCP_OLD_DATA", "NETFILTER_DROP", "SOCKET_RCVBUFF", "NOT_SPECIFIED"]
    usual = rng.choice(5, rows, p=[0.2, 0.3, 0.2, 0.2, 0.1])
    index = np.where(scan, 0, usual).astype(np.uint32)
    return {
        "ts": ts,
        "reason": Dictionary(reasons, index),
        "location": Dictionary(
            ["tcp_v4_rcv", "tcp_data_queue", "nf_hook_slow", "udp_queue_rcv", "ip_rcv"], index
        ),
        "interface": Dictionary(["eth0"], np.zeros(rows, np.uint32)),
        "ethertype": np.full(rows, 0x0800, np.uint16),
        "protocol": np.where(index == 3, 17, 6).astype(np.uint8),
        "tcp_flags": np.where(scan, 2, 24).astype(np.uint8),
        "source_address": _clients(rng, rows),
        "destination_address": _server(rng, rows),
        "source_port": _ports(rng, rows),
        "destination_port": np.where(scan, rng.integers(1, 65_535, rows), 443).astype(np.uint16),
        "length": np.where(scan, 60, _log_normal(rng, rows, 400, 0.9, "u4")).astype(np.uint32),
        "weight": np.full(rows, 1, np.uint32),
    }


def _histogram(rng: np.random.Generator, count: Any, median: float, spread: float) -> tuple[Any, Any]:
    """(27 log2 buckets in µs, sum in ns) of ``count`` latencies a row."""
    middle = np.log2(median) + rng.normal(0, 0.5, len(count))
    buckets = np.arange(27)[None, :] - middle[:, None]
    shares = np.exp(-(buckets**2) / (2 * spread**2))
    expected = shares / shares.sum(axis=1, keepdims=True) * count[:, None]
    waits = rng.poisson(expected).astype(np.uint64)
    return waits, (waits * (1000 * 2 ** np.arange(27, dtype=np.float64))).sum(axis=1).astype(np.uint64)


def runq_latency(rng: np.random.Generator, ts: Any) -> Columns:
    """A row a cgroup each second."""
    rows = len(ts)
    waits, total = _histogram(rng, _log_normal(rng, rows, 300, 1.5, "f8"), 6, 1.5)
    return {
        "ts": ts,
        "interval_us": 1_000_000 + rng.integers(-300, 300, rows),
        "cgroup": Dictionary(
            [f"service-{n}.service" for n in range(30)], (np.arange(rows) % 30).astype(np.uint32)
        ),
        "count": waits.sum(axis=1, dtype=np.uint64),
        "sum_ns": total,
        "waits": waits,
    }


def block_io(rng: np.random.Generator, ts: Any) -> Columns:
    """A row a disk and operation each second."""
    rows = len(ts)
    latencies, total = _histogram(rng, _log_normal(rng, rows, 200, 1.0, "f8"), 300, 1.2)
    count = latencies.sum(axis=1, dtype=np.uint64)
    even = (np.arange(rows) % 2).astype(np.uint32)
    return {
        "ts": ts,
        "interval_us": 1_000_000 + rng.integers(-300, 300, rows),
        "device": Dictionary(["nvme0n1", "nvme1n1"], (np.arange(rows) // 2 % 2).astype(np.uint32)),
        "operation": Dictionary(["READ", "WRITE"], even),
        "count": count,
        "bytes": count * rng.choice(np.array([4096, 16384, 65536], np.uint64), rows),
        "errors": np.zeros(rows, np.uint64),
        "latency_ns": total,
        "queued_ns": total // 10,
        "latencies": latencies,
    }


STREAMS = {"tcp_flow": (tcp_flow, 300), "packet_drop": (packet_drop, 300),
           "runq_latency": (runq_latency, 30), "block_io": (block_io, 4)}  # fmt: skip
BOUND = {"tcp_flow": 20.0, "packet_drop": 20.0}


def batches(stream: str, make: Any, per_second: int) -> list[Batch]:
    """What the hosts would have sent: a batch a quarter of a second each."""
    rng = np.random.default_rng(7)
    made = []
    for host in range(HOSTS):
        for number in range(int(SECONDS / BATCH_S)):
            begin = START + int(number * BATCH_S * 1e6)
            rows = int(rng.poisson(per_second * BATCH_S)) + 1
            ts = np.sort(begin + rng.integers(0, int(BATCH_S * 1e6), rows))
            envelope = Envelope(f"web-{host}", bytes([host] * 16), number, 1)
            made.append(Batch(stream, envelope, rows, make(rng, ts)))
    return made


def _store(
    client: Any, writer: Writer, chosen: Any, stream: str, made: list[Batch]
) -> tuple[int, dict[str, int]]:
    """Insert, merge to one part, and read what each column takes: (rows, column → bytes)."""
    table = tables.make(declare.streams()[stream], chosen.clickhouse, writer)
    # Small tables keep all columns in one file, whose parts nobody can tell apart.
    writer.execute(
        f"ALTER TABLE {chosen.clickhouse.database}.{stream} MODIFY SETTING min_bytes_for_wide_part = 0"
    )
    for at in range(0, len(made), 500):
        writer.insert(table, made[at : at + 500], f"{stream}:{at}")
    client.command(f"OPTIMIZE TABLE {stream} FINAL")
    sizes = client.query(
        "SELECT column, sum(column_data_compressed_bytes) FROM system.parts_columns "
        "WHERE database = currentDatabase() AND table = {table:String} AND active "
        "GROUP BY column ORDER BY 2 DESC",
        parameters={"table": stream},
    ).result_rows
    return int(client.command(f"SELECT count() FROM {stream}")), {name: int(size) for name, size in sizes}


def run() -> list[Row]:
    """Total and the dearest columns of each event stream."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="bpfleet-bench-") as state:
        chosen = settings(state)
        (store,) = [part for part in supervise.parts_of(chosen) if part.name == "store"]
        try:
            supervise.start([store], lambda text: print(f"  {text}", flush=True))
            writer = Writer(chosen.clickhouse)
            writer.execute(f"CREATE DATABASE IF NOT EXISTS {chosen.clickhouse.database}")
            client = connect(chosen.clickhouse)
            for stream, (make, per_second) in STREAMS.items():
                made = batches(stream, make, per_second)
                rows += _report(stream, *_store(client, writer, chosen, stream, made))
        finally:
            supervise.stop([store], lambda _: None)
    return rows


def _report(stream: str, count: int, sizes: dict[str, int]) -> list[Row]:
    total, bound = sum(sizes.values()) / count, BOUND.get(stream)
    target = f"≤ {bound:.0f} B" if bound else ""
    parts = [
        Row(f"· {name}", f"{size / count:.2f} B", "", "", "", None)
        for name, size in sizes.items()
        if size / count > 0.1
    ]
    return [
        Row(
            f"**{stream}**, {count:,} rows",
            f"{total:.1f} B",
            "",
            "",
            target,
            total <= bound if bound else None,
        ),
        *parts,
    ]
