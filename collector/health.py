"""The `collector_health` stream: what the collector and its probes cost, and what was lost.

Counters only rise where they are made; a row holds what an interval added. The last rows go out at the end,
so that over a collector's life made = shipped + lost + invalid, for each ring stream, in SQL.
"""

import os
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from collector.bpf_sys import ProgInfo
from collector.losses import Loss
from collector.output import Shipped
from collector.probes import Attached
from collector.timing import Key, Timing

Row = dict[str, Any]
RunTimes = Callable[[], Mapping[str, ProgInfo]]  # by hook, since they were loaded
Totals = dict[tuple[str, ...], dict[str, int]]
LOST_REASON = {"ring": "ring_full", "aggregate": "map_full"}
PAGE = os.sysconf("SC_PAGE_SIZE")


def rss_bytes() -> int:
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def cpu_us() -> int:
    """CPU time of this process and its threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return int((used.ru_utime + used.ru_stime) * 1e6)


class Health:
    """Makes the rows of one interval after the other."""

    def __init__(
        self,
        attached: Iterable[Attached],
        shipped: Mapping[str, Shipped],
        spool: Callable[[], tuple[int, int]],
        costs: Mapping[str, RunTimes],
        timing: Timing,
    ) -> None:
        """``costs`` is looked at anew each time: programs come and go with desired state."""
        self._timing = timing
        timing.measure = self.run_times
        self._attached, self._shipped, self._spool, self._costs = list(attached), shipped, spool, costs
        self._probe_of = {
            stream.name: probe.probe.name for probe in self._attached for stream in probe.probe.streams
        }
        self._source_of = {
            stream.name: stream.source for probe in self._attached for stream in probe.probe.streams
        }
        self._runs: dict[Key, Counter[str]] = {}  # of each program, since the start
        self._before: Totals = {}
        self._at_us = 0
        self.totals: Totals = {}

    def run_times(self) -> dict[Key, ProgInfo]:
        """What the kernel says of each program since it was loaded."""
        timed = {each.probe.name: each.run_times for each in self._attached} | dict(self._costs)
        return {(name, hook): info for name, run in timed.items() for hook, info in run().items()}

    def rows(self, now_us: int, seconds: float = 0.0) -> list[Row]:
        """What changed since the last call, which is told; the next comes in ``seconds``."""
        self._count_runs(seconds)
        self.totals = self._measure()
        rows = [
            self._row(key, now, self._before.get(key, {}))
            for key, now in self.totals.items()
            if key[0] != "stream" or now != self._before.get(key)  # of many streams nothing happens for hours
        ]
        interval = now_us - self._at_us if self._at_us else 0
        self._before, self._at_us = self.totals, now_us
        for row in rows:
            row |= {"ts": now_us, "interval_us": interval}
        return rows

    def _row(self, key: tuple[str, ...], now: dict[str, int], before: dict[str, int]) -> Row:
        kind, name, *rest = key
        row: Row = {each: value - before.get(each, 0) for each, value in now.items()} | {"kind": kind}
        if kind == "program":
            row |= {"probe": name, "program": rest[0]}
        elif kind == "stream":
            row |= {"probe": self._probe_of.get(name, name), "stream": name}
            if row["lost"]:
                row["reason"] = LOST_REASON[self._source_of[name]]
        else:
            spool_bytes, batches = self._spool()
            row |= {"rss_bytes": rss_bytes(), "spool_bytes": spool_bytes, "spool_batches": batches}
        return row

    def _count_runs(self, seconds: float) -> None:
        """Add what programs took; those that are gone leave."""
        took = self._timing.interval(time.monotonic(), seconds)
        self._runs = {key: Counter(self._runs.get(key, {})) for key in took}
        for key, each in took.items():
            self._runs[key].update(vars(each))

    def _measure(self) -> Totals:
        totals: Totals = {("process", ""): {"cpu_us": cpu_us()}}
        totals |= {("program", *key): dict(run) for key, run in self._runs.items()}
        for probe in self._attached:
            for stream, counts in probe.counts().items():
                totals["stream", stream] = {
                    "made": counts.made, "lost": counts.lost, "sampled_out": counts.sampled_out,
                }  # fmt: skip
        for stream, shipped in self._shipped.items():
            empty = {"made": 0, "lost": 0, "sampled_out": 0}
            totals["stream", stream] = totals.get(("stream", stream), empty) | vars(shipped)
        return totals


def loss_row(loss: Loss, now_us: int) -> Row:
    """A range of batches that will never arrive."""
    boot = loss.boot
    return {
        "ts": now_us, "kind": "loss", "stream": loss.stream, "reason": str(loss.reason), "lost": loss.events,
        "of_boot": f"{boot[:8]}-{boot[8:12]}-{boot[12:16]}-{boot[16:20]}-{boot[20:]}",
        "seq_from": loss.first, "seq_to": loss.last,
    }  # fmt: skip


def restart_row(killed_since_us: int, now_us: int) -> Row:
    """An earlier collector ended without a goodbye: what happened meanwhile, nobody saw."""
    return {
        "ts": now_us, "kind": "restart", "reason": "killed", "blind_us": max(now_us - killed_since_us, 0),
    }  # fmt: skip
