"""Dashboards: each panel's queries over a week, on tables of a hundred million rows. One second each.

BENCH_ROWS sets the rows of each large table, BENCH_TABLES (with commas) which of them: the page keeps the
figures of the others. Rows are made in the engine, seven days of them; tables are filled one after the other,
and dropped. A panel whose least interval is a minute is asked for the whole week; the others, which show
single rows or their own seconds, for the hour that they open with.
"""

import os
import re
import tempfile
import time
from typing import Any

from bench import fill
from bench.common import Row
from bench.pipeline import settings
from fleet import supervise
from fleet.render import dashboard, frame
from fleet.render.variables import expand
from fleet.render.window import Window
from schemas.clickhouse import connect

ROWS = int(os.environ.get("BENCH_ROWS", "100000000"))
WEEK, HOUR = 604_800, 3_600
CHUNK = 5_000_000
# Small by nature; the rows a fleet of hundreds of hosts makes in a week.
SMALL = {"host": 2_000_000, "stack": 20_000, "verdict": 1_000_000, "attack": 2_000, "attack_event": 20_000,
         "oom_kill": 5_000, "overhead_event": 5_000, "applied": 50_000, "lb_event": 100_000,
         "filter_event": 50_000, "probe_event": 50_000, "sink_health": 500_000}  # fmt: skip
ROUNDS = 3


def panels_by_table() -> dict[str, list[tuple[str, dashboard.Panel]]]:
    """The large tables, each with the panels that read it first of all."""
    found: dict[str, list[tuple[str, dashboard.Panel]]] = {}
    for name in dashboard.names():
        for panel in dashboard.load(name).panels:
            named = re.findall(r"\bFROM ([a-z_]+)\b(?!\()", " ".join(panel.queries.values()))
            large = [each for each in named if each in fill.COLUMNS and each not in SMALL]
            if large:
                found.setdefault(large[0], []).append((name, panel))
    return found


def _fill(client: Any, database: str, table: str, rows: int, end: float) -> None:
    """In chunks, as inserts come; then merged, as they are after a while."""
    step = min(rows, CHUNK)
    for at in range(0, rows, step):
        begin = end - WEEK + WEEK * at / rows
        fill.insert(client, database, table, min(step, rows - at), begin, begin + WEEK * step / rows)


def _slowest(client: Any, panel: dashboard.Panel, choices: Any, end: float) -> tuple[float, int]:
    """(seconds of its slowest query at its best of three, rows that it answered)."""
    span = WEEK if panel.least else HOUR
    window = panel.window(Window.of(end - span, end))
    worst, answered = 0.0, 0
    for sql in panel.queries.values():
        text = expand(sql, choices, window) + "\nSETTINGS use_query_condition_cache = 0"
        took = []
        for _ in range(ROUNDS):
            began = time.perf_counter()
            answered = max(answered, frame.ask(client, text).rows)
            took.append(time.perf_counter() - began)
        worst = max(worst, min(took))
    return worst, answered


def run() -> list[Row]:
    """A line a panel."""
    with tempfile.TemporaryDirectory(prefix="bpfleet-bench-") as state:
        chosen = settings(state)
        (store,) = [part for part in supervise.parts_of(chosen) if part.name == "store"]
        try:
            supervise.start([store], lambda text: print(f"  {text}", flush=True))
            return _measure(chosen)
        finally:
            supervise.stop([store], lambda _: None)


def _measure(chosen: Any) -> list[Row]:
    database, end = chosen.clickhouse.database, float(int(time.time()))
    admin = connect(chosen.clickhouse, database="", answer_timeout=3_600)
    fill.make(admin, database)
    for table, rows in SMALL.items():
        _fill(admin, database, table, min(rows, ROWS), end)
    fill.insert(admin, database, "runq_latency", 20_000, end - WEEK, end)  # for the variables
    client = connect(chosen.clickhouse)
    boards = {name: dashboard.load(name) for name in dashboard.names()}
    lines: list[Row] = []
    some = [each for each in os.environ.get("BENCH_TABLES", "").split(",") if each]
    for table, panels in sorted(panels_by_table().items()):
        if some and table not in some:
            continue
        admin.command(f"TRUNCATE TABLE {database}.{table}")
        _fill(admin, database, table, ROWS, end)
        print(f"  {table}: {ROWS:,} rows", flush=True)
        for name, panel in panels:
            window = Window.of(end - HOUR, end)
            choices = boards[name].choices({}, lambda sql: frame.ask(client, sql).first(), window)
            seconds, answered = _slowest(client, panel, choices, end)
            title = (
                f"{table} · {boards[name].title}: {panel.title} ({'a week' if panel.least else 'an hour'})"
            )
            lines.append(
                Row(title, f"{seconds * 1000:.0f} ms, {answered} rows", "", "", "≤ 1 s", seconds <= 1)
            )
            print(f"    {lines[-1].ours:>20}  {title}", flush=True)
        admin.command(f"TRUNCATE TABLE {database}.{table}")
    return lines
