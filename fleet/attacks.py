"""Attacks as they are recorded: of each id the newest row, and what belongs to it."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from fleet.samples import Block, Mask, blocks, judge, octets, select, untagged
from schemas.clickhouse import explain
from schemas.config import Clickhouse
from schemas.errors import BpfleetError, UsageError
from schemas.filter_expression import Judge
from schemas.filter_prefixes import contains, networks

TIMES = ("began", "detected", "ended", "first_drop")
MARGIN_US = 2_000_000  # samples just before an attack was noticed, and after its end, are of it
ALTERNATIVES = "\nor\n"  # between the expressions of an attack's rules: each is compiled by itself
RULE_PREFIX = "mitigate-"  # of the rules that `bpfleet mitigate` makes


@dataclass(frozen=True)
class Attack:
    """One attack; times in µs since 1970, 0 for none. The fields are those of the stream `attack`."""

    id: str
    revision: int
    state: str
    target: str
    vectors: str
    began: int
    detected: int
    ended: int
    first_drop: int
    peak_pps: int
    peak_bps: int
    packets: int
    dropped: int
    after: int
    after_dropped: int
    legitimate: int
    legitimate_lost: int
    hosts: str
    sources: str
    source_count: int
    rules: str
    expression: str
    policy: str

    @property
    def share_dropped(self) -> float | None:
        """Of the packets since its rule was in force on every host; None if it never was."""
        return self.after_dropped / self.after if self.after else None

    @property
    def seconds_to_drop(self) -> float | None:
        """From its detection to the first dropped packet."""
        return max(0.0, (self.first_drop - self.detected) / 1e6) if self.first_drop else None

    @property
    def top_sources(self) -> dict[str, int]:
        """Address → estimated packets, most first."""
        return dict(sorted(json.loads(self.sources or "{}").items(), key=lambda each: -each[1]))

    def span(self, now_us: int) -> tuple[int, int]:
        """First and last µs of its samples."""
        return self.began - MARGIN_US, (self.ended or now_us) + MARGIN_US

    def trace(self) -> "Trace | None":
        """What tells its packets; None while nothing describes them."""
        return Trace(self) if self.expression else None


class Trace:
    """Which samples are an attack's: its time, its target, and its expression over the raw bytes."""

    def __init__(self, attack: Attack) -> None:
        self.attack = attack
        self._target = networks([attack.target], attack.id)
        self._judges = [Judge(each) for each in attack.expression.split(ALTERNATIVES)]

    def select(self, block: Block, now_us: int) -> Mask:
        """A mask over the samples."""
        begin, end = self.attack.span(now_us)
        mask: Mask = (block["ts"] >= begin) & (block["ts"] <= end)
        if mask.any():
            mask &= contains(self._target, octets(block, "destination"))
        where = mask.nonzero()[0]
        if len(where):
            part = untagged(block[where])  # what describes it was made of a rule of fields
            mask[where] = np.any([judge(each, part) for each in self._judges], axis=0)
        return mask


NAMES = [each.name for each in fields(Attack)]
_COLUMNS = ", ".join(f"toInt64(toUnixTimestamp64Micro({name}))" if name in TIMES else name for name in NAMES)
LIST = f"""
SELECT {_COLUMNS} FROM (
    SELECT * FROM attack WHERE startsWith(id, {{id:String}}) ORDER BY revision DESC LIMIT 1 BY id
) WHERE ts > now64(6) - toIntervalSecond({{seconds:UInt32}}) OR state = 'active' ORDER BY began
"""
STEPS = """
SELECT ts, event, vector, rule, pps, packets, legitimate, hosts, after_us, expression, reason
FROM attack_event WHERE attack = {id:String} ORDER BY ts
"""


def listed(client: Any, config: Clickhouse, seconds: int, name: str = "") -> list[Attack]:
    """Attacks of the last ``seconds``, oldest first (only those whose id begins with ``name``).

    None while the table is missing: nothing was ever found. Raises :class:`BpfleetError`.
    """
    return [Attack(*row) for row in ask(client, config, LIST, {"seconds": seconds, "id": name})]


def ask(
    client: Any, config: Clickhouse, statement: str, parameters: Mapping[str, Any]
) -> list[tuple[Any, ...]]:
    """Rows of a question; none while its table is not made yet. Raises :class:`BpfleetError`."""
    from clickhouse_connect.driver.exceptions import ClickHouseError

    try:
        rows: list[tuple[Any, ...]] = client.query(statement, parameters=dict(parameters)).result_rows
    except (ClickHouseError, OSError) as error:
        if missing(error):
            return []
        raise explain(error, config) from None
    return rows


def missing(error: Exception) -> bool:
    """Whether a table (or all of them) is not made yet: no collector sent such rows."""
    return any(each in str(error) for each in ("UNKNOWN_TABLE", "UNKNOWN_DATABASE"))


def one(client: Any, config: Clickhouse, name: str) -> Attack:
    """The attack whose id is, or alone begins with, ``name``. Raises :class:`UsageError`."""
    found = listed(client, config, 2**31, name)
    exact = [each for each in found if each.id == name] or found
    if len(exact) != 1:
        what = "there is no attack" if not exact else f"{len(exact)} attacks have ids that begin with"
        raise UsageError(f"{what} {name}; `bpfleet attacks list --since 90d` shows their ids")
    return exact[0]


def samples(client: Any, config: Clickhouse, attack: Attack, now_us: int) -> Iterator[Block]:
    """Its samples in the order of time, dropped and passed. Raises :class:`BpfleetError`."""
    from clickhouse_connect.driver.exceptions import ClickHouseError

    trace = attack.trace()
    if trace is None:
        raise BpfleetError(f"nothing describes attack {attack.id} yet; ask again in a few seconds")
    begin, end = attack.span(now_us)
    where = (
        "ts >= fromUnixTimestamp64Micro({begin:Int64}) AND ts <= fromUnixTimestamp64Micro({end:Int64}) "
        "AND verdict != 'shadow'"
    )
    try:
        for block in blocks(client, select(where, "ORDER BY ts"), {"begin": begin, "end": end}):
            yield block[trace.select(block, now_us)]
    except (ClickHouseError, OSError) as error:
        raise explain(error, config) from None
