"""`bpfleet simulate` through the real Kafka and sink: dashboards, rules and questions find what it plants."""

import contextlib
import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from boards import BOARDS
from click.testing import CliRunner, Result
from conftest import StoreProcess
from sinking import Place, delete_topics
from test_dashboards_lint import RULES

from fleet.forensics.question import questions
from fleet.render import frame, macros
from fleet.render.variables import expand
from fleet.render.window import Window, seconds
from fleet.simulate import store as in_store
from fleet.simulate.command import simulate
from fleet.simulate.incidents import CATALOGUE, planned
from fleet.simulate.plan import Ask, Fleet, Look
from schemas import simulated
from schemas.clickhouse import connect
from schemas.config import Clickhouse, Config, Kafka
from schemas.errors import UsageError
from sinks.kafka_server import KafkaServer

HOSTS, HOURS = 8, 3.5
END = int(time.time())
FLEET = Fleet(HOSTS, END - HOURS * 3600, END)
INCIDENTS = {each.name: each for each in planned(FLEET)}
LOOKS = [(name, look) for name, each in INCIDENTS.items() for look in each.looks]
ASKS = [(name, ask) for name, each in INCIDENTS.items() for ask in each.asks]


@dataclass
class Simulated:
    """A database that one run has filled."""

    config: Config
    client: Any
    said: str

    def ask(self, sql: str) -> frame.Frame:
        return frame.ask(self.client, sql)

    def number(self, sql: str) -> int:
        return int(self.client.query(sql).first_row[0])


def run(config: Config, *arguments: str) -> Result:
    return CliRunner().invoke(simulate, list(arguments), obj=config, catch_exceptions=True)


@pytest.fixture(scope="module")
def fleet(
    kafka: KafkaServer, store: StoreProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Simulated]:
    delete_topics(kafka.servers)
    place = Place(kafka.servers, store.url, f"simulated{time.monotonic_ns()}", tmp_path_factory.mktemp("sim"))
    sink = place.sink()
    config = Config(kafka=Kafka(servers=kafka.servers),
                    clickhouse=Clickhouse(url=store.url, database=place.database))  # fmt: skip
    config.sink.metrics_port = sink.port
    try:
        until = time.monotonic() + 30
        while not sink.metrics():
            assert time.monotonic() < until, sink.said()
            time.sleep(0.1)
        done = run(config, "--hosts", str(HOSTS), "--days", str(HOURS / 24), "--until", str(END), "--json")
        assert done.exit_code == 0, (done.output, done.exception)
        client = connect(config.clickhouse)
        yield Simulated(config, client, done.stdout)
        client.close()
    finally:
        place.close()
        with contextlib.suppress(Exception):
            place.client().command(f"DROP DATABASE IF EXISTS {place.database} SYNC")


def _rows(answer: frame.Frame) -> list[str]:
    return [_row(row) for row in zip(*answer.columns, strict=True)]


def _row(values: Iterable[Any]) -> str:
    """As people read it: IPv4 addresses without what maps them."""
    return " | ".join(str(getattr(each, "ipv4_mapped", None) or each) for each in values)


@pytest.mark.parametrize(("name", "look"), LOOKS, ids=[f"{name}: {look.panel}" for name, look in LOOKS])
def test_the_dashboards_show_it(fleet: Simulated, name: str, look: Look) -> None:
    board = BOARDS[look.board]
    window = Window.of(END - seconds(look.since), END)
    given = {variable: [value] for variable, value in look.variables.items()}
    choices = board.choices(given, lambda sql: fleet.ask(sql).first(), window)
    (panel,) = [each for each in board.panels if each.title == look.panel]
    seen = [row for sql in panel.queries.values()
            for row in _rows(fleet.ask(expand(sql, choices, panel.window(window))))]  # fmt: skip
    assert any(all(text in row for text in look.texts) for row in seen), "\n".join(seen[:20])


@pytest.mark.parametrize(("name", "ask"), ASKS, ids=[f"{name}: {' '.join(ask.words)}" for name, ask in ASKS])
def test_forensics_tells_of_it(fleet: Simulated, name: str, ask: Ask) -> None:
    question = questions()[ask.words[0]]
    words = list(ask.words[1:])
    told = {each.name: each.default or "" for each in question.parameters}
    places = [each.name for each in question.parameters if each.default is None]
    while words:
        word = words.pop(0)
        told[word.removeprefix("--") if word.startswith("--") else places.pop(0)] = (
            words.pop(0) if word.startswith("--") else word
        )
    since = told.pop("since", question.since)
    values = question.values(told, since, None)
    answer = fleet.client.query(question.sql, parameters=values)
    seen = [_row(row) for row in answer.result_rows]
    assert any(all(text in row for text in ask.texts) for row in seen), "\n".join(seen[:20])


# What the shipped alert rules fire for: (incident, moment in minutes before the end, labels).
FIRING = {
    "host-verdict": (0, {("cause", "slow_disk"), ("host", "sim-db-2")}),
    "attack-started": (35, {("attack", "simulated-flood"), ("target", "192.0.2.10")}),
    "attack-mitigated": (35, {("attack", "simulated-flood"), ("target", "192.0.2.10")}),
    "rule-rolled-back": (118, {("host", "sim-edge-4"), ("rule", "block-partners")}),
    "real-down": (50, {("host", "sim-edge-0"), ("real", "10.1.0.2"), ("vip", "shop")}),
    "vip-without-reals": (0, {("host", "sim-edge-0"), ("vip", "api")}),
    "oom": (60, {("cgroup", "batch.service"), ("host", "sim-web-5")}),
    "collector-silent": (0, {("host", "sim-web-7")}),
    "losses": (84, {("host", "sim-web-3"), ("stream", "tcp_flow")}),
    "overhead": (55, {("action", "detached"), ("host", "sim-db-2"), ("probe", "slow-open")}),
    "retransmits": (95, {("host", "sim-db-6")}),
}


