"""Real faults into a running bpfleet: each is called by its name, with its culprit, within ten seconds."""

import json
import os
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from collecting import CollectorProcess
from conftest import StoreProcess
from diagnosing import Outcome, observe, verdicts_of, wait_for_figures
from faults import FAULTS
from sinking import Place, delete_topics, eventually

from fleet.cli import root
from fleet.diagnose.command import seconds
from fleet.diagnose.judge import Judge
from fleet.diagnose.limits import Limit
from fleet.diagnose.watch import watch
from schemas.clickhouse import connect
from schemas.config import Clickhouse, Config, Kafka
from schemas.errors import UsageError
from sinks.kafka_server import KafkaServer

PROBES = ["cgroup", "runq_latency", "block_io", "transport", "tcp_response", "packet_drop", "cpu_profile"]
OF_OTHERS = {"cpu_saturation", "noisy_neighbour"}  # what is true where they keep all CPUs busy
TRIES = 3  # of a fault while other programs keep the machine busy


@dataclass
class Fleet:
    """One host under the eyes of a judge."""

    config: Config
    judge: Judge
    client: Any
    directory: Path

    def observe(self, *names: str) -> Outcome:
        for _ in range(TRIES):
            outcome = observe(
                self.judge, self.config.host, names, self.directory, hasty=names != ("nothing",)
            )
            if outcome.right or not outcome.disturbed:
                break
            time.sleep(5)
        return outcome

    def cli(self, *words: str) -> Any:
        result = CliRunner().invoke(root, [*words], obj=self.config, env={
            "BPFLEET_CLICKHOUSE": self.config.clickhouse.url, "BPFLEET_KAFKA": self.config.kafka.servers,
            "BPFLEET_CLICKHOUSE_DATABASE": self.config.clickhouse.database,
        }, standalone_mode=False)  # fmt: skip
        if isinstance(result.exception, UsageError):  # what a person is told
            raise result.exception
        assert result.exception is None, result.exception
        return json.loads(result.output)


@pytest.fixture(scope="module")
def fleet(
    kafka: KafkaServer, store: StoreProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fleet]:
    directory = tmp_path_factory.mktemp("diagnose")
    disk = Path("/var/tmp") / f"bpfleet-faults-{os.getpid()}"  # tmpfs is no disk
    disk.mkdir()
    delete_topics(kafka.servers)
    place = Place(kafka.servers, store.url, f"t{time.monotonic_ns()}", directory)
    host = f"sick-{os.getpid()}"
    collector = CollectorProcess(
        directory / "collector", kafka.servers, host, probes=PROBES, kinds=[], budget_percent=100
    )
    config = Config(
        host=host, kafka=Kafka(servers=kafka.servers),
        clickhouse=Clickhouse(url=store.url, database=place.database),
    )  # fmt: skip
    try:
        collector.start()
        place.sink()
        client = eventually(
            lambda: place.ask("SELECT 1 FROM DB.host LIMIT 1") and connect(config.clickhouse), 90
        )
        wait_for_figures(client, host)
        yield Fleet(config, Judge(client, config), client, disk)
    finally:
        collector.stop()
        place.close()
        disk.rmdir()


def test_nothing_is_wrong_with_ordinary_work(fleet: Fleet) -> None:
    outcome = fleet.observe("nothing")
    said = outcome.verdicts - (OF_OTHERS if outcome.disturbed else set())
    assert said <= {"nothing_wrong"}, [row["summary"] for row in outcome.rows]


@pytest.mark.parametrize("name", [name for name in FAULTS if name != "nothing"])
def test_a_fault_is_called_by_its_name_and_has_its_culprit(fleet: Fleet, name: str) -> None:
    outcome = fleet.observe(name)
    said = [(row["verdict"], row.get("culprit"), row["summary"]) for row in outcome.rows]
    # What else goes on here may be said too; `make bench` counts only runs with nothing beside the fault.
    assert outcome.expected <= outcome.verdicts, (name, said)
    of_others = outcome.disturbed and outcome.expected <= OF_OTHERS  # who may well have had more
    assert outcome.named or of_others, (name, outcome.culprits, said)
    row = next(each for each in outcome.rows if each["verdict"] in outcome.expected)
    assert row["score"] >= 0.5 and row["value"] >= row["threshold"] > 0
    evidence = json.loads(row["evidence"])
    assert len(evidence) >= 2 and evidence[0]["metric"] == row["metric"]
    assert row["window_from"] <= row["began"] <= row["window_to"] + 1_000_000  # seconds are cut off
    shown = fleet.client.query(row["question"]).result_rows
    assert shown, row["question"]


