"""Attack or surge, by samples alone: what outsiders send, and what people do; no store is asked."""

import random
import struct
from collections.abc import Callable, Sequence
from ipaddress import IPv6Network

import numpy as np
import pytest
from attacking import ACK, ATTACKS, OPTIONS, PSH, STAMPS, SYN, TARGET, crowd, ip, tcp, udp
from mitigating import columns

from fleet.mitigate_distill import Pattern, distill
from fleet.mitigate_flows import alone
from fleet.mitigate_judge import Opinion, judge
from fleet.mitigate_vectors import BY_NAME
from fleet.samples import RECORD, Block, untagged
from schemas.filter_expression import Judge

DICE = random.Random(12)
MICROS = 1_000_000
TTLS = (49, 52, 55, 57, 61, 116, 118, 243)
Make = Callable[[], bytes]


def block(frames: Sequence[bytes], known: Sequence[bool] | bool = False, weight: int = 8) -> Block:
    """Samples of two seconds, in the order given."""
    made = np.zeros(len(frames), RECORD)
    for name, value in columns(frames).items():
        made[name] = (
            np.ascontiguousarray(value).view("S16").reshape(-1) if value.shape[1:] == (16,) else value
        )
    made["ts"] = np.linspace(0, 2 * MICROS, len(frames), False)
    made["weight"], made["established"] = weight, known
    return made


def many(make: Make, count: int = 3000) -> list[bytes]:
    return [make() for _ in range(count)]


def source(kind: str) -> str:
    if kind == "one":
        return "198.51.100.7"
    if kind == "few":
        return f"198.51.100.{DICE.randrange(7, 12)}"
    if kind == "/24":
        return f"203.0.113.{DICE.randrange(1, 255)}"
    return ".".join(map(str, (DICE.choice((5, 37, 81, 144, 201)), *DICE.randbytes(3))))


def port() -> int:
    return DICE.randrange(1024, 65_536)


def mixed(flows: list[list[bytes]]) -> list[bytes]:
    """Flows that go on at the same time, each in its order."""
    timed = [(at + DICE.random(), frame) for flow in flows for at, frame in enumerate(flow)]
    return [frame for _, frame in sorted(timed, key=lambda each: each[0])]


PEOPLE = crowd(DICE, 60)
OTHERS = block([frame for frame, known in PEOPLE if known], True)


def opinion(name: str, frames: Sequence[bytes], others: Block = OTHERS) -> tuple[Block, Opinion]:
    some = untagged(block(frames))
    return some, judge(BY_NAME[name], some, others, float(some["weight"].sum()) / 2, 1000)


def rule(name: str, frames: Sequence[bytes], more: Sequence[bytes] = ()) -> Pattern:
    """What answers these, among those of people; it must be an attack."""
    some, said = opinion(name, [*frames, *more])
    assert said.is_attack, said.reason
    legitimate = np.concatenate([OTHERS, some[said.good]])
    return distill(BY_NAME[name], some[said.mask], legitimate, IPv6Network(f"::ffff:{TARGET}"), 0.001)


def share(pattern: Pattern, frames: Sequence[bytes]) -> float:
    """How much of them a rule matches; with VLAN tags as in the kernel, which looks behind them."""
    made = untagged(block(frames))
    sides = [
        np.ascontiguousarray(made[each]).view(np.uint8).reshape(-1, 16) for each in ("source", "destination")
    ]
    return float(Judge(pattern.expression).select(
        made["raw"], made["captured"], made["length"], *sides, made["established"]).mean())  # fmt: skip


def floods(kind: str) -> dict[str, tuple[str, Make]]:
    def datagram(door: int, body: Callable[[], bytes], ttls: tuple[int, int] = (40, 60)) -> Make:
        return lambda: udp(
            source(kind), TARGET, (port(), door or port()), body(), ttl=DICE.randrange(*ttls)
        )  # fmt: skip

    def segment(flags: int, seq: bool = True, size: int = 0) -> Make:
        def make() -> bytes:
            numbers = [DICE.randrange(2**32) if seq else 0 for _ in range(2)]
            return tcp(source(kind), TARGET, (port(), 80), flags, *numbers, DICE.randbytes(size))

        return make

    return {
        "large udp of random content": ("udp flood", datagram(80, lambda: DICE.randbytes(512))),
        "udp to any port": ("udp flood", datagram(0, lambda: DICE.randbytes(DICE.randrange(20, 900)))),
        "the same question": ("udp flood", datagram(27015, lambda: b"\xff\xff\xff\xffTSource\0", (30, 250))),
        "syn": ("syn flood", segment(SYN)),
        "ack with content": ("ack flood", segment(ACK | PSH, size=700)),
        "ack of no sequence": ("ack flood", segment(ACK, seq=False)),
        "xmas": ("tcp flood", segment(0x29)),
    }


