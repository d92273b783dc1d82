"""What SQL may rule out before libpcap looks: a condition that every sample an expression matches fulfils.

Only conditions that stand between top-level `and`s count, and only simple ones; everything else is left to
libpcap. The columns are made by the XDP program (bpf/xdp/filter_parse.h), which reads past two VLAN tags and
past no IPv6 extension header; where libpcap reads differently, the condition is the wider of both.
"""

import re
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address

from schemas.errors import UsageError
from schemas.filter_prefixes import networks

# Protocols by name → their number and, for IPv6, that of a fragment, behind which libpcap looks for them.
PROTOCOLS = {"tcp": (6, 44), "udp": (17, 44), "icmp": (1,), "icmp6": (58, 44)}
# SCTP has ports for libpcap, not for our columns; nor have headers shorter than they may be.
NOT_PORTED = "protocol = 132 OR (source_port = 0 AND destination_port = 0)"
RUNT = "(protocol = 0 AND length < 54)"  # shorter than its IP header: only the EtherType was read
ARP = "ethertype IN (2054, 32821)"
OPAQUE = re.compile(r"\b(vlan|mpls|pppoed|pppoes|geneve|protochain|broadcast|multicast)\b")
Made = tuple[str, dict[str, object]]


def prefilter(expression: str) -> Made:
    """A condition and its parameters; `1` when nothing can be said."""
    text = " ".join(expression.split())
    conditions: list[str] = []
    parameters: dict[str, object] = {}
    if OPAQUE.search(text):
        return "1", {}
    for part in _conjuncts(text):
        for pattern, make in READERS:
            found = pattern.fullmatch(part)
            made = make(found, len(conditions)) if found else None
            if made:
                conditions.append(f"({made[0]} OR {RUNT})")
                parameters |= made[1]
                break
    return " AND ".join(conditions) or "1", parameters


def _conjuncts(text: str) -> list[str]:
    """The parts between top-level `and`s; none when an `or` stands there too, which binds as strongly."""
    parts, depth, begin = [], 0, 0
    for found in re.finditer(r"[()\[\]]|\b(?:and|or)\b|&&|\|\|", text):
        word = found[0]
        if word in "([":
            depth += 1
        elif word in ")]":
            depth -= 1
        elif depth == 0:
            if word in ("or", "||"):
                return []
            parts.append(text[begin : found.start()].strip())
            begin = found.end()
    return [each for each in [*parts, text[begin:].strip()] if each]


def _protocol(found: re.Match[str], _: int) -> Made:
    return f"protocol IN {PROTOCOLS[found[1]]}" if len(PROTOCOLS[found[1]]) > 1 else "protocol = 1", {}


def _version(found: re.Match[str], _: int) -> Made:
    return "ethertype = " + ("2048" if found[1] == "ip" else "34525"), {}


def _number(found: re.Match[str], at: int) -> Made | None:
    number = int(found[2], 0)
    if number > 255:
        return None
    return f"protocol IN ({{p{at}:UInt8}}, 44)", {f"p{at}": number}


def _port(found: re.Match[str], at: int) -> Made | None:
    number = int(found["port"])
    if number > 65_535:
        return None
    ways = {"src": ("source",), "dst": ("destination",)}.get(found["way"] or "", ("source", "destination"))
    tests = [f"{way}_port = {{p{at}:UInt16}}" for way in ways]
    guard = {"tcp ": "protocol IN (6, 44) AND ", "udp ": "protocol IN (17, 44) AND "}.get(
        found["proto"] or ""
    )
    if guard:
        return f"{guard}({' OR '.join(tests)} OR {NOT_PORTED})", {f"p{at}": number}
    return f"{' OR '.join(tests)} OR {NOT_PORTED}", {f"p{at}": number}


def _net(found: re.Match[str], at: int) -> Made | None:
    try:
        if "/" not in found["net"]:
            ip_address(found["net"])  # `net 10` means 10.0.0.0/8: left to libpcap
        low, high = (str(IPv6Address(each.ljust(16, b"\0"))) for each in networks([found["net"]], "net")[0])
    except (ValueError, UsageError):
        return None
    column = "source" if found["way"] == "src" else "destination"
    test = f"{column} BETWEEN toIPv6({{l{at}:String}}) AND toIPv6({{h{at}:String}})"
    return f"{test} OR {ARP}", {f"l{at}": low, f"h{at}": high}


def _length(found: re.Match[str], at: int) -> Made | None:
    sign, number = found["sign"], int(found["number"], 0)
    sign = {"greater": ">=", "less": "<=", "=": "=", "==": "="}.get(sign, sign)
    if number > 0xFFFFFFFF:
        return None
    return f"length {sign} {{n{at}:UInt32}}", {f"n{at}": number}


READERS: tuple[tuple[re.Pattern[str], Callable[[re.Match[str], int], Made | None]], ...] = (
    (re.compile(r"(tcp|udp|icmp|icmp6)"), _protocol),
    (re.compile(r"(ip|ip6)"), _version),
    (re.compile(r"(ip|ip6)\s+proto\s+(\d+|0x[0-9a-f]+)"), _number),
    (re.compile(r"(?P<proto>tcp |udp )?(?:(?P<way>src|dst) )?port (?P<port>\d{1,5})"), _port),
    (re.compile(r"(?P<way>src|dst) (?:host|net) (?P<net>[0-9a-fA-F.:]+(?:/\d{1,3})?)"), _net),
    (re.compile(r"len (?P<sign><=|>=|<|>|=|==) (?P<number>\d+|0x[0-9a-f]+)"), _length),
    (re.compile(r"(?P<sign>greater|less) (?P<number>\d+)"), _length),
)
