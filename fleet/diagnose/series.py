"""Figures of hosts: a window second by second, and the hour before it as median and spread."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fleet.diagnose.metrics import (
    HOST_SECONDS,
    METRICS,
    Metric,
    asked_sql,
    best_sql,
    between,
    cores_sql,
    history_sql,
    together,
    window_sql,
)  # fmt: skip

SECONDS = 5  # a value is a mean over so many: shorter is noise, longer is late
BUCKET_S = 10  # of the history
ASKED_S = 600  # before the window: how far back a question may be that still waits for its answer
LATELY_S = 60  # before the window: how far back a remote without a history is compared with itself
MAD_TO_DEVIATION = 1.4826  # of a normal distribution
Floats = NDArray[np.float64]
Row = tuple[Any, ...]


class Past(NamedTuple):
    """What is usual."""

    median: float
    spread: float  # like a standard deviation
    buckets: int = 360  # that it is made of


@dataclass
class Series:
    """One metric of one thing of one host: a cell a second."""

    amount: Floats
    per: Floats | None  # None: by seconds
    _worst: dict[int, tuple[int, float]] = field(default_factory=dict, compare=False)

    def at(self, first: int, last: int) -> float:
        """The value over seconds ``first … last`` (exclusive); 0 where nothing was."""
        total = float(self.amount[first:last].sum())
        below = float(last - first if self.per is None else self.per[first:last].sum())
        return total / below if below > 0 else 0.0

    def worst(self, seconds: int) -> tuple[int, float]:
        """(first second, value) of the run of ``seconds`` whose value is highest."""
        if seconds not in self._worst:
            total = _sliding(self.amount, seconds)
            below = np.full(len(total), float(min(seconds, len(self.amount))))
            if self.per is not None:
                below = _sliding(self.per, seconds)
            values = np.divide(total, below, out=np.zeros(len(total)), where=below > 0)
            place = int(values.argmax())
            self._worst[seconds] = place, float(values[place])
        return self._worst[seconds]


def _sliding(values: Floats, seconds: int) -> Floats:
    """Sums over each run of so many."""
    sums = np.concatenate(([0.0], np.cumsum(values)))
    length = min(seconds, len(values))
    return sums[length:] - sums[:-length]


@dataclass
class HostFigures:
    """All that is known of one host."""

    name: str
    begin: int  # the first second, since 1970
    seconds: int
    cores: int
    series: dict[str, dict[str, Series]] = field(default_factory=dict)  # metric → thing
    past: dict[str, dict[str, Past]] = field(default_factory=dict)
    best_rtt: dict[str, float] = field(default_factory=dict)  # ms, of each remote's best second lately
    asked: dict[str, tuple[float, float]] = field(default_factory=dict)  # server → answers, open, before
    _worst: dict[str, float] = field(default_factory=dict)

    def things(self, metric: str) -> list[str]:
        """What there are figures of."""
        return sorted(self.series.get(metric, {}))

    def get(self, metric: str, thing: str = "") -> Series:
        """A series; zeros where nothing happened."""
        found = self.series.get(metric, {}).get(thing)
        return found or Series(np.zeros(self.seconds), None)

    def worst(self, metric: str) -> float:
        """The highest value of any thing, over the seconds in which it was."""
        if metric not in self._worst:
            found = self.series.get(metric, {}).values()
            self._worst[metric] = max((each.worst(SECONDS)[1] for each in found), default=0.0)
        return self._worst[metric]

    def servers(self) -> list[str]:
        """Those that answered, or did not, in the window or shortly before it."""
        return sorted({*self.things("server.answers"), *self.asked})

    def answers(self, server: str) -> Floats:
        """Of a server, second by second."""
        return self.get("server.answers", server).amount

    def open_questions(self, server: str) -> Floats:
        """How many wait for an answer at each second's end."""
        before = self.asked.get(server, (0.0, 0.0))[1]
        waiting = max(before, 0.0) + np.cumsum(self.get("server.opened", server).amount)
        return waiting - np.minimum(np.minimum.accumulate(waiting), 0.0)  # answers to what nobody saw asked

    def history(self, metric: str, thing: str = "") -> Past | None:
        """What was usual over the hour before; None where there is no history."""
        return self.past.get(metric, {}).get(thing)


