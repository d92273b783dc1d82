"""How a probe is slowed, and let go again: one :class:`Brake` for each that the budget may touch.

Each step halves how often something is done: a profile's frequency, samples taken, how often an aggregate is
read. A probe that has no such thing, or was slowed :data:`STEPS` times, can only be detached.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collector.agent import Agent
    from collector.probes import Attached

STEPS = 3
ESSENTIAL = frozenset({"cgroup"})  # names the rows of all others
ON_DEMAND = "probe "  # how the costs of a probe on demand are named in agent.costs


@dataclass(frozen=True)
class Step:
    """What was changed."""

    level: int
    setting: str = ""
    before: int = 0
    after: int = 0


class Brake(Protocol):
    """What the budget may do to a probe."""

    kind: str
    detached: bool

    def slow(self, why: str) -> Step | None:
        """One step slower; None when it cannot be."""

    def restore(self) -> Step | None:
        """One step faster; None when it is not slowed."""

    def detach(self, why: str) -> Step:
        """End it on this host."""


@dataclass
class Knob:
    """A number of a probe and how it is set; ``finer``: halved at each step, else doubled."""

    setting: str
    value: int
    put: Callable[[int], None]
    halved: bool = True

    def at(self, level: int) -> int:
        """Its value at a level."""
        return max(self.value >> level, 1) if self.halved else self.value << level


class AlwaysOn:
    """A probe that runs from the collector's start."""

    kind = "always_on"

    def __init__(self, agent: "Agent", attached: "Attached") -> None:
        self._agent, self._attached = agent, attached
        self._knob = knob_of(agent, attached)
        self.level = 0
        self.detached = False

    def slow(self, why: str) -> Step | None:
        """One step slower; None when it cannot be."""
        return self._turn(self.level + 1) if self._knob and self.level < STEPS else None

    def restore(self) -> Step | None:
        """One step faster."""
        return self._turn(self.level - 1) if self._knob and self.level else None

    def detach(self, why: str) -> Step:
        """Programs gone; what they counted is still read. It is back at the collector's next start."""
        name = self._attached.probe.name
        if self._agent.profiler and self._agent.profiler.clocks and name == "cpu_profile":
            self._agent.profiler.clocks.set_frequency(0)
        self._attached.detach()
        self._agent.failed[name] = f"detached: {why}"
        self.detached = True
        return Step(self.level)

    def _turn(self, level: int) -> Step:
        assert self._knob
        before, after = self._knob.at(self.level), self._knob.at(level)
        self._knob.put(after)
        self.level = level
        return Step(level, self._knob.setting, before, after)


def knob_of(agent: "Agent", attached: "Attached") -> Knob | None:
    """What a probe can be slowed by: its clock, its samples, or how often it is read."""
    name, settings = attached.probe.name, agent.config.collector
    clocks = agent.profiler.clocks if agent.profiler else None
    if clocks and name == "cpu_profile":
        return Knob("profile_hz", settings.profile_hz, clocks.set_frequency)
    waits = agent.profiler.waits if agent.profiler else None
    if waits and name == "off_cpu":
        return Knob("off_cpu_budget", settings.off_cpu_samples * (os.cpu_count() or 1), waits.want)
    sampled = "drop_samples_per_second"
    if sampled in attached.loaded.settings:
        return Knob(sampled, settings.drop_samples_per_second, partial(attached.loaded.set, sampled))

    def read_each(milliseconds: int) -> None:
        agent.reading.pace[name] = max(milliseconds // settings.aggregate_ms, 1)

    if attached.aggregates:
        return Knob("aggregate_ms", settings.aggregate_ms, read_each, halved=False)
    return None


class Brakes:
    """The brakes of one agent, by the name under which a probe's costs are kept."""

    def __init__(self, agent: "Agent") -> None:
        self._agent = agent
        self._brakes: dict[str, Brake] = {
            each.probe.name: AlwaysOn(agent, each)
            for each in agent.attached
            if each.probe.name not in ESSENTIAL
        }

    def now(self) -> Mapping[str, Brake]:
        """With those of the probes on demand that run now. Filters and balancers have none."""
        runner = next((each for each in self._agent.companions if isinstance(each, Slowable)), None)
        wanted = {name for name in list(self._agent.costs) if name.startswith(ON_DEMAND)} if runner else set()
        for name in [name for name in self._brakes if name.startswith(ON_DEMAND) and name not in wanted]:
            del self._brakes[name]
        for name in wanted - set(self._brakes):
            assert runner
            self._brakes[name] = OnDemand(runner, name.removeprefix(ON_DEMAND))
        return self._brakes


@runtime_checkable
class Slowable(Protocol):
    """What runs probes on demand: a companion with these."""

    def slow(self, name: str, why: str) -> int:
        """One in how many it takes now, 0 when it does not run."""

    def detach(self, name: str, why: str) -> bool:
        """End it; whether it ran."""


class OnDemand:
    """A probe that somebody asked for. It has a budget of its own too, see docs/probes.md."""

    kind = "on_demand"

    def __init__(self, runner: Slowable, name: str) -> None:
        self._runner, self._name = runner, name
        self.level = 0
        self.detached = False

    def slow(self, why: str) -> Step | None:
        """Take half as many."""
        sample = self._runner.slow(self._name, why) if self.level < STEPS else 0
        if not sample:
            return None
        self.level += 1
        return Step(self.level, "sample", sample // 2, sample)

    def restore(self) -> Step | None:
        """Never by itself: who asked for it sees its sampling, and may ask anew."""
        return None

    def detach(self, why: str) -> Step:
        """End it on this host; its document's outcome says why."""
        self._runner.detach(self._name, why)
        self.detached = True
        return Step(self.level)
