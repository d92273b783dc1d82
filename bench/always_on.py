"""Everything that is always on, at once: what it costs a ping-pong, an ordinary mixed load, and each event.

In turns: nothing; a whole collector with every probe, its profiler and its readers; and libbpf-tools'
runqlat, offcputime, syscount, biolatency and tcplife together, which answer a part of the same questions.
What is compared is CPU time of the load, once a collector's start is over. A program's own time is by the
kernel's BPF statistics, which the collector turns on for a tenth of the time.
"""

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from bench.common import Row, Times, ratio, ratio_text
from collector import bpf_sys
from collector.output import Shipped
from collector.printer import Printer
from schemas.columns import Column
from schemas.config import Config
from schemas.declare import Stream

ROUNDS = 6
SETTLE_S = 6.0  # a start names hundreds of stacks, and more
PING_PONG = ["taskset", "-c", "1", "perf", "bench", "sched", "pipe", "-l", "20000"]
MIXED = [sys.executable, "-m", "bench.mixed"]
PEERS = (
    ["runqlat", "600", "1"],
    ["offcputime", "600"],
    ["syscount", "-L", "-d", "600"],
    ["biolatency", "600", "1"],
    ["tcplife"],
)
# load → (command, how often in a round, most that it may cost). A ping-pong is over in a tenth of a second.
LOADS = {"ping-pong on one core": (PING_PONG, 12, 1.25), "mixed load": (MIXED, 3, 1.02)}
MOST_RSS_MB = 120.0


class _Nowhere(Printer):
    """An output that keeps nothing: the collector's own CPU time is another benchmark's."""

    def ship(self, stream: Stream, columns: Mapping[str, Column], sample_rate: int = 1) -> list[int]:
        self.streams.setdefault(stream.name, Shipped()).shipped += 1
        return [0]


def cpu_of(command: list[str]) -> float:
    """CPU seconds of a command and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


# ── What is on ───────────────────────────────────────────────────────────────────────────────────


class Everything:
    """A collector in a child of its own; after each :meth:`on` it has told what it cost."""

    def __init__(self) -> None:
        self.costs: dict[str, tuple[int, int]] = {}  # program → (runs, ns), of all rounds
        self.started: list[float] = []
        self.rss_mb: list[float] = []

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        """From when everything is attached."""
        said, say = os.pipe()
        begun = time.monotonic()
        child = os.fork()
        if not child:
            os.close(said)
            _collect(say)
        os.close(say)
        with os.fdopen(said) as lines:
            assert lines.readline() == "ready\n", "the collector did not start"
            self.started.append(time.monotonic() - begun)
            time.sleep(SETTLE_S)
            try:
                yield
                self.rss_mb.append(_rss_mb(child))
            finally:
                os.kill(child, signal.SIGTERM)
                text = lines.read()
                os.waitpid(child, 0)
        for name, (runs, spent) in json.loads(text).items():
            before = self.costs.get(name, (0, 0))
            self.costs[name] = before[0] + runs, before[1] + spent


def _collect(say: int) -> None:
    """The child: as `bpfleet collect`, without Kafka. Never returns."""
    try:
        _collect_and_tell(say)
    finally:
        os._exit(0)


def _collect_and_tell(say: int) -> None:
    from collector import main
    from collector.agent import Agent

    config = Config()
    config.collector.metrics_port = 0
    agent = Agent(config, _Nowhere("bench"))
    main.companions(agent, kafka=False)
    costs: dict[str, tuple[int, int]] = {}
    close = agent.close

    def count_and_close() -> None:
        for each in agent.attached:
            for hook, info in each.run_times().items():
                costs[f"{each.probe.name} {hook}"] = info.run_count, info.run_time_ns
        close()

    agent.close = count_and_close  # type: ignore[method-assign]
    main.run(agent, lambda: os.write(say, b"ready\n") and None)
    os.write(say, json.dumps(costs).encode())


def _rss_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


@contextlib.contextmanager
def peers() -> Iterator[None]:
    """libbpf-tools, all at once, from when no more programs are loaded."""
    tools = [subprocess.Popen(each, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for each in PEERS]
    try:
        known = -1
        while known != (known := len(list(bpf_sys.prog_ids()))):
            time.sleep(0.5)
        yield
    finally:
        for each in tools:
            each.kill()
            each.wait()


# ── Figures ──────────────────────────────────────────────────────────────────────────────────────


def measure(everything: Everything) -> dict[str, dict[str, Times]]:
    """load → what is on → CPU seconds, all in turns."""
    makers: dict[str, Callable[[], AbstractContextManager[Any]]] = {
        "nothing": nullcontext, "everything": everything.on, "peers": peers,
    }  # fmt: skip
    for command, _, _ in LOADS.values():
        cpu_of(command)
    values: dict[str, dict[str, list[float]]] = {load: {name: [] for name in makers} for load in LOADS}
    for _ in range(ROUNDS):
        for name, make in makers.items():
            with make():
                for load, (command, times, _) in LOADS.items():
                    values[load][name] += [cpu_of(command) for _ in range(times)]
    return {
        load: {name: Times(tuple(each)) for name, each in found.items()} for load, found in values.items()
    }


def run() -> list[Row]:
    """The two loads, the collector itself, and each program."""
    everything = Everything()
    found = measure(everything)
    rows = []
    for title, (_, _, most) in LOADS.items():
        times = found[title]
        none, ours, theirs = times["nothing"], times["everything"], times["peers"]
        rows += [
            Row(f"{title}, everything on", ours.text("s CPU"), f"nothing {none.text('s')}",
                ratio_text(ours, none), f"≤ {most}×", min(ratio(ours, none)) <= most),
            Row(f"{title}, five libbpf-tools", theirs.text("s CPU"), f"nothing {none.text('s')}",
                ratio_text(theirs, none), "", None),
        ]  # fmt: skip
    rss, start = max(everything.rss_mb), Times(tuple(everything.started))
    rows += [
        Row("resident memory of the collector", f"{rss:.0f} MB", "", "", f"≤ {MOST_RSS_MB:.0f} MB",
            rss <= MOST_RSS_MB),
        Row("start, until everything is attached", start.text("s"), "", "", "", None),
    ]  # fmt: skip
    for name, (runs, spent) in sorted(everything.costs.items(), key=lambda each: -each[1][1]):
        if runs >= 20:
            rows.append(Row(name, f"{spent / runs:.0f} ns a run", f"{runs:,} runs timed", "", "", None))
    return rows
