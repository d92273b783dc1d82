"""transport: resets, retransmits, round-trip times and lost datagrams against /proc/net/snmp and TCP_INFO."""

import errno
import socket
import struct
from contextlib import closing, suppress

import pytest
from probing import PROBES, probing
from workloads import cgroup_id, cgroups, python_in, snmp

LOOPBACK = bytes(10) + b"\xff\xff" + bytes([127, 0, 0, 1])
STREAMS = {each.name: each for each in PROBES["transport"].streams}


@pytest.fixture(scope="module")
def probe():
    with probing("transport") as loaded:
        yield loaded


def address(key) -> bytes:
    return bytes(key["remote_address"].tolist())


def direction(key) -> str:
    field = next(each for each in STREAMS["tcp_reset"].fields if each.name == "direction")
    return field.argument.split(",")[key["direction"]]


def resets(probe, port: int) -> dict[tuple[str, str], int]:
    """(direction, reason) → resets of a local port."""
    names = probe.enums["sk_rst_reason"]
    return {
        (direction(key), names[int(key["reason"])]): int(value["count"])
        for key, value in probe.rows("tcp_reset")
        if key["local_port"] == port and address(key) == LOOPBACK
    }


def test_refused_connections_are_resets_with_their_reason(probe):
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        probe.rows("tcp_reset")
        before = snmp("Tcp")["OutRsts"]
        for _ in range(31):
            with closing(socket.socket()) as client, suppress(ConnectionRefusedError):
                client.connect(("127.0.0.1", port))
        sent = snmp("Tcp")["OutRsts"] - before
        rows = resets(probe, port)
    assert rows == {("sent", "NO_SOCKET"): 31}
    assert sent >= 31


def test_a_connection_that_is_aborted_is_one_reset_on_each_side(probe):
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
        client = socket.create_connection(server.getsockname())
        local = client.getsockname()[1]
        accepted, _ = server.accept()
        probe.rows("tcp_reset")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        with closing(accepted), pytest.raises(ConnectionResetError):
            accepted.recv(1)
        rows = [(direction(k), int(k["local_port"]), int(v["count"])) for k, v in probe.rows("tcp_reset")]
    assert sorted(each for each in rows if each[1] in (port, local)) == sorted(
        [("received", port, 1), ("sent", local, 1)]
    )


FULL_QUEUE = """
import ctypes, socket, subprocess, time
assert ctypes.CDLL(None).unshare(0x40000000) == 0  # a network of its own: its counters are of nothing else
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
server = socket.create_server(("127.0.0.1", 0), backlog=0)
clients = [socket.socket() for _ in range(5)]
for each in clients:
    each.setblocking(False)
    each.connect_ex(server.getsockname())
time.sleep(1.6)
for each in (*clients, server):
    each.close()
lines = [line.split() for line in open("/proc/net/snmp") if line.startswith("Tcp:")]
print(dict(zip(*lines))["RetransSegs"])
"""


def test_segments_sent_again_agree_with_the_kernels_count(probe):
    """A full accept queue: clients send their SYN again."""
    with cgroups("bpfleet-test-again") as places:
        probe.rows("tcp_retransmit")
        said, _ = python_in(places, FULL_QUEUE).communicate(timeout=30)
        rows = [(k, v) for k, v in probe.rows("tcp_retransmit") if k["cgroup"] == cgroup_id(places)]
    states = probe.enums["TCP_ESTABLISHED"]
    assert {address(key) for key, _ in rows} == {LOOPBACK}
    opening = [value for key, value in rows if states[int(key["state"])] == "SYN_SENT"]
    assert sum(int(value["count"]) for value in opening) >= 3
    assert sum(int(value["bytes"]) for value in opening) == 0
    assert sum(int(value["count"]) for _, value in rows) == int(said)


TALK = """
import socket, struct
server = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(server.getsockname())
accepted, _ = server.accept()
total = 0
for _ in range(4000):
    for one, other in ((client, accepted), (accepted, client)):
        one.sendall(b"x")
        other.recv(1)
        total += struct.unpack_from("=I", one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104), 68)[0]
print(total / 8000)
"""


def test_round_trip_times_are_those_of_the_socket(probe):
    """One segment in eight is looked at; the mean is near what TCP_INFO says (tcpi_rtt, of both sides)."""
    with cgroups("bpfleet-test-rtt") as places:
        probe.rows("tcp_rtt")
        said, _ = python_in(places, TALK).communicate(timeout=30)
        rows = [value for key, value in probe.rows("tcp_rtt") if key["cgroup"] == cgroup_id(places)]
    samples, segments, total = (sum(int(v[name]) for v in rows) for name in ("samples", "count", "sum_us"))
    assert segments == samples * 8
    assert segments == pytest.approx(8000, rel=0.25)
    assert sum(int(v["rtts"].sum()) for v in rows) == samples
    assert sum(int(v["delivered"]) for v in rows) == pytest.approx(segments, rel=0.1)
    assert total / samples == pytest.approx(float(said), rel=0.4, abs=3)


BULK = """
import socket, threading
server = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(server.getsockname())
accepted, _ = server.accept()
def swallow():
    while accepted.recv(1 << 20): pass
thread = threading.Thread(target=swallow)
thread.start()
for _ in range(400): client.sendall(bytes(1 << 20))
mss = client.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
client.close()
thread.join()
print((400 << 20) / mss)
"""


def test_segments_that_arrived_are_counted_though_few_acknowledgements_come_back(probe):
    with cgroups("bpfleet-test-bulk") as places:
        probe.rows("tcp_rtt")
        said, _ = python_in(places, BULK).communicate(timeout=30)
        rows = [value for key, value in probe.rows("tcp_rtt") if key["cgroup"] == cgroup_id(places)]
    assert sum(int(v["delivered"]) for v in rows) == pytest.approx(float(said), rel=0.35)


def test_datagrams_without_room_are_counted_by_port(probe):
    with (
        closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as receiver,
        closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sender,
    ):
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        receiver.bind(("127.0.0.1", 0))
        receiver.setblocking(False)
        probe.rows("udp_error")
        before = snmp("Udp")["RcvbufErrors"]
        for _ in range(300):
            sender.sendto(bytes(500), receiver.getsockname())
        arrived = 0
        with suppress(BlockingIOError):
            while receiver.recv(2048):
                arrived += 1
        kernel = snmp("Udp")["RcvbufErrors"] - before
        port = receiver.getsockname()[1]
        rows = {
            errno.errorcode[int(k["error"])]: (int(v["count"]), int(v["bytes"]))
            for k, v in probe.rows("udp_error")
            if k["local_port"] == port
        }
    assert rows.keys() == {"ENOMEM"}
    count, size = rows["ENOMEM"]
    assert count == 300 - arrived > 100
    assert count <= kernel
    assert size >= count * 500
