"""The live view of ``bpfleet run``: rates, delays, losses, what the collector costs, and real questions."""

import contextlib
import os
import time
import urllib.request
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from schemas import declare
from schemas.ddl import quote

WINDOW_S = 10  # rates are over so many seconds
QUESTION_S = 8  # each question is shown for so long


@dataclass(frozen=True)
class Question:
    """A question people ask, as SQL over the tables it needs."""

    text: str
    needs: str
    sql: str


QUESTIONS = (
    Question(
        "Who waited longest for a CPU in the last minute?",
        "runq_latency",
        "SELECT cgroup, sum(count) AS waits, round(sum(sum_ns) / 1e6, 1) AS waited_ms,\n"
        "       round(sum(sum_ns) / sum(count) / 1000, 1) AS mean_us\n"
        "FROM runq_latency WHERE ts > now() - 60 GROUP BY cgroup ORDER BY waited_ms DESC LIMIT 5",
    ),
    Question(
        "Which disks are slow?",
        "block_io",
        "SELECT device, operation, sum(count) AS requests,\n"
        "       round(sum(latency_ns) / sum(count) / 1e6, 2) AS mean_ms\n"
        "FROM block_io WHERE ts > now() - 300 GROUP BY device, operation ORDER BY mean_ms DESC LIMIT 5",
    ),
    Question(
        "Which processes talk to whom?",
        "tcp_flow",
        "SELECT comm, remote_address, remote_port, count() AS flows,\n"
        "       sum(bytes_sent + bytes_received) AS bytes\n"
        "FROM tcp_flow WHERE ts > now() - 300 GROUP BY ALL ORDER BY flows DESC LIMIT 5",
    ),
    Question(
        "Why does the kernel drop packets, and where?",
        "packet_drop",
        "SELECT reason, location, sum(weight) AS packets FROM packet_drop\n"
        "WHERE ts > now() - 300 GROUP BY reason, location ORDER BY packets DESC LIMIT 5",
    ),
    Question(
        "What ails this host?",
        "verdict",
        "SELECT formatDateTime(ts, '%T') AS at, target_host, verdict, round(score, 2) AS score, culprit\n"
        "FROM verdict WHERE ts > now() - 300 ORDER BY ts DESC, score DESC LIMIT 5",
    ),
)


@dataclass
class Process:
    """CPU and memory of a process and its children (the broker's Java is one), from /proc."""

    pid: int
    last: tuple[float, float] = (0.0, 0.0)  # (time, CPU seconds) of the previous look

    def look(self) -> tuple[float, float]:
        """Share of one core since the last look, resident MB; zeros when it is gone."""
        ticks, pages = 0, 0
        for pid in _family(self.pid):
            with contextlib.suppress(OSError):
                text = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                ticks += int(text[11]) + int(text[12])
                pages += int(text[21])
        used, now = ticks / os.sysconf("SC_CLK_TCK"), time.monotonic()
        then, before = self.last
        self.last = (now, used)
        share = max(0.0, used - before) / (now - then) if then else 0.0
        return share, pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _family(pid: int) -> list[int]:
    """A process and all its descendants."""
    found = [pid]
    for parent in found:
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found += [int(each) for each in children.read_text().split()]
    return found


@dataclass
class Delays:
    """How long rows take from the kernel to the store, from the sink's own histogram."""

    port: int  # of the sink's metrics, on loopback
    last: dict[float, float] = field(default_factory=dict)  # upper bound in s → cumulative count

    def look(self) -> tuple[float, float] | None:
        """Upper bounds of p50 and p99 since the last look, in seconds; None without news."""
        buckets = self._read()
        fresh = {bound: count - self.last.get(bound, 0.0) for bound, count in buckets.items()}
        self.last = buckets or self.last
        total = fresh.get(float("inf"), 0.0)
        if total <= 0:
            return None
        p50, p99 = (min(b for b, count in fresh.items() if count >= total * share) for share in (0.5, 0.99))
        return p50, p99

    def _read(self) -> dict[float, float]:
        from prometheus_client.parser import text_string_to_metric_families

        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=1) as answer:
                families = list(text_string_to_metric_families(answer.read().decode()))
        except OSError:
            return {}
        return {
            float(sample.labels["le"]): sample.value
            for family in families
            for sample in family.samples
            if sample.name == "bpfleet_sink_delay_seconds_bucket"
        }


@dataclass(frozen=True)
class StreamLine:
    """What the view shows of one stream."""

    name: str
    per_second: float
    rows: int
    age_s: float | None  # of its newest row


@dataclass
class Snapshot:
    """Everything one refresh of the view shows."""

    streams: list[StreamLine] = field(default_factory=list)
    lost: int = 0
    delay: tuple[float, float] | None = None  # p50 and p99, event to row
    question: Question | None = None
    answer: Any = None  # of clickhouse-connect
    seconds: float = 0.0  # that the answer took


@dataclass
class Watch:
    """Looks at the store once a refresh, as cheaply as it can be: that is CPU of the host it watches."""

    client: Any
    database: str
    _counts: deque[tuple[float, dict[str, int]]] = field(default_factory=lambda: deque(maxlen=WINDOW_S + 1))
    _newest: dict[str, float] = field(default_factory=dict)  # stream → time of its newest row, s

    def look(self, at: float) -> Snapshot:
        """Ask for one refresh; ``at`` (seconds) chooses the question."""
        tables = {
            name: int(rows or 0)
            for name, rows in self.client.query(
                "SELECT name, total_rows FROM system.tables WHERE database = {database:String}",
                parameters={"database": self.database},
            ).result_rows
        }
        self._note(at, tables)
        seen = Snapshot([self._line(name, tables[name]) for name in declare.streams() if name in tables])
        if "collector_health" in tables:
            table = f"{quote(self.database)}.collector_health"
            seen.lost = int(self.client.command(f"SELECT sum(lost + shed) FROM {table}") or 0)
        open_questions = [each for each in QUESTIONS if tables.get(each.needs)]
        if open_questions:
            seen.question = open_questions[int(at / QUESTION_S) % len(open_questions)]
            begun = time.monotonic()
            seen.answer = self.client.query(seen.question.sql)
            seen.seconds = time.monotonic() - begun
        return seen

    def _note(self, at: float, tables: dict[str, int]) -> None:
        """Rows of now; the newest row of each stream that has other rows than at the last look."""
        before = self._counts[-1][1] if self._counts else {}
        self._counts.append((at, tables))
        moved = [name for name in declare.streams() if tables.get(name, 0) not in (0, before.get(name, 0))]
        if moved:
            asked = " UNION ALL ".join(
                f"SELECT '{name}', toUnixTimestamp64Micro(max(ts)) FROM {quote(self.database)}.{quote(name)}"
                for name in moved
            )
            rows = self.client.query(asked).result_rows
            self._newest |= {name: micros / 1e6 for name, micros in rows if micros}

    def _line(self, name: str, rows: int) -> StreamLine:
        (first, then), (last, _) = self._counts[0], self._counts[-1]
        rate = max(0, rows - then.get(name, 0)) / (last - first) if last > first else 0.0
        age = time.time() - self._newest[name] if name in self._newest else None
        return StreamLine(name, rate, rows, age)
