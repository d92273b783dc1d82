"""Attacks and surges as frames: each a function of a random source and a number, for stores and for wires.

All are IPv4 without VLAN tags; the addresses are those of documentation and of test networks.
"""

import random
import struct
from collections.abc import Callable, Sequence

TARGET, SERVICE = "10.9.0.1", 80
Frames = Callable[[random.Random, int], list[bytes]]
MAC = b"\x02\0\0\0\0\x02\x02\0\0\0\0\x01\x08\0"
SYN, RST, PSH, ACK = 2, 4, 8, 16


def packed(address: str) -> bytes:
    return bytes(int(each) for each in address.split("."))


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f">{len(data) // 2}H", data[: len(data) // 2 * 2]))
    total += data[-1] << 8 if len(data) % 2 else 0
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ip(
    source: str, target: str, protocol: int, body: bytes, ttl: int = 54, fragment: int = 0, ident: int = 1
) -> bytes:
    head = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(body), ident, fragment, ttl, protocol, 0,
                       packed(source), packed(target))  # fmt: skip
    return MAC + head[:10] + struct.pack(">H", checksum(head)) + head[12:] + body


def udp(source: str, target: str, ports: tuple[int, int], payload: bytes, **more: int) -> bytes:
    return ip(source, target, 17, struct.pack(">HHHH", *ports, 8 + len(payload), 0) + payload, **more)


def tcp(
    source: str, target: str, ports: tuple[int, int], flags: int, seq: int = 0, ack: int = 0,
    payload: bytes = b"", options: bytes = b"", **more: int,
) -> bytes:  # fmt: skip
    offset = (20 + len(options)) // 4 << 4
    head = (
        struct.pack(">HHIIBBHHH", *ports, seq & 0xFFFFFFFF, ack & 0xFFFFFFFF, offset, flags, 64240, 0, 0)
        + options
    )
    pseudo = packed(source) + packed(target) + struct.pack(">BBH", 0, 6, len(head) + len(payload))
    whole = head[:16] + struct.pack(">H", checksum(pseudo + head + payload)) + head[18:]
    return ip(source, target, 6, whole + payload, **more)


def anywhere(dice: random.Random) -> str:
    """A source of documentation's networks, or of the benchmark network: spoofed."""
    networks = ("198.51.100", "203.0.113", f"198.{dice.choice([18, 19])}.{dice.randrange(256)}")
    return f"{dice.choice(networks)}.{dice.randrange(1, 255)}"


def amplified(port: int, answer: Callable[[random.Random], bytes]) -> Frames:
    def make(dice: random.Random, count: int, target: str = TARGET) -> list[bytes]:
        return [
            udp(
                anywhere(dice),
                target,
                (port, dice.randrange(1024, 65_536)),
                answer(dice),
                ttl=dice.randrange(40, 60),
            )
            for _ in range(count)
        ]

    return make


def _dns(dice: random.Random) -> bytes:
    return (
        dice.randbytes(2)
        + b"\x81\x80\0\1\0\x10\0\0\0\1\x07example\x03com\0\0\xff\0\1"
        + dice.randbytes(dice.randrange(800, 1300))
    )


def _memcached(dice: random.Random) -> bytes:
    return dice.randbytes(2) + b"\0\0\0\1\0\0VALUE x 0 1300\r\n" + b"a" * 1300


SSDP = b"HTTP/1.1 200 OK\r\nCACHE-CONTROL: max-age=1800\r\nST: upnp:rootdevice\r\n"
CLDAP = b"\x30\x84\0\0\x0b\xd0\x02\x01\x07\x64\x84\0\0\x0b\xc7\x04\0\x30\x84"


def syn(dice: random.Random, count: int, target: str = TARGET) -> list[bytes]:
    return [
        tcp(anywhere(dice), target, (dice.randrange(1024, 65_536), SERVICE), SYN, dice.randrange(2**32),
            ttl=dice.randrange(50, 60))
        for _ in range(count)
    ]  # fmt: skip


def ack(dice: random.Random, count: int, target: str = TARGET) -> list[bytes]:
    return [
        tcp(anywhere(dice), target, (dice.randrange(1024, 65_536), SERVICE), ACK, dice.randrange(2**32),
            dice.randrange(2**32), ttl=dice.randrange(50, 60))
        for _ in range(count)
    ]  # fmt: skip


def rst(dice: random.Random, count: int, target: str = TARGET) -> list[bytes]:
    return [
        tcp(
            anywhere(dice),
            target,
            (dice.randrange(1024, 65_536), SERVICE),
            RST,
            dice.randrange(2**32),
            ttl=61,
        )
        for _ in range(count)
    ]


