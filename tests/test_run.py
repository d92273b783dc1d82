"""`bpfleet run`: the whole system as a person starts it; known workloads come out as SQL rows."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fastavro
import pytest

from bench.common import free_port

CONNECTIONS = 23
SENT, ANSWERED = 1_000, 250


def environment(state: Path) -> dict[str, str]:
    store = free_port()
    ours = {
        "STATE_DIR": str(state),
        "HOST": "known",
        "KAFKA": f"127.0.0.1:{free_port()}",
        "CLICKHOUSE": f"http://127.0.0.1:{store}",
        "STORE_PORT": str(store),
        "SINK_METRICS_PORT": str(free_port()),
        "COLLECTOR_METRICS_PORT": str(free_port()),
    }
    return os.environ | {f"BPFLEET_{name}": value for name, value in ours.items()}


class Running:
    """A `bpfleet run` without a terminal, and the command line beside it."""

    def __init__(self, state: Path) -> None:
        self.environment = environment(state)
        self.lines: list[str] = []

    def start(self) -> None:
        self.begun = time.monotonic()
        command = [sys.executable, "-m", "fleet", "run"]
        self.process = subprocess.Popen(
            command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            # What a shell starts in the background ignores Ctrl-C, and its children with it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
        )  # fmt: skip
        threading.Thread(target=self._read, daemon=True).start()
        while not any("collect: up" in line for line in self.lines):
            assert self.process.poll() is None and time.monotonic() - self.begun < 240, self.lines
            time.sleep(0.05)
        self.took = time.monotonic() - self.begun

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    def stop(self) -> int:
        """Ctrl-C, as a person would."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(60)

    def cli(self, *words: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "fleet", *words]
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=60, check=False
        )

    def ask(self, query: str) -> list[dict[str, Any]]:
        done = self.cli("sql", "--json", query)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    whole = Running(tmp_path_factory.mktemp("run"))
    whole.start()
    try:
        yield whole
    finally:
        if whole.process.poll() is None:
            whole.stop()