class Reader:
    """Asks the store. ``client``: of clickhouse-connect, connected to our database."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.streams: set[str] = set()  # that have a table
        self._metrics: list[Metric] = []
        self.past: dict[str, dict[str, dict[str, Past]]] = {}  # host → metric → thing

    def window(self, first_us: int, last_us: int, host: str = "") -> dict[str, HostFigures]:
        """Every host with figures in the window, by name.

        One statement: on a host whose CPUs are full, each of its own would wait for a CPU several times.
        """
        self._look_for_tables()
        groups = together(self._metrics)
        questions = [window_sql(f"group {at}", group, _hosts(host)) for at, group in enumerate(groups)]
        if "pressure" in self.streams:
            questions.append(cores_sql("cores", _hosts(host)))
        if "tcp_rtt" in self.streams:
            questions.append(best_sql("best", METRICS["tcp.rtt"], _hosts(host)))
        if "tcp_response" in self.streams:
            questions.append(asked_sql("asked", _hosts(host)))
        before = {"asked": first_us - ASKED_S * 1_000_000, "lately": first_us - LATELY_S * 1_000_000}
        answers = self._ask(questions, host=host, **{"from": first_us, "to": last_us}, **before)
        cores = {name: int(count) for name, _, _, ((count,),) in answers["cores"]}
        alive = {name: seen for at, group in enumerate(groups) if _tells_of_life(group)
                 for name, _, seen, _ in answers[f"group {at}"]}  # fmt: skip
        hosts = {
            name: HostFigures(name, min(seen), max(seen) - min(seen) + 1, max(cores.get(name, 1), 1))
            for name, seen in alive.items()
        }
        for at, group in enumerate(groups):
            _enter(hosts, group, answers[f"group {at}"])
        for name, figures in hosts.items():
            figures.past = self.past.get(name, {})
        for name, thing, _, ((best,),) in answers["best"]:
            if name in hosts:
                hosts[name].best_rtt[thing] = best
        for name, thing, _, ((answered, waiting),) in answers["asked"]:
            if name in hosts:
                hosts[name].asked[thing] = (answered, waiting)
        return hosts

    def _ask(self, questions: list[str], **parameters: Any) -> defaultdict[str, list[Row]]:
        """Rows (host, thing, seconds, lists) of each question by its name, by one statement."""
        found: defaultdict[str, list[Row]] = defaultdict(list)
        if questions:
            for name, *row in self.rows(" UNION ALL ".join(questions), **parameters):
                found[name].append(tuple(row))
        return found

    def learn(self, since_us: int, first_us: int, host: str = "") -> None:
        """Read the history ``since_us … first_us`` of every host into :attr:`past`."""
        self._look_for_tables()
        self.past = {}
        lived: dict[str, int] = {}
        groups = together(self._metrics)
        bounds = {"since": since_us, "from": first_us}
        # How long each host has been heard of comes first: the others' counts are compared with it.
        for some in ([each for each in groups if _tells_of_life(each)],
                     [each for each in groups if not _tells_of_life(each)]):  # fmt: skip
            questions = [history_sql(f"group {at}", group, _hosts(host), BUCKET_S)
                         for at, group in enumerate(some)]  # fmt: skip
            known = {"hosts": ["", *lived], "lived": [0, *lived.values()]}
            answers = self._ask(questions, host=host, **bounds, **known)
            for at, group in enumerate(some):
                for name, thing, _, lists in answers[f"group {at}"]:
                    self._remember(name, thing, group, lists, lived)

    def _remember(self, name: str, thing: str, group: list[Metric], lists: list[list[float]],
                  lived: dict[str, int]) -> None:  # fmt: skip
        for metric, (count, median, spread) in zip(group, lists, strict=True):
            if metric.name == HOST_SECONDS:
                lived[name] = int(count)
            if count >= metric.least_history:
                past = Past(median, MAD_TO_DEVIATION * spread, int(count))
                self.past.setdefault(name, {}).setdefault(metric.name, {})[thing] = past

    def known(self, since_us: int, last_us: int, host: str = "") -> set[str]:
        """Hosts that were heard of between these moments."""
        if not self.streams:
            self._look_for_tables()
        if "host" not in self.streams:
            return set()
        query = f"SELECT DISTINCT host FROM host WHERE {_hosts(host)} AND {between('from', 'to')}"
        return {name for (name,) in self.rows(query, host=host, **{"from": since_us, "to": last_us})}

    def rows(self, query: str, **parameters: Any) -> list[tuple[Any, ...]]:
        """Any other question."""
        found: list[tuple[Any, ...]] = self._client.query(query, parameters=parameters).result_rows
        return found

    def _look_for_tables(self) -> None:
        """A table is made with its first rows."""
        self.streams = {name for (name,) in self.rows("SHOW TABLES")}
        self._metrics = [each for each in METRICS.values() if each.stream in self.streams]


def _hosts(host: str) -> str:
    return "host = {host:String}" if host else "({host:String} = '')"


def _tells_of_life(group: list[Metric]) -> bool:
    return HOST_SECONDS in {each.name for each in group}


def _enter(hosts: dict[str, HostFigures], group: list[Metric], rows: Iterable[Row]) -> None:
    for name, thing, seconds, lists in rows:
        figures = hosts.get(name)
        if figures is None:
            continue
        at = np.asarray(seconds, np.int64) - figures.begin
        inside = (at >= 0) & (at < figures.seconds)
        values = np.zeros((len(lists[0]), figures.seconds))
        values[:, at[inside]] = np.asarray(lists)[inside].T
        pers = iter(values[len(group) :])
        for metric, amount in zip(group, values, strict=False):
            per = next(pers) if metric.per else None
            if amount.any():  # most are nought all the time
                figures.series.setdefault(metric.name, {})[thing] = Series(amount, per)
