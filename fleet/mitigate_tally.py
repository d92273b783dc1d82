"""Counting an attack while it lasts: its packets, those dropped, and the legitimate ones its rules cost."""

import json
from ipaddress import IPv6Address
from typing import Any

from fleet.attacks import ask
from fleet.mitigate_case import SECOND, Case
from fleet.mitigate_evidence import ends
from fleet.mitigate_vectors import CARPET, RAMP, classified
from schemas.config import Clickhouse
from schemas.rows import address_text

LATE_S = 4  # a second is over when samples of it can no longer come
GOOD = "(established OR has({good:Array(String)}, toString(source)))"
SECONDS = f"""
SELECT second, sum(w * ours), sum(w * (passed AND suspect)), sum(bits * (ours OR passed AND suspect)),
       sum(w * (ours AND good)), sum(w * ((ours OR passed) AND good)), minIf(micros, ours),
       groupUniqArray(host)
FROM (
    SELECT toUnixTimestamp(ts) AS second, toInt64(toUnixTimestamp64Micro(ts)) AS micros, host,
           toInt64(weight) AS w, w * length * 8 AS bits, {GOOD} AS good, slot = 65535 AS passed,
           verdict = 'drop' AND has({{rules:Array(String)}}, rule) AS ours,
           {classified()} AS vector, NOT good AND has({{vectors:Array(String)}}, vector) AS suspect
    FROM packet_sample WHERE ts >= toDateTime({{since:UInt32}}) AND ts < toDateTime({{until:UInt32}})
    AND destination BETWEEN toIPv6({{low:String}}) AND toIPv6({{high:String}})
) GROUP BY second ORDER BY second
"""
SOURCES = """
SELECT toString(source), sum(toInt64(weight)) AS packets FROM packet_sample
WHERE ts >= fromUnixTimestamp64Micro({began:Int64}) AND verdict != 'pass' AND has({rules:Array(String)}, rule)
GROUP BY source ORDER BY packets DESC LIMIT 10
"""
COUNT = """
SELECT uniq(source) FROM packet_sample
WHERE ts >= fromUnixTimestamp64Micro({began:Int64}) AND verdict != 'pass' AND has({rules:Array(String)}, rule)
"""


def count(client: Any, config: Clickhouse, case: Case, now: int) -> None:
    """Take the seconds into the tally that are over. Raises :class:`BpfleetError`."""
    begin, until = max(case.counted + 1, case.began // SECOND), now - LATE_S
    if until <= begin:
        return
    rows = ask(client, config, SECONDS, ends(case.target) | {
        "since": begin, "until": until, "good": case.good, "rules": [each.name for each in case.rules],
        "vectors": [each for each in case.vectors if each not in (CARPET, RAMP)],
    })  # fmt: skip
    for row in rows:
        _add(case, *row)
    case.counted = until - 1


def _add(
    case: Case, second: int, dropped: int, passed: int, bits: int, lost: int, good: int, first: int,
    hosts: list[str],
) -> None:  # fmt: skip
    tally = case.tally
    attack = dropped - lost + passed
    tally.packets += attack
    tally.dropped += dropped - lost
    if case.in_force and second > case.in_force // SECOND:
        tally.after += attack
        tally.after_dropped += dropped - lost
    if any(each.enforced and second >= each.enforced // SECOND for each in case.rules):
        tally.legitimate += good
        tally.legitimate_lost += lost
    tally.peak_pps = max(tally.peak_pps, attack)
    tally.peak_bps = max(tally.peak_bps, bits)
    if dropped:
        tally.first_drop = min(tally.first_drop or first, first)
    if attack:
        case.last_seen = max(case.last_seen, second)
        tally.hosts.update(hosts)


def sources(client: Any, config: Clickhouse, case: Case) -> None:
    """The top sources, and how many there are, by the samples of its rules. Raises :class:`BpfleetError`."""
    asked = {"began": case.began, "rules": [each.name for each in case.rules]}
    rows = ask(client, config, SOURCES, asked)
    case.tally.sources = json.dumps(
        {address_text(IPv6Address(source).packed): packets for source, packets in rows}
    )
    counted = ask(client, config, COUNT, asked)
    case.tally.source_count = int(counted[0][0]) if counted else 0