@pytest.mark.parametrize("kind", ["one", "few", "/24", "spoofed"])
def test_floods_of_all_sorts_of_sources(kind: str) -> None:
    for what, (name, make) in floods(kind).items():
        pattern = rule(name, many(make))
        assert share(pattern, many(make, 500)) >= 0.99, (what, pattern.words)
        assert pattern.matched == 0 < pattern.judged, (what, pattern.words)


def test_tagged_frames_are_described_too() -> None:
    for name in ("dns amplification", "syn flood", "gre flood"):
        tagged = [each[:12] + b"\x81\0\0\7" + each[12:] for each in ATTACKS[name](DICE, 1000)]
        pattern = rule(name, tagged)
        assert pattern.covers >= 0.99 and share(pattern, tagged) >= 0.99
        assert name == "syn flood" or "payload" in pattern.fields


def test_a_recorded_flood_replayed() -> None:
    """A thousand frames again and again: their flows do not go on, they come back."""
    frames = many(lambda: udp(source(""), TARGET, (port(), 443), DICE.randbytes(700)), 1000)
    assert alone(block(frames * 3)).all()
    assert share(rule("udp flood", frames * 3), frames) >= 0.99
    acks = many(lambda: tcp(source(""), TARGET, (port(), 80), ACK, DICE.randrange(2**32), 7), 700)
    assert share(rule("ack flood", acks * 4), acks) >= 0.99


def test_thin_samples_of_flows_that_go_on() -> None:
    """Of ten thousand flows each gave a sample or none; a few gave two: that is what chance does."""
    flows = [(source(""), port()) for _ in range(10_000)]
    picked = [DICE.choice(flows) for _ in range(4000)]
    frames = [udp(src, TARGET, (sport, 443), DICE.randbytes(900)) for src, sport in picked]
    assert not alone(block(frames)).any()
    assert not opinion("udp flood", frames)[1].is_attack


def answers(count: int) -> list[bytes]:
    """What a resolver gets: many servers, many names, mostly short."""
    made = []
    for _ in range(count):
        name = bytes([9]) + bytes(DICE.choices(b"abcdefghij", k=9)) + b"\3com\0"
        body = (
            DICE.randbytes(2)
            + b"\x81\x80\0\1\0\1\0\0\0\0"
            + name
            + DICE.randbytes(DICE.choice((40, 60, 90, 300, 500)))
        )
        made.append(udp(source(""), TARGET, (53, port()), body, ttl=DICE.choice(TTLS)))
    return made


def test_a_resolver_gets_answers_and_may_be_attacked_with_some() -> None:
    all_answers = answers(3000)
    large = [each for each in all_answers if len(each) >= 200]
    small = block([each for each in all_answers if len(each) < 200])
    assert "resolver" in opinion("dns amplification", large, np.concatenate([OTHERS, small]))[1].reason
    attack = ATTACKS["dns amplification"](DICE, 5000)
    some, said = opinion("dns amplification", [*attack, *large[:150]], np.concatenate([OTHERS, small[:200]]))
    assert said.is_attack
    legitimate = np.concatenate([OTHERS, block(large)])
    pattern = distill(
        BY_NAME["dns amplification"], some[said.mask], legitimate, IPv6Network(f"::ffff:{TARGET}"), 0.001
    )
    assert pattern.matched == 0 and share(pattern, attack) >= 0.99, pattern.words


def test_players_are_spared_when_their_game_is_attacked() -> None:
    def player() -> list[bytes]:
        src, sport, ttl = source(""), port(), DICE.choice(TTLS)
        bodies = [struct.pack("<II", at, at) + DICE.randbytes(30) for at in range(40)]
        return [udp(src, TARGET, (sport, 27015), each, ttl=ttl) for each in bodies]

    players = mixed([player() for _ in range(40)])
    attack = many(
        lambda: udp(source("/24"), TARGET, (port(), 27015), b"\xff\xff\xff\xffTSource Engine Query\0"), 4000
    )
    pattern = rule("udp flood", attack, players)
    assert share(pattern, players) == 0 and share(pattern, attack) == 1


