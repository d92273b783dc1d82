"""What tests of the filter share: packets, expressions, and a program that only says which rules match."""

import logging
import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from hypothesis import strategies as st
from scapy.all import ARP, ICMP, IP, TCP, UDP, Dot1AD, Dot1Q, Ether, ICMPv6EchoRequest, IPv6, Raw
from scapy.layers.inet import IPOption
from scapy.layers.inet6 import IPv6ExtHdrFragment, IPv6ExtHdrHopByHop

from collector import bpf_sys
from collector.bpf_map import Map, MapType
from collector.bpf_sys import ProgType
from collector.filter import matcher
from collector.filter.assembler import R0, R2, Assembler
from collector.filter.decision import Graph
from collector.filter.emit import HITS
from collector.filter.link import Piece, bind, link
from collector.filter.pcap import Program
from collector.filter.symbolic import decide
from schemas.errors import UsageError

logging.getLogger("scapy.runtime").setLevel(logging.ERROR)
SCRATCH_BYTES = HITS + 512
SOURCES = ["10.1.2.3", "10.1.2.4", "192.0.2.7", "198.51.100.9"]
SOURCES6 = ["2001:db8::1", "2001:db8:1::7", "fe80::9"]
NETS = ["10.1.0.0/16", "192.0.2.0/24", "0.0.0.0/1", "2001:db8::/32", "2001:db8:1::/52"]
NOP = IPOption(b"\x01")  # an IPv4 option of one byte
PORTS = [53, 80, 123, 443, 1900, 11211, 40000]


class Matcher:
    """Expressions in the kernel: :meth:`hits` is the set of those that match a frame."""

    def __init__(self, expressions: Sequence[str]) -> None:
        self.programs = [Program(each) for each in expressions]
        self.scratch = Map.create(MapType.ARRAY, 4, SCRATCH_BYTES, 1, "scratch")
        pieces = dict(matcher.match([(each.instructions, ()) for each in self.programs]))
        main = Assembler()
        main.emit(0x18, R2, 2)  # the map's value itself
        main.emit(0x00)
        main.call("match")
        main.constant(R0, 2)
        main.leave()
        pieces["main"] = Piece(main.finish(), tuple(main.calls))
        linked = link(pieces, "main")
        self.instructions = len(linked.code) // 8
        self.fd = bpf_sys.prog_load(ProgType.XDP, bind(linked.code, [self.scratch.fd]), "matcher")

    def hits(self, frame: bytes) -> set[int]:
        self.scratch.update(bytes(4), bytes(SCRATCH_BYTES))
        bpf_sys.prog_test_run(self.fd, frame)
        value = self.scratch.lookup(bytes(4))
        assert value is not None
        bits = int.from_bytes(value[HITS:], "little")
        summary = int.from_bytes(value[:8], "little")
        assert summary == sum(1 << word for word in range(64) if bits >> 64 * word & (1 << 64) - 1)
        return {at for at in range(bits.bit_length()) if bits >> at & 1}

    def judged(self, frame: bytes) -> set[int]:
        """The same by libpcap."""
        return {at for at, each in enumerate(self.programs) if each.matches(frame)}

    def close(self) -> None:
        os.close(self.fd)
        self.scratch.close()


@contextmanager
def matching(expressions: Sequence[str]) -> Iterator[Matcher]:
    matcher = Matcher(expressions)
    try:
        yield matcher
    finally:
        matcher.close()


def compilable(expressions: Sequence[str]) -> list[str]:
    """Those that libpcap takes (it refuses, for one, what can never match), and reads no garbage in."""
    kept = []
    for each in expressions:
        try:
            decide(Graph(), Program(each).instructions)
        except UsageError:
            continue
        kept.append(each)
    return kept


# --- packets ---


def frames(dice: random.Random, count: int) -> list[bytes]:
    """Valid, odd, cut and scrambled ones; XDP sees none below 14 bytes."""
    made = []
    while len(made) < count:
        frame = bytearray(bytes(_packet(dice)))
        kind = dice.random()
        if kind < 0.25:
            frame = frame[: dice.randrange(14, len(frame) + 1)]
        elif kind < 0.45:
            for _ in range(dice.randrange(1, 4)):
                frame[dice.randrange(12, len(frame))] = dice.choice(
                    [0, 1, 6, 17, 0x45, 0x4F, 0x60, 0xFF, dice.randrange(256)]
                )
        elif kind < 0.5:
            frame = bytearray(dice.randbytes(dice.randrange(14, 200)))
        made.append(bytes(frame[:1500]))
    return made


def _packet(dice: random.Random):
    head = Ether(
        src="02:00:00:00:00:01",
        dst=dice.choice(["02:00:00:00:00:02", "ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01"]),
    )
    for _ in range(dice.choice([0, 0, 0, 0, 1, 2])):
        head /= dice.choice([Dot1Q, Dot1AD])(vlan=dice.choice([1, 7, 100]))
    if dice.random() < 0.05:
        return head / ARP(psrc=dice.choice(SOURCES), pdst=dice.choice(SOURCES))
    if dice.random() < 0.7:
        ip = IP(
            src=dice.choice(SOURCES), dst=dice.choice(SOURCES), ttl=dice.choice([1, 32, 64, 255]),
            flags=dice.choice([0, 0, 0, 1, 2]), frag=dice.choice([0, 0, 0, 0, 3]), tos=dice.choice([0, 184]),
            id=dice.randrange(65536), options=dice.choice([[], [], [], [NOP] * 4, [NOP] * 40]),
        )  # fmt: skip
    else:
        ip = IPv6(src=dice.choice(SOURCES6), dst=dice.choice(SOURCES6), hlim=dice.choice([1, 64, 255]))
        if dice.random() < 0.2:
            ip /= dice.choice([IPv6ExtHdrFragment(offset=dice.choice([0, 5])), IPv6ExtHdrHopByHop()])
    payload = Raw(dice.randbytes(dice.choice([0, 1, 4, 20, 100, 600, 1300])))
    ports = {"sport": dice.choice(PORTS), "dport": dice.choice(PORTS)}
    upper = dice.choice(
        [
            UDP(**ports),
            TCP(**ports, flags=dice.choice(["S", "SA", "A", "R", "FA", "PA", ""])),
            ICMP(),
            ICMPv6EchoRequest(),
        ]
    )
    return head / ip / upper / payload


