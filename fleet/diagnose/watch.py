"""`bpfleet diagnose --watch`: judge again and again, and keep the verdicts in the table."""

import time
from collections.abc import Callable, Iterator
from typing import Any

from fleet.diagnose.judge import Judge, Row
from fleet.events import Events
from schemas.config import Config
from schemas.errors import Unreachable

KEEP_S = 60.0  # each host's verdicts are written at least so often, and whenever they change
WINDOW_S = 10.0
EVERY_S = 2.0
State = dict[str, tuple[tuple[str, str, str], ...]]


def watch(config: Config, connect: Callable[[], Any], every_s: float = EVERY_S,
          keep_s: float = KEEP_S) -> Iterator[list[Row]]:  # fmt: skip
    """Judge every ``every_s``; yields the rows that were written. Servers that go away are waited for.

    Raises BpfleetError when a server refuses rather than lacks.
    """
    events = Events(config)
    judge: Judge | None = None
    written: State = {}
    kept_at: dict[str, float] = {}
    while True:
        begun = time.monotonic()
        try:
            judge = judge or Judge(connect(), config)
            now_us = time.time_ns() // 1000
            rows = judge.rows(now_us, WINDOW_S)
            due = [row for row in rows if _is_due(row, rows, written, kept_at, begun - keep_s)]
            events.ship("verdict", due)
            for host in {row["target_host"] for row in due}:
                written[host], kept_at[host] = _state(rows, host), begun
            yield due
            judge.refresh(now_us - int(WINDOW_S * 1e6))
        except Unreachable as error:
            judge = None
            yield [{"error": str(error)}]
        time.sleep(max(0.0, every_s - (time.monotonic() - begun)))


def _is_due(row: Row, rows: list[Row], written: State, kept_at: dict[str, float], before: float) -> bool:
    host = row["target_host"]
    return written.get(host) != _state(rows, host) or kept_at[host] <= before


def _state(rows: list[Row], host: str) -> tuple[tuple[str, str, str], ...]:
    return tuple(sorted((row["verdict"], row.get("culprit", ""), row.get("victim", ""))
                        for row in rows if row["target_host"] == host))  # fmt: skip
