"""Figures of hosts: a window second by second, and the hour before it as median and spread."""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleet.diagnose.metrics import HOST_SECONDS, METRICS, Metric, history_sql, window_sql

SECONDS = 5  # a value is a mean over so many: shorter is noise, longer is late
BUCKET_S = 10  # of the history
LATELY_S = 60  # before the window: how far back a remote without a history is compared with itself
MAD_TO_DEVIATION = 1.4826  # of a normal distribution
Floats = NDArray[np.float64]
Past = tuple[float, float]  # median, spread


@dataclass
class Series:
    """One metric of one thing of one host: a cell a second."""

    amount: Floats
    per: Floats | None  # None: by seconds

    def at(self, first: int, last: int) -> float:
        """The value over seconds ``first … last`` (exclusive); 0 where nothing was."""
        total = float(self.amount[first:last].sum())
        below = float(last - first if self.per is None else self.per[first:last].sum())
        return total / below if below > 0 else 0.0

    def worst(self, seconds: int) -> tuple[int, float]:
        """(first second, value) of the run of ``seconds`` whose value is highest."""
        kernel = np.ones(min(seconds, len(self.amount)))
        total = np.convolve(self.amount, kernel, "valid")
        below = (
            np.full(len(total), len(kernel)) if self.per is None else np.convolve(self.per, kernel, "valid")
        )
        values = np.divide(total, below, out=np.zeros(len(total)), where=below > 0)
        place = int(values.argmax())
        return place, float(values[place])


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

    def things(self, metric: str) -> list[str]:
        """What there are figures of."""
        return sorted(self.series.get(metric, {}))

    def get(self, metric: str, thing: str = "") -> Series:
        """A series; zeros where nothing happened."""
        found = self.series.get(metric, {}).get(thing)
        return found or Series(np.zeros(self.seconds), None)

    def history(self, metric: str, thing: str = "") -> Past | None:
        """Median and spread over the hour before; None where there is no history."""
        return self.past.get(metric, {}).get(thing)


class Reader:
    """Asks the store. ``client``: of clickhouse-connect, connected to our database."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.streams: set[str] = set()  # that have a table
        self._metrics: list[Metric] = []
        self.past: dict[str, dict[str, dict[str, Past]]] = {}  # host → metric → thing

    def window(self, first_us: int, last_us: int, host: str = "") -> dict[str, HostFigures]:
        """Every host with figures in the window, by name."""
        self._look_for_tables()
        answers = {each.name: self._ask(each, first_us, last_us, host) for each in self._metrics}
        alive: dict[str, list[int]] = {}
        for name, _, second, *_ in answers.get(HOST_SECONDS, []):
            alive.setdefault(name, []).append(int(second))
        cores = self._cores(first_us, last_us)
        hosts = {
            name: HostFigures(name, min(seen), max(seen) - min(seen) + 1, cores.get(name, 1))
            for name, seen in alive.items()
        }
        for metric, rows in answers.items():
            _enter(hosts, METRICS[metric], rows)
        for name, figures in hosts.items():
            figures.past = self.past.get(name, {})
        for name, thing, best in self._best(METRICS["tcp.rtt"], first_us, last_us):
            if name in hosts:
                hosts[name].best_rtt[thing] = best
        return hosts

    def _best(self, metric: Metric, first_us: int, last_us: int) -> list[tuple[Any, ...]]:
        """The least second of each thing in the window and the minute before it."""
        if metric.stream not in self.streams:
            return []
        query = f"SELECT host, thing, min(amount / per) FROM ({window_sql(metric, '1')}) GROUP BY host, thing"
        return self.rows(query, **{"from": first_us - LATELY_S * 1_000_000, "to": last_us})

    def learn(self, since_us: int, first_us: int, host: str = "") -> None:
        """Read the history ``since_us … first_us`` of every host into :attr:`past`."""
        self._look_for_tables()
        where = {"since": since_us, "from": first_us, "host": host}
        self.past = {}
        lived: dict[str, int] = {}
        for metric in sorted(self._metrics, key=lambda each: each.name != HOST_SECONDS):
            rows = self._client.query(
                history_sql(metric, _hosts(host), BUCKET_S), parameters=where
            ).result_rows
            for name, thing, values in rows:
                if metric.name == HOST_SECONDS:
                    lived[name] = len(values)
                padded = list(values)
                if not metric.per:  # no row: it was nought
                    padded += [0.0] * (lived.get(name, 0) - len(padded))
                if len(padded) >= metric.least_history:
                    self.past.setdefault(name, {}).setdefault(metric.name, {})[thing] = _robust(padded)

    def known(self, since_us: int, host: str = "") -> set[str]:
        """Hosts that were heard of since then."""
        if "host" not in self.streams:
            return set()
        rows = self._client.query(
            f"SELECT DISTINCT host FROM host WHERE {_hosts(host)}"
            " AND ts >= fromUnixTimestamp64Micro({since:Int64})",
            parameters={"host": host, "since": since_us},
        ).result_rows
        return {name for (name,) in rows}

    def rows(self, query: str, **parameters: Any) -> list[tuple[Any, ...]]:
        """Any other question."""
        found: list[tuple[Any, ...]] = self._client.query(query, parameters=parameters).result_rows
        return found

    def _look_for_tables(self) -> None:
        """A table is made with its first rows."""
        self.streams = {name for (name,) in self.rows("SHOW TABLES")}
        self._metrics = [each for each in METRICS.values() if each.stream in self.streams]

    def _ask(self, metric: Metric, first_us: int, last_us: int, host: str) -> list[tuple[Any, ...]]:
        parameters = {"from": first_us, "to": last_us, "host": host}
        found: list[tuple[Any, ...]] = self._client.query(
            window_sql(metric, _hosts(host)), parameters=parameters
        ).result_rows
        return found

    def _cores(self, first_us: int, last_us: int) -> dict[str, int]:
        if not any(each.stream == "pressure" for each in self._metrics):
            return {}
        rows = self.rows(
            "SELECT host, max(cores) FROM pressure WHERE ts >= fromUnixTimestamp64Micro({from:Int64})"
            " AND ts < fromUnixTimestamp64Micro({to:Int64}) GROUP BY host",
            **{"from": first_us, "to": last_us},
        )
        return {name: max(int(cores), 1) for name, cores in rows}


def _hosts(host: str) -> str:
    return "host = {host:String}" if host else "({host:String} = '')"


def _enter(hosts: dict[str, HostFigures], metric: Metric, rows: Iterable[tuple[Any, ...]]) -> None:
    for name, thing, second, amount, per in rows:
        figures = hosts.get(name)
        if figures is None or not 0 <= second - figures.begin < figures.seconds:
            continue
        table = figures.series.setdefault(metric.name, {})
        series = table.get(thing)
        if series is None:
            zeros = np.zeros(figures.seconds)
            series = table[thing] = Series(zeros, np.zeros(figures.seconds) if metric.per else None)
        series.amount[second - figures.begin] += amount
        if series.per is not None:
            series.per[second - figures.begin] += per


def _robust(values: list[float]) -> Past:
    median = statistics.median(values)
    return median, MAD_TO_DEVIATION * statistics.median(abs(each - median) for each in values)
