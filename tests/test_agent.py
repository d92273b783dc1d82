"""The collector as a process: known workloads into Kafka, kills, a paused reader, an end in peace."""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from collecting import CollectorProcess, assert_accounted, read_topic, rows, wait_for

from bench import flood
from bench.common import free_port
from collector import privileges
from collector.cgroup import find_mount, require_mount
from collector.sequence import marks
from schemas import config as settings
from sinks.kafka_server import KafkaServer


@pytest.fixture
def collectors() -> Iterator[list[CollectorProcess]]:
    every: list[CollectorProcess] = []
    yield every
    for each in every:
        each.kill()


@pytest.fixture
def parent() -> Iterator[Path]:
    directory = require_mount(find_mount()) / "bpfleet-agent-test"
    directory.mkdir(exist_ok=True)
    yield directory
    for child in [*sorted(directory.rglob("*/"), reverse=True), directory]:
        child.rmdir()


def brief_cgroups(parent: Path, count: int, prefix: str = "brief") -> set[str]:
    """Make and remove cgroups; their paths."""
    for number in range(count):
        (parent / f"{prefix}-{number}.service").mkdir()
        (parent / f"{prefix}-{number}.service").rmdir()
    return {f"/{parent.name}/{prefix}-{number}.service" for number in range(count)}


def connect_from(cgroup: Path) -> int:
    """A connection by a process of a cgroup that is gone right after; its local port."""
    cgroup.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as server:
        child = os.fork()
        if not child:
            try:
                (cgroup / "cgroup.procs").write_text(str(os.getpid()))
                socket.create_connection(server.getsockname()).close()
            finally:
                os._exit(0)
        accepted, peer = server.accept()
        accepted.close()
        os.waitpid(child, 0)
    cgroup.rmdir()
    return int(peer[1])


def journal(directory: Path) -> list[object]:
    """Losses not yet declared."""
    file = directory / "collector/losses.json"
    losses: list[object] = json.loads(file.read_text()) if file.exists() else []
    return losses


def books(servers: str, host: str, stream: str) -> tuple[int, int, int]:
    """(made, lost, shipped) of a stream over a collector's life, as `collector_health` has it."""
    health = rows(read_topic(servers, "collector_health", host))
    of = [row for row in health if row["kind"] == "stream" and row["stream"] == stream]
    return sum(row["made"] for row in of), sum(row["lost"] for row in of), sum(row["shipped"] for row in of)


def connections(count: int) -> list[tuple[int, int]]:
    """Open and close TCP connections on loopback; (client port, server port) of each."""
    ports = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        for _ in range(count):
            with socket.create_connection(server.getsockname()) as client:
                accepted, _ = server.accept()
                client.sendall(b"x" * 100)
                accepted.recv(200)
                ports.append((client.getsockname()[1], server.getsockname()[1]))
                accepted.close()
    return ports


def test_known_workloads_arrive_and_the_books_balance(
    kafka: KafkaServer, tmp_path: Path, parent: Path, collectors: list[CollectorProcess]
) -> None:
    port = free_port()
    one = CollectorProcess(tmp_path, kafka.servers, "works", metrics_port=port, labels={"rack": "r1"})
    collectors.append(one)
    one.start()
    paths = brief_cgroups(parent, 23)
    ports = {port for pair in connections(23) for port in pair}
    gone = {connect_from(parent / f"docker-{number:064x}.scope"): f"{number:064x}" for number in range(5)}
    time.sleep(1.5)
    assert "bpfleet_stream_made_total" in one.metrics(port)
    started = time.monotonic()
    assert one.stop() == 0
    assert time.monotonic() - started < 6

    seen = [row for row in rows(read_topic(kafka.servers, "cgroup_event", "works")) if row["cgroup"] in paths]
    assert len(seen) == 46 and {row["change"] for row in seen} == {"made", "removed"}
    assert abs(seen[0]["id"]) > 0
    known = {row["cgroup"]: row for row in rows(read_topic(kafka.servers, "cgroup", "works"))}
    assert paths <= known.keys()
    assert known[f"/{parent.name}/brief-7.service"]["unit"] == "brief-7.service"

    flows = rows(read_topic(kafka.servers, "tcp_flow", "works"))
    mine = [row for row in flows if {value for value in row.values() if isinstance(value, int)} & ports]
    assert len(mine) >= 23

    by_port = {row["local_port"]: row["cgroup"] for row in flows}
    for port, container in gone.items():
        assert known[by_port[port]]["container"] == container, "named although it was gone when it was read"

    (first, *_) = rows(read_topic(kafka.servers, "host", "works"))
    assert first["kernel"] == os.uname().release and json.loads(first["labels"]) == {"rack": "r1"}
    assert first["failed"] == "{}" and "tcp_flow" in first["probes"].split(",")

    streams = ["cgroup_event", "tcp_flow", "block_io_slow", "packet_drop", "runq_latency", "host"]
    outcome = assert_accounted(kafka.servers, "works", streams)
    assert all(lost == 0 for _, lost in outcome.values())
    health = rows(read_topic(kafka.servers, "collector_health", "works"))
    for stream in ("cgroup_event", "tcp_flow", "packet_drop"):
        made, lost, shipped = books(kafka.servers, "works", stream)
        there = sum(each.rows for each in read_topic(kafka.servers, stream, "works"))
        assert made == shipped + lost and shipped == there, stream
    programs = [row for row in health if row["kind"] == "program" and row["program"] == "tp_btf:sched_switch"]
    assert sum(row["runs"] for row in programs) > 100 and sum(row["run_ns"] for row in programs) > 0
    assert not [row for row in health if row["kind"] in ("loss", "restart")]


