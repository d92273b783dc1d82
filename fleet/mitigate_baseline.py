"""What is usual, for each destination and pattern: the same hour of past days, and the last hour.

It is the rate that all but a twentieth of the time stays below, seconds without a packet included, so that
attacks of the past, which are short, do not become usual. A fleet without history has no baseline: zero, and
the floor of the settings alone decides.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fleet.attacks import ask
from fleet.mitigate_vectors import classified
from fleet.samples import TRAFFIC
from schemas.config import Clickhouse

WINDOW_S = 10
FRESH_WINDOWS = 30  # with less history than five minutes nothing is usual
SHARE = 0.05  # of the time that may be above what is usual
Key = tuple[str, str]  # vector, destination
TIMES = """
ts > toDateTime({now:UInt32} - {days:UInt32} * 86400 - 1800) AND ts < toDateTime({now:UInt32} - {skip:UInt32})
AND (ts > toDateTime({now:UInt32} - 3600)
     OR abs((toInt64({now:UInt32}) - toUnixTimestamp(ts) + 43200) % 86400 - 43200) < 1800)
"""
USUAL = f"""
SELECT vector, target, arrayReverseSort(groupArray(packets))[{{place:UInt32}}] / {WINDOW_S} AS pps FROM (
    SELECT {classified()} AS vector, toString(destination) AS target,
           intDiv(toUnixTimestamp(ts), {WINDOW_S}) AS at, sum(toInt64(weight)) AS packets
    FROM packet_sample WHERE {TIMES} AND {TRAFFIC} AND NOT startsWith(rule, 'mitigate-')
    GROUP BY vector, target, at
) WHERE vector != '' GROUP BY vector, target HAVING pps > 0
"""
WINDOWS = f"SELECT uniqExact(intDiv(toUnixTimestamp(ts), {WINDOW_S})) FROM packet_sample WHERE {TIMES}"


@dataclass(frozen=True)
class Baseline:
    """Packets per second by vector and destination (text, as ClickHouse prints IPv6)."""

    usual: Mapping[Key, float] = field(default_factory=dict)
    windows: int = 0  # of history

    def of(self, vector: str, destination: str) -> float:
        """What is usual; 0 where nothing is."""
        return self.usual.get((vector, destination), 0.0)


def learn(client: Any, config: Clickhouse, days: int, now: int, skip_s: int = 600) -> Baseline:
    """Ask for it; the last ``skip_s`` seconds before ``now`` are left out. Raises :class:`BpfleetError`."""
    times = {"days": days, "skip": skip_s, "now": now}
    rows = ask(client, config, WINDOWS, times)
    windows = int(rows[0][0]) if rows else 0
    if windows < FRESH_WINDOWS:
        return Baseline(windows=windows)
    place = int(windows * SHARE) + 1
    usual = {
        (vector, target): pps for vector, target, pps in ask(client, config, USUAL, times | {"place": place})
    }
    return Baseline(usual, windows)
