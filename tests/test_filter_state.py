"""`state new|established`: which connections are known, to this host's sockets and to its balancer."""

import random
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import balancing
import pytest
from balancing import TX, vip
from scapy.all import IP, TCP, IPv6, Raw
from test_filter_netns import BODY, WEB, Lab, Web, compiled, download, inside, lab
from test_filter_program import DROP, HEAD, PASS, rule

from collector import bpf_sys
from collector.bpf_map import possible_cpus
from collector.filter.host import Filter
from collector.filter.language import Document, Rule

__all__ = ["compiled", "lab"]
STRANGERS = "tcp[tcpflags] & tcp-syn = 0 and state new"
STRANGERS6 = "ip6 and ip6[6] = 6 and ip6[53] & 2 = 0 and state new"  # tcp[…] of libpcap is IPv4's
VIP4, VIP6, NET, OTHER = "198.51.100.1", "2001:db8::1", "203.0.113.9", "198.51.100.99"
STEP = 1 << 20


@dataclass
class Both:
    """A filter, and the balancer behind it; :meth:`send` is a segment's verdict by both in one pass."""

    host: Filter
    lb: balancing.Bench

    def apply(self, *, mode: str = "enforce") -> None:
        rules = [rule("four", STRANGERS, mode=mode), rule("six", STRANGERS6, mode=mode)]
        self.host.apply(Document(rules=rules))
        self.chain()

    def chain(self) -> None:
        program = next(iter(self.host.programs.values()))
        program.next.update(bytes(4), struct.pack("=I", self.lb.state.plane.program))

    @property
    def fd(self) -> int:
        return next(iter(self.host.programs.values())).fd

    def send(self, frame: bytes) -> int:
        return bpf_sys.prog_test_run(self.fd, frame).retval

    def known(self) -> int:
        return sum(1 for _ in self.host.beside.maps["filter_known"])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    folder = tmp_path_factory.mktemp("both")
    with balancing.bench(folder / "lb") as lb, Filter(folder / "filter", balancer=lb.place) as host:
        yield Both(host, lb)


@pytest.fixture
def both(made: Both) -> Both:
    made.host.apply(Document())  # nothing is followed, so what was known is forgotten
    made.host.maps["filter_scratch"].update(bytes(4), bytes(made.host.maps["filter_scratch"].element_size))
    made.lb.clear()
    made.lb.apply({
        "web": vip(VIP4, 80, "10.0.0.1"), "web6": vip(VIP6, 80, "10.0.0.1"),
        "net": vip("203.0.113.0/24", 80, "10.0.0.1"),
    })  # fmt: skip
    return made


def segment(port: int, flags: str, seq: int = 0, ack: int = 0, size: int = 0, to: str = VIP4) -> bytes:
    head: Any = IPv6(src="2001:db8:f::7", dst=to) if ":" in to else IP(src="192.0.2.7", dst=to)
    tcp = TCP(sport=port, dport=80, flags=flags, seq=seq % 2**32, ack=ack % 2**32)
    return bytes(HEAD / head / tcp / Raw(b"x" * size)).ljust(60, b"\0")  # padded, as on a wire


@pytest.mark.parametrize("to", [VIP4, VIP6, NET])
def test_a_handshake_makes_a_connection_known(both: Both, to: str) -> None:
    both.apply()
    seq = 2**32 - 1  # numbers wrap
    assert both.send(segment(1000, "S", seq, to=to)) == TX
    assert both.send(segment(1000, "A", seq + 90_000, 77, to=to)) == DROP
    assert both.send(segment(1000, "S", seq, to=to)) == TX
    assert both.send(segment(1000, "A", seq + 1, 77, to=to)) == TX
    assert both.known() == 1
    for flags in ("A", "PA", "FA", "R"):  # whatever comes of it
        assert both.send(segment(1000, flags, 5, 5, 10, to=to)) == TX
    assert both.send(segment(1001, "A", seq + 1, 77, to=to)) == DROP
    assert both.known() == 1


def test_an_answer_that_was_lost_is_made_good_by_the_first_data(both: Both) -> None:
    both.apply()
    assert both.send(segment(1000, "S", 500)) == TX
    assert both.send(segment(1000, "PA", 501, 9, 100)) == TX
    assert both.send(segment(1000, "S", 500, to=VIP4)) == TX  # a repeated one changes nothing
    assert both.send(segment(1000, "PA", 601, 9, 100)) == TX


def test_connections_older_than_the_rule_go_on(both: Both) -> None:
    """In shadow nothing is lost; enforced at once, one segment of each."""
    both.apply(mode="shadow")
    assert [both.send(segment(1000, "A", 7, ack)) for ack in (1, 1449)] == [TX, TX]  # a download
    assert [both.send(segment(1001, "PA", seq, 7, 100)) for seq in (1, 101)] == [TX, TX]  # an upload
    assert both.known() == 2
    both.apply()
    assert both.send(segment(1000, "A", 7, 2897)) == both.send(segment(1001, "A", 201, 7)) == TX
    assert [both.send(segment(1002, "A", 7, ack)) for ack in (1, 1449, 2897)] == [DROP, TX, TX]
    assert [both.send(segment(1003, "PA", seq, 7, 100)) for seq in (1, 101, 201)] == [DROP, TX, TX]
    assert [both.send(segment(1004, "PA", 7, 1, size)) for size in (0, 100)] == [DROP, TX]


