"""The questions of an incident against tables whose content is known, through the command line."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import StoreProcess

from fleet.forensics.question import Parameter, checked, moment, questions
from schemas import ddl, declare
from schemas.clickhouse import connect
from schemas.config import Clickhouse
from schemas.errors import UsageError

ATTACKER, CLIENT, VIP, REAL = "203.0.113.9", "192.0.2.7", "198.51.100.1", "10.0.0.5"
NOW = int(time.time())


@pytest.fixture(scope="module")
def config(store: StoreProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Settings of an operator whose fleet has every table, and the story below in them."""
    target = Clickhouse(url=store.url, database=f"forensics{time.monotonic_ns()}")
    client = connect(target, database="")
    file = tmp_path_factory.mktemp("forensics") / "bpfleet.yaml"
    file.write_text(yaml.safe_dump({"clickhouse": {"url": store.url, "database": target.database}}))
    try:
        client.command(ddl.database(target))
        for stream in declare.streams().values():
            for statement in ddl.create(stream, target):
                client.command(statement)
        for table, rows in STORY.items():
            for row in rows:
                names, values = ", ".join(row), ", ".join(_literal(each) for each in row.values())
                client.command(f"INSERT INTO {target.database}.{table} ({names}) VALUES ({values})")
        yield file
    finally:
        client.command(f"DROP DATABASE IF EXISTS {target.database} SYNC")
        client.close()


def _literal(value: Any) -> str:
    return str(value) if isinstance(value, int | float | bool) else f"'{value}'"


def v6(address: str) -> str:
    return f"::ffff:{address}"


def frame(ago: float, verdict: str, source: str, destination: str, **more: Any) -> dict[str, Any]:
    return {
        "host": "edge-1", "ts": NOW - ago, "verdict": verdict, "source": v6(source),
        "destination": v6(destination), "weight": 10, "length": 100, "source_port": 4711,
        "destination_port": 443, "protocol": 6, **more,
    }  # fmt: skip


STORY: dict[str, list[dict[str, Any]]] = {
    "packet_sample": [
        *(frame(100 + second, "drop", ATTACKER, VIP, rule="flood-1", protocol=17) for second in range(5)),
        frame(105, "pass", ATTACKER, VIP), frame(60 * 86_400, "drop", ATTACKER, VIP, rule="flood-0"),
        *(frame(50, "pass", CLIENT, VIP) for _ in range(3)),
        frame(40, "drop", CLIENT, VIP, rule="flood-1", source_port=99),
    ],
    "desired": [
        {"host": "ops", "ts": NOW - 200, "kind": "filter", "id": "flood-1", "revision": 1,
         "author": "ann@ops", "comment": "the flood of Tuesday", "spec": "udp"},
        {"host": "ops", "ts": NOW - 90, "kind": "filter", "id": "flood-1", "revision": 2, "author": "ann@ops",
         "deleted": True},
    ],
    "applied": [
        {"host": "edge-1", "ts": NOW - 199, "kind": "filter", "id": "flood-1", "revision": 1,
         "state": "applied", "author": "ann@ops", "reason": ""},
        {"host": "edge-2", "ts": NOW - 7200, "kind": "lb", "id": "main", "revision": 1, "state": "applied",
         "author": "bob", "reason": ""},
    ],
    "lb_event": [{"host": "edge-1", "ts": NOW - 60, "event": "health", "vip": "web", "real": REAL,
                  "reason": "timeout"}],
    "lb_flow": [{"host": "edge-1", "ts": NOW - 50, "source_address": v6(CLIENT), "source_port": 4711,
                 "destination_address": v6(VIP), "destination_port": 443, "real_address": v6(REAL),
                 "vip": "web", "slot": 17, "reason": "ring"}],
    "tcp_flow": [
        {"host": "web-1", "ts": NOW - 45, "duration_us": 4_000_000, "local_address": v6(VIP),
         "local_port": 443, "remote_address": v6(CLIENT), "remote_port": 4711, "direction": "accepted",
         "ended": "fin",
         "bytes_sent": 5000, "bytes_received": 300, "retransmits": 2, "srtt_us": 900, "comm": "nginx",
         "cgroup": "/web"},
        {"host": "web-2", "ts": NOW - 44, "duration_us": 9, "remote_address": v6(ATTACKER), "remote_port": 1,
         "direction": "accepted", "ended": "reset_by_peer", "bytes_sent": 0, "bytes_received": 7,
         "comm": "sshd", "local_port": 22},
    ],
    "runq_latency": [{"host": "web-1", "ts": NOW - 46, "cgroup": "/web", "count": 4, "sum_ns": 40_000},
                     {"host": "web-1", "ts": NOW - 900, "cgroup": "/web", "count": 1, "sum_ns": 9_000_000}],
    "packet_drop": [{"host": "web-1", "ts": NOW - 47, "reason": "NO_SOCKET", "location": "udp_rcv",
                     "source_address": v6(CLIENT), "source_port": 4711, "destination_port": 443, "weight": 1,
                     "length": 60, "interface": "eth0"}],
    "attack": [{"host": "ops", "ts": NOW - 95, "id": "a1", "revision": 1, "target": VIP, "began": NOW - 104,
                "ended": NOW - 100}],
    "attack_event": [
        {"host": "ops", "ts": NOW - 102, "attack": "a1", "event": "enforced", "rule": "flood-1"},
    ],
}  # fmt: skip


