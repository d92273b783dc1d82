"""Each alert rule as Grafana's server evaluates it: rows that must fire it, rows that must not, no rows."""

import datetime
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from alert_cases import CASES, Row, attack
from conftest import StoreProcess
from test_dashboards_lint import RULES

from bench import fill
from fleet.render import frame, macros
from fleet.render.window import Window
from schemas.clickhouse import connect
from schemas.config import Clickhouse

BY_NAME = {rule["uid"].removeprefix("bpfleet-"): rule for rule in RULES}
NOT_ALL = [(name, number) for name, (_, _, quiet) in CASES.items() for number in range(len(quiet))]
STREAMS = {
    row[0]
    for firing, _, quiet in CASES.values()
    for row in [*firing, *(row for case in quiet for row in case)]
}


class Alerting:
    """A database in which one case at a time has its rows."""

    def __init__(self, url: str) -> None:
        self.database = f"alerts{time.monotonic_ns()}"
        config = Clickhouse(url=url, database=self.database)
        admin = connect(config, database="")
        fill.make(admin, self.database, sorted(STREAMS | {"verdict", "attack"}))
        admin.close()
        self.client = connect(config)

    def put(self, rows: list[Row]) -> float:
        """Only these rows; returns the moment that they are before."""
        now = float(int(time.time()))
        for stream in STREAMS:
            self.client.command(f"TRUNCATE TABLE {stream}")
        for stream in {row[0] for row in rows}:
            lines = [_line(columns, now - ago, now) for each, ago, columns in rows if each == stream]
            self.client.raw_insert(stream, insert_block="\n".join(lines), fmt="JSONEachRow")
        return now

    def evaluate(self, rule: dict[str, Any], now: float) -> tuple[list[dict[str, str]], bool]:
        """Labels of every row past the threshold; and whether there was any row at all."""
        query, threshold = rule["data"]
        window = Window.of(now - query["relativeTimeRange"]["from"], now)
        answer = frame.ask(self.client, macros.expand(query["model"]["rawSql"], window))
        if not answer.rows:
            return [], False
        assert answer.numbers() == ["value"], "Grafana takes exactly one number"
        assert [*answer.texts(), "value"] == list(answer.names), "the rest must be labels"
        evaluator = threshold["model"]["conditions"][0]["evaluator"]
        assert evaluator["type"] == "gt"
        (limit,) = evaluator["params"]
        rows = zip(*(answer.column(name) for name in answer.texts()), strict=True)
        labels = [dict(zip(answer.texts(), each, strict=True)) for each in rows]
        assert len({tuple(each.items()) for each in labels}) == len(labels), "two rows of the same labels"
        firing = [each for each, value in zip(labels, answer.column("value"), strict=True) if value > limit]
        return firing, True


def _line(columns: dict[str, Any], when: float, now: float) -> str:
    """A row as JSON; a negative number under a name of a time is seconds before now."""
    row = {"host": "a", "boot": "00000000-0000-0000-0000-000000000001", "ts": _moment(when)} | columns
    if "detected" in row:
        row["detected"] = _moment(now + row["detected"])
    return json.dumps(row)


def _moment(when: float) -> str:
    return datetime.datetime.fromtimestamp(when, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S.%f")


@pytest.fixture(scope="module")
def alerting(store: StoreProcess) -> Iterator[Alerting]:
    made = Alerting(store.url)
    try:
        yield made
    finally:
        made.client.command(f"DROP DATABASE {made.database}")
        made.client.close()


def test_every_rule_has_its_cases() -> None:
    assert set(CASES) == set(BY_NAME)


@pytest.mark.parametrize("name", CASES)
def test_it_fires_when_it_must(alerting: Alerting, name: str) -> None:
    rows, labels, _ = CASES[name]
    now = alerting.put(rows)
    assert alerting.evaluate(BY_NAME[name], now) == (labels, True)


@pytest.mark.parametrize(("name", "number"), NOT_ALL, ids=[f"{name}-{number}" for name, number in NOT_ALL])
def test_it_is_quiet_when_it_must_be(alerting: Alerting, name: str, number: int) -> None:
    now = alerting.put(CASES[name][2][number])
    firing, _ = alerting.evaluate(BY_NAME[name], now)
    assert firing == []


@pytest.mark.parametrize("name", BY_NAME)
def test_silence_alerts_only_where_silence_is_the_fault(alerting: Alerting, name: str) -> None:
    now = alerting.put([])
    firing, any_row = alerting.evaluate(BY_NAME[name], now)
    assert not firing and not any_row
    assert (BY_NAME[name]["noDataState"] == "Alerting") == (name in ("collector-silent", "sink-lag"))


@pytest.mark.parametrize("name", BY_NAME)
def test_a_row_that_is_late_by_the_pipelines_delay_still_counts(alerting: Alerting, name: str) -> None:
    """Evaluated each minute, a rule must see a row also when it takes ten seconds more to its table."""
    rows, labels, _ = CASES[name]
    newest = min(ago for _, ago, _ in rows)
    now = alerting.put([(stream, ago - newest, columns) for stream, ago, columns in rows])
    patience = 130 if name == "collector-silent" else 0
    firing, _ = alerting.evaluate(BY_NAME[name], now + 70 + patience)
    assert firing == labels


def test_an_attack_that_its_mitigator_left_is_not_met(alerting: Alerting) -> None:
    """For an hour: then somebody has known for long that it is gone."""
    for age, fires in ((60, False), (200, True), (3_000, True), (5_000, False)):
        now = alerting.put(
            [attack(age + 5, 1, "active", 0, 0, 9_000), attack(age, 2, "active", 900, 900, 9_000)]
        )
        firing, _ = alerting.evaluate(BY_NAME["attack-not-mitigated"], now)
        assert bool(firing) == fires, age
