"""The overhead budget: what bpfleet costs this host, and what is done when it costs too much.

The cost of an interval is the run time of all programs (BPF statistics) plus the CPU time of the collector's
own process, of all CPUs of the host. Past the budget for long enough, the costliest optional probe is slowed
step by step and at last detached. Each step is a row of `overhead_event`. What balances or filters packets
is counted, and never touched.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from collector.overhead_brake import Brake, Step

Row = dict[str, Any]
Totals = Mapping[tuple[str, ...], Mapping[str, int]]
WARM_UP = 2  # intervals after the start: attaching and scanning cost once
SUSTAINED = 6  # intervals past the budget before anything is done; fewer the further past it is
LEAST = 2  # but at least so many
CALM = 12  # intervals below RELEASED of the budget before a slowed probe is made one step faster again
MOST_PATIENT = 64 * CALM
RELEASED = 0.5
WORTH = 0.2  # of the budget: a probe that costs less is not worth a step
PROCESS = ("process", "")


@dataclass(frozen=True)
class Cost:
    """Of one probe in one interval. ``own_ns``: what the collector spent on its rows."""

    run_ns: int = 0
    runs: int = 0
    own_ns: int = 0

    @property
    def total_ns(self) -> int:
        """All of it."""
        return self.run_ns + self.own_ns


@dataclass(frozen=True)
class Bill:
    """All costs of one interval."""

    interval_us: int
    capacity_ns: int
    process_ns: int
    probes: Mapping[str, Cost]

    def percent(self, ns: float) -> float:
        """Nanoseconds as a share of all CPUs."""
        return 100 * ns / self.capacity_ns

    @property
    def total_percent(self) -> float:
        """What bpfleet took of the host."""
        return self.percent(self.process_ns + sum(each.run_ns for each in self.probes.values()))


def bill(before: "Reading", now: "Reading", cpus: int) -> Bill:
    """What happened between two readings."""
    run: dict[str, tuple[int, int]] = {}
    for key, numbers in now.totals.items():
        if key[0] == "program":
            old = before.totals.get(key, {})
            run_ns, runs = run.get(key[1], (0, 0))
            run_ns += max(numbers["run_ns"] - old.get("run_ns", 0), 0)
            run[key[1]] = run_ns, runs + max(numbers["runs"] - old.get("runs", 0), 0)
    process_ns = (now.totals[PROCESS]["cpu_us"] - before.totals[PROCESS]["cpu_us"]) * 1000
    probes = {
        name: Cost(*run.get(name, (0, 0)), now.own_ns.get(name, 0) - before.own_ns.get(name, 0))
        for name in {*run, *now.own_ns}
    }
    interval_us = max(now.at_us - before.at_us, 1)
    return Bill(interval_us, interval_us * 1000 * cpus, process_ns, probes)


@dataclass(frozen=True)
class Reading:
    """The counters at one moment. ``own_ns``: by probe, the collector's CPU time for its rows."""

    at_us: int
    totals: Totals
    own_ns: Mapping[str, int]


@dataclass
class Budget:
    """The watch over all of it. For the agent's thread; ``judge`` is called once an interval."""

    percent: float
    cpus: int
    before: Reading | None = None
    seen: int = 0
    over: int = 0
    calm: int = 0
    patience: int = CALM  # intervals of calm before a recovery; doubled when one was too soon
    released: set[str] = field(default_factory=set)
    slowed: list[str] = field(default_factory=list)  # in the order in which it was done
    complained: bool = False

    def judge(self, now: Reading, brakes: Mapping[str, Brake]) -> list[Row]:
        """Look at the last interval and do at most one thing about it: rows of `overhead_event`."""
        before, self.before = self.before, now
        self.seen += 1
        if self.seen <= WARM_UP or before is None:
            return []
        made, now_us = bill(before, now, self.cpus), now.at_us
        ratio = made.total_percent / self.percent
        self.over = self.over + 1 if ratio > 1 else 0
        self.calm = self.calm + 1 if ratio < RELEASED else 0
        if self.over >= max(LEAST, math.ceil(SUSTAINED / max(ratio, 1))):
            self.over = 0
            return self._press(made, now_us, brakes)
        if self.calm >= self.patience and self.slowed:
            self.calm = 0
            return self._release(made, now_us, brakes)
        return []

    def _press(self, made: Bill, now_us: int, brakes: Mapping[str, Brake]) -> list[Row]:
        worth = [
            (made.probes[name].total_ns, name)
            for name, brake in brakes.items()
            if name in made.probes and not brake.detached
            and made.percent(made.probes[name].total_ns) >= WORTH * self.percent
        ]  # fmt: skip
        if not worth:
            said, self.complained = self.complained, True
            return [] if said else [self._row(made, now_us, "", "over_budget", Step(0))]
        self.complained = False
        name = max(worth)[1]
        brake = brakes[name]
        step = brake.slow(self._words(made, name))
        if step is None:
            step, action = brake.detach(self._words(made, name)), "detached"
        else:
            action = "slowed"
        if name in self.released:
            self.released.discard(name)
            self.patience = min(2 * self.patience, MOST_PATIENT)
        if name in self.slowed:
            self.slowed.remove(name)
        if action == "slowed":
            self.slowed.append(name)
        return [self._row(made, now_us, name, action, step, brake.kind)]

    def _release(self, made: Bill, now_us: int, brakes: Mapping[str, Brake]) -> list[Row]:
        name = self.slowed.pop()
        brake = brakes.get(name)
        step = brake.restore() if brake and not brake.detached else None
        if step is None or brake is None:
            return []
        if step.level:
            self.slowed.append(name)
        self.released.add(name)
        return [self._row(made, now_us, name, "restored", step, brake.kind)]

    def _words(self, made: Bill, name: str) -> str:
        cost = made.probes.get(name, Cost())
        return self._total(made) + (
            f"; {name} takes {made.percent(cost.run_ns):.2f} % in the kernel"
            f" and {made.percent(cost.own_ns):.2f} % in the collector"
        )

    def _total(self, made: Bill) -> str:
        taken = f"bpfleet takes {made.total_percent:.2f} % of this host's CPUs"
        return f"{taken}, its budget is {self.percent:g} %"

    def _row(self, made: Bill, now_us: int, name: str, action: str, step: Step, kind: str = "") -> Row:
        cost = made.probes.get(name, Cost())
        words = f"{self._total(made)}; no optional probe is left whose end would change that"
        words = self._words(made, name) if name else words
        return {
            "ts": now_us, "probe": name, "kind": kind, "action": action, "level": step.level,
            "setting": step.setting, "value_before": step.before, "value_after": step.after,
            "budget_percent": self.percent, "total_percent": made.total_percent,
            "probe_percent": made.percent(cost.total_ns), "collector_percent": made.percent(made.process_ns),
            "ns_per_event": cost.run_ns / cost.runs if cost.runs else 0.0,
            "events_per_second": cost.runs * 1e6 / max(made.interval_us, 1),
            "window_us": made.interval_us, "reason": words,
        }  # fmt: skip
