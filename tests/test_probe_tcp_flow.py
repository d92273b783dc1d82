"""tcp_flow: known connections give exactly their rows, with the right ports, bytes, owners and endings."""

import os
import signal
import socket
import struct
import subprocess
import threading
import time
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from probing import PROBES, probing

from collector import bpf_sys

FIELDS = {each.name: each for each in PROBES["tcp_flow"].streams[0].fields}
LOOPBACK = bytes(10) + b"\xff\xff" + bytes([127, 0, 0, 1])


@pytest.fixture(scope="module")
def probe():
    with probing("tcp_flow") as loaded:
        yield loaded


def named(event, field: str) -> str:
    return FIELDS[field].argument.split(",")[event[field]]


def listener(family: int = socket.AF_INET) -> socket.socket:
    server = socket.socket(family, socket.SOCK_STREAM)
    server.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
    server.listen(64)
    return server


def rows_of(probe, port: int, expected: int) -> list:
    """Rows of the connections to ``port``: (client side, server side)."""

    def ours(events):
        return [each for each in events if port in (each["local_port"], each["remote_port"])]

    events = probe.events("tcp_flow", lambda all_: len(ours(all_)) >= expected)
    found = ours(events)
    assert len(found) == expected, found
    return found


def exchange(server: socket.socket, up: int, down: int) -> int:
    """A connection that carries ``up`` bytes to the server and ``down`` back; returns the client's port."""
    with closing(socket.create_connection(server.getsockname()[:2])) as client:
        port = client.getsockname()[1]
        accepted, _ = server.accept()
        with closing(accepted):
            for sender, receiver, size in ((client, accepted, up), (accepted, client, down)):
                thread = threading.Thread(target=sender.sendall, args=(bytes(size),))
                thread.start()
                left = size
                while left:
                    left -= len(receiver.recv(min(left, 65536)))
                thread.join()
            client.shutdown(socket.SHUT_WR)
            assert accepted.recv(1) == b""
        assert client.recv(1) == b""
    return port


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["ipv4", "ipv6"])
def test_23_connections_are_23_rows_on_either_side(probe, family):
    sizes = {}
    with closing(listener(family)) as server:
        port = server.getsockname()[1]
        for n in range(23):
            sizes[exchange(server, 1000 + n, 100_000 * n)] = (1000 + n, 100_000 * n)
        found = rows_of(probe, port, 46)
    clients = {int(each["local_port"]): each for each in found if each["remote_port"] == port}
    servers = {int(each["remote_port"]): each for each in found if each["local_port"] == port}
    assert set(clients) == set(servers) == set(sizes)
    address = LOOPBACK if family == socket.AF_INET else bytes(15) + b"\1"
    for number, (up, down) in sizes.items():
        client, server_side = clients[number], servers[number]
        assert (client["bytes_sent"], client["bytes_received"]) == (up, down)
        assert (server_side["bytes_sent"], server_side["bytes_received"]) == (down, up)
        for side, direction in ((client, "connected"), (server_side, "accepted")):
            assert named(side, "direction") == direction
            assert named(side, "ended") == "fin"
            assert bytes(side["local_address"]) == bytes(side["remote_address"]) == address
            assert 0 < side["duration_us"] < 5_000_000
            assert side["pid"] == os.getpid()
            assert side["comm"].decode() == Path("/proc/self/comm").read_text().strip()
            assert side["cgroup"] == own_cgroup()


def test_ipv4_through_a_socket_of_both_families(probe):
    with closing(socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)) as server:
        port = server.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port))
        accepted, _ = server.accept()
        client.close()
        accepted.close()
        found = rows_of(probe, port, 2)
    assert {bytes(each[side]) for each in found for side in ("local_address", "remote_address")} == {LOOPBACK}


def own_cgroup() -> int:
    """The inode number of this process's directory in the unified hierarchy."""
    path = next(
        line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::")
    )
    mounts = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    root = next(place for _, place, kind, *_ in mounts if kind == "cgroup2")
    return Path(root + path).stat().st_ino


