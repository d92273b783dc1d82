"""The samples that a finding is judged by: what it is made of, what else its target gets and got."""

from dataclasses import dataclass
from ipaddress import IPv6Network
from typing import Any

import numpy as np

from fleet.attacks import ask, listed
from fleet.mitigate_vectors import classified
from fleet.samples import RECORD, Block, read, untagged
from schemas.config import Clickhouse

MOST, MOST_OTHERS, ENOUGH = 6_000, 24_000, 1_000  # samples
MINUTE, HOUR, NOON, DAY = 60, 3600, 43_200, 86_400
WINDOW = 10  # seconds
TARGET = "destination BETWEEN toIPv6({low:String}) AND toIPv6({high:String}) AND slot = 65535"
# Of a large fleet's samples, those of some sources: a source's flows stay whole.
FEW = "cityHash64(source) % {every:UInt32} = 0"
SINCE = "ts >= fromUnixTimestamp64Micro({since:Int64})"
SOME = f"{TARGET} AND {SINCE} AND {FEW} AND {classified()} = {{vector:String}}"
OTHERS = f"{TARGET} AND {SINCE} AND {FEW} AND {classified()} != {{vector:String}}"
BEFORE = f"""
{TARGET} AND ts < fromUnixTimestamp64Micro({{before:Int64}})
AND (ts > fromUnixTimestamp64Micro({{before:Int64}} - {HOUR}000000)
     OR ts > fromUnixTimestamp64Micro({{before:Int64}} - {{days:Int64}} * {DAY}000000)
        AND abs(({{before:Int64}} / 1000000 - toUnixTimestamp(ts) + {NOON}) % {DAY} - {NOON}) < {HOUR // 2})
"""
NEWEST = "ORDER BY ts DESC LIMIT "
HISTORY = f"""
SELECT intDiv(toUnixTimestamp(ts), {WINDOW}) AS at, sum(toInt64(weight)) / {WINDOW} FROM packet_sample
WHERE ts > toDateTime({{since:UInt32}} - {HOUR}) AND ts < toDateTime({{since:UInt32}}) AND {TARGET}
AND {classified()} = {{vector:String}} GROUP BY at
"""
FIRST = f"""
SELECT count(), min(toUnixTimestamp(ts)) FROM packet_sample
WHERE ts > toDateTime({{since:UInt32}} - {HOUR}) AND ts < toDateTime({{since:UInt32}})
"""


@dataclass(frozen=True)
class Evidence:
    """Samples around a finding; none of them was dropped. Frames have lost their VLAN tags."""

    some: Block  # of its vector
    others: Block  # of the last minute, not of its vector
    before: Block  # of its target, from before it began; known attacks are left out


def ends(target: IPv6Network) -> dict[str, str]:
    """The parameters that name a target."""
    return {"low": str(target.network_address), "high": str(target.broadcast_address)}


def began(
    client: Any, config: Clickhouse, vector: str, target: IPv6Network, since: int, pps: float
) -> int | None:
    """Since when (seconds since 1970) a target has got ``pps`` of a vector without a pause.

    None when that is longer than there are samples, or than an hour: nobody saw it begin.
    """
    counted, first = ask(client, config, FIRST, {"since": since})[0]
    if not counted:
        return None
    rows = ask(client, config, HISTORY, ends(target) | {"vector": vector, "since": since})
    rates = {int(at): float(rate) for at, rate in rows}
    at = (since - 1) // WINDOW
    # The window in which it began has but a part of it; a pause of one window may be an attack's own.
    while max(rates.get(at, 0.0), rates.get(at - 1, 0.0)) >= pps:
        at -= 1
    return (at + 1) * WINDOW if at > int(first) // WINDOW + 1 else None


def gather(
    client: Any, config: Clickhouse, vector: str, target: IPv6Network, since_us: int, began_us: int | None,
    now_us: int, days: int, every: int = 1,
) -> Evidence:  # fmt: skip
    """Ask for them: of the vector since ``since_us``, one source in ``every``. Raises what the driver raises.

    ``began_us`` None: nobody saw it begin, so nothing is known to be from before.
    """
    named = ends(target) | {"vector": vector, "every": every}
    some = read(client, SOME, named | {"since": since_us}, f"{NEWEST}{MOST}")
    if every > 1 and len(some) < ENOUGH:  # of few sources
        return gather(client, config, vector, target, since_us, began_us, now_us, days)
    others = read(client, OTHERS, named | {"since": now_us - MINUTE * 1_000_000}, f"{NEWEST}{MOST_OTHERS}")
    before = np.empty(0, RECORD)
    if began_us is not None:
        asked = ends(target) | {"before": began_us - 15_000_000, "days": days}
        before = read(client, BEFORE, asked, f"LIMIT {MOST}")
    known = np.zeros(len(before), bool)
    for attack in listed(client, config, days * DAY):
        trace = attack.trace()
        if trace is not None and len(before):
            known |= trace.select(before, now_us)
    return Evidence(untagged(some), untagged(others), untagged(before[~known]))
