"""`bpfleet drop` on this host: each command as an operator types it, on an interface made for the test."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

NAME = f"bft{os.getpid() % 100_000}"


class Operator:
    """Types commands; each must succeed unless told otherwise."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.environment = {**os.environ, "BPFLEET_STATE_DIR": str(directory)}

    def drop(self, *words: str, fails: bool = False) -> str:
        command = [sys.executable, "-m", "fleet", "drop", "local", "--instance", NAME, *words]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr if fails else done.stdout

    def rules(self) -> dict[str, dict[str, object]]:
        lines = self.drop("list", "--json").splitlines()
        return {row["rule"]: row for row in map(json.loads, lines)}


@pytest.fixture
def operator(tmp_path: Path) -> Iterator[Operator]:
    subprocess.run(["ip", "link", "add", NAME, "type", "veth", "peer", "name", NAME + "p"], check=True)
    made = Operator(tmp_path)
    try:
        yield made
    finally:
        if (tmp_path / NAME / "state.json").exists():
            made.drop("remove", "--yes")
        subprocess.run(["ip", "link", "del", NAME], check=True)


def attached() -> bool:
    return (
        "prog/xdp"
        in subprocess.run(["ip", "link", "show", NAME], capture_output=True, text=True, check=True).stdout
    )


def test_a_day_of_an_operator(operator: Operator, tmp_path: Path) -> None:
    assert "-i eth0" in operator.drop("add", "udp", "--ttl", "1h", fails=True)
    assert "shadow" in operator.drop("add", "udp and dst port 53", "--ttl", "1h", "-i", NAME)
    assert attached()
    bots = tmp_path / "bots.txt"
    bots.write_text("192.0.2.0/24  # a net\n\n2001:db8::/32\n")
    operator.drop("set", "bots", str(bots))
    operator.drop("allow", "10.0.0.0/8")
    operator.drop("add", "src in @bots", "--ttl", "2h", "--id", "bots", "--enforce", "--first")
    assert list(operator.rules()) == ["bots", "rule-1"]
    operator.drop("enforce", "rule-1")
    assert operator.rules()["rule-1"]["mode"] == "enforce"
    operator.drop("shadow", "rule-1")
    assert "udp and dst port 53" in operator.drop("show", "rule-1")
    operator.drop("rm", "rule-1")
    assert list(operator.rules()) == ["bots"]
    log = operator.drop("log")
    assert [word in log for word in ("add rule-1", "set bots", "enforce rule-1", "rm rule-1")] == [True] * 4
    operator.drop("remove", "--yes")
    assert not attached()


def test_what_is_wrong_is_said_and_changes_nothing(operator: Operator, tmp_path: Path) -> None:
    operator.drop("add", "udp", "--ttl", "1h", "-i", NAME)
    assert "syntax error" in operator.drop("add", "udp and and", "--ttl", "1h", fails=True)
    assert "ttl" in operator.drop("add", "udp", "--ttl", "long", fails=True)
    assert "exists" in operator.drop("add", "tcp", "--ttl", "1h", "--id", "rule-1", fails=True)
    assert "no rule" in operator.drop("rm", "rule-7", fails=True)
    assert "no interface" in operator.drop("add", "tcp", "--ttl", "1h", "-i", "nope0", fails=True)
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("rules: [{id: a, ttl: 1h, match: 'port'}]")
    assert "rule a" in operator.drop("apply", str(wrong), fails=True)
    wrong.write_text("rules: [{id: a, tll: 1h}]")
    assert "tll" in operator.drop("apply", str(wrong), fails=True)
    assert list(operator.rules()) == ["rule-1"]


def test_apply_replaces_everything(operator: Operator, tmp_path: Path) -> None:
    (tmp_path / "bots.txt").write_text("192.0.2.0/24\n")
    file = tmp_path / "rules.yaml"
    file.write_text("""
allow: [10.0.0.0/8]
sets: {bots: {file: bots.txt}}
rules:
- {id: bots, ttl: 7d, match: src in @bots, mode: enforce}
- {id: slow, ttl: 1h, match: udp, action: limit 100 pps per source /24}
""")
    operator.drop("apply", str(file), "-i", NAME)
    assert list(operator.rules()) == ["bots", "slow"]
    file.write_text("rules: [{id: slow, ttl: 1h, match: tcp}]")
    operator.drop("apply", str(file))
    assert list(operator.rules()) == ["slow"]
