"""The filter on an interface: attacks stop, a download does not notice, no packet slips through a change."""

import ctypes
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from collector import xdp
from collector.filter.host import Filter
from collector.filter.language import Document, Rule

CLONE_NEWNET = 0x40000000
ATTACKED, WEB = 9999, 8080
BODY = os.urandom(1 << 20)
libc = ctypes.CDLL(None, use_errno=True)


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


@contextmanager
def inside(space: str) -> Iterator[None]:
    """This thread in another network namespace; sockets made there stay there."""
    with Path("/proc/thread-self/ns/net").open() as home, Path(f"/run/netns/{space}").open() as there:
        assert libc.setns(there.fileno(), CLONE_NEWNET) == 0
        try:
            yield
        finally:
            assert libc.setns(home.fileno(), CLONE_NEWNET) == 0


class Lab:
    """Two namespaces joined by a veth pair: ``near`` is protected, ``far`` attacks and downloads."""

    def __init__(self) -> None:
        self.near, self.far = f"bpfleet-n{os.getpid()}", f"bpfleet-f{os.getpid()}"
        for name in (self.near, self.far):
            run("ip", "netns", "add", name)
        run(
            "ip",
            "-n",
            self.near,
            "link",
            "add",
            "in0",
            "type",
            "veth",
            "peer",
            "name",
            "out0",
            "netns",
            self.far,
        )
        for name, device, address in ((self.near, "in0", "10.77.0.1/24"), (self.far, "out0", "10.77.0.2/24")):
            run("ip", "-n", name, "addr", "add", address, "dev", device)
            run("ip", "-n", name, "link", "set", device, "up")
            run("ip", "-n", name, "link", "set", "lo", "up")

    def close(self) -> None:
        for name in (self.near, self.far):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)

    def victim(self) -> socket.socket:
        """A socket in ``near`` that what is not dropped arrives at."""
        with inside(self.near):
            made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
            made.bind(("10.77.0.1", ATTACKED))
        made.setblocking(False)
        return made

    def attacker(self) -> socket.socket:
        with inside(self.far):
            made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            made.connect(("10.77.0.1", ATTACKED))
        return made


def received(victim: socket.socket) -> int:
    count = 0
    while True:
        try:
            victim.recv(2048)
            count += 1
        except BlockingIOError:
            return count


def attack(attacker: socket.socket, packets: int) -> None:
    for _ in range(packets):
        try:
            attacker.send(b"x" * 100)
        except ConnectionRefusedError:
            attacker.send(b"x" * 100)


@pytest.fixture
def lab() -> Iterator[Lab]:
    made = Lab()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def pins() -> Iterator[Path]:
    place = xdp.pin_directory(f"test-{os.getpid()}")
    yield place
    if place.is_dir():
        for each in place.iterdir():
            each.unlink()
        place.rmdir()


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("filter")


FLOOD = Rule("flood", ttl="10m", match=f"udp and dst port {ATTACKED}", mode="enforce")


