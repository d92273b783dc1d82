"""`bpfleet probe` against a whole fleet of one: from the command to the row in SQL, and to its end."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
from conftest import StoreProcess
from ondemand import HOST, Whole, python, until
from sinking import Place, delete_topics

from sinks.kafka_server import KafkaServer

OPENS = "import os\nfor _ in range(23): os.close(os.open('/etc/hostname', 0))\n"


@pytest.fixture(scope="module")
def fleet(
    kafka: KafkaServer, store: StoreProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Whole]:
    delete_topics(kafka.servers)
    place = Place(kafka.servers, store.url, "ondemand", tmp_path_factory.mktemp("ondemand"))
    whole = Whole(place, probe_max_cpu=0.5)
    try:
        whole.start()
        yield whole
    finally:
        whole.stop()


def test_from_the_command_to_the_row_and_to_its_end(fleet: Whole) -> None:
    said = fleet.command(
        "run", 'count syscall:openat by comm if str(filename) == "/etc/hostname"', "--id", "opens",
        "--ttl", "5m", "--wait", "--timeout", "30",
    )  # fmt: skip
    assert re.search(rf"probe/opens\s+{HOST}\s+applied", said)
    python(OPENS)
    rows = until(lambda: fleet.rows("opens", "comm, sum(count)", "GROUP BY comm"), 20)
    assert rows == [("python3", 23)]
    assert fleet.rows("opens", "DISTINCT host") == [(HOST,)]
    assert "python3" in fleet.command("results", "opens")
    assert json.loads(fleet.command("results", "opens", "--json")) == {"comm": "python3", "times": "23"} | {
        "times": 23
    }
    assert "sum(count) AS times" in fleet.command("results", "opens", "--sql")
    assert "probe/opens" in fleet.command("list")
    assert "applied" in fleet.command("show", "opens")
    assert re.search(
        rf"probe/opens\s+{HOST}\s+removed", fleet.command("stop", "opens", "--wait", "--timeout", "30")
    )
    until(lambda: [each for each, _ in fleet.events("opens")] == ["attached", "stopped"], 20)
    assert "23" in fleet.command("results", "opens"), "also when it has ended"


def test_watching_shows_when_the_first_row_came_and_ends_it(fleet: Whole) -> None:
    """Functions of a library too: the collector has given up its privileges by now."""
    asks = "import socket, time\nfor _ in range(60): socket.getaddrinfo('127.0.0.1', 80); time.sleep(0.25)\n"
    with subprocess.Popen([sys.executable, "-c", asks]) as asking:
        try:
            said = fleet.command(
                "run", "count function:libc:getaddrinfo by comm", "--id", "names", "--for", "6s"
            )
        finally:
            asking.kill()
    first = re.search(r"first row after ([0-9.]+) s", said)
    assert first and float(first[1]) < 10, said
    assert "runs on 1 of 1 hosts" in said
    until(lambda: fleet.events("names")[-1:] == [("stopped", "its author ended it")], 20)


def test_a_host_that_cannot_says_why_and_others_go_on(fleet: Whole) -> None:
    said = fleet.command(
        "run", "count kprobe:do_unlinkat", "--id", "kernel", "--wait", "--timeout", "30", code=1
    )
    assert "failed" in said and "no kprobes" in said.replace("\n", " ")
    said = fleet.command("run", "count syscall:openat by nothing", "--id", "wrong", "--for", "20s", code=1)
    assert "has no `nothing` on this host" in " ".join(said.split())
    assert "no host runs it" in said
    fleet.command("stop", "kernel")


def test_what_no_host_could_take_is_not_sent(fleet: Whole) -> None:
    said = fleet.command("run", "count syscall:openat if", code=2)
    assert said.startswith("bpfleet: ")
    assert len(said.splitlines()) == 1
    assert "raw_tp" not in fleet.command("run", "slow-open", "--dry-run")
    assert len(json.loads(fleet.command("library", "--json"))) >= 15
    assert "at: syscall:openat" in fleet.command("library", "slow-open")


def test_its_life_ends_with_its_ttl(fleet: Whole) -> None:
    fleet.command("run", "count syscall:openat", "--id", "brief", "--ttl", "3s", "--no-follow")
    until(lambda: [each for each, _ in fleet.events("brief")] == ["attached", "expired"], 20)
