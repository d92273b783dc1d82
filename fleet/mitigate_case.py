"""One attack as it is being answered: what is known of it, its rules, and how each of them stands."""

import os
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import IPv6Network
from typing import Any, Literal

from fleet.attacks import ALTERNATIVES, RULE_PREFIX
from fleet.mitigate_distill import Pattern, plain

Stage = Literal["suggested", "shadow", "held", "enforced", "removed", "lapsed"]
SECOND = 1_000_000


@dataclass
class Rule:
    """A rule of ours, and what became of it. Times in µs since 1970."""

    name: str
    vector: str
    pattern: Pattern
    stage: Stage
    published: int  # its current revision
    revision: int = 0
    enforced: int = 0
    heard: set[str] = field(default_factory=set)  # hosts that have applied its current revision
    arrived: bool = False  # all of them have
    expires: int = 0


@dataclass
class Tally:
    """What was counted of an attack so far, in seconds that are over."""

    packets: int = 0
    dropped: int = 0
    after: int = 0
    after_dropped: int = 0
    legitimate: int = 0
    legitimate_lost: int = 0
    peak_pps: int = 0
    peak_bps: int = 0
    first_drop: int = 0
    source_count: int = 0
    sources: str = "{}"
    hosts: set[str] = field(default_factory=set)


@dataclass
class Case:
    """An attack on a target. Its identity is its first second and four random digits."""

    target: IPv6Network
    began: int  # µs
    detected: int
    policy: str
    vectors: list[str] = field(default_factory=list)
    rules: list[Rule] = field(default_factory=list)
    good: list[str] = field(default_factory=list)  # sources known to be legitimate
    tally: Tally = field(default_factory=Tally)
    counted: int = 0  # the last second in the tally
    last_seen: int = 0  # the last second with packets of it
    in_force: int = 0  # µs since when its first rule is on every host
    ended: int = 0
    written: int = 0  # µs of its last record
    id: str = ""

    def __post_init__(self) -> None:
        begin = datetime.fromtimestamp(self.detected / 1e6, UTC)
        self.id = self.id or f"{begin:%Y%m%d-%H%M%S}-{os.urandom(2).hex()}"

    def next_rule(self) -> str:
        """A name for its next rule."""
        return f"{RULE_PREFIX}{self.id}-{len(self.rules) + 1}"

    def row(self, now_us: int) -> dict[str, Any]:
        """Its record: a row of the stream `attack`."""
        tally = self.tally
        return {
            "ts": now_us, "id": self.id, "revision": now_us, "state": "over" if self.ended else "active",
            "target": str(plain(self.target)), "vectors": ", ".join(self.vectors), "began": self.began,
            "detected": self.detected, "ended": self.ended, "first_drop": tally.first_drop,
            "peak_pps": tally.peak_pps, "peak_bps": tally.peak_bps, "packets": tally.packets,
            "dropped": tally.dropped, "after": tally.after, "after_dropped": tally.after_dropped,
            "legitimate": tally.legitimate, "legitimate_lost": tally.legitimate_lost,
            "hosts": ", ".join(sorted(tally.hosts)), "sources": tally.sources,
            "source_count": tally.source_count, "rules": ", ".join(each.name for each in self.rules),
            "expression": ALTERNATIVES.join(f"({each.pattern.expression})" for each in self.rules),
            "policy": self.policy,
        }  # fmt: skip

    def event(self, what: str, now_us: int, rule: Rule | None = None, **more: Any) -> dict[str, Any]:
        """A step: a row of the stream `attack_event`."""
        made = {"ts": now_us, "attack": self.id, "event": what, "target": str(plain(self.target)),
                "after_us": now_us - self.detected, "vector": ", ".join(self.vectors)}  # fmt: skip
        if rule is not None:
            made |= {"rule": rule.name, "vector": rule.vector, "expression": rule.pattern.expression}
        return made | more
