"""Packet tables: what comes in, the verdict, what goes out. scapy is the judge of what comes out."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from balancing import CLIENT, DROP, HOP, OURS, PASS, TX, Bench, bench, vip
from scapy.all import (
    AH,
    ICMP,
    IP,
    TCP,
    UDP,
    Dot1AD,
    Dot1Q,
    Ether,
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6ND_NS,
    ICMPv6PacketTooBig,
    ICMPv6TimeExceeded,
    IPOption_RR,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    Raw,
)

from collector import bpf_sys
from collector.balancer.layout import REASONS

VIPS = {
    "web": vip("198.51.100.1", 80, "10.0.0.1"),
    "web6in4": vip("2001:db8::6", 80, "10.0.0.1"),
    "web4in6": vip("198.51.100.6", 80, "fd00::1"),
    "web6": vip("2001:db8::1", 80, "fd00::1"),
    "gue": vip("198.51.100.2", 80, "10.0.0.1", encapsulation="gue"),
    "gue6": vip("2001:db8::2", 80, "fd00::1", encapsulation="gue"),
    "dns": vip("198.51.100.1", 53, "10.0.0.3", protocol="udp"),
    "all": vip("198.51.100.3", 0, "10.0.0.4"),
    "net": vip("203.0.113.0/24", 80, "10.0.0.5"),
    "net6": vip("2001:db8:5::/48", 0, "10.0.0.6"),
    "route": vip(
        "198.51.100.4", 80, "10.0.0.7", "10.0.0.8",
        source_routes={"192.0.2.0/24": "10.0.0.8", "192.0.2.64/26": "10.0.0.7"},
    ),
}  # fmt: skip
VIPS["quic"] = {
    **vip("198.51.100.5", 443, protocol="udp", quic_id_bytes=2),
    "reals": [{"address": "10.0.0.20", "quic_id": "beef"}, {"address": "10.0.0.21", "quic_id": "cafe"}],
}

E = Ether(dst=OURS, src=CLIENT)
C4, C6 = "192.0.2.7", "2001:db8:ff::7"
T = TCP(sport=4711, dport=80, flags="A")
DATA = Raw(b"x" * 32)


@pytest.fixture(scope="module")
def lb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with bench(tmp_path_factory.mktemp("lb")) as made:
        made.apply(VIPS)
        yield made


def to(vip: str, **fields: Any) -> Any:
    return IPv6(src=C6, dst=vip, **fields) if ":" in vip else IP(src=C4, dst=vip, **fields)


# description, packet, outer address of the real, outer layer
FORWARDED = [
    ("TCP over IPv4", E / to("198.51.100.1") / T / DATA, "10.0.0.1", IP),
    ("a SYN", E / to("198.51.100.1") / TCP(sport=1, dport=80, flags="S"), "10.0.0.1", IP),
    ("no payload, padded frame", E / to("198.51.100.1") / T / Raw(b""), "10.0.0.1", IP),
    ("IPv6 in IPv4", E / to("2001:db8::6") / T / DATA, "10.0.0.1", IP),
    ("IPv4 in IPv6", E / to("198.51.100.6") / T / DATA, "fd00::1", IPv6),
    ("IPv6 in IPv6", E / to("2001:db8::1") / T / DATA, "fd00::1", IPv6),
    ("GUE over IPv4", E / to("198.51.100.2") / T / DATA, "10.0.0.1", IP),
    ("GUE over IPv6", E / to("2001:db8::2") / T / DATA, "fd00::1", IPv6),
    ("UDP", E / to("198.51.100.1") / UDP(sport=5, dport=53) / DATA, "10.0.0.3", IP),
    ("UDP without data", E / to("198.51.100.1") / UDP(sport=5, dport=53), "10.0.0.3", IP),
    ("any port", E / to("198.51.100.3") / TCP(dport=12345, flags="A"), "10.0.0.4", IP),
    ("a prefix", E / to("203.0.113.77") / T, "10.0.0.5", IP),
    ("a prefix, any port", E / to("2001:db8:5:1::2") / TCP(dport=9, flags="A"), "10.0.0.6", IP),
    ("a VLAN tag", E / Dot1Q(vlan=7) / to("198.51.100.1") / T / DATA, "10.0.0.1", IP),
    ("two VLAN tags", E / Dot1AD(vlan=7) / Dot1Q(vlan=8) / to("2001:db8::1") / T / DATA, "fd00::1", IPv6),
    ("IPv4 options", E / to("198.51.100.1", options=[IPOption_RR()]) / T / DATA, "10.0.0.1", IP),
    ("type of service", E / to("198.51.100.1", tos=0xB9) / T / DATA, "10.0.0.1", IP),
    ("traffic class", E / to("2001:db8::1", tc=0xB9) / T / DATA, "fd00::1", IPv6),
    ("hop-by-hop options", E / to("2001:db8::1") / IPv6ExtHdrHopByHop() / T / DATA, "fd00::1", IPv6),
    (
        "a chain of extension headers",
        E / to("2001:db8::1") / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / IPv6ExtHdrRouting() / T / DATA,
        "fd00::1",
        IPv6,
    ),
    (
        "an authentication header",
        E / to("2001:db8::1") / AH(nh=6, payloadlen=4, icv=b"z" * 12) / T / DATA,
        "fd00::1",
        IPv6,
    ),
    ("an atomic fragment", E / to("2001:db8::1") / IPv6ExtHdrFragment(id=5) / T / DATA, "fd00::1", IPv6),
    ("a source prefix", E / IP(src="192.0.2.7", dst="198.51.100.4") / T, "10.0.0.8", IP),
    ("a longer source prefix", E / IP(src="192.0.2.70", dst="198.51.100.4") / T, "10.0.0.7", IP),
]


def check_outer(sent: Any, out: bytes, real: str, outer: type[Any]) -> None:
    frame = Ether(out)
    assert (frame.dst, outer in frame) == (HOP, True)
    head = frame[outer]
    inner = sent[IP] if IP in sent else sent[IPv6]
    assert head.dst == real
    assert bytes(frame)[12:].startswith(bytes(sent)[12:16]) or Dot1Q not in sent
    if outer is IP:
        assert (head.flags, head.ttl, head.tos) == (
            "DF",
            64,
            getattr(inner, "tos", getattr(inner, "tc", None)),
        )
        again = IP(bytes(head))
        del again.chksum
        assert IP(bytes(again)).chksum == head.chksum
        assert head.src.startswith("10.254.")
    else:
        assert (head.hlim, head.tc) == (64, getattr(inner, "tc", getattr(inner, "tos", None)))
        assert head.src.startswith("fd00:254::")
    rest = bytes(head)[20 if outer is IP else 40 :]
    protocol = head.proto if outer is IP else head.nh
    if protocol == 17:
        udp = UDP(rest)
        assert (udp.dport, udp.len, udp.chksum, udp.sport >> 15) == (6080, 8 + len(bytes(inner)), 0, 1)
        rest = rest[8:]
    else:
        assert protocol == (4 if IP in sent else 41)
    assert rest == bytes(inner)
    assert (head.len if outer is IP else head.plen + 40) == len(bytes(head))


@pytest.mark.parametrize(("what", "packet", "real", "outer"), FORWARDED, ids=[each[0] for each in FORWARDED])
def test_forwarded(lb: Bench, what: str, packet: Any, real: str, outer: type[Any]) -> None:
    before = lb.packets()
    done = lb.run(bytes(packet))
    assert done.retval == TX
    check_outer(Ether(bytes(packet)), done.data, real, outer)
    assert lb.packets() == before + 1


ECHO = ICMP(type=8, id=3, seq=9)
VIP4_ANSWER = IP(src="198.51.100.1", dst=C4) / TCP(sport=80, dport=4711)
OTHER_ANSWER = IP(src="198.51.100.99", dst=C4) / TCP(sport=80, dport=4711)
VIP6_ANSWER = IPv6(src="2001:db8::1", dst=C6) / TCP(sport=80, dport=4711)
BIG = Raw(b"y" * 1440)


def broken(packet: Any, at: int, *values: int) -> bytes:
    raw = bytearray(bytes(packet))
    raw[14 + at : 14 + at + len(values)] = bytes(values)
    return bytes(raw)


# description, packet, verdict, reason
ENDED = [
    ("ARP", E / Raw(b"\0" * 46), PASS, "not_ip"),
    ("three VLAN tags", E / Dot1Q() / Dot1Q() / Dot1Q() / to("198.51.100.1") / T, PASS, "not_ip"),
    ("another address", E / to("198.51.100.99") / T, PASS, "not_vip"),
    ("another port", E / to("198.51.100.1") / TCP(dport=81), PASS, "not_vip"),
    ("another protocol", E / to("198.51.100.1") / UDP(dport=80), PASS, "not_vip"),
    ("next to the prefix", E / to("203.0.114.1") / T, PASS, "not_vip"),
    ("truncated, but no VIP's", E / to("198.51.100.99", proto=6) / Raw(b"abc"), PASS, "not_vip"),
    ("broken, but no VIP's", broken(E / to("198.51.100.99") / T, 2, 0xFF), PASS, "not_vip"),
    ("an IP header cut off", bytes(E / to("198.51.100.1"))[:30], PASS, "not_vip"),
    ("GRE to a VIP", E / to("198.51.100.1", proto=47) / DATA, PASS, "other_protocol"),
    ("IPv6 without a next header", E / to("2001:db8::1", nh=59), PASS, "other_protocol"),
    ("ICMP timestamp", E / to("198.51.100.1") / ICMP(type=13), PASS, "other_icmp"),
    ("neighbour solicitation", E / to("2001:db8::1") / ICMPv6ND_NS(tgt="2001:db8::1"), PASS, "other_icmp"),
    (
        "an error about GRE",
        E / to("198.51.100.1") / ICMP(type=3) / IP(src="198.51.100.1", proto=47) / DATA,
        PASS,
        "other_icmp",
    ),
    ("a fragment's error", E / to("198.51.100.1") / ICMP(type=3) / IP(proto=6, frag=9), PASS, "other_icmp"),
    ("an error about no VIP", E / to("198.51.100.1") / ICMP(type=3) / OTHER_ANSWER, PASS, "not_vip"),
    ("IPv4 longer than the frame", broken(E / to("198.51.100.1") / T, 2, 0xFF), DROP, "malformed"),
    ("IPv4 shorter than its header", broken(E / to("198.51.100.1") / T, 2, 0, 10), DROP, "malformed"),
    ("IPv4 of version 5", broken(E / to("198.51.100.1") / T, 0, 0x55), DROP, "malformed"),
    ("IPv4 header of 16 bytes", broken(E / to("198.51.100.1") / T, 0, 0x44), DROP, "malformed"),
    ("IPv6 of version 4", broken(E / to("2001:db8::1") / T, 0, 0x40), DROP, "malformed"),
    ("IPv6 longer than the frame", broken(E / to("2001:db8::1") / T, 4, 0xFF), DROP, "malformed"),
    ("TCP header cut off", E / to("198.51.100.1", proto=6) / Raw(b"\x12\x67\0\x50ab"), DROP, "truncated"),
    (
        "TCP header beyond the IP length",
        broken(E / to("198.51.100.1") / T / DATA, 2, 0, 30),
        DROP,
        "truncated",
    ),
    ("UDP header cut off", E / to("198.51.100.1", proto=17) / Raw(b"\x12"), DROP, "truncated"),
    ("an echo cut off", E / to("198.51.100.1", proto=1) / Raw(b"\x08\0"), DROP, "truncated"),
    (
        "an error cut off",
        E / to("198.51.100.1") / ICMP(type=3) / IP(bytes(VIP4_ANSWER)[:20]),
        DROP,
        "truncated",
    ),
    ("a later fragment alone", E / to("198.51.100.1", frag=7, id=77) / DATA, DROP, "unknown_fragment"),
    (
        "a later IPv6 fragment alone",
        E / to("2001:db8::1") / IPv6ExtHdrFragment(offset=7, id=78, nh=6) / DATA,
        DROP,
        "unknown_fragment",
    ),
    (
        "a big later fragment",
        E / to("198.51.100.1", frag=9, id=99, proto=6) / BIG / Raw(b"z" * 40),
        DROP,
        "too_big_silent",
    ),
]


@pytest.mark.parametrize(("what", "packet", "verdict", "reason"), ENDED, ids=[each[0] for each in ENDED])
def test_ended(lb: Bench, what: str, packet: Any, verdict: int, reason: str) -> None:
    if reason == "too_big_silent":  # its first fragment, which is small
        lb.run(bytes(E / to("198.51.100.1", flags="MF", id=99) / T / DATA))
    before, forwarded = lb.reasons(), lb.packets()
    done = lb.run(bytes(packet))
    after = lb.reasons()
    assert done.retval == verdict
    assert done.data == bytes(packet)
    named = {each.name for each in REASONS if each.verdict != "forward"}
    gained = {name: after[name] - before.get(name, 0) for name in after if name in named}
    assert {name: count for name, count in gained.items() if count} == {reason: 1}
    assert lb.packets() == forwarded


def reply(lb: Bench, packet: Any, reason: str) -> Any:
    before = lb.reasons().get(reason, 0)
    done = lb.run(bytes(packet))
    assert (done.retval, lb.reasons()[reason]) == (TX, before + 1)
    frame = Ether(done.data)
    assert (frame.dst, frame.src) == (CLIENT, OURS)
    return frame


def right_checksums(frame: Any) -> bool:
    """Whether scapy, made to compute them anew, comes to the same bytes."""
    again = frame.__class__(bytes(frame))
    for layer in (IP, ICMP, ICMPv6EchoReply, ICMPv6PacketTooBig):
        if layer in again:
            again[layer].delfieldval("cksum" if "cksum" in again[layer].fields else "chksum")
    return bytes(again) == bytes(frame)


@pytest.mark.parametrize("tags", [None, Dot1Q(vlan=5), Dot1AD(vlan=6) / Dot1Q(vlan=5)])
@pytest.mark.parametrize("address", ["198.51.100.1", "2001:db8::1", "203.0.113.9", "2001:db8:5::9"])
def test_echo(lb: Bench, address: str, tags: Any) -> None:
    head = E / tags if tags else E
    echo = ECHO if "." in address else ICMPv6EchoRequest(id=3, seq=9)
    frame = reply(lb, head / to(address) / echo / DATA, "echo_reply")
    layer = IP if "." in address else IPv6
    assert (frame[layer].src, frame[layer].dst) == (address, C4 if "." in address else C6)
    assert frame[ICMP].type == 0 if "." in address else ICMPv6EchoReply in frame
    assert bytes(frame).endswith(bytes(DATA))
    assert right_checksums(frame)


@pytest.mark.parametrize("tags", [None, Dot1Q(vlan=5), Dot1AD(vlan=6) / Dot1Q(vlan=5)])
@pytest.mark.parametrize("flags", ["DF", ""])
def test_too_big_ipv4(lb: Bench, flags: str, tags: Any) -> None:
    sent = (E / tags if tags else E) / to("198.51.100.1", flags=flags) / T / BIG / Raw(b"z" * 20)
    frame = reply(lb, sent, "too_big")
    assert (frame[IP].src, frame[IP].dst) == ("198.51.100.1", C4)
    assert (frame[ICMP].type, frame[ICMP].code, frame[ICMP].nexthopmtu) == (3, 4, 1480)
    assert (Dot1Q in frame) == (tags is not None)
    assert bytes(frame[ICMP])[8:] == bytes(Ether(bytes(sent))[IP])[:504]
    assert right_checksums(frame)


@pytest.mark.parametrize(
    ("address", "mtu"), [("2001:db8::1", 1460), ("2001:db8::2", 1452), ("2001:db8::6", 1480)]
)
def test_too_big_ipv6(lb: Bench, address: str, mtu: int) -> None:
    sent = E / to(address) / T / BIG
    frame = reply(lb, sent, "too_big")
    assert (frame[IPv6].src, frame[IPv6].dst) == (address, C6)
    assert frame[ICMPv6PacketTooBig].mtu == mtu
    assert bytes(frame[ICMPv6PacketTooBig])[8:] == bytes(Ether(bytes(sent))[IPv6])[:1232]
    assert right_checksums(frame)


def test_exactly_what_fits_is_forwarded(lb: Bench) -> None:
    room = 1480 - 40
    assert Ether(lb.run(bytes(E / to("198.51.100.1") / T / Raw(b"f" * room))).data)[IP].len == 1500
    assert reply(lb, E / to("198.51.100.1") / T / Raw(b"f" * (room + 1)), "too_big")


@pytest.mark.parametrize("code", [(3, 4), (3, 1), (11, 0), (12, 0)])
def test_ipv4_error_goes_to_the_real_of_its_flow(lb: Bench, code: tuple[int, int]) -> None:
    sent = E / IP(src="192.0.2.254", dst="198.51.100.1") / ICMP(type=code[0], code=code[1]) / VIP4_ANSWER
    before = lb.reasons().get("icmp_error", 0)
    done = lb.run(bytes(sent))
    check_outer(Ether(bytes(sent)), done.data, "10.0.0.1", IP)
    assert lb.reasons()["icmp_error"] == before + 1


@pytest.mark.parametrize("error", [ICMPv6PacketTooBig(mtu=1280), ICMPv6DestUnreach(), ICMPv6TimeExceeded()])
def test_ipv6_error_goes_to_the_real_of_its_flow(lb: Bench, error: Any) -> None:
    sent = E / IPv6(src="2001:db8:ff::ff", dst="2001:db8::1") / error / VIP6_ANSWER
    check_outer(Ether(bytes(sent)), lb.run(bytes(sent)).data, "fd00::1", IPv6)


def test_a_big_error_is_not_answered_by_an_error(lb: Bench) -> None:
    sent = E / IP(src="192.0.2.254", dst="198.51.100.1") / ICMP(type=3, code=1) / VIP4_ANSWER / BIG
    before = lb.reasons().get("too_big_silent", 0)
    assert lb.run(bytes(sent)).retval == DROP
    assert lb.reasons()["too_big_silent"] == before + 1


@pytest.mark.parametrize("address", ["198.51.100.1", "2001:db8::1"])
def test_fragments_follow_their_first(lb: Bench, address: str) -> None:
    real, outer = ("10.0.0.1", IP) if "." in address else ("fd00::1", IPv6)
    if outer is IP:
        first, later = to(address, flags="MF", id=4) / T / DATA, to(address, frag=6, id=4, proto=6) / DATA
    else:
        first = to(address) / IPv6ExtHdrFragment(m=1, id=4) / T / DATA
        later = to(address) / IPv6ExtHdrFragment(offset=6, id=4, nh=6) / DATA
    check_outer(Ether(bytes(E / first)), lb.run(bytes(E / first)).data, real, outer)
    before = lb.reasons().get("fragment", 0)
    check_outer(Ether(bytes(E / later)), lb.run(bytes(E / later)).data, real, outer)
    assert lb.reasons()["fragment"] == before + 1


def quic(first: int, *id_: int, long: bool = False, two: bool = False) -> Any:
    id_bytes = bytes(id_).ljust(20, b"\x55")
    head = bytes([first]) + ((b"k3C\xcf" if two else b"\0\0\0\1") + bytes([len(id_bytes)]) if long else b"")
    return E / to("198.51.100.5") / UDP(sport=6, dport=443) / Raw(head + id_bytes + bytes(DATA))


@pytest.mark.parametrize(
    ("what", "packet", "real", "reason"),
    [
        ("short header", quic(0x40, 0x00, 0xBE, 0xEF), "10.0.0.20", "quic_id"),
        ("another rotation", quic(0x40, 0x5F, 0xCA, 0xFE), "10.0.0.21", "quic_id"),
        ("handshake", quic(0xE0, 0x00, 0xCA, 0xFE, long=True), "10.0.0.21", "quic_id"),
        ("unknown server", quic(0x40, 0x00, 0x12, 0x34), None, "quic_unknown"),
        ("unroutable rotation", quic(0x40, 0xE0, 0xBE, 0xEF), None, None),
        ("initial: the client's id", quic(0xC0, 0x00, 0xBE, 0xEF, long=True), None, None),
        ("0-RTT", quic(0xD0, 0x00, 0xBE, 0xEF, long=True), None, None),
        ("version 2, initial", quic(0xD0, 0x00, 0xBE, 0xEF, long=True, two=True), None, None),
        ("version 2, 0-RTT", quic(0xE0, 0x00, 0xBE, 0xEF, long=True, two=True), None, None),
        ("version 2, handshake", quic(0xF0, 0x00, 0xCA, 0xFE, long=True, two=True), "10.0.0.21", "quic_id"),
        ("no room for an id", E / to("198.51.100.5") / UDP(dport=443) / Raw(b"\x40ab"), None, None),
    ],
)  # fmt: skip
def test_quic(lb: Bench, what: str, packet: Any, real: str | None, reason: str | None) -> None:
    before = lb.reasons()
    done = lb.run(bytes(packet))
    assert done.retval == TX
    assert real in (None, Ether(done.data)[IP].dst)
    after = lb.reasons()
    gained = {name for name in after if after[name] > before.get(name, 0)}
    assert gained == ({reason} if reason else set())


def test_outer_source_varies_with_the_flow(lb: Bench) -> None:
    for address, outer in (("198.51.100.1", IP), ("2001:db8::1", IPv6)):
        frames = [
            Ether(lb.run(bytes(E / to(address) / TCP(sport=port, dport=80))).data) for port in range(64)
        ]
        assert len({frame[outer].src for frame in frames}) > 56
    frames = [
        Ether(lb.run(bytes(E / to("198.51.100.2") / TCP(sport=port, dport=80))).data) for port in range(64)
    ]
    assert len({frame[UDP].sport for frame in frames}) > 56
    assert len({frame[IP].src for frame in frames}) == 1


def test_no_real_is_said(tmp_path: Path) -> None:
    with bench(tmp_path) as lb:
        lb.apply({"web": vip("198.51.100.1", 80, "10.0.0.1")})
        lb.state.plane.maps["lb_backends"].update(b"\1\0\0\0", bytes(64))
        assert lb.run(bytes(E / to("198.51.100.1") / T)).retval == DROP
        assert lb.reasons() == {"no_real": 1}


def test_no_headroom_is_said(lb: Bench) -> None:
    """Metadata before the packet takes the room that the outer header would need."""
    packet, metadata = bytes(E / to("198.51.100.1") / T), bytes(200)
    before, forwarded = lb.reasons().get("no_headroom", 0), lb.packets()
    context = struct.pack("=6I", len(metadata), len(metadata + packet), 0, 0, 0, 0)
    done = bpf_sys.prog_test_run(lb.state.plane.program, metadata + packet, context=context)
    assert done.retval == DROP
    assert (lb.reasons()["no_headroom"], lb.packets()) == (before + 1, forwarded)