def streams() -> dict[str, tuple[str, list[bytes]]]:
    """Legitimate, and new: name of the pattern it might be taken for, and frames."""
    key = DICE.randbytes(4)

    def rtp(kind: bytes, size: int, flows: int) -> list[bytes]:
        def packet(sport: int, at: int) -> bytes:
            head = kind + struct.pack(">HI", at, 160 * at) + key
            return udp("198.51.100.9", TARGET, (sport, sport + 1), head + DICE.randbytes(size), ttl=57)

        ports = range(10_000, 10_000 + 2 * flows, 2)
        return mixed([[packet(sport, at) for at in range(2000 // flows)] for sport in ports])

    def asked() -> bytes:
        zeros = b"\x23" + bytes(39) if DICE.random() < 0.85 else b"\xe3" + DICE.randbytes(39)
        ports = (DICE.choice((123, port())), 123)
        return udp(source(""), TARGET, ports, zeros + DICE.randbytes(8), ttl=DICE.choice(TTLS))

    def quic() -> list[bytes]:
        src, sport, ttl, name = source(""), port(), DICE.choice(TTLS), DICE.randbytes(8)
        sizes = [DICE.choice((22, 25, 31, 60, 900)) for _ in range(20)]
        return [
            udp(src, TARGET, (sport, 443), b"\x41" + name + DICE.randbytes(each), ttl=ttl) for each in sizes
        ]

    def grpc() -> list[bytes]:
        src, sport, seq = source(""), port(), DICE.randrange(2**32)
        return [
            tcp(src, TARGET, (sport, 50_051), ACK | PSH, seq + 99 * at, 7 + at, DICE.randbytes(99), STAMPS)
            for at in range(3)
        ]

    def again() -> list[bytes]:
        src, sport, seq = source(""), port(), DICE.randrange(2**32)
        return [tcp(src, TARGET, (sport, 80), ACK, seq, 9 + at // 10, b"", STAMPS) for at in range(50)]

    def vpn(at: int) -> bytes:
        body = b"\4\0\0\0" + key + struct.pack("<Q", at) + DICE.randbytes(1300)
        return udp("198.51.100.7", TARGET, (51_820, 51_820), body)

    def overlay(at: int) -> bytes:
        body = b"\x08\0\0\0\0\0\x2a\0" + DICE.randbytes(1300)
        return udp(f"10.5.0.{at % 6}", TARGET, (40_000 + at % 6, 4789), body)

    def ping(at: int) -> bytes:
        target = f"10.9.0.{1 + at // 3 % 250}"
        return ip(f"10.3.0.{at % 3}", target, 1, b"\x08\0" + struct.pack(">I", at))

    def esp(at: int) -> bytes:
        return ip("198.51.100.8", TARGET, 50, key + struct.pack(">I", at) + DICE.randbytes(900))

    return {
        "voice": ("udp flood", rtp(b"\x80\0", 160, 100)),
        "video": ("udp flood", rtp(b"\x80\x21", 1316, 4)),
        "vpn": ("udp flood", [vpn(at) for at in range(3000)]),
        "overlay": ("udp flood", [overlay(at) for at in range(3000)]),
        "time server": ("udp flood", many(asked)),
        "quic": ("udp flood", mixed([quic() for _ in range(120)])),
        "long connections seen by a forwarder": ("ack flood", mixed([grpc() for _ in range(900)])),
        "acknowledgements sent again": ("ack flood", mixed([again() for _ in range(40)])),
        "ipsec": ("esp flood", [esp(at) for at in range(3000)]),
        "pings of monitors": ("icmp flood", [ping(at) for at in range(1500)]),
    }


def test_streams_and_servers_are_no_attack() -> None:
    nobody = np.empty(0, RECORD)
    for what, (name, frames) in streams().items():
        for others in (OTHERS, nobody):
            some, said = opinion(name, frames, others)
            assert not said.is_attack, (what, some[said.mask][:1])


def test_a_tunnel_is_for_people_to_judge() -> None:
    def gre(head: bytes, inner: bytes) -> bytes:
        return ip("198.51.100.81", TARGET, 47, head + inner)

    def inner() -> bytes:
        return ip("10.1.0.1", "10.2.0.1", 17, DICE.randbytes(DICE.randrange(9, 900)))[14:]

    for head in (b"\0\0\x08\0", b"\x20\0\x08\0\0\0\0\x07", b"\xb0\0\x08\0" + bytes(12)):
        assert "tunnel" in opinion("gre flood", many(lambda head=head: gre(head, inner())))[1].doubt
    six = many(lambda: gre(b"\0\0\x86\xdd", struct.pack(">IHBB", 6 << 28, 300, 17, 64) + DICE.randbytes(332)))
    assert "tunnel" in opinion("gre flood", six)[1].doubt
    noise = many(lambda: gre(b"\0\0\x08\0", DICE.randbytes(900)))  # no packets: no tunnel
    assert opinion("gre flood", noise)[1].doubt == ""
    assert opinion("gre flood", ATTACKS["gre flood"](DICE, 1000))[1].doubt == ""


def test_a_crowd_hides_neither_its_attackers_nor_itself() -> None:
    made = crowd(DICE, 700)
    knocks = [frame for frame, _ in made if frame[47] == SYN]
    others = block([frame for frame, known in made if known], True)
    assert "crowd" in opinion("syn flood", knocks, others)[1].reason
    bots = many(
        lambda: tcp(source("few"), TARGET, (port(), 80), SYN, DICE.randrange(2**32), options=OPTIONS), 600
    )
    _, said = opinion("syn flood", [*knocks, *bots], others)
    assert said.mask.sum() == 600 and not (said.mask & said.good).any()