def ask(config: Path, *words: str) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "fleet", "--config", str(config), "forensics", *words, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_what_an_address_did(config: Path) -> None:
    rows = {(row["seen"], row["outcome"], row["by_what"]): int(row["packets"])
            for row in ask(config, "address", ATTACKER)}  # fmt: skip
    assert rows == {
        ("frames", "drop", "flood-1"): 50, ("frames", "drop", "flood-0"): 10, ("frames", "pass", ""): 10,
        ("connections", "reset_by_peer", "accepted"): 1,
    }  # fmt: skip
    assert len(ask(config, "address", ATTACKER, "--since", "30d")) == 3
    (accepted,) = [row for row in ask(config, "address", ATTACKER) if row["seen"] == "connections"]
    assert accepted["ports"] == [22], "the port that it came to, not the one it came from"


@pytest.mark.parametrize("name", ["address", "dropped", "contacts"])
def test_what_an_address_did_is_read_from_sums_and_equals_the_samples(config: Path, name: str) -> None:
    told = yaml.safe_load(config.read_text())["clickhouse"]
    client = connect(Clickhouse(url=told["url"], database=told["database"]))
    values = questions()[name].values({"address": ATTACKER}, "90d", "0s")
    sql = questions()[name].sql
    try:
        plan = [line for (line,) in client.query(f"EXPLAIN {sql}", values).result_rows]
        assert any("rollup_" in line for line in plan), plan
        summed, raw = (
            sorted(
                map(str, client.query(sql, values, settings={"optimize_use_projections": use}).result_rows)
            )
            for use in (1, 0)
        )
        assert summed == raw and len(raw) > 1
    finally:
        client.close()


def test_who_wrote_the_rule_that_dropped_a_customer(config: Path) -> None:
    (row,) = ask(config, "dropped", CLIENT)
    assert (row["rule"], row["author"], row["comment"], row["spec"], int(row["packets"])) == (
        "flood-1", "ann@ops", "the flood of Tuesday", "udp", 10,
    )  # fmt: skip


def test_what_changed_before_a_moment(config: Path) -> None:
    changes = [(row["host"], row["what"], row["subject"]) for row in ask(config, "changes")]
    assert changes == [
        ("edge-1", "balancer", f"web {REAL}"),
        ("edge-1", "document filter", "flood-1"),
    ]
    (old,) = ask(config, "changes", "--host", "edge-2,edge-3", "--since", "3h", "--until", "1h")
    assert old["who"] == "bob"