def test_killed_at_random_moments_nothing_is_twice_or_unexplained(
    kafka: KafkaServer, tmp_path: Path, parent: Path, collectors: list[CollectorProcess]
) -> None:
    one = CollectorProcess(
        tmp_path, kafka.servers, "killed", probes=["cgroup", "runq_latency"], batch_ms=10, aggregate_ms=10
    )
    collectors.append(one)
    chance = random.Random(7)
    for number in range(6):
        one.start()
        end = time.monotonic() + chance.uniform(0.05, 2.5)
        while time.monotonic() < end:
            brief_cgroups(parent, 5, f"round-{number}")
        one.kill()
    one.start()
    wait_for(lambda: not journal(tmp_path), 30, "what is lost is declared")
    assert one.stop() == 0
    outcome = assert_accounted(kafka.servers, "killed", ["cgroup_event", "runq_latency", "cgroup", "host"])
    assert outcome["runq_latency"][0] > 50
    health = rows(read_topic(kafka.servers, "collector_health", "killed"))
    assert {row["reason"] for row in health if row["kind"] == "loss"} <= {"killed"}
    restarts = [row for row in health if row["kind"] == "restart"]
    assert restarts and all(0 < row["blind_us"] < 60_000_000 for row in restarts)
    boots = {each.envelope.boot for each in read_topic(kafka.servers, "runq_latency", "killed")}
    assert len(boots) == 1


def test_killed_while_kafka_is_away_the_spool_is_delivered_once(
    kafka: KafkaServer, tmp_path: Path, parent: Path, collectors: list[CollectorProcess]
) -> None:
    one = CollectorProcess(tmp_path, kafka.servers, "away", probes=["cgroup"], batch_ms=20)
    collectors.append(one)
    one.start()
    first = brief_cgroups(parent, 10, "before")

    def seen() -> set[str]:
        return {row["cgroup"] for row in rows(read_topic(kafka.servers, "cgroup_event", "away"))}

    # What a broker has not acknowledged when it dies may be lost with a killed collector, and is declared.
    wait_for(lambda: first <= seen(), 20, "what was before")
    assert kafka.process
    kafka.process.send_signal(signal.SIGKILL)
    kafka.process.wait()

    def spooling() -> bool:
        brief_cgroups(parent, 1, "noticed")
        return any(each.stat().st_size for each in (tmp_path / "collector/spool").glob("*.spool"))

    try:
        wait_for(spooling, 20, "the collector to notice")
        second = brief_cgroups(parent, 30, "during")
        time.sleep(0.5)
        one.kill()
        one.start()
        third = brief_cgroups(parent, 30, "again")
        time.sleep(0.5)
        assert [each.next for each in marks(tmp_path / "collector/sequence")[1]]
    finally:
        kafka.start()
        kafka.wait_ready()

    def drained() -> bool:
        spool = sum(each.stat().st_size for each in (tmp_path / "collector/spool").glob("*.spool"))
        return not spool and not journal(tmp_path)

    wait_for(drained, 40, "the spool is drained")
    assert one.stop() == 0
    assert_accounted(kafka.servers, "away", ["cgroup_event"])
    assert first | second | third <= seen()
    for each in ("cgroup_event", "cgroup"):
        numbers = [batch.envelope.seq for batch in read_topic(kafka.servers, each, "away")]
        assert numbers == sorted(numbers), f"{each} is in order"


def test_a_paused_reader_loses_and_counts(
    kafka: KafkaServer, tmp_path: Path, parent: Path, collectors: list[CollectorProcess]
) -> None:
    one = CollectorProcess(tmp_path, kafka.servers, "paused", probes=["cgroup"], ring_kb=16)
    collectors.append(one)
    process = one.start()
    process.send_signal(signal.SIGSTOP)
    brief_cgroups(parent, 60)
    process.send_signal(signal.SIGCONT)
    assert one.stop() == 0
    made, lost, shipped = books(kafka.servers, "paused", "cgroup_event")
    assert made >= 120 and 0 < lost < made and made == shipped + lost
    health = rows(read_topic(kafka.servers, "collector_health", "paused"))
    assert {row["reason"] for row in health if row["lost"]} == {"ring_full"}
    assert sum(each.rows for each in read_topic(kafka.servers, "cgroup_event", "paused")) == shipped


