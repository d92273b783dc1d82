"""What an expression would have dropped in the past: stored samples through libpcap.

Attack and legitimate traffic apart: a sample is of an attack when it lies in a recorded attack's time and
target and matches what describes that attack. All else counts as legitimate: an attack that nobody recorded
does too, so the answer errs on the side of caution. Sums of weights estimate packets (docs/filter.md).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleet.attacks import Trace, ask, listed, missing
from fleet.backtest_where import prefilter
from fleet.samples import TRAFFIC, Block, blocks, judge, select
from schemas.clickhouse import explain
from schemas.config import Clickhouse
from schemas.desired import now_us
from schemas.filter_expression import Judge
from schemas.rows import address_text

SECOND = 1_000_000
TOTALS = f"""
SELECT count(), toInt64(sum(weight)), toInt64(sum(toInt64(weight) * length)), uniqExact(host)
FROM packet_sample WHERE ts > fromUnixTimestamp64Micro({{begin:Int64}}) AND {TRAFFIC}
"""

# Address sets as they were published last (docs/desired-state.md).
SETS = """
SELECT spec FROM (SELECT * FROM desired WHERE kind = 'filter' ORDER BY revision DESC LIMIT 1 BY id)
WHERE NOT deleted AND (expires < toDateTime64('1971-01-01', 6) OR expires > now64(6))
AND JSONHas(spec, 'set')
"""


def published_sets(client: Any, config: Clickhouse) -> dict[str, list[str]]:
    """The fleet's address sets, from the audit trail. Raises :class:`BpfleetError`."""
    found: dict[str, list[str]] = {}
    for (text,) in ask(client, config, SETS, {}):
        made = json.loads(text)["set"]
        found.setdefault(made["name"], []).extend(made["prefixes"])
    return found


@dataclass
class Part:
    """Samples of one sort that the expression matched."""

    samples: int = 0
    packets: int = 0
    volume: int = 0  # bytes
    error2: float = 0.0  # sum of squared weights: the variance of `packets`
    seconds: dict[int, int] = field(default_factory=dict)  # second → estimated packets
    hosts: dict[int, int] = field(default_factory=dict)  # hash of the host's name → packets
    sources: dict[bytes, int] = field(default_factory=dict)
    destinations: dict[bytes, int] = field(default_factory=dict)

    def add(self, block: Block) -> None:
        """Count samples in."""
        if not len(block):
            return
        weight = block["weight"].astype(np.int64)
        self.samples += len(block)
        self.packets += int(weight.sum())
        self.volume += int((weight * block["length"]).sum())
        self.error2 += float((weight.astype(np.float64) * (weight - 1)).sum())
        _count(self.seconds, block["ts"] // SECOND, weight)
        _count(self.hosts, block["host"], weight)
        _count(self.sources, block["source"], weight)
        _count(self.destinations, block["destination"], weight)

    @property
    def peak_pps(self) -> int:
        """Estimated packets in the worst second."""
        return max(self.seconds.values(), default=0)

    @property
    def mean_pps(self) -> float:
        """Estimated packets per second, over the seconds that had any."""
        return self.packets / len(self.seconds) if self.seconds else 0.0

    def top(self, which: str, most: int = 5) -> dict[str, int]:
        """The busiest `sources` or `destinations`: address → packets."""
        found: dict[bytes, int] = getattr(self, which)
        ordered = sorted(found.items(), key=lambda each: -each[1])[:most]
        return {address_text(raw.ljust(16, b"\0")): packets for raw, packets in ordered}


@dataclass
class Result:
    """The answer. ``examined`` of ``samples`` were judged by libpcap; SQL could rule the others out."""

    expression: str
    begin: int  # µs
    end: int
    samples: int
    packets: int
    volume: int  # bytes
    hosts: int
    examined: int = 0
    attack: Part = field(default_factory=Part)
    legitimate: Part = field(default_factory=Part)
    attacks: dict[str, int] = field(default_factory=dict)  # id → packets of it that match

    @property
    def legitimate_share(self) -> float:
        """Of all traffic that is not known as attack, the share that would be dropped."""
        rest = self.packets - self.attack.packets
        return self.legitimate.packets / rest if rest > 0 else 0.0


def backtest(
    client: Any, config: Clickhouse, expression: str, seconds: int,
    sets: Mapping[str, Sequence[str]] | None = None, progress: Callable[[int], None] = lambda _: None,
) -> Result:  # fmt: skip
    """Run an expression over the last ``seconds`` of the whole fleet.

    ``sets``: prefixes by name, else the fleet's own. ``progress`` hears how many samples were judged so far.
    Raises :class:`UsageError` for an expression that makes no sense, :class:`BpfleetError` when ClickHouse
    does not answer.
    """
    from clickhouse_connect.driver.exceptions import ClickHouseError

    named = dict(sets or {})
    if "@" in expression:
        named = published_sets(client, config) | named
    compiled = Judge(expression, named)
    end = now_us()
    begin = end - seconds * SECOND
    traces = [each for each in (one.trace() for one in listed(client, config, seconds)) if each]
    guard, parameters = prefilter(expression)
    where = f"ts > fromUnixTimestamp64Micro({{begin:Int64}}) AND {TRAFFIC} AND {guard}"
    try:
        totals = client.query(TOTALS, parameters={"begin": begin}).result_rows[0]
        result = Result(expression, begin, end, *totals)
        for block in blocks(client, select(where), parameters | {"begin": begin}):
            result.examined += len(block)
            _judge(result, block[judge(compiled, block)], traces, end)
            progress(result.examined)
    except (ClickHouseError, OSError) as error:
        if missing(error):
            return Result(expression, begin, end, 0, 0, 0, 0)
        raise explain(error, config) from None
    return result


def _judge(result: Result, matched: Block, traces: Sequence[Trace], end: int) -> None:
    known = np.zeros(len(matched), bool)
    for trace in traces:
        mine = trace.select(matched, end) & ~known
        if mine.any():
            name = trace.attack.id
            result.attacks[name] = result.attacks.get(name, 0) + int(matched["weight"][mine].sum())
            known |= mine
    result.attack.add(matched[known])
    result.legitimate.add(matched[~known])


def _count(into: dict[Any, int], keys: NDArray[Any], weight: NDArray[np.int64]) -> None:
    values, index = np.unique(keys, return_inverse=True)
    sums = np.bincount(index, weights=weight)
    for value, packets in zip(values.tolist(), sums.tolist(), strict=True):
        into[value] = into.get(value, 0) + int(packets)