def fragments(dice: random.Random, count: int, target: str = TARGET) -> list[bytes]:
    return [
        ip(anywhere(dice), target, 17, dice.randbytes(512), fragment=0x2000 | dice.randrange(1, 180),
           ident=dice.randrange(65_536), ttl=50)
        for _ in range(count)
    ]  # fmt: skip


def gre(dice: random.Random, count: int, target: str = TARGET) -> list[bytes]:
    inner = ip("10.200.0.1", "10.200.0.2", 17, bytes(300))[14:]
    return [ip(anywhere(dice), target, 47, b"\0\0\x08\0" + inner, ttl=49) for _ in range(count)]


def carpet(dice: random.Random, count: int, network: str = "10.9.0") -> list[bytes]:
    """UDP on every address of a /24."""
    return [
        udp(anywhere(dice), f"{network}.{dice.randrange(1, 255)}",
            (dice.randrange(1024, 65_536), dice.randrange(1, 65_536)),
            b"\x13\x37\x13\x37" * 16, ttl=dice.randrange(40, 60))
        for _ in range(count)
    ]  # fmt: skip


ATTACKS: dict[str, Frames] = {
    "dns amplification": amplified(53, _dns),
    "ntp amplification": amplified(123, lambda dice: b"\xd7\0\x03\x2a\0\x06\0\x48" + dice.randbytes(432)),
    "memcached amplification": amplified(11211, _memcached),
    "ssdp amplification": amplified(1900, lambda dice: SSDP + dice.randbytes(dice.randrange(60, 200))),
    "cldap amplification": amplified(389, lambda dice: CLDAP + dice.randbytes(dice.randrange(900, 1300))),
    "syn flood": syn,
    "ack flood": ack,
    "rst flood": rst,
    "fragments": fragments,
    "gre flood": gre,
    "carpet bombing": carpet,
}
STAMPS = b"\x01\x01\x08\x0a\0\0\0\2\0\0\0\1"
OPTIONS = b"\x02\x04\x05\xb4\x04\x02\x08\x0a\0\0\0\1\0\0\0\0\x01\x03\x03\x07"  # as Linux begins a connection


def session(
    dice: random.Random, source: str, target: str = TARGET, packets: int = 12
) -> list[tuple[bytes, bool]]:
    """One HTTP connection, what a client sends: frames, and whether the host knows the connection by then."""
    port, seq, ack_number, ttl = (
        dice.randrange(1024, 65_536),
        dice.randrange(2**32),
        dice.randrange(2**32),
        dice.choice([52, 57, 116, 243]),
    )
    made = [(tcp(source, target, (port, SERVICE), SYN, seq, options=OPTIONS, ttl=ttl), False)]
    made.append(
        (tcp(source, target, (port, SERVICE), ACK, seq + 1, ack_number, options=STAMPS, ttl=ttl), False)
    )
    query = b"GET / HTTP/1.1\r\nHost: example.com\r\n" + dice.randbytes(dice.randrange(40, 400))
    made.append(
        (tcp(source, target, (port, SERVICE), ACK | PSH, seq + 1, ack_number, query, STAMPS, ttl=ttl), True)
    )
    for _ in range(packets - 3):
        ack_number += dice.randrange(1, 5000)
        made.append(
            (
                tcp(
                    source,
                    target,
                    (port, SERVICE),
                    ACK,
                    seq + 1 + len(query),
                    ack_number,
                    options=STAMPS,
                    ttl=ttl,
                ),
                True,
            )
        )
    return made


def crowd(dice: random.Random, clients: int, target: str = TARGET) -> list[tuple[bytes, bool]]:
    """Sessions of many clients."""
    return [
        each
        for _ in range(clients)
        for each in session(
            dice, f"192.0.{dice.randrange(256)}.{dice.randrange(1, 255)}", target, dice.randrange(6, 20)
        )
    ]


def backup(dice: random.Random, count: int, source: str = "10.3.0.9", target: str = TARGET) -> list[bytes]:
    """One long upload: its sequence numbers go up."""
    seq = dice.randrange(2**32)
    return [
        tcp(source, target, (50_022, 22), ACK, seq + 1448 * at, 77, dice.randbytes(1448), ttl=63)
        for at in range(count)
    ]


def scan(
    dice: random.Random, count: int, source: str = "10.3.0.5", targets: Sequence[str] = (TARGET,)
) -> list[bytes]:
    """A monitoring system knocks at every door once."""
    return [
        tcp(source, targets[at % len(targets)], (dice.randrange(30_000, 60_000), 1 + at // len(targets)), SYN,
            dice.randrange(2**32), options=OPTIONS, ttl=62)
        for at in range(count)
    ]  # fmt: skip
