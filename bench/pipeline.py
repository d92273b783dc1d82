"""From a kernel event to a row that SQL sees, with everything on this machine.

Packets to closed loopback ports make `packet_drop` events at a fixed rate; the store is asked many times a
second how many rows it shows. Row i became visible at the first answer above i; its delay counts from the
kernel's own time of the event. The answer's interval is in the figure.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench.common import Row, free_port, percentile
from fleet import supervise
from schemas import config
from schemas.clickhouse import connect

RATE = 20_000  # events a second
SECONDS = 20
PER_BURST = 100
POLL_S = 0.01


def settings(state: str, **more: str) -> config.Config:
    """A whole bpfleet of its own: free ports, own state; children find it in the environment."""
    kafka, store = free_port(), free_port()
    os.environ |= {
        "BPFLEET_STATE_DIR": state,
        "BPFLEET_KAFKA": f"127.0.0.1:{kafka}",
        "BPFLEET_CLICKHOUSE": f"http://127.0.0.1:{store}",
        "BPFLEET_STORE_PORT": str(store),
        "BPFLEET_SINK_METRICS_PORT": str(free_port()),
        "BPFLEET_COLLECTOR_METRICS_PORT": str(free_port()),
        **more,
    }
    return config.load(None)


GENERATOR = """
import socket, sys, time
rate, seconds, burst = float(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
begun = time.monotonic()
for number in range(int(rate * seconds / burst)):
    wait = begun + number * burst / rate - time.monotonic()
    if wait > 0:
        time.sleep(wait)
    for each in range(burst):
        out.sendto(b"x", ("127.0.0.1", 40000 + each))
"""


def generate(rate: int, seconds: float) -> "subprocess.Popen[bytes]":
    """Drops at ``rate`` a second from a process of their own; UDP to ports where nobody listens."""
    return subprocess.Popen([sys.executable, "-c", GENERATOR, str(rate), str(seconds), str(PER_BURST)])


def watch(client: Any, seconds: float) -> list[tuple[float, int]]:
    """(time, rows visible) while events come and until they stopped coming."""
    seen: list[tuple[float, int]] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        rows = int(client.command("SELECT count() FROM packet_drop"))
        seen.append((time.time(), rows))
        time.sleep(POLL_S)
    return seen


def delays(seen: list[tuple[float, int]], stamps: np.ndarray[Any, Any]) -> list[float]:
    """Seconds from each row's kernel time to the first answer that shows it."""
    counts = np.array([rows for _, rows in seen])
    times = np.array([at for at, _ in seen])
    first = np.searchsorted(counts, np.arange(1, len(stamps) + 1))
    shown = first < len(times)
    result: list[float] = (times[first[shown]] - stamps[shown] / 1e6).tolist()
    return result


def run() -> list[Row]:
    """Delay at the rate, and what each part costs meanwhile."""
    with tempfile.TemporaryDirectory(prefix="bpfleet-bench-") as state:
        chosen = settings(state, BPFLEET_COLLECTOR_DROP_SAMPLES_PER_SECOND="1000000")
        parts = supervise.parts_of(chosen)
        try:
            supervise.start(parts, lambda text: print(f"  {text}", flush=True))
            return _measure(chosen, parts)
        finally:
            supervise.stop(parts, lambda _: None)


def _cpu(parts: list[supervise.Part]) -> dict[str, float]:
    from fleet.live import _family

    used = {}
    for part in parts:
        ticks = 0
        for pid in _family(part.process.pid if part.process else 0):
            text = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(text[11]) + int(text[12])
        used[part.name] = ticks / os.sysconf("SC_CLK_TCK")
    return used


def _without_events(client: Any, parts: list[supervise.Part]) -> dict[str, float]:
    """CPU of the same time in which nothing but our own question is asked: a hundred times a second."""
    seconds = 4.0
    before = _cpu(parts)
    watch(client, seconds)
    return {name: (after - before[name]) * (SECONDS + 3) / seconds for name, after in _cpu(parts).items()}


def _measure(chosen: config.Config, parts: list[supervise.Part]) -> list[Row]:
    generate(RATE, 2).wait()
    time.sleep(3)  # tables exist, everything is warm
    client = connect(chosen.clickhouse)
    idle = _without_events(client, parts)
    before_rows = int(client.command("SELECT count() FROM packet_drop"))
    before = _cpu(parts)
    load = generate(RATE, SECONDS)
    seen = [(at, rows - before_rows) for at, rows in watch(client, SECONDS + 3)]
    load.wait()
    used = {name: after - before[name] for name, after in _cpu(parts).items()}
    stamps = np.array(
        client.query(
            "SELECT toUnixTimestamp64Micro(ts) FROM packet_drop "
            f"ORDER BY ts LIMIT 100000000 OFFSET {before_rows}"
        ).result_columns[0]
    )
    late = delays(seen, stamps)
    p50, p99 = percentile(late, 0.5), percentile(late, 0.99)
    made = RATE * SECONDS
    rows = [
        Row(f"event to visible, p50 at {RATE:,}/s", f"{p50:.3f} s", "", "", "≤ 0.4 s", p50 <= 0.4),
        Row(f"event to visible, p99 at {RATE:,}/s", f"{p99:.3f} s", "", "", "≤ 1 s", p99 <= 1.0),
        Row(
            "rows of events made",
            f"{len(stamps):,}",
            f"{made:,} made",
            f"{len(stamps) / made:.4f}",
            "1",
            None,
        ),
    ]
    return rows + [
        Row(
            f"{name}: CPU",
            f"{seconds / made * 1e6:.2f} µs an event",
            f"without events {idle[name] / made * 1e6:.2f} µs",
            "",
            "",
            None,
        )
        for name, seconds in used.items()
    ]