def test_who_talked_to_an_address(config: Path) -> None:
    rows = {(row["host"], row["how"], row["process"]): int(row["times"])
            for row in ask(config, "contacts", ATTACKER)}  # fmt: skip
    assert rows == {
        ("edge-1", "frames drop", "flood-1"): 50, ("edge-1", "frames drop", "flood-0"): 10,
        ("edge-1", "frames pass", ""): 10, ("web-2", "connection accepted", "sshd"): 1,
    }  # fmt: skip


def test_an_attack_second_by_second(config: Path) -> None:
    rows = ask(config, "replay", "a1")
    seconds = {
        int(datetime.fromisoformat(row["second"]).replace(tzinfo=UTC).timestamp()) - NOW: row for row in rows
    }
    assert {second: int(row["dropped"]) for second, row in seconds.items() if int(row["dropped"])} == {
        -100 - each: 10 for each in range(5)
    }
    assert seconds[-102]["steps"] == "enforced flood-1" and int(seconds[-105]["passed"]) == 10


def test_how_a_flow_travelled(config: Path) -> None:
    rows = ask(config, "flow", CLIENT, "4711", VIP, "443")
    assert [(row["host"], row["part"]) for row in rows] == [
        ("edge-1", "filter"), ("edge-1", "balancer"), ("web-1", "kernel drop"), ("web-1", "run queue"),
        ("web-1", "connection"),
    ]  # fmt: skip
    assert rows[1]["what"] == f"web → {REAL}" and rows[1]["detail"] == "slot 17: ring"
    assert rows[3]["detail"] == "10 µs a wait on average, 4 waits"
    assert "2 retransmits" in rows[4]["detail"]


def test_timelines_and_top_sources(config: Path) -> None:
    minutes = ask(config, "timeline", "--since", "90d")
    assert sum(int(row["dropped"]) for row in minutes) == 70
    assert sum(int(row["passed"]) for row in ask(config, "timeline", "--destination", VIP)) == 40
    assert ask(config, "timeline", "--destination", "10.9.9.9") == []
    top = ask(config, "sources", "--verdict", "drop")
    assert [(row["source"], int(row["packets"])) for row in top] == [(v6(ATTACKER), 50), (v6(CLIENT), 10)]


def test_the_statement_can_be_taken_and_pasted(config: Path) -> None:
    command = [sys.executable, "-m", "fleet", "--config", str(config), "forensics", "sources", "--sql"]
    text = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    pasted = text.replace("bpfleet sql", f"{sys.executable} -m fleet --config {config} sql --json", 1)
    done = subprocess.run(["bash", "-c", pasted], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(ask(config, "sources")) == 2


@pytest.mark.parametrize("text", ["", "1.2.3", "1.2.3.4'", "host", "::g", "fe80::1%eth0"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no address"):
        checked(Parameter("address", "IPv6", None, ""), text)


@pytest.mark.parametrize("text", ["", "-1d", "1y", "yesterday", "2026-13-01", "999999w"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no time"):
        moment(text, datetime.now(UTC))


def test_nothing_found_is_said_and_a_window_that_ends_before_it_begins_is_refused(config: Path) -> None:
    def said(*words: str) -> str:
        command = [sys.executable, "-m", "fleet", "--config", str(config), "forensics", *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stderr

    assert "nothing from 20" in said("replay", "no-such-attack")
    assert "swap them" in said("sources", "--since", "1h", "--until", "2h")
    assert "Traceback" not in said("sources", "--limit", "-1")


def test_every_question_says_what_it_asks_and_is_documented() -> None:
    page = Path("docs/forensics.md").read_text()
    for name, each in questions().items():
        assert each.asks.endswith("?") and f"forensics {name}" in page
        for parameter in each.parameters:
            assert f"{{{parameter.name}:{parameter.kind}}}" in each.sql
