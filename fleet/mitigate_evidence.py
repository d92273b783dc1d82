"""The samples that a finding is judged by: what it is made of, what else its target gets and got."""

from dataclasses import dataclass
from ipaddress import IPv6Network
from typing import Any

import numpy as np

from fleet.attacks import listed
from fleet.mitigate_vectors import classified
from fleet.samples import Block, read
from schemas.config import Clickhouse

MOST, MOST_OTHERS = 6_000, 12_000  # samples
MINUTE, HOUR, NOON, DAY = 60, 3600, 43_200, 86_400
TARGET = "destination BETWEEN toIPv6({low:String}) AND toIPv6({high:String}) AND slot = 65535"
SOME = f"{TARGET} AND ts >= fromUnixTimestamp64Micro({{since:Int64}}) AND {classified()} = {{vector:String}}"
OTHERS = (
    f"{TARGET} AND ts >= fromUnixTimestamp64Micro({{since:Int64}}) AND {classified()} != {{vector:String}}"
)
BEFORE = f"""
{TARGET} AND ts < fromUnixTimestamp64Micro({{before:Int64}})
AND (ts > fromUnixTimestamp64Micro({{before:Int64}} - {HOUR}000000)
     OR ts > fromUnixTimestamp64Micro({{before:Int64}} - {{days:Int64}} * {DAY}000000)
        AND abs(({{before:Int64}} / 1000000 - toUnixTimestamp(ts) + {NOON}) % {DAY} - {NOON}) < {HOUR // 2})
"""
NEWEST = "ORDER BY ts DESC LIMIT "


@dataclass(frozen=True)
class Evidence:
    """Samples around a finding; none of them was dropped."""

    some: Block  # of its vector
    others: Block  # of the last minute, not of its vector
    before: Block  # of its target, from before it began; known attacks are left out


def ends(target: IPv6Network) -> dict[str, str]:
    """The parameters that name a target."""
    return {"low": str(target.network_address), "high": str(target.broadcast_address)}


def gather(
    client: Any, config: Clickhouse, vector: str, target: IPv6Network, since_us: int, began_us: int,
    now_us: int, days: int,
) -> Evidence:  # fmt: skip
    """Ask for them: of the vector since ``since_us``. Raises what the driver raises."""
    named = ends(target) | {"vector": vector}
    some = read(client, SOME, named | {"since": since_us}, f"{NEWEST}{MOST}")
    others = read(client, OTHERS, named | {"since": now_us - MINUTE * 1_000_000}, f"{NEWEST}{MOST_OTHERS}")
    before = read(
        client, BEFORE, ends(target) | {"before": began_us - 15_000_000, "days": days}, f"LIMIT {MOST}"
    )
    known = np.zeros(len(before), bool)
    for attack in listed(client, config, days * DAY):
        trace = attack.trace()
        if trace is not None and len(before):
            known |= trace.select(before, now_us)
    return Evidence(some, others, before[~known])
