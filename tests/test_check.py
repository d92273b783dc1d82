"""`bpfleet check` on this host, as a person runs it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from collector import check, loader
from collector.cgroup import find_mount
from collector.check import Outcome, as_json, as_table
from collector.command import check as command
from collector.command import collect
from schemas import declare

STREAMS = declare.streams()
MAIN = "from fleet.cli import main; main()"


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", MAIN, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)


def test_every_probe_works_here() -> None:
    done = run("check", "--json", "--seconds", "15")
    outcomes = json.loads(done.stdout)
    assert [each for each in outcomes if not each["ok"]] == []
    assert done.returncode == 0
    by_name = {each["probe"]: each for each in outcomes}
    assert {"runq_latency", "block_io", "tcp_flow", "packet_drop", "cgroup"} <= by_name.keys()
    for each in outcomes:
        common = [rows for name, rows in each["events"].items() if not STREAMS[name].rare]
        assert each["hooks"] and all(common) and (each["example"] or not common)
    assert not list((find_mount() or Path("/")).glob("bpfleet-check-*"))


def test_only_the_probes_that_are_named() -> None:
    done = run("check", "cgroup", "--seconds", "10")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[0].split() == ["PROBE", "RESULT", "ROWS", "SEEN"]
    assert done.stdout.splitlines()[1].split()[:2] == ["cgroup", "ok"]
    assert done.stdout.splitlines()[-1] == "1 of 1 probes work on this host"


def test_a_name_that_no_probe_has() -> None:
    done = run("check", "tcp_flwo")
    assert done.returncode == 2
    assert done.stderr.startswith("bpfleet: no probe is called `tcp_flwo`; there are: ")
    assert "Traceback" not in done.stderr


def test_one_that_fails_is_told_and_the_rest_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in loader.ROOT.iterdir():
        (tmp_path / file.name).symlink_to(file)
    broken = tmp_path / "runq_latency.bpf.c"
    broken.unlink()
    broken.write_text('#include "common/task.h"\nTP_BTF(sched_switch)\n{\n\treturn nothing_of_the_kind;\n}\n')
    code = f"""
import sys
from pathlib import Path
from collector import loader
loader.ROOT = Path({str(tmp_path)!r})
sys.argv = ["bpfleet", "check", "runq_latency", "cgroup", "--seconds", "10"]
{MAIN}
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1, done.stderr
    lines = done.stdout.splitlines()
    assert lines[1].split()[:2] == ["cgroup", "ok"]
    assert lines[2].split()[:2] == ["runq_latency", "FAILED"] and "nothing_of_the_kind" in lines[3]
    assert lines[-1] == "1 of 2 probes work on this host"


def test_the_reports() -> None:
    outcomes = [Outcome("a", True, "", ["tp_btf:x"], {"s": 3}, {"ts": 1}), Outcome("long_name", False, "why")]
    assert as_table(outcomes).splitlines() == [
        "PROBE      RESULT  ROWS SEEN",
        "a          ok      s 3",
        "long_name  FAILED  -",
        "           why",
        "1 of 2 probes work on this host",
    ]
    assert json.loads(as_json(outcomes))[1]["reason"] == "why"


def test_what_is_made_to_happen_does_happen() -> None:
    for each in (check._tcp, check._udp, check._disk, check._cgroup):
        each()


def test_help_is_worth_reading() -> None:
    for each in (command, collect):
        said = CliRunner().invoke(each, ["--help"]).output
        assert "Examples:" in said and "bpfleet c" in said