def test_a_refused_connection(probe):
    with closing(listener()) as server:
        port = server.getsockname()[1]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
    (row,) = rows_of(probe, port, 1)
    assert named(row, "ended") == "refused"
    assert probe.enums["TCP_ESTABLISHED"][int(row["state"])] == "SYN_SENT"
    assert (row["bytes_sent"], row["bytes_received"]) == (0, 0)


def test_a_reset_has_two_sides(probe):
    with closing(listener()) as server:
        port = server.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port))
        accepted, _ = server.accept()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        found = rows_of(probe, port, 2)
        accepted.close()
    assert {(named(each, "direction"), named(each, "ended")) for each in found} == {
        ("connected", "reset_by_us"),
        ("accepted", "reset_by_peer"),
    }


def test_connections_from_before_the_probe_close_too():
    with closing(listener()) as server:
        port = server.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port))
        accepted, _ = server.accept()
        client.sendall(b"x" * 123)
        with probing("tcp_flow") as late:
            client.close()
            time.sleep(0.1)
            accepted.recv(123)
            accepted.close()
            found = rows_of(late, port, 2)
    assert {int(each["duration_us"]) for each in found} == {-1}
    assert {named(each, "direction") for each in found} == {"unknown"}
    assert sorted(int(each["bytes_sent"]) for each in found) == [0, 123]
    assert {int(each["pid"]) for each in found} == {os.getpid()}


def test_listening_sockets_and_other_states_make_no_rows(probe):
    with closing(listener()) as server:
        port = server.getsockname()[1]
    time.sleep(0.1)
    assert not [
        each
        for each in probe.events("tcp_flow", seconds=0)
        if port in (each["local_port"], each["remote_port"])
    ]
    counts = probe.counts()[0]
    assert counts[1] == 0


def test_a_socket_forgotten_at_its_close_leaves_nothing_behind(probe):
    before = probe.loaded.maps["tcp_flow_open"].read()[2]
    with closing(listener()) as server:
        for _ in range(20):
            exchange(server, 10, 10)
        rows_of(probe, server.getsockname()[1], 40)
    assert probe.loaded.maps["tcp_flow_open"].read()[2] <= before + 2


def test_agrees_with_tcplife(probe):
    """libbpf-tools' tcplife over the same connections: ports, kilobytes and process."""
    with closing(listener()) as server:
        port = server.getsockname()[1]
        with attached_tcplife(port) as tool:
            ports = [exchange(server, 100_000 * (n + 1), 50_000 * n) for n in range(5)]
            ours = [each for each in rows_of(probe, port, 10) if each["remote_port"] == port]
            time.sleep(0.5)
        lines = [line.split() for line in tool.communicate(timeout=10)[0].splitlines()]
    theirs = {int(line[3]): line for line in lines if len(line) >= 9 and line[5] == str(port)}
    assert sorted(theirs) == sorted(ports)
    for each in ours:
        line = theirs[int(each["local_port"])]
        assert int(line[0]) == each["pid"]
        assert float(line[6]) == pytest.approx(int(each["bytes_sent"]) / 1024, abs=1)
        assert float(line[7]) == pytest.approx(int(each["bytes_received"]) / 1024, abs=1)


@contextmanager
def attached_tcplife(port: int):
    """tcplife, once its programs are in the kernel; interrupted at the end."""
    before = set(bpf_sys.prog_ids())
    tool = subprocess.Popen(["stdbuf", "-oL", "tcplife"], stdout=subprocess.PIPE, text=True)
    end = time.monotonic() + 10
    while not set(bpf_sys.prog_ids()) - before and time.monotonic() < end:
        time.sleep(0.05)
    time.sleep(0.5)
    try:
        yield tool
    finally:
        tool.send_signal(signal.SIGINT)
