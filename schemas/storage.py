"""What a stream's table has beside its columns: filters for needles, rollups for long windows, longer lives.

Declared with the record, checked here: a declaration may come from a topic, and this becomes SQL.
"""

import re
import zlib
from dataclasses import dataclass
from typing import Any

from schemas.errors import UsageError

KEYS = {"ch.bloom", "ch.key", "ch.rollups", "ch.ttl_longer"}
START = re.compile(r"to(?:StartOf(?:Minute|FiveMinutes|Hour|Day)|Date|Hour|Minute)\(ts\)")
SUM = re.compile(r"(\w+)(?: \* (\w+))?")
HISTOGRAM = re.compile(r"sumForEach\((\w+)\)")


@dataclass(frozen=True)
class Rollup:
    """Kept by the engine with each part: counts and sums by a few columns, far fewer rows than the table.

    A query that groups by some of ``by`` and asks for ``count()`` and ``sum`` of ``sums`` reads it instead.
    """

    by: tuple[str, ...]
    sums: tuple[str, ...]  # columns, products of two, or sumForEach(array)


@dataclass(frozen=True)
class Storage:
    """All of it; the default is nothing."""

    bloom: tuple[str, ...] = ()  # columns in which single values are looked for over any time
    rollups: tuple[Rollup, ...] = ()
    longer: tuple[tuple[str, str, int], ...] = ()  # (column, value, days): rows that outlive the others
    key: int = 0  # so many columns of the sort key are in the primary index; 0: all


def parse(record: dict[str, Any], fields: set[str]) -> Storage:
    """From a record's annotations. ``fields``: the columns there are. Raises :class:`UsageError`."""
    bloom = tuple(_texts(record.get("ch.bloom", []), "ch.bloom"))
    for each in bloom:
        _require(each in fields, f"ch.bloom names `{each}`, which is no field")
    rollups = record.get("ch.rollups", [])
    _require(isinstance(rollups, list), "ch.rollups is a list")
    longer = record.get("ch.ttl_longer", {})
    _require(isinstance(longer, dict) and all(isinstance(each, dict) for each in longer.values()),
             "ch.ttl_longer is {column: {value: days}}")  # fmt: skip
    lives = tuple((column, value, days) for column, of in longer.items() for value, days in of.items())
    for column, value, days in lives:
        _require(column in fields, f"ch.ttl_longer names `{column}`, which is no field")
        _require(bool(re.fullmatch(r"[\w-]*", value)), f"ch.ttl_longer: `{value}` is not a plain value")
        _require(isinstance(days, int) and 0 < days <= 36_500, "ch.ttl_longer: days are a number")
    key = record.get("ch.key", 0)
    _require(type(key) is int and 0 <= key <= len(record.get("ch.order", ())), "ch.key is a part of ch.order")
    return Storage(bloom, tuple(_rollup(each, fields) for each in rollups), lives, key)


def _rollup(tree: Any, fields: set[str]) -> Rollup:
    _require(isinstance(tree, dict) and set(tree) <= {"by", "sums"}, "a rollup has `by` and `sums`")
    by, sums = _texts(tree.get("by"), "by"), _texts(tree.get("sums", []), "sums")
    for each in by:
        _require(each in {*fields, "host"} or bool(START.fullmatch(each)), f"a rollup by `{each}`: no field")
    for each in sums:
        match = SUM.fullmatch(each) or HISTOGRAM.fullmatch(each)
        names = {name for name in match.groups() if name} if match else {each}
        _require(names <= fields, f"a rollup's sum `{each}`: a field, or the product of two")
    return Rollup(tuple(by), tuple(sums))


def _texts(tree: Any, what: str) -> list[str]:
    _require(
        isinstance(tree, list) and all(isinstance(each, str) for each in tree), f"{what} is a list of text"
    )
    return list(tree)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UsageError(message)


def definitions(storage: Storage) -> list[tuple[str, str]]:
    """``INDEX`` or ``PROJECTION``, and its definition, as ``CREATE`` and ``ALTER TABLE … ADD`` take them.

    A rollup is named by what it says, so that a changed one is another one beside the old.
    """
    made = [
        ("INDEX", f"bloom_{name} `{name}` TYPE bloom_filter(0.01) GRANULARITY 1") for name in storage.bloom
    ]
    for each in storage.rollups:
        by = ", ".join(each.by)
        query = f"SELECT {by}, count(){''.join(f', {_sum(one)}' for one in each.sums)} GROUP BY {by}"
        made.append(("PROJECTION", f"rollup_{zlib.crc32(query.encode()):08x} ({query})"))
    return made


def ours(name: str) -> bool:
    """Whether an index or projection of that name came from a declaration, of now or of an older version."""
    return name.startswith(("bloom_", "rollup_"))


def _sum(expression: str) -> str:
    return expression if HISTOGRAM.fullmatch(expression) else f"sum({expression})"


def life(storage: Storage, days: int, cold: tuple[str, int] | None = None) -> str:
    """The table's TTL: when rows go; ``cold``: the volume that parts move to, and after how many days."""
    moved = f", toDateTime(ts) + INTERVAL {cold[1]} DAY TO VOLUME '{cold[0]}'" if cold else ""
    if not storage.longer:
        return f"TTL toDateTime(ts) + INTERVAL {days} DAY{moved}"
    cases = ", ".join(f"`{column}` = '{value}', {longer}" for column, value, longer in storage.longer)
    return f"TTL toDateTime(ts) + toIntervalDay(multiIf({cases}, {days})){moved}"
