"""Who gets more than usual: rates by pattern and destination, over all hosts together, second by second.

Three tests, on the sums of all hosts: one second above the threshold; a sum of small excesses (a slow ramp,
which no single second betrays); a prefix whose addresses together are above it (carpet bombing).
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv6Address, IPv6Network
from typing import Any

from fleet.attacks import ask
from fleet.mitigate_baseline import FRESH_WINDOWS, Baseline, Key
from fleet.mitigate_vectors import CARPET, RAMP, classified
from fleet.samples import TRAFFIC
from schemas.config import Clickhouse, Mitigate

REREAD_S = 8  # how late samples may come, behind those of other hosts
LAG_S = 30  # how far all of them may be behind, when the sink is
KEPT_S = 120
SAMPLES = 12  # fewer prove nothing
LEVELS = {4: (24, 20, 16), 6: (64, 56, 48)}  # prefixes that are summed up
SPREAD = 4  # addresses of a prefix, at least
PATIENCE = 8  # × floor: what small excesses may add up to
QUESTION = f"""
SELECT vector, toString(destination) AS target, toUnixTimestamp(ts) AS second,
       sum(toInt64(weight)) AS packets, count() AS samples,
       sumIf(toInt64(weight), verdict = 'drop' AND startsWith(rule, 'mitigate-')) AS answered
FROM (SELECT *, {classified()} AS vector FROM packet_sample
      WHERE ts >= toDateTime({{since:UInt32}}) AND ts <= toDateTime({{now:UInt32}} + 2) AND {TRAFFIC})