class Web(threading.Thread):
    """A server in ``near`` that answers each connection with BODY."""

    def __init__(self, lab: Lab) -> None:
        super().__init__(daemon=True)
        with inside(lab.near):
            self.listener = socket.create_server(("10.77.0.1", WEB))
        self.start()

    def run(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + BODY)

    def stop(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.join(5)


def download(lab: Lab) -> bytes:
    with inside(lab.far):
        connection = socket.create_connection(("10.77.0.1", WEB), timeout=10)
    with connection:
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        return b"".join(iter(lambda: connection.recv(1 << 16), b"")).partition(b"\r\n\r\n")[2]


def test_attack_stops_and_downloads_go_on(lab: Lab, compiled: Path) -> None:
    victim, attacker, web = lab.victim(), lab.attacker(), Web(lab)
    try:
        with inside(lab.near), Filter(compiled, ["in0"], mode="native") as host:
            host.apply(Document(rules=[]))
            attack(attacker, 100)
            assert received(victim) == 100
            host.apply(Document(rules=[FLOOD]))
            flood = threading.Thread(target=attack, args=(attacker, 20_000))
            flood.start()
            bodies = [download(lab) for _ in range(5)]
            flood.join()
            assert all(each == BODY for each in bodies)
            assert received(victim) == 0
            dropped = {each.verdict: each.packets for each in host.counts() if each.rule == "flood"}
            assert dropped == {"pass": 0, "drop": 20_000, "shadow": 0}
        attack(attacker, 10)
        assert received(victim) == 10  # nothing was pinned: gone with its owner
    finally:
        web.stop()
        victim.close()
        attacker.close()


def test_no_packet_passes_while_programs_are_replaced(lab: Lab, compiled: Path) -> None:
    victim, attacker = lab.victim(), lab.attacker()
    sent = 0
    stop = threading.Event()

    def flood() -> None:
        nonlocal sent
        while not stop.is_set() and sent < 500_000:
            attack(attacker, 50)
            sent += 50

    try:
        with inside(lab.near), Filter(compiled, ["in0"], mode="native") as host:
            host.apply(Document(rules=[FLOOD]))
            thread = threading.Thread(target=flood)
            thread.start()
            programs = 0
            for turn in range(25):
                others = [
                    Rule(f"r{turn}-{n}", ttl="5m", match=f"tcp dst port {n + turn + 1}", mode="enforce")
                    for n in range(20)
                ]
                programs += host.apply(
                    Document(rules=[*others, FLOOD], sets={}, allow=["192.0.2.0/24"])
                ).programs
            stop.set()
            thread.join()
            assert programs == 25
            assert received(victim) == 0
            assert {
                each.packets for each in host.counts() if (each.rule, each.verdict) == ("flood", "drop")
            } == {sent}
    finally:
        stop.set()
        victim.close()
        attacker.close()


def test_rules_outlive_the_process_until_their_time_is_over(
    lab: Lab, compiled: Path, pins: Path, tmp_path: Path
) -> None:
    victim, attacker = lab.victim(), lab.attacker()
    brief = Rule("flood", ttl="3s", match=FLOOD.match, mode="enforce")
    try:
        with inside(lab.near):
            host = Filter(tmp_path, ["in0"], pins=pins, mode="native")
            host.apply(Document(rules=[brief]))
            begin = time.monotonic()
            host.close()  # as if it had been killed: nothing is undone
        attack(attacker, 50)
        assert received(victim) == 0
        with inside(lab.near):
            again = Filter(tmp_path, ["in0"], pins=pins, mode="native")
            assert {
                each.packets for each in again.counts() if each.rule == "flood" and each.verdict == "drop"
            } == {50}
            attack(attacker, 50)
            assert received(victim) == 0
            again.close()
        time.sleep(max(0.0, begin + 3.1 - time.monotonic()))
        attack(attacker, 50)
        assert received(victim) == 50
        with inside(lab.near):
            last = Filter(tmp_path, ["in0"], pins=pins, mode="native")
            last.apply(Document(rules=[FLOOD]))
            attack(attacker, 50)
            assert received(victim) == 0
            last.detach()
            last.close()
        attack(attacker, 50)
        assert received(victim) == 50
    finally:
        victim.close()
        attacker.close()


def test_state_tells_connections_from_strangers(lab: Lab, compiled: Path) -> None:
    web = Web(lab)
    try:
        with inside(lab.near), Filter(compiled, ["in0"], mode="native") as host:
            with inside(lab.far):
                early = socket.create_connection(("10.77.0.1", WEB), timeout=10)
            host.apply(
                Document(rules=[Rule("strangers", ttl="5m", match="tcp and state new", mode="enforce")])
            )
            early.sendall(b"GET / HTTP/1.0\r\n\r\n")
            body = b"".join(iter(lambda: early.recv(1 << 16), b"")).partition(b"\r\n\r\n")[2]
            early.close()
            assert body == BODY  # it was there before the filter was
            with inside(lab.far), pytest.raises(TimeoutError):
                socket.create_connection(("10.77.0.1", WEB), timeout=0.5)
            host.apply(
                Document(
                    rules=[Rule("gone", ttl="5m", match="tcp and state established", mode="shadow", sample=0)]
                )
            )
            assert download(lab) == BODY
            assert (
                next(
                    each.packets for each in host.counts() if (each.rule, each.verdict) == ("gone", "shadow")
                )
                > 10
            )
    finally:
        web.stop()
