"""A flow as the program sees it: hash, slot, key. The same arithmetic as bpf/xdp/balancer_hash.h."""

import ipaddress
import re
import struct
from dataclasses import dataclass

from collector.balancer.layout import FLOW_KEY, RING_SLOTS, record
from schemas.errors import UsageError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
PROTOCOLS = {"tcp": 6, "udp": 17}
_WORD = (1 << 64) - 1
HASH_A, HASH_B = 0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93
_FLOW = re.compile(r"(tcp|udp)\s+(\S+):(\d+)\s*->\s*(\S+):(\d+)$", re.IGNORECASE)


def mapped(address: Address) -> bytes:
    """The 16 bytes of an address; IPv4 as ::ffff:a.b.c.d."""
    return address.packed if address.version == 6 else bytes(10) + b"\xff\xff" + address.packed


def unmapped(raw: bytes) -> Address:
    """The address that :func:`mapped` made these 16 bytes of."""
    address = ipaddress.IPv6Address(raw)
    return address.ipv4_mapped or address


@dataclass(frozen=True)
class Flow:
    """Client → VIP."""

    protocol: str
    source: Address
    source_port: int
    destination: Address
    destination_port: int

    @classmethod
    def parse(cls, text: str) -> "Flow":
        """``tcp 192.0.2.7:4711 -> 198.51.100.1:443``; IPv6 in brackets. Raises :class:`UsageError`."""
        found = _FLOW.match(text.strip())
        if not found:
            raise UsageError(f"not a flow: {text!r}; write it like 'tcp 192.0.2.7:4711 -> 198.51.100.1:443'")
        protocol, source, source_port, destination, destination_port = found.groups()
        try:
            ends = [ipaddress.ip_address(each.strip("[]")) for each in (source, destination)]
        except ValueError as error:
            raise UsageError(f"not a flow: {error}") from None
        ports = int(source_port), int(destination_port)
        if max(ports) > 65535 or ends[0].version != ends[1].version:
            raise UsageError(f"not a flow: {text!r}; ports go to 65535, both addresses are of one family")
        return cls(protocol.lower(), ends[0], ports[0], ends[1], ports[1])

    @property
    def ports(self) -> int:
        """Both ports as the program loads them: network order, read little-endian."""
        return int(struct.unpack("<I", struct.pack("!HH", self.source_port, self.destination_port))[0])

    def hash(self, seed: int, *, source_only: bool = False) -> int:
        """The 64-bit flow hash; ``source_only`` leaves out the client's port."""
        low: int
        high, low = struct.unpack("<QQ", mapped(self.source))
        value = low ^ seed
        if self.source.version == 6:
            value = (value ^ value >> 32) * HASH_A & _WORD
            value ^= high
            value = (value ^ value >> 32) * HASH_B & _WORD
        value ^= self.ports & (0xFFFF0000 if source_only else 0xFFFFFFFF)
        value = (value ^ value >> 32) * HASH_A & _WORD
        value = (value ^ value >> 29) * HASH_B & _WORD
        return value ^ value >> 32

    def table_key(self, vip: int) -> bytes:
        """The key of this flow in the table of remembered flows."""
        return record(
            FLOW_KEY, source=mapped(self.source), destination=mapped(self.destination), ports=self.ports,
            vip=vip, protocol=PROTOCOLS[self.protocol],
        )  # fmt: skip


def slot_of(value: int) -> int:
    """The slot of a flow hash."""
    return (value >> 32) * RING_SLOTS >> 32