def test_what_a_flood_sends_makes_nothing_known(both: Both) -> None:
    both.apply()
    dice = random.Random(5).randrange
    patterns = {
        "repeated": lambda _: (1, 1, 0), "repeated data": lambda _: (1, 1, 100),
        "counted up": lambda n: (n, 1, 0), "random": lambda _: (dice(2**32), dice(2**32), 0),
        "far acknowledged": lambda n: (1, n * 2 * STEP, 0), "backwards": lambda n: (1, -n, 0),
    }  # fmt: skip
    for port, (name, pattern) in enumerate(patterns.items(), 2000):
        for number in range(200):
            seq, ack, size = pattern(number)
            assert both.send(segment(port, "A", seq, ack, size)) == DROP, name
    for flags in ("R", "RA", "F", "", "P"):
        assert {both.send(segment(2010, flags, seq, seq)) for seq in range(3)} == {DROP}, flags
    for port in range(3000, 3400):
        assert both.send(segment(port, "SA", 1, 1)) != DROP  # the rule is not about these
        assert both.send(segment(port, "S", port)) == TX
    assert both.known() == 0


def test_a_budget_bounds_what_is_known_and_the_rest_goes_on_all_the_same(both: Both) -> None:
    """Who sends pairs that fit pushes nobody out who is known."""
    both.apply()
    both.send(segment(900, "S", 1))
    assert both.send(segment(900, "A", 2, 1)) == TX
    pairs = [(segment(port, "S", port), segment(port, "A", port + 1, 1)) for port in range(1000, 2000)]
    late = [segment(1999, "PA", 2000 + 10 * number, 1, 10) for number in range(5)]
    tick = time.clock_gettime_ns(time.CLOCK_MONOTONIC) >> 26
    scratch = both.host.maps["filter_scratch"]
    left = bytearray(scratch.stride)
    struct.pack_into("=QQ", left, 704, 100, tick)  # follow_left, follow_tick
    scratch.update(bytes(4), bytes(left) * possible_cpus())
    assert {both.send(frame) for pair in pairs for frame in pair} == {TX}
    gained = ((time.clock_gettime_ns(time.CLOCK_MONOTONIC) >> 26) - tick) * 131_072 // 4096
    assert 101 <= both.known() <= 1 + 100 * possible_cpus() + gained
    assert gained > 600 or both.known() < 1000
    assert both.send(segment(900, "A", 77, 77)) == TX
    assert {both.send(frame) for frame in late} == {TX}


def test_it_is_followed_while_a_rule_asks_and_there_is_a_balancer(both: Both) -> None:
    both.host.apply(Document(rules=[rule("plain", "tcp dst port 9")]))
    assert not both.host.beside.maps and not both.host.balancer_changed()
    fields = Rule("fields", ttl="1h", fields={"protocol": "tcp", "state": "new"}, mode="enforce")
    both.host.apply(Document(rules=[fields]))
    both.chain()
    assert both.send(segment(1, "A")) == DROP
    assert [both.send(segment(2, "A", 7, ack)) for ack in (1, 1449)] == [DROP, TX]
    both.lb.apply({"web": vip(VIP4, 80, "10.0.0.1", "10.0.0.2")})  # another configuration, the same balancer
    both.host.apply(Document(rules=[fields, rule("plain", "tcp dst port 9")]))
    both.host.apply(Document(rules=[fields]))
    both.chain()
    assert not both.host.balancer_changed() and both.send(segment(2, "R")) == TX
    pin = both.lb.place / "lb_vips"
    pin.rename(pin.with_name("gone"))
    assert both.host.balancer_changed()
    both.host.apply(Document(rules=[fields]))
    assert both.send(segment(2, "A", 8, 9)) == DROP
    pin.with_name("gone").rename(pin)
    assert both.host.balancer_changed()


def test_what_is_for_no_vip_is_the_sockets(both: Both) -> None:
    """Two segments that fit make nothing of ours."""
    both.apply()
    assert both.send(segment(1000, "S", 1, to=OTHER)) == PASS
    assert [both.send(segment(1000, "A", 2, ack, to=OTHER)) for ack in (1, 2, 3)] == [DROP] * 3


@pytest.mark.parametrize("cookies", [False, True])
def test_a_rule_against_strangers_lets_people_begin(lab: Lab, compiled: Path, cookies: bool) -> None:
    """The last segment of a handshake is of no established connection yet; with cookies of none."""
    web = Web(lab)
    try:
        with inside(lab.near), Filter(compiled, ["in0"], mode="native") as host:
            Path("/proc/sys/net/ipv4/tcp_syncookies").write_text("2" if cookies else "1")
            host.apply(Document(rules=[Rule("strangers", ttl="5m", match=STRANGERS, mode="enforce")]))
            for _ in range(3):
                assert download(lab) == BODY
            with inside(lab.near), socket.create_server(("10.77.0.1", 0)) as server:
                port = server.getsockname()[1]
                with inside(lab.far), socket.create_connection(("10.77.0.1", port), timeout=5) as client:
                    accepted, _ = server.accept()
                    accepted.close()  # the last segments are of a connection that is over
                    assert client.recv(1) == b""
            assert dropped(host) == 0
            with inside(lab.far):
                raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
                raw.bind(("out0", 0))
                dice = random.Random(1)
                for _ in range(500):
                    tcp = TCP(sport=dice.randrange(1024, 65536), dport=WEB, flags="A",
                              seq=dice.randrange(2**32), ack=dice.randrange(2**32))  # fmt: skip
                    raw.send(bytes(HEAD / IP(src="10.77.0.2", dst="10.77.0.1") / tcp))
                raw.close()
            assert dropped(host) == 500
            with inside(lab.far), socket.create_server(("10.77.0.2", 0)) as server:
                port = server.getsockname()[1]
                with inside(lab.near):  # and we may call others
                    socket.create_connection(("10.77.0.2", port), timeout=5).close()
    finally:
        web.stop()


def dropped(host: Filter) -> int:
    return next(each.packets for each in host.counts() if (each.rule, each.verdict) == ("strangers", "drop"))
