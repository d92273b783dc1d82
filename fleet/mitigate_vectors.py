"""The patterns of attacks that have names: how SQL tells them, and what every rule against them begins with.

A condition says which packets *could* be of the pattern; that they are too many and no surge of legitimate
traffic is for fleet.mitigate_watch and fleet.mitigate_judge to tell. The first that fits is the one.
"""

from dataclasses import dataclass
from typing import Literal

How = Literal["any", "answers", "syn", "flow", "udp", "scan", "tunnel"]
CARPET, RAMP = "carpet bombing", "slow ramp"  # names of shapes, beside the name of what is sent
FRAGMENT = "bitAnd(fragment, 16383) != 0"  # more fragments, or an offset
MINOR_PORTS = (17, 19, 69, 111, 137, 138, 161, 520, 1434, 3283, 3702, 5353, 5683, 10001, 27015, 37810)
SYN, RST, ACK = 2, 4, 16


@dataclass(frozen=True)
class Vector:
    """A pattern. ``how``: what tells it from legitimate surges (fleet.mitigate_judge)."""

    name: str
    condition: str  # over packet_sample; of those that no earlier one fits
    fields: tuple[tuple[str, str], ...]  # what its rules begin with (schemas.filter_fields)
    how: How = "any"

    @property
    def is_tcp(self) -> bool:
        """Whether connections have a say."""
        return ("protocol", "tcp") in self.fields


def _amplification(name: str, port: int, least: int, how: How = "any") -> Vector:
    condition = f"protocol = 17 AND source_port = {port} AND length >= {least}"
    return Vector(f"{name} amplification", condition, (("protocol", "udp"), ("src_port", str(port))), how)


def _flags(mask: int, value: int) -> str:
    return f"protocol = 6 AND bitAnd(tcp_flags, {mask}) = {value} AND NOT established"


UDP, TCP = ("protocol", "udp"), ("protocol", "tcp")
VECTORS = (
    Vector("fragments", FRAGMENT, (("fragment", "first,later"),), "tunnel"),
    Vector("gre flood", "protocol = 47", (("protocol", "gre"),), "tunnel"),
    # An answer of a name server to a name server is small; of NTP, 48 bytes and perhaps a key's digest.
    _amplification("dns", 53, 200, "answers"),
    _amplification("ntp", 123, 112),
    _amplification("memcached", 11211, 0),
    _amplification("ssdp", 1900, 0),
    _amplification("cldap", 389, 0),
    Vector("udp amplification", f"protocol = 17 AND source_port IN {MINOR_PORTS} AND length >= 112", (UDP,)),
    Vector("udp flood", "protocol = 17", (UDP,), "udp"),
    Vector("icmp flood", "protocol IN (1, 58)", (("protocol", "icmp,icmp6"),), "scan"),
    Vector("syn flood", _flags(SYN | RST | ACK | 1, SYN), (TCP, ("state", "new")), "syn"),
    Vector("syn-ack flood", _flags(SYN | RST | ACK | 1, SYN | ACK), (TCP, ("state", "new")), "flow"),
    Vector("rst flood", _flags(RST, RST), (TCP, ("state", "new")), "scan"),
    Vector("ack flood", _flags(SYN | RST | ACK, ACK), (TCP, ("state", "new")), "flow"),
    Vector("tcp flood", "protocol = 6 AND NOT established", (TCP, ("state", "new")), "flow"),
    Vector("esp flood", "protocol IN (50, 51)", (("protocol", "50,51"),), "udp"),
    Vector("protocol flood", "protocol NOT IN (0, 1, 2, 6, 17, 47, 50, 51, 58, 89, 103, 112)", ()),
)
BY_NAME = {each.name: each for each in VECTORS}


def classified() -> str:
    """SQL of the vector's name of a sample; empty for what no attack is made of."""
    arms = ", ".join(f"{each.condition}, '{each.name}'" for each in VECTORS)
    return f"multiIf({arms}, '')"