WHERE vector != '' GROUP BY vector, target, second
"""
NEWEST = """
SELECT max(toUnixTimestamp(ts)) FROM packet_sample
WHERE ts >= toDateTime({since:UInt32}) AND ts <= toDateTime({now:UInt32} + 2)
"""


@dataclass
class Series:
    """Unanswered packets of one vector to one destination: by second, with the samples they come from."""

    packets: dict[int, int] = field(default_factory=dict)
    samples: dict[int, int] = field(default_factory=dict)
    excess: float = 0.0  # what was above a little more than usual, summed up
    since: int = 0  # since when the sum has not been zero
    counted: int = 0  # the last second in the sum


@dataclass(frozen=True)
class Finding:
    """Too much of something, to somebody; whether it is an attack is not said yet."""

    vector: str
    target: IPv6Network  # IPv4 mapped
    since: int  # seconds since 1970
    pps: int
    shapes: tuple[str, ...] = ()  # carpet bombing, slow ramp
    samples: int = 0  # that it comes from


class Watch:
    """The series of the last two minutes. For one thread."""

    def __init__(self, settings: Mitigate) -> None:
        self._settings = settings
        self.baseline = Baseline()
        self.series: dict[Key, Series] = defaultdict(Series)
        # The second that is now in the store: the fleet's clock, as far as samples have come.
        self.present = 0
        self.first = 0  # the first second that was looked at

    def read(self, client: Any, config: Clickhouse, now: int) -> None:
        """Take in what is stored now; the last seconds are read again. Raises :class:`BpfleetError`."""
        newest = ask(client, config, NEWEST, {"since": now - LAG_S, "now": now})
        latest = int(newest[0][0]) if newest else 0
        since = (self.present or now) - REREAD_S
        self.first = self.first or since
        self.present = max(self.present, min(now, latest or now), now - LAG_S)
        rows = ask(client, config, QUESTION, {"since": since, "now": now})
        for each in self.series.values():
            for second in [at for at in each.packets if at >= since or at < now - KEPT_S]:
                del each.packets[second], each.samples[second]
        for vector, target, second, packets, samples, answered in rows:
            series = self.series[vector, target]
            series.packets[second] = int(packets) - int(answered)
            series.samples[second] = int(samples)
        for key in [key for key, each in self.series.items() if not each.packets and not each.excess]:
            del self.series[key]

    def findings(self) -> list[Finding]:
        """Whatever is above what is usual at present, worst first."""
        now = self.present
        seen: set[Key] = set()
        found = list(self._prefixes(now, seen))
        for key, series in self.series.items():
            single = self._single(key, series, now)
            if single and key not in seen:
                found.append(single)
        return sorted(found, key=lambda each: -each.pps)

    def threshold(self, usual: float) -> float:
        """Packets per second that are too many."""
        return max(float(self._settings.floor_pps), self._settings.factor * usual)

    def _single(self, key: Key, series: Series, now: int) -> Finding | None:
        vector, destination = key
        usual = self.baseline.of(vector, destination)
        threshold = self.threshold(usual)
        self._sum_up(series, 1.5 * usual + self._settings.floor_pps / 5, now)
        second, pps = _worst(series.packets, now)
        enough = sum(series.samples.get(at, 0) for at in range(now - 4, now + 2)) >= SAMPLES
        target = IPv6Network(IPv6Address(destination))
        if pps >= threshold and enough:
            ramp = bool(series.since) and second - series.since > 10
            begin = series.since if ramp else _begin(series.packets, second, rising(threshold, pps))
            return Finding(vector, target, begin, pps, (RAMP,) * ramp, _since(series, begin))
        if series.excess >= PATIENCE * threshold and enough:
            return Finding(vector, target, series.since, pps, (RAMP,), _since(series, series.since))
        return None

    def _sum_up(self, series: Series, level: float, now: int) -> None:
        """Take finished seconds into the sum of excesses, which forgets what was answered since."""
        begin = max(series.counted + 1, now - KEPT_S)
        for second in range(begin, now - 2):
            before = series.excess
            series.excess = max(0.0, before + series.packets.get(second, 0) - level)
            if series.excess and not before:
                series.since = second
        if not series.excess:
            series.since = 0
        series.counted = max(series.counted, now - 3)

    def _prefixes(self, now: int, seen: set[Key]) -> Iterator[Finding]:
        """Carpets, the narrowest prefixes first; their keys go into ``seen``."""
        groups: dict[tuple[int, str, IPv6Network], list[Key]] = defaultdict(list)
        # Without history nobody knows what is usual for thousands of hosts together.
        depth = len(LEVELS[4]) if self.baseline.windows >= FRESH_WINDOWS else 1
        for key in self.series:
            address = IPv6Address(key[1])
            mapped = address.ipv4_mapped is not None
            for level in LEVELS[4 if mapped else 6][:depth]:
                length = 96 + level if mapped else level
                groups[-length, key[0], IPv6Network((address, length), strict=False)].append(key)
        for (_, vector, prefix), keys in sorted(groups.items(), key=lambda each: each[0]):
            left = [key for key in keys if key not in seen]
            finding = self._prefix(vector, prefix, left, now) if len(left) >= SPREAD else None
            if finding:
                seen.update(left)
                yield finding

    def _prefix(self, vector: str, prefix: IPv6Network, keys: list[Key], now: int) -> Finding | None:
        total: dict[int, int] = defaultdict(int)
        samples, usual, recent = 0, 0.0, []
        for key in keys:
            series = self.series[key]
            lately = {at: packets for at, packets in series.packets.items() if at > now - 5 and packets > 0}
            recent.append(sum(lately.values()))
            samples += sum(series.samples[at] for at in lately)
            usual += self.baseline.of(*key)
            for at, packets in series.packets.items():
                total[at] += packets
        second, pps = _worst(total, now)
        spread = sum(each > 0 for each in recent)
        if (
            pps < self.threshold(usual)
            or spread < SPREAD
            or samples < SAMPLES
            or max(recent) > sum(recent) / 2
        ):
            return None
        begin = _begin(total, second, rising(self.threshold(usual), pps))
        shapes = (CARPET,) + (RAMP,) * (second - begin > 20)
        return Finding(
            vector, prefix, begin, pps, shapes, sum(_since(self.series[each], begin) for each in keys)
        )


def _since(series: Series, begin: int) -> int:
    """Samples from a second on."""
    return sum(count for at, count in series.samples.items() if at >= begin)


def _worst(packets: Mapping[int, int], now: int) -> tuple[int, int]:
    """The worst of the last seconds, and its packets."""
    return max(((at, packets.get(at, 0)) for at in range(now - 3, now + 2)), key=lambda each: each[1])


def rising(threshold: float, pps: float) -> float:
    """Packets per second above which what came before a peak belongs to it; below, it is what was there."""
    return max(threshold / 4, pps / 8)


def _begin(packets: Mapping[int, int], second: int, level: float) -> int:
    """The first second of those before ``second`` that were above a level without a pause."""
    while packets.get(second - 1, 0) > level:
        second -= 1
    return second
