"""One host's figures as the rules ask for them: the worst seconds of a metric, others at the same time."""

import statistics
from collections.abc import Mapping

from fleet.diagnose.finding import Figure
from fleet.diagnose.limits import LIMITS
from fleet.diagnose.metrics import METRICS
from fleet.diagnose.series import SECONDS, HostFigures


class View:
    """A host in its window, beside its peers in theirs."""

    def __init__(self, host: HostFigures, fleet: Mapping[str, HostFigures]) -> None:
        self.host = host
        self._peers = [each for name, each in fleet.items() if name != host.name]

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

    def began(self, figure: Figure) -> int:
        """The first second of the window that alone is past the threshold, near the worst ones."""
        if figure.thing not in self.host.series.get(figure.metric, {}):
            return figure.first  # made of several metrics
        series = self.host.get(figure.metric, figure.thing)
        place = figure.first
        while place > 0 and series.at(place - 1, place) >= figure.threshold:
            place -= 1
        while place < figure.last - 1 and series.at(place, place + 1) < figure.threshold:
            place += 1
        return place

    def _figure(self, metric: str, thing: str, value: float, first: int, last: int) -> Figure:
        known = self.host.history(metric, thing)
        limit = LIMITS.get(metric)
        baseline, spread = known or (0.0, 0.0)
        return Figure(
            metric, METRICS[metric].unit, value,
            limit.threshold(baseline if known else None, spread) if limit else 0.0,
            baseline, spread, self._of_peers(metric), thing, first, last,
        )  # fmt: skip

    def _of_peers(self, metric: str) -> float:
        """The median over the other hosts of what is worst there; -1 without any."""
        if not self._peers:
            return -1.0
        return statistics.median(
            max((series.worst(SECONDS)[1] for series in peer.series.get(metric, {}).values()), default=0.0)
            for peer in self._peers
        )
