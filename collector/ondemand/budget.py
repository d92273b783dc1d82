"""What a probe may cost, and what is done when it costs more: thinner samples, then its end.

Sampling makes programs cheaper, not the traps that lead to them: where traps alone are over the budget, or
sampling was made thinner three times in vain, the probe has to go.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

from collector.ondemand.running import Cost

WINDOW_S = 2.0  # a share is judged over so long
THROTTLES = 3
Verdict = Literal["", "throttle", "detach"]


@dataclass
class Figures:
    """Of the last window."""

    cpu_share: float = 0.0  # of all CPUs
    trap_share: float = 0.0
    runs_per_s: float = 0.0
    ns_per_run: float = 0.0


@dataclass
class Budget:
    """The watch over one probe. ``share``: of the host's CPU."""

    share: float
    cpus: int
    at: float = 0.0
    before: Cost = field(default_factory=lambda: Cost(0, 0, 0))
    figures: Figures = field(default_factory=Figures)
    throttled: int = 0

    def judge(self, cost: Cost, now: float) -> Verdict:
        """Look at what it cost; called again and again, answers once a window."""
        if not self.at:
            self.at, self.before = now, cost
            return ""
        if now - self.at < WINDOW_S:
            return ""
        gained, seconds = cost.since(self.before), now - self.at
        self.at, self.before = now, cost
        capacity = seconds * 1e9 * self.cpus
        self.figures = Figures(
            gained.total_ns / capacity, gained.trap_ns / capacity, gained.runs / seconds,
            gained.program_ns / gained.runs if gained.runs else 0.0,
        )  # fmt: skip
        if self.figures.cpu_share <= self.share:
            return ""
        if self.figures.trap_share > self.share or self.throttled >= THROTTLES:
            return "detach"
        self.throttled += 1
        return "throttle"

    def thinner(self, sample: int) -> int:
        """One in how many to take, so that it fits; at least half as many as now."""
        return sample * max(2, 1 << math.ceil(math.log2(self.figures.cpu_share / self.share)))

    def words(self) -> str:
        """Why it had to go, with the figures."""
        figures = self.figures
        return (
            f"over its budget: {figures.cpu_share:.2%} of the host's CPU, allowed {self.share:.2%}; "
            f"{figures.runs_per_s:,.0f} runs a second at {figures.ns_per_run:.0f} ns"
            + (f", and {figures.trap_share:.2%} for the traps to them" if figures.trap_share else "")
        )