def test_two_faults_at_once_are_two_verdicts(fleet: Fleet) -> None:
    outcome = fleet.observe("cpu_quota", "slow_server")
    said = [(row["verdict"], row.get("culprit"), row["summary"]) for row in outcome.rows]
    assert outcome.expected <= outcome.verdicts and outcome.named, said
    assert [row["rank"] for row in outcome.rows][:2] == [1, 2]
    assert outcome.rows[0]["score"] >= outcome.rows[1]["score"]


def test_the_service_writes_verdicts_to_the_table_when_they_change_and_keeps_on(fleet: Fleet) -> None:
    stop = threading.Event()

    def serve() -> None:
        for _ in watch(fleet.config, lambda: connect(fleet.config.clickhouse), every_s=0.5, keep_s=2.0):
            if stop.is_set():
                return

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()

    def said() -> set[tuple[str, str]]:
        rows = fleet.client.query(
            "SELECT DISTINCT verdict, culprit FROM verdict WHERE target_host = {host:String}",
            parameters={"host": fleet.config.host},
        ).result_rows
        return {(verdict, culprit) for verdict, culprit in rows}

    try:
        eventually(lambda: "verdict" in fleet.client.command("SHOW TABLES"), 20)
        with FAULTS["cpu_quota"].make(fleet.directory) as culprit:
            eventually(lambda: ("cpu_quota", culprit) in said(), 12)
        (row,) = fleet.client.query(
            "SELECT score, question FROM verdict WHERE verdict = 'cpu_quota' AND culprit = {culprit:String} "
            "ORDER BY ts DESC LIMIT 1",
            parameters={"culprit": culprit},
        ).result_rows
        assert row[0] > 0.5 and fleet.client.query(row[1]).result_rows
        seen = "SELECT uniqExact(ts) FROM verdict"
        before = int(fleet.client.command(seen))
        eventually(lambda: int(fleet.client.command(seen)) >= before + 2, 20)
    finally:
        stop.set()
        thread.join(10)


def test_the_commands_speak_to_machines(fleet: Fleet) -> None:
    (row, *_) = fleet.cli("diagnose", "--host", fleet.config.host, "--since", "1m", "--json")
    assert row["target_host"] == fleet.config.host and isinstance(row["evidence"], list)
    programs = fleet.cli("overhead", "--json", "--since", "5m")
    by_hook = {each["program"]: each for each in programs if each["probe"] == "runq_latency"}
    assert by_hook["tp_btf:sched_switch"]["ns_per_event"] > 10
    assert by_hook["tp_btf:sched_switch"]["events_per_second"] > 1
    (host,) = fleet.cli("overhead", "--json", "--by", "host", "--host", fleet.config.host)
    assert host["cpus"] == os.cpu_count()
    assert host["cpu_percent"] == pytest.approx(host["programs_percent"] + host["collector_percent"])
    own = sum(each["cpu_percent"] for each in programs)
    assert own == pytest.approx(host["cpu_percent"], rel=0.5)


def test_an_operator_who_misspells_a_host_or_is_too_late_is_told_so(fleet: Fleet) -> None:
    for words, said in (
        (["--host", fleet.config.host.replace("sick", "sik")], f"did you mean `{fleet.config.host}`"),
        (["--host", "nothing-like-it-at-all"], "bpfleet status"),
        (["--host", fleet.config.host, "--until", "20h"], "last heard at"),
        (["--until", "20h"], "the last one heard was"),
    ):
        with pytest.raises(UsageError, match=re.escape(said)):
            fleet.cli("diagnose", *words)


def test_a_host_that_is_silent_is_said_to_be(fleet: Fleet) -> None:
    later = time.time_ns() // 1000 + 120_000_000
    rows = Judge(fleet.client, fleet.config).rows(later, 10)
    assert verdicts_of(rows, fleet.config.host) == {"no_data"}


def test_a_threshold_follows_what_is_usual_up_to_a_ceiling() -> None:
    limit = Limit(10, fresh=30, times=2, spreads=3, ceiling=50)
    assert limit.threshold(None, 0) == 30
    assert limit.threshold(1, 0.5) == 10
    assert limit.threshold(12, 2) == 30
    assert limit.threshold(40, 10) == 50
    assert limit.threshold(40, 10, mature=False) == 30, "may be the trouble's own beginning"
    assert limit.threshold(1, 0.5, mature=False) == 10


@pytest.mark.parametrize(
    "text", ["", "5", "1d", "-5m", "5 m", "999999h", "0s", "m", "1e3s", "٣m", "5m\n; DROP"]
)
def test_a_window_that_is_none_is_refused_in_one_line(text: str) -> None:
    if text == "5":
        assert seconds(text) == 5
        return
    with pytest.raises(UsageError, match="--since"):
        seconds(text)
