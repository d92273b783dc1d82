"""One host's figures as the rules ask for them: the worst seconds of a metric, others at the same time."""

import statistics
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fleet.diagnose.finding import Figure, Finding
from fleet.diagnose.limits import LIMITS, MATURE
from fleet.diagnose.metrics import METRICS
from fleet.diagnose.series import SECONDS, HostFigures, Past


class View:
    """A host in its window, beside its peers in theirs."""

    def __init__(self, host: HostFigures, fleet: Mapping[str, HostFigures]) -> None:
        self.host = host
        self._peers = [each for name, each in fleet.items() if name != host.name]
        self._peers_worst: dict[str, float] = {}

    def worst(self, metric: str, thing: str = "") -> Figure:
        """The ``SECONDS`` in which it was highest."""
        first, value = self.host.get(metric, thing).worst(SECONDS)
        return self._figure(metric, thing, value, first, first + SECONDS)

    def beside(self, figure: Figure, metric: str, thing: str = "") -> Figure:
        """Another metric in the seconds of ``figure``."""
        value = self.host.get(metric, thing).at(figure.first, figure.last)
        return self._figure(metric, thing, value, figure.first, figure.last)

    def value(self, figure: Figure, metric: str, thing: str = "") -> float:
        """Another metric in the seconds of ``figure``, as a number."""
        return self.host.get(metric, thing).at(figure.first, figure.last)

    def past(self, metric: str) -> list[Figure]:
        """The worst of every thing that is past its threshold, worst first."""
        found = [self.worst(metric, thing) for thing in self.host.things(metric)]
        return sorted((each for each in found if each.ratio >= 1), key=lambda each: -each.ratio)

    def top(self, figure: Figure, metric: str, but: frozenset[str] = frozenset()) -> tuple[str, float]:
        """The thing with most of a metric in the seconds of ``figure``; ("", 0) if there is none."""
        found = [
            (self.value(figure, metric, each), each) for each in self.host.things(metric) if each not in but
        ]
        value, thing = max(found, default=(0.0, ""))
        return (thing, value) if value > 0 else ("", 0.0)

    def has_child(self, metric: str, thing: str) -> bool:
        """Whether a cgroup below it shows the same: that one is meant."""
        return any(each.thing != thing and each.thing.startswith(f"{thing}/") for each in self.past(metric))

    def deepest(self, cgroup: str, metric: str, at: Figure) -> str:
        """The lowest cgroup below it that has four fifths of its metric."""
        while cgroup:
            below = [
                (self.value(at, metric, each), each)
                for each in self.host.things(metric)
                if each.startswith(f"{cgroup}/")
            ]
            value, name = max(below, default=(0.0, ""))
            if value < 0.8 * self.value(at, metric, cgroup) or not value:
                return cgroup
            cgroup = name
        return cgroup

    def finding(self, verdict: str, deciding: Figure, summary: str, kind: str, culprit: str,
                victim: str = "", others: tuple[Figure, ...] = ()) -> Finding:  # fmt: skip
        """What a rule hands over, with the seconds in which it was so."""
        past = self._seconds_past(deciding)
        near = range(max(deciding.first - 1, 0), deciding.last)
        began = next((at for at in near if past[at]), deciding.first)
        while began > 0 and past[began - 1]:
            began -= 1
        ended = int(past.nonzero()[0].max(initial=began)) + 1
        return Finding(
            verdict, deciding, summary, kind, culprit, victim, others, began, ended, max(int(past.sum()), 1)
        )

    def _seconds_past(self, figure: Figure) -> NDArray[np.bool_]:
        """Which seconds are alone past its threshold; of a figure made of several metrics, its own."""
        series = self.host.series.get(figure.metric, {}).get(figure.thing)
        if series is None:
            own = np.zeros(self.host.seconds, bool)
            own[figure.first : figure.last] = True
            return own
        per = np.ones(len(series.amount)) if series.per is None else series.per
        values = np.divide(series.amount, per, out=np.zeros(len(per)), where=per > 0)
        return values >= figure.threshold

    def _figure(self, metric: str, thing: str, value: float, first: int, last: int) -> Figure:
        known = self.host.history(metric, thing)
        past = known or Past(0.0, 0.0)
        mature = past.buckets >= MATURE
        limit = LIMITS.get(metric)
        threshold = (
            limit.threshold(past.median if known else None, past.spread, mature=mature) if limit else 0.0
        )
        return Figure(
            metric, METRICS[metric].unit, value, threshold, past.median, past.spread,
            self._of_peers(metric), thing, first, last,
        )  # fmt: skip

    def _of_peers(self, metric: str) -> float:
        """The median over the other hosts of what is worst there; -1 without any."""
        if not self._peers:
            return -1.0
        if metric not in self._peers_worst:
            self._peers_worst[metric] = statistics.median(peer.worst(metric) for peer in self._peers)
        return self._peers_worst[metric]


def related(one: str, other: str) -> bool:
    """Whether one cgroup is the other, or above or below it."""
    return bool(other) and (f"{one}/".startswith(f"{other}/") or f"{other}/".startswith(f"{one}/"))