def _fired(fleet: Simulated, name: str, minutes: float) -> list[set[tuple[str, str]]]:
    (rule,) = [each for each in RULES if each["uid"] == f"bpfleet-{name}"]
    query, threshold = rule["data"]
    end = END - minutes * 60
    window = Window.of(end - query["relativeTimeRange"]["from"], end)
    answer = fleet.ask(macros.expand(query["model"]["rawSql"], window))
    if not answer.rows:
        return []
    (limit,) = threshold["model"]["conditions"][0]["evaluator"]["params"]
    labels = zip(*(answer.column(each) for each in answer.texts()), strict=True)
    return [set(zip(answer.texts(), map(str, each), strict=True))
            for each, value in zip(labels, answer.column("value"), strict=True) if value > limit]  # fmt: skip


@pytest.mark.parametrize("name", FIRING)
def test_alert_rules_fire_for_it_then_and_not_before(fleet: Simulated, name: str) -> None:
    minutes, labels = FIRING[name]
    assert labels in _fired(fleet, name, minutes)
    assert _fired(fleet, name, 180) == [], "nothing had gone wrong by then"


def test_every_incident_is_told_of_and_each_kind_is_there(fleet: Simulated) -> None:
    told = [json.loads(line) for line in fleet.said.splitlines() if line.startswith("{")]
    assert {each["name"] for each in told} == set(CATALOGUE)
    assert all(each["panels"] or each["questions"] for each in told)
    # With --until, the questions are of that time, however long ago it was.
    begin, end = (f"{datetime.fromtimestamp(at, UTC):%Y-%m-%dT%H:%M:%S}" for at in (END - 10_800, END))
    asked = [question for each in told for question in each["questions"]]
    assert f"bpfleet forensics sources --since {begin} --verdict drop --until {end}" in asked
    assert f"bpfleet forensics contacts 198.51.100.77 --until {end}" in asked


def test_all_of_it_is_marked_and_nothing_is_missing_but_what_was_lost(fleet: Simulated) -> None:
    for table in in_store.tables(fleet.client, fleet.config.clickhouse):
        if table != in_store.OF_SINKS:
            assert fleet.number(f"SELECT countIf(NOT ({simulated.SQL})) FROM {table}") == 0, table
            gaps = fleet.client.query(
                f"SELECT host, max(seq) + 1 - uniqExact(seq) AS gap FROM {table} GROUP BY host HAVING gap > 0"
            ).result_rows
            assert [host for host, _ in gaps] == (["sim-web-3"] if table == "tcp_flow" else []), table
    assert fleet.number("SELECT count() FROM host WHERE NOT startsWith(host, 'sim-')") == 0
    assert fleet.number(f"SELECT uniqExact(boot) FROM host WHERE {simulated.SQL}") == HOSTS


def test_a_silent_host_is_silent(fleet: Simulated) -> None:
    silent = INCIDENTS["silent-collector"].begin
    late = f"host = 'sim-web-7' AND ts > fromUnixTimestamp64Milli({int(silent * 1000)})"
    for table in ("host", "runq_latency", "tcp_flow", "pressure"):
        assert fleet.number(f"SELECT count() FROM {table} WHERE {late}") == 0, table


def test_the_sinks_delay_is_not_that_of_simulated_history(fleet: Simulated) -> None:
    """A row of three hours ago that is simulated now is no delay of the pipeline."""
    assert fleet.number("SELECT max(delay_us) FROM sink_health") < 60_000_000


def test_the_same_seed_makes_the_same_rows(fleet: Simulated) -> None:
    from fleet.simulate import generate
    from schemas import declare

    def hashed(seed: int, first: int, many: int) -> int:
        whole = Fleet(HOSTS, FLEET.begin, FLEET.end, seed)
        stream, own = declare.streams()["tcp_flow"], generate.STREAMS["tcp_flow"][1]
        sql = generate.statement(stream, own, whole, 5_000, seconds=6, first=first, many=many)
        inner, _, settings = sql.partition(" SETTINGS ")
        return fleet.number(f"SELECT groupBitXor(cityHash64(*)) FROM ({inner}) SETTINGS {settings}")

    assert hashed(1, 0, 5_000) == hashed(1, 0, 2_000) ^ hashed(1, 2_000, 3_000)
    assert hashed(1, 0, 5_000) != hashed(2, 0, 5_000)


def test_it_does_not_mix_into_a_store_of_real_hosts_and_is_removed_again(fleet: Simulated) -> None:
    assert "first: bpfleet simulate --remove" in str(run(fleet.config).exception)
    fleet.client.command(
        "INSERT INTO host (ts, host, boot) SELECT now64(6), 'real-1', generateUUIDv4() FROM numbers(3)"
    )
    done = run(fleet.config, "--remove")
    assert done.exit_code == 0 and "simulated rows removed" in done.output, (done.output, done.exception)
    assert in_store.simulation(fleet.client, fleet.config.clickhouse) == []
    assert fleet.number("SELECT count() FROM host") == 3
    refused = run(fleet.config).exception
    assert isinstance(refused, UsageError) and "rows of real hosts (host …)" in str(refused)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--incidents", "flood,nonsense"], "there is no incident `nonsense`"),
        (["--hosts", "2000", "--days", "30", "--scale", "60"], "rows; take fewer hosts"),
    ],
)
def test_mistakes_are_named(fleet: Simulated, arguments: list[str], says: str) -> None:
    done = run(fleet.config, *arguments)
    assert isinstance(done.exception, UsageError) and says in str(done.exception)
