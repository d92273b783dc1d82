"""A probe's results from SQL: one question for each kind of value, and a table for people."""

import json
from dataclasses import dataclass
from typing import Any

from schemas.probe_spec import Checked

COLUMN = {"kstack": "kernel_stack", "ustack": "user_stack"}
BARS = " ▏▎▍▌▋▊▉█"
LATEST_FRAMES = 4  # of a stack in a table: the innermost


@dataclass(frozen=True)
class Question:
    """SQL with its parameters, and what to call the columns."""

    sql: str
    parameters: dict[str, Any]


def question(
    checked: Checked, probe: str, revision: int, since_s: float, limit: int, by_host: bool
) -> Question:
    """What to ask for the results of a probe (revision 0: of all its revisions)."""
    parameters = {"probe": probe, "revision": revision, "since": since_s, "limit": limit}
    where = "probe = {probe:String} AND ts > now64(6) - {since:Float64}"
    if revision:
        where += " AND revision = {revision:Int64}"
    keys = (["host"] if by_host else []) + _keys(checked)
    names = ", ".join(keys)
    if checked.value == "event":
        order = f"SELECT ts, {names or 'host'}, count AS weight FROM probe_result WHERE {where}"
        return Question(
            f"SELECT * FROM ({order} ORDER BY ts DESC LIMIT {{limit:UInt32}}) ORDER BY ts", parameters
        )
    comma = f"{names}, " if names else ""
    group = "GROUP BY ALL" if names else ""
    if checked.value in ("log2", "linear"):
        columns = f"{comma}bucket_from, bucket_to, sum(count) AS times"
        sql = f"SELECT {columns} FROM probe_result WHERE {where} GROUP BY ALL ORDER BY {comma}bucket_from"
        return Question(f"{sql} LIMIT {{limit:UInt32}}", parameters)
    if checked.value == "outstanding":
        latest = (
            "argMax(sum, ts) AS bytes, argMax(error, ts) AS give_or_take, argMax(count, ts) AS allocations"
        )
        sql = f"SELECT {comma}{latest} FROM probe_result WHERE {where} {group} ORDER BY bytes DESC"
        return Question(f"{sql} LIMIT {{limit:UInt32}}", parameters)
    more = ", sum(sum) AS total" if checked.value == "sum" else ""
    sql = f"SELECT {comma}sum(count) AS times{more} FROM probe_result WHERE {where} {group}"
    order = "total" if more else "times"
    return Question(f"{sql} ORDER BY {order} DESC LIMIT {{limit:UInt32}}", parameters)


def _keys(checked: Checked) -> list[str]:
    found, number = [], 0
    for key in checked.keys:
        if key.standard:
            name = getattr(key.tree, "name", "")
            found.append(_stack(COLUMN[name]) if name in COLUMN else name)
        else:
            number += 1
            found.append(f"key{number} AS `{key.name}`")
    return found


def _stack(column: str) -> str:
    """The innermost frames; the hash while the stack is not known yet."""
    return f"{column}"


def frames(client: Any, hashes: set[int]) -> dict[int, str]:
    """Stacks by their hash: the innermost frames, leaf first; unknown ones are left out."""
    if not hashes:
        return {}
    known = client.query(
        "SELECT stack, any(frames) FROM stack WHERE stack IN {hashes:Array(UInt64)} GROUP BY stack",
        parameters={"hashes": sorted(hashes)},
    ).result_rows
    return {number: " ← ".join(text.split(";")[::-1][:LATEST_FRAMES]) for number, text in known}


@dataclass
class Results:
    """An answer of the store."""

    names: list[str]
    rows: list[tuple[Any, ...]]


def ask(client: Any, asked: Question) -> Results:
    """The results now, with stacks by their frames; none while there is no table yet."""
    from clickhouse_connect.driver.exceptions import DatabaseError

    try:
        answer = client.query(asked.sql, parameters=asked.parameters)
        names, rows = list(answer.column_names), list(answer.result_rows)
        places = [n for n, name in enumerate(names) if name in COLUMN.values()]
        known = frames(client, {row[n] for row in rows for n in places if row[n]})
    except DatabaseError as error:
        if "UNKNOWN_TABLE" in str(error):
            return Results([], [])
        raise
    rows = [
        tuple(
            known.get(value, f"{value:016x}" if value else "") if n in places else value
            for n, value in enumerate(row)
        )
        for row in rows
    ]
    return Results(names, rows)


def as_json(results: Results) -> list[str]:
    """One object a row."""
    return [
        json.dumps(dict(zip(results.names, row, strict=True)), default=str, ensure_ascii=False)
        for row in results.rows
    ]


def as_table(results: Results) -> Any:
    """A rich table; histograms get bars."""
    from fleet.sql import table

    if "bucket_from" not in results.names:
        return table(results.names, results.rows)
    keys = len(results.names) - 3
    largest = max((row[-1] for row in results.rows), default=1)
    rows = [
        (*row[:keys], _range(row[keys], row[keys + 1]), row[-1], bar(row[-1] / largest))
        for row in results.rows
    ]
    return table([*results.names[:keys], "from … to", "times", ""], rows)


def bar(share: float, width: int = 30) -> str:
    """A bar of that share of its full width."""
    eighths = round(share * width * 8)
    return "█" * (eighths // 8) + BARS[eighths % 8].strip()


def _range(low: int, high: int) -> str:
    if low <= -(1 << 62):
        return f"up to {short(high)}"
    if high >= 1 << 62:
        return f"{short(low)} and more"
    return short(low) if low == high else f"{short(low)} … {short(high)}"


def short(value: int) -> str:
    """``1536`` as ``1.54 k``."""
    size, unit = float(value), ""
    for unit in ("", " k", " M", " G", " T"):
        if abs(size) < 1000 or unit == " T":
            break
        size /= 1000
    return f"{size:.3g}{unit}"