def connect_once(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(bytes(SENT))
        client.shutdown(socket.SHUT_WR)
        while client.recv(4096):
            pass


def serve(listener: socket.socket) -> None:
    for _ in range(CONNECTIONS):
        peer, _ = listener.accept()
        with peer:
            while peer.recv(4096):
                pass
            peer.sendall(bytes(ANSWERED))


def eventually(running: Running, query: str, rows: int) -> list[dict[str, Any]]:
    deadline = time.monotonic() + 20
    while len(found := running.ask(query)) < rows and time.monotonic() < deadline:
        time.sleep(0.3)
    return found


def test_23_connections_are_23_rows_on_each_side(running: Running) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        server = threading.Thread(target=serve, args=[listener])
        server.start()
        for _ in range(CONNECTIONS):
            connect_once(port)
        server.join()
    time.sleep(1)
    query = f"SELECT * FROM tcp_flow WHERE {{side}} = {port} AND host = 'known'"
    clients = eventually(running, query.format(side="remote_port"), CONNECTIONS)
    servers = eventually(running, query.format(side="local_port"), CONNECTIONS)
    assert [len(clients), len(servers)] == [CONNECTIONS, CONNECTIONS]
    assert {(int(row["bytes_sent"]), int(row["bytes_received"])) for row in clients} == {(SENT, ANSWERED)}
    assert {(int(row["bytes_sent"]), int(row["bytes_received"])) for row in servers} == {(ANSWERED, SENT)}
    assert {row["direction"] for row in clients} == {"connected"}
    assert {row["direction"] for row in servers} == {"accepted"}
    assert {row["pid"] for row in clients + servers} == {os.getpid()}


def test_a_packet_to_a_closed_port_is_a_drop_with_its_reason(running: Running) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        closed = probe.getsockname()[1]
    query = f"SELECT DISTINCT reason, protocol FROM packet_drop WHERE destination_port = {closed}"
    deadline = time.monotonic() + 30
    while not (rows := running.ask(query)) and time.monotonic() < deadline:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for _ in range(50):  # a host that drops many packets shows samples of them
                sender.sendto(b"anybody?", ("127.0.0.1", closed))
        time.sleep(0.5)
    assert rows == [{"reason": "NO_SOCKET", "protocol": 17}]


def test_status_knows_every_part(running: Running) -> None:
    shown = running.cli("status", "--json")
    assert shown.returncode == 0, shown.stdout + shown.stderr
    seen = json.loads(shown.stdout)
    assert {part["part"]: part["up"] for part in seen["parts"]} == {
        "kafka": True, "clickhouse": True, "collectors": True
    }  # fmt: skip
    assert {each["host"] for each in seen["hosts"]} == {"known"}
    rows = {each["stream"]: each["rows"] for each in seen["streams"]}
    assert rows["tcp_flow"] >= 2 * CONNECTIONS and rows["collector_health"] > 0
    assert "tcp_flow" in running.cli("status").stdout


def test_cat_and_export_show_what_sql_shows(running: Running, tmp_path: Path) -> None:
    file = tmp_path / "flows.avro"
    done = running.cli("export", "tcp_flow", "-o", str(file))
    assert done.returncode == 0, done.stderr
    with file.open("rb") as stream:
        exported = {(row["seq"], row["local_port"], row["bytes_sent"]) for row in fastavro.reader(stream)}
    lines = running.cli("cat", "tcp_flow").stdout.splitlines()
    printed = {(r["seq"], r["local_port"], r["bytes_sent"]) for r in map(json.loads, lines)}
    asked = {
        (int(r["seq"]), r["local_port"], int(r["bytes_sent"]))
        for r in running.ask("SELECT seq, local_port, bytes_sent FROM tcp_flow")
    }
    assert len(exported) >= 2 * CONNECTIONS
    assert exported <= printed and exported <= asked


def test_faults_are_one_line(running: Running) -> None:
    for words, says in (
        (["sql", "SELEC 1"], "SYNTAX_ERROR"),
        (["sql", "SELECT * FROM nowhere"], "UNKNOWN_TABLE"),
        (["sql"], "no query"),
        (["cat", "nothing"], "no topic bpfleet.nothing.v1"),
        (["schema", "show", "nothing"], "no stream or probe `nothing`"),
        (["sql", "--param", "x", "SELECT 1"], "NAME=VALUE"),
        (["nothing"], "No such command"),
    ):
        done = running.cli(*words)
        assert done.returncode != 0 and says in done.stderr, (words, done.stderr)
        assert done.stderr.startswith("bpfleet: ") and done.stderr.count("\n") == 1, done.stderr
    closed = running.environment | {
        "BPFLEET_KAFKA": "127.0.0.1:1",
        "BPFLEET_CLICKHOUSE": "http://127.0.0.1:1",
    }
    for words in (["sql", "SELECT 1"], ["cat", "tcp_flow"], ["schema", "apply"]):
        done = subprocess.run(
            [sys.executable, "-m", "fleet", *words],
            env=closed, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 1 and done.stderr.startswith("bpfleet: cannot reach "), done.stderr
        assert done.stderr.count("\n") == 1, done.stderr


def test_a_second_run_is_refused_in_one_line(running: Running) -> None:
    second = running.cli("run", "--seconds", "1")
    assert second.returncode == 1
    assert second.stderr.startswith("bpfleet: ") and "is in use" in second.stderr
    assert running.process.poll() is None


def test_ctrl_c_stops_everything_and_the_next_run_keeps_the_data(running: Running) -> None:
    before = int(running.ask("SELECT count() AS rows FROM tcp_flow")[0]["rows"])
    assert running.stop() == 0
    assert any("stopped; the data is in" in line for line in running.lines)
    assert any("tcp_flow=" in line for line in running.lines)
    left = subprocess.run(
        ["pgrep", "-f", running.environment["BPFLEET_STATE_DIR"]], capture_output=True, check=False
    )
    assert left.stdout == b""
    running.lines.clear()
    first = running.took
    running.start()
    assert running.took < max(30, 2 * first)  # machines are shared
    assert int(running.ask("SELECT count() AS rows FROM tcp_flow")[0]["rows"]) >= before
    assert running.stop() == 0
