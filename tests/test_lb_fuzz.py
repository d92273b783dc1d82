"""Random bytes never abort the program, never grow beyond the header, never go uncounted."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from balancing import CLIENT, DROP, OURS, PASS, TX, Bench, bench, vip
from scapy.all import ICMP, IP, TCP, UDP, Dot1Q, Ether, ICMPv6EchoRequest, IPv6, IPv6ExtHdrHopByHop, Raw

from collector.balancer.layout import REASONS

ROUNDS = 4000
SEEDS = [
    Ether(dst=OURS, src=CLIENT) / each
    for each in (
        IP(src="192.0.2.1", dst="198.51.100.1") / TCP(dport=80) / Raw(b"x" * 40),
        IP(src="192.0.2.1", dst="198.51.100.2") / UDP(dport=443) / Raw(b"\x40" * 40),
        IP(src="192.0.2.1", dst="198.51.100.1") / ICMP() / Raw(b"x" * 40),
        IP(src="192.0.2.1", dst="198.51.100.1") / ICMP(type=3) / IP(src="198.51.100.1") / TCP(sport=80),
        Dot1Q() / IPv6(src="2001:db8:f::1", dst="2001:db8::1") / TCP(dport=80) / Raw(b"x" * 40),
        IPv6(src="2001:db8:f::1", dst="2001:db8::1") / IPv6ExtHdrHopByHop() / UDP(dport=80) / Raw(b"x" * 40),
        IPv6(src="2001:db8:f::1", dst="2001:db8::1") / ICMPv6EchoRequest() / Raw(b"x" * 1500),
        IP(src="192.0.2.1", dst="198.51.100.1") / TCP(dport=80) / Raw(b"x" * 1500),
    )
]  # fmt: skip


@pytest.fixture(scope="module")
def lb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    quic = vip("198.51.100.2", 443, "10.0.0.1", protocol="udp", quic_id_bytes=3, sample=1)
    with bench(tmp_path_factory.mktemp("lb")) as made:
        made.apply(
            {
                "web": vip("198.51.100.1", 0, "10.0.0.1"),
                "quic": quic,
                "web6": vip("2001:db8::/64", 80, "fd00::1"),
            }
        )
        yield made


def mutated(source: random.Random) -> bytes:
    raw = bytearray(bytes(source.choice(SEEDS)))
    for _ in range(source.randrange(4)):
        raw[source.randrange(12, min(len(raw), 90))] = source.randrange(256)
    if source.random() < 0.3:
        raw = raw[: source.randrange(14, len(raw))]
    return bytes(raw) if source.random() < 0.9 else source.randbytes(source.randrange(14, 200))


def test_every_reason_has_its_test() -> None:
    text = "".join(file.read_text() for file in Path(__file__).parent.glob("test_lb_*.py"))
    assert [each.name for each in REASONS if f'"{each.name}"' not in text] == []


def test_source_routes_are_counted(tmp_path: Path) -> None:
    route = vip("198.51.100.1", 80, "10.0.0.1", "10.0.0.2", source_routes={"192.0.2.0/24": "10.0.0.2"})
    with bench(tmp_path) as lb:
        lb.apply({"web": route})
        assert lb.run(bytes(SEEDS[0])).retval == TX
        assert lb.reasons() == {"source_route": 1}


def test_random_packets(lb: Bench) -> None:
    source = random.Random(5)
    ends = {each.name for each in REASONS if each.verdict != "forward"}
    for _ in range(ROUNDS):
        packet = mutated(source)
        done = lb.run(packet)
        assert done.retval in (PASS, DROP, TX), packet.hex()
        assert len(done.data) <= len(packet) + 48 or done.retval == TX, packet.hex()
    counted = sum(count for name, count in lb.reasons().items() if name in ends) + lb.packets()
    assert counted == ROUNDS
    assert {"not_vip", "malformed", "truncated", "echo_reply", "too_big", "not_ip"} < set(lb.reasons())