def test_a_flood_is_accounted_for_to_the_last_event(
    kafka: KafkaServer, tmp_path: Path, collectors: list[CollectorProcess]
) -> None:
    generator = flood.generator(100_000, 3)
    (tmp_path / "flood").mkdir()
    place = str(flood.directory(tmp_path / "flood", generator.pid))
    one = CollectorProcess(tmp_path, kafka.servers, "flood", probes=["flood"])
    collectors.append(one)
    process = one.start(code=[flood.COLLECT, place])
    assert generator.stdin
    generator.stdin.write("go\n")
    generator.stdin.flush()
    for _ in range(2):
        time.sleep(0.7)
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.3)
        process.send_signal(signal.SIGCONT)
    called = int(generator.communicate(timeout=20)[0])
    assert one.stop() == 0
    of = [
        row
        for row in rows(read_topic(kafka.servers, "collector_health", "flood"))
        if row["stream"] == "flood"
    ]
    made, lost, shipped = (sum(row[name] for row in of) for name in ("made", "lost", "shipped"))
    batches = read_topic(kafka.servers, "flood", "flood", flood.stream())
    assert called <= made <= called + 100, "a few calls are the interpreter's own"
    assert lost > 1000 and made == shipped + lost
    assert sum(each.rows for each in batches) == shipped
    numbers = np.concatenate([each.columns["number"] for each in batches])
    cpus = np.concatenate([each.columns["cpu"] for each in batches])
    for cpu in np.unique(cpus):
        assert (np.diff(numbers[cpus == cpu]) == 1).all(), "what is there is in order, and each once"


def test_it_stays_small(kafka: KafkaServer, tmp_path: Path, collectors: list[CollectorProcess]) -> None:
    one = CollectorProcess(tmp_path, kafka.servers, "small")
    collectors.append(one)
    process = psutil.Process(one.start().pid)
    connections(50)
    time.sleep(2)
    before = sum(process.cpu_times()[:2])
    time.sleep(4)
    assert sum(process.cpu_times()[:2]) - before < 0.4, "a tenth of a core on a machine busy with tests"
    assert process.memory_info().rss < 100e6
    assert not [each for each in process.memory_maps() if "bcc" in each.path or "LLVM" in each.path]
    capabilities = next(
        line for line in Path(f"/proc/{process.pid}/status").read_text().splitlines() if "CapEff" in line
    )
    kept = privileges.kept_for(settings.Collector().kinds, symbols=True)
    assert int(capabilities.split()[1], 16) & ~sum(1 << each for each in kept) == 0


def test_rows_on_standard_output(tmp_path: Path, parent: Path, collectors: list[CollectorProcess]) -> None:
    one = CollectorProcess(tmp_path, "127.0.0.1:1", "printed", batch_ms=50)
    collectors.append(one)
    one.start("--print", "--probe", "cgroup")
    paths = brief_cgroups(parent, 3)
    wait_for(lambda: all(path in one.said() for path in paths))
    assert one.stop() == 0
    lines = [json.loads(line) for line in one.said().splitlines() if line.startswith("{")]
    mine = [line for line in lines if line["table"] == "cgroup_event" and line["cgroup"] in paths]
    assert len(mine) == 6 and not (tmp_path / "collector").exists()


@pytest.mark.parametrize(
    ("settings", "arguments", "reason"),
    [
        ({"probes": ["nope"]}, (), "no probe is called `nope`"),
        ({"probes": ["cgroup"], "metrics_port": -1}, (), "metrics_port"),
        ({"probes": ["cgroup"], "kafka": {"no.such": "x"}}, (), 'No such configuration property: "no.such"'),
        ({"probes": ["cgroup"]}, ("--probe", "tcp_flow", "--probe", "!tcp_*"), "no probe is chosen"),
    ],
)
def test_what_cannot_start_says_why(
    tmp_path: Path, settings: dict[str, object], arguments: tuple[str, ...], reason: str,
    collectors: list[CollectorProcess],
) -> None:  # fmt: skip
    one = CollectorProcess(tmp_path, "127.0.0.1:1", "wrong", **settings)
    collectors.append(one)
    code = ["-c", "from fleet.cli import main; main()", "collect", "--config", str(one.config)]
    done = subprocess.run(
        [sys.executable, *code, *arguments], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode in (1, 2)
    assert done.stderr.startswith("bpfleet: ") and reason in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_port_that_is_taken_and_a_second_collector(
    tmp_path: Path, collectors: list[CollectorProcess]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        one = CollectorProcess(tmp_path, "127.0.0.1:1", "taken", probes=["cgroup"], metrics_port=port)
        collectors.append(one)
        process = one.start(wait=False)
        assert process.wait(20) == 1
        assert f"127.0.0.1:{port}" in one.said() or "metrics" in one.said()
    one.start()
    other = CollectorProcess(tmp_path / "x", "127.0.0.1:1", "taken", probes=["cgroup"])
    other.config.write_text(one.config.read_text())
    collectors.append(other)
    with contextlib.suppress(subprocess.TimeoutExpired):
        other.start(wait=False).wait(20)
    assert "already runs with this state directory" in other.said()
