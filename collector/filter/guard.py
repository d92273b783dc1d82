"""Guards against rules that hit who they should not: before a rule is enforced, and while it is.

What surely is legitimate are frames of connections that this host's own sockets have established (no
spoofed address is among them). A rule that would drop more than :data:`SHARE` of them, by the samples of the
last minute, is held in shadow. One that is enforced and drops such frames, by exact counters, is put back
into shadow.
"""

import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collector.filter.figures import Figures
from collector.filter.language import Rule
from collector.filter.layout import NO_RULE
from schemas.filter import expression_of
from schemas.filter_expression import Judge

SHARE = 0.1  # of established connections' traffic
MEMORY_S, MEMORY_ROWS = 60.0, 20_000
ENOUGH = 20  # samples of established connections: fewer say nothing
LOOK_S = 5.0  # how far back losses of an enforced rule are summed
LOST_FRAMES, LOST_SHARE = 3, 0.01  # so many, and so much of what it drops: it hits connections

Events = NDArray[Any]


@dataclass(frozen=True)
class Verdict:
    """Why a rule should not be enforced, and by how many samples."""

    reason: str
    samples: int
    share: float


class Guard:
    """Remembers what passed lately. For one thread at a time."""

    def __init__(self) -> None:
        self._passed: deque[tuple[float, Events]] = deque()
        self._rows = 0
        self._counted: deque[tuple[float, Mapping[str, Figures]]] = deque()

    def take(self, events: Events) -> None:
        """Samples that came in."""
        passed = events[events["slot"] == NO_RULE]
        if len(passed):
            self._passed.append((time.monotonic(), passed))
            self._rows += len(passed)
        oldest = time.monotonic() - MEMORY_S
        while self._passed and (self._rows > MEMORY_ROWS or self._passed[0][0] < oldest):
            self._rows -= len(self._passed.popleft()[1])

    def before(self, rule: Rule, sets: Mapping[str, NDArray[Any]]) -> Verdict | None:
        """What speaks against enforcing a rule that drops or limits; None: nothing does."""
        events = self._established(MEMORY_S)
        if len(events) < ENOUGH:
            return None
        hit = Judge(expression_of(rule), sets).select(
            events["raw"], events["captured"], events["length"], events["source"], events["destination"],
            np.ones(len(events), np.bool_),
        )  # fmt: skip
        weights = events["weight"].astype(np.int64)
        share = float(weights[hit].sum() / weights.sum())
        if share <= SHARE:
            return None
        reason = f"held in shadow: it would drop {share:.0%} of the traffic of established connections"
        return Verdict(f"{reason}; narrow it, or publish it with --force", len(events), share)

    def during(self, rules: Iterable[Rule], counted: Mapping[str, Figures]) -> dict[str, Verdict]:
        """Rules among these, all enforced, that drop frames of established connections."""
        now = time.monotonic()
        before = self._counted[0][1] if self._counted else counted
        self._counted.append((now, counted))
        while self._counted[0][0] < now - LOOK_S:
            self._counted.popleft()
        passed = int(self._established(LOOK_S)["weight"].sum(dtype=np.int64)) if self._passed else 0
        found = {}
        for rule in rules:
            lost, dropped = _gained(rule.id, before, counted)
            share = lost / max(1, lost + passed)
            if lost >= LOST_FRAMES and (lost > LOST_SHARE * dropped or share > SHARE):
                reason = (
                    f"put back into shadow: {lost} of the {dropped} frames it dropped within {LOOK_S:.0f} s "
                    "were of established connections; narrow it, or publish it with --force"
                )
                found[rule.id] = Verdict(reason, dropped, lost / max(1, dropped))
        return found

    def _established(self, seconds: float) -> Events:
        oldest = time.monotonic() - seconds
        recent = [each[each["established"] != 0] for at, each in self._passed if at >= oldest]
        if not recent:
            return np.empty(0, self._passed[0][1].dtype if self._passed else np.dtype([("weight", "<u4")]))
        return np.concatenate(recent)


def _gained(name: str, before: Mapping[str, Figures], now: Mapping[str, Figures]) -> tuple[int, int]:
    """(frames of connections, frames) that a rule dropped between the two."""
    if name not in before or name not in now or now[name].packets[1] < before[name].packets[1]:
        return 0, 0
    lost = now[name].established - before[name].established
    return max(0, lost), now[name].packets[1] - before[name].packets[1]