# --- expressions ---

NUMBERS = st.one_of(
    st.sampled_from([0, 1, 2, 4, 6, 17, 20, 64, 255, 0x1FFF, 0x8000, 0xFFFF, 0xFFFFFFFF]),
    st.integers(0, 1500),
)
LAYERS = ["ether", "ip", "ip6", "tcp", "udp", "icmp"]


def _loads() -> st.SearchStrategy[str]:
    return st.builds(
        lambda layer, offset, size: f"{layer}[{offset}{size}]",
        st.sampled_from(LAYERS), st.integers(0, 48), st.sampled_from(["", ":1", ":2", ":4"]),
    )  # fmt: skip


def _arithmetic() -> st.SearchStrategy[str]:
    leaves = st.one_of(_loads(), NUMBERS.map(str), st.just("len"), st.just("(ip[0] & 0xf) * 4"))
    operators = st.sampled_from(["+", "-", "*", "/", "%", "&", "|", "^", "<<", ">>"])
    return st.recursive(
        leaves,
        lambda inner: st.builds(lambda a, o, b: f"({a} {o} {b})", inner, operators, inner),
        max_leaves=4,
    )


def _relations() -> st.SearchStrategy[str]:
    signs = st.sampled_from(["=", "!=", ">", "<", ">=", "<="])
    plain = st.builds(lambda a, s, b: f"{a} {s} {b}", _loads(), signs, NUMBERS)
    masked = st.builds(lambda a, m, s, b: f"{a} & {m} {s} {b}", _loads(), NUMBERS, signs, NUMBERS)
    odd = st.builds(lambda a, s, b: f"{a} {s} {b}", _arithmetic(), signs, _arithmetic())
    indirect = st.builds(
        lambda a, s, b: f"ip[(ip[0] & 0xf) * 4 + {a}] {s} {b}", st.integers(0, 30), signs, NUMBERS
    )
    computed = st.builds(lambda a, s, b: f"ether[{a}] {s} {b}", _arithmetic(), signs, NUMBERS)
    return st.one_of(plain, masked, odd, indirect, computed)


def _primitives() -> st.SearchStrategy[str]:
    way = st.sampled_from(["", "src ", "dst ", "src or dst ", "src and dst "])
    port = st.sampled_from(PORTS)
    return st.one_of(
        st.sampled_from([
            "ip", "ip6", "arp", "tcp", "udp", "icmp", "icmp6", "broadcast", "multicast", "ip multicast",
            "ip proto 17", "ip6 proto 6", "ether proto 0x88a8", "ip[6:2] & 0x1fff != 0",
            "ip[6:2] & 0x3fff = 0",
            "tcp[tcpflags] & (tcp-syn|tcp-ack) = tcp-syn", "tcp[tcpflags] & tcp-rst != 0", "sctp",
            "igmp", "esp",
            "ether host 02:00:00:00:00:02", "ether dst ff:ff:ff:ff:ff:ff", "icmp[icmptype] = icmp-echo", "",
        ]),
        st.builds(lambda w, a: f"{w}host {a}", way, st.sampled_from(SOURCES + SOURCES6)),
        st.builds(lambda w, a: f"{w}net {a}", way, st.sampled_from(NETS)),
        st.builds(lambda p, w, n: f"{p}{w}port {n}", st.sampled_from(["", "tcp ", "udp "]), way, port),
        st.builds(lambda w, a, b: f"{w}portrange {min(a, b)}-{max(a, b)}", way, port, port),
        st.builds(lambda w, n: f"{w} {n}", st.sampled_from(["greater", "less"]), st.integers(0, 1500)),
        st.builds(lambda s, n: f"len {s} {n}", st.sampled_from(["<", ">", "=", ">="]), st.integers(10, 1400)),
        _relations(),
    )  # fmt: skip


def expressions() -> st.SearchStrategy[str]:
    """Whatever pcap-filter(7) allows on Ethernet, nearly."""
    primitive = _primitives()
    inside = st.recursive(
        primitive,
        lambda inner: st.one_of(
            st.builds(lambda a, b: f"({a or 'ip'} and {b or 'ip'})", inner, inner),
            st.builds(lambda a, b: f"({a or 'ip'} or {b or 'ip'})", inner, inner),
            inner.map(lambda a: f"(not {a or 'ip'})"),
        ),
        max_leaves=5,
    )
    tagged = st.builds(
        lambda v, e: f"{v} and {e or 'ip'}", st.sampled_from(["vlan", "vlan 7", "vlan and vlan"]), inside
    )
    return st.one_of(inside, inside, inside, tagged)
