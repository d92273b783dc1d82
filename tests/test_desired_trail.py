"""The audit trail in ClickHouse: who wanted what, where it arrived, when it ended."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from desired_host import Host, Recorder, check, config_of, until
from sinking import Place, eventually

from fleet.desired import Board, Draft
from schemas.desired import Kind, Scope
from schemas.signing import PrivateKey

KEY = PrivateKey(b"k" * 32, "ops")
RULE = Kind("rule", check, must_expire=True)


@pytest.fixture
def host(place: Place, tmp_path: Path) -> Iterator[Host]:
    trust = {"trusted_keys": [str(KEY.public)], "signed_kinds": ["rule"]}
    made = Host(config_of(tmp_path, place.servers, "trail-host", **trust), Recorder(RULE)).start()
    yield made
    made.stop()


def test_every_step_is_a_row(place: Place, host: Host, tmp_path: Path) -> None:
    until(lambda: host.desired.settled, 20)
    place.sink()
    board = Board(config_of(tmp_path, place.servers, "operator"), KEY)
    board.publish([Draft(RULE, "a", {"say": 1}, Scope(("trail-*",)), 600, "an attack")])
    until(lambda: host.handlers[0].now == {"a": 1})
    board.delete(["rule/a"], "it is over")
    board.close()
    until(lambda: [state for state, _ in host.said("rule/a")] == ["applied", "removed"])
    joined = """
        SELECT d.deleted, d.author, d.comment, d.signer, a.host, a.state, a.signer, d.spec
        FROM DB.desired AS d JOIN DB.applied AS a ON d.digest = a.digest AND d.kind = a.kind AND d.id = a.id
        WHERE d.kind = 'rule' ORDER BY d.ts
    """
    rows = eventually(lambda: found if len(found := place.ask(joined)) == 2 else None)
    author, public = "root@operator", KEY.public.text
    assert rows == [
        (False, author, "an attack", public, "trail-host", "applied", "ops", '{"say":1}'),
        (True, author, "it is over", public, "trail-host", "removed", "ops", "null"),
    ]
    environment = {
        "BPFLEET_CLICKHOUSE": place.url,
        "BPFLEET_CLICKHOUSE_DATABASE": place.database,
        "PATH": "/usr/bin",
    }
    command = [sys.executable, "-m", "fleet", "desired", "log", "rule/a", "--since", "1h"]
    for more in ([], ["--json"]):
        done = subprocess.run(
            [*command, *more], env=environment, capture_output=True, text=True, timeout=60, check=True
        )
    steps = [(row["what"], row["state"], row["host"]) for row in map(json.loads, done.stdout.splitlines())]
    assert steps == [
        ("published", "wanted", "operator"), ("host said", "applied", "trail-host"),
        ("published", "removed", "operator"), ("host said", "removed", "trail-host"),
    ]  # fmt: skip
