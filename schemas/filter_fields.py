"""Rules of the table kind: masked fields, ranges and sets, matched from maps without a compile.

    fields: {protocol: udp, src_port: "53,123", length: 500-1500, dst: 192.0.2.0/24, payload: "0:....8180"}

A frame matches when every field given does. Fields look behind up to two VLAN tags; only IPv4 and IPv6 match.
Ports are those of TCP and UDP and not of later fragments; the payload is what follows the UDP or TCP header,
for other protocols and later fragments what follows the IP header. IPv6 extension headers are not followed.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network

from schemas.errors import UsageError
from schemas.filter_expression import MAX_MADE, NAME, compile_expression

PROTOCOLS = {
    "icmp": 1,
    "igmp": 2,
    "ipip": 4,
    "tcp": 6,
    "udp": 17,
    "gre": 47,
    "esp": 50,
    "icmp6": 58,
    "sctp": 132,
}
TCP_FLAGS = {"fin": 1, "syn": 2, "rst": 4, "psh": 8, "ack": 16, "urg": 32, "ece": 64, "cwr": 128}
FRAGMENTS = ("no", "first", "later")
MAX_PAYLOAD, MAX_PAYLOAD_AT, MAX_SPANS = 16, 256, 64
_SET = re.compile(rf"(!?)@({NAME})")
_SPAN = re.compile(r"(\d{1,6})(?:-(\d{1,6}))?")
_PAYLOAD = re.compile(r"(\d{1,3}):((?:[0-9a-f]{2}|\.\.){1,64})", re.IGNORECASE)

Spans = tuple[tuple[int, int], ...]  # inclusive
Network = IPv4Network | IPv6Network


@dataclass(frozen=True)
class Side:
    """A condition on an address: in a prefix, or in (not in) a set."""

    network: Network | None = None
    set: str = ""
    outside: bool = False  # not in the set

    def text(self, way: str) -> str:
        """As an expression; ``way`` is src or dst."""
        if self.network is None:
            return f"{'not ' * self.outside}{way} in @{self.set}"
        return f"{way} net {self.network}"


@dataclass(frozen=True)
class Payload:
    """Bytes at an offset behind the headers; mask 0 leaves a byte out."""

    at: int
    value: bytes
    mask: bytes


@dataclass(frozen=True)
class Fields:
    """A table rule, parsed; None and empty: anything."""

    ip: int | None = None  # 4 or 6
    protocol: Spans = ()
    src: Side | None = None
    dst: Side | None = None
    src_port: Spans = ()
    dst_port: Spans = ()
    length: Spans = ()
    ttl: Spans = ()
    tcp_flags: tuple[int, int] | None = None  # value, mask
    fragment: tuple[str, ...] = ()
    payload: Payload | None = None
    established: bool | None = None

    def sets(self) -> set[str]:
        """The address sets it names."""
        return {side.set for side in (self.src, self.dst) if side and side.set}

    @property
    def needs_ports(self) -> bool:
        """Whether a frame without ports cannot match."""
        return bool(self.src_port or self.dst_port)


def parse(fields: Mapping[str, str]) -> Fields:
    """Text to :class:`Fields`. Raises :class:`UsageError` naming the field and what it takes."""
    if not fields:
        raise UsageError("fields: give at least one, like `protocol: udp`")
    for name in fields:
        if name not in _PARSERS:
            raise UsageError(f"fields: `{name}` is not one of {', '.join(_PARSERS)}")
    values = {}
    for name, text in fields.items():
        key, parser = _PARSERS[name]
        values[key] = parser(name, str(text).strip())
    return Fields(**values)  # type: ignore[arg-type]


def _spans(most: int) -> Callable[[str, str], Spans]:
    def read(name: str, text: str) -> Spans:
        spans = []
        for part in text.split(","):
            found = _SPAN.fullmatch(part.strip())
            low = int(found[1]) if found else 1
            high = int(found[2] or low) if found else 0
            if not low <= high <= most:
                raise UsageError(
                    f"fields: {name} `{text}` is not numbers or ranges up to {most}, like 53,1024-2047"
                )
            spans.append((low, high))
        if len(spans) > MAX_SPANS:
            raise UsageError(f"fields: {name} has {len(spans)} ranges, at most {MAX_SPANS}")
        return tuple(sorted(spans))

    return read


def _protocol(name: str, text: str) -> Spans:
    parts = [part.strip().lower() for part in text.split(",")]
    return _spans(255)(name, ",".join(str(PROTOCOLS.get(part, part)) for part in parts))


def _side(name: str, text: str) -> Side:
    found = _SET.fullmatch(text)
    if found:
        return Side(set=found[2], outside=bool(found[1]))
    try:
        return Side(ip_network(text, strict=False))
    except ValueError:
        raise UsageError(f"fields: {name} `{text}` is not a prefix, @set or !@set") from None


def _flags(name: str, text: str) -> tuple[int, int]:
    value, slash, mask = text.lower().partition("/")
    bits = []
    for part in (value, mask if slash else value):
        names = [each.strip() for each in part.split("+")] if part.strip() else []
        wrong = [each for each in names if each not in TCP_FLAGS]
        if wrong:
            raise UsageError(
                f"fields: {name} `{text}` is like syn/syn+ack+rst: those set, of those looked at"
            )
        bits.append(sum(TCP_FLAGS[each] for each in set(names)))
    if not bits[1] or bits[0] & ~bits[1]:
        raise UsageError(
            f"fields: {name} `{text}`: what is set must be among what is looked at, like syn/syn+ack"
        )
    return bits[0], bits[1]


def _fragment(name: str, text: str) -> tuple[str, ...]:
    kinds = tuple(part.strip() for part in text.split(","))
    if not set(kinds) <= set(FRAGMENTS):
        raise UsageError(f"fields: {name} `{text}` is some of {', '.join(FRAGMENTS)}")
    return kinds


def _payload(name: str, text: str) -> Payload:
    found = _PAYLOAD.fullmatch(text.replace(" ", ""))
    if not found or len(found[2]) > 2 * MAX_PAYLOAD or int(found[1]) > MAX_PAYLOAD_AT:
        raise UsageError(
            f"fields: {name} `{text}` is OFFSET:HEX of up to {MAX_PAYLOAD} bytes, `..` for any: 2:81..01"
        )
    pairs = [found[2][at : at + 2] for at in range(0, len(found[2]), 2)]
    given = [at for at, pair in enumerate(pairs) if pair != ".."]
    if not given:
        raise UsageError(f"fields: {name} `{text}` says nothing; leave it out")
    pairs = pairs[given[0] : given[-1] + 1]
    value = bytes(0 if pair == ".." else int(pair, 16) for pair in pairs)
    mask = bytes(0 if pair == ".." else 255 for pair in pairs)
    return Payload(int(found[1]) + given[0], value, mask)


def _choice(**choices: object) -> Callable[[str, str], object]:
    def read(name: str, text: str) -> object:
        if text.lower() not in choices:
            raise UsageError(f"fields: {name} is {' or '.join(choices)}, not `{text}`")
        return choices[text.lower()]

    return read


_PARSERS: dict[str, tuple[str, Callable[[str, str], object]]] = {
    "ip": ("ip", _choice(**{"4": 4, "6": 6})),
    "protocol": ("protocol", _protocol),
    "src": ("src", _side),
    "dst": ("dst", _side),
    "src_port": ("src_port", _spans(65_535)),
    "dst_port": ("dst_port", _spans(65_535)),
    "length": ("length", _spans(65_535)),
    "ttl": ("ttl", _spans(255)),
    "tcp_flags": ("tcp_flags", _flags),
    "fragment": ("fragment", _fragment),
    "payload": ("payload", _payload),
    "state": ("established", _choice(established=True, new=False)),
}


def check_possible(fields: Fields) -> None:
    """Raises :class:`UsageError` for fields that contradict each other."""
    try:
        compile_expression(expression(fields), MAX_MADE)
    except UsageError as error:
        if "rejects all" in str(error):
            raise UsageError("fields: no frame can be all of that at once; leave some out") from None
        raise


# --- the same as an expression, for libpcap to judge by ---

_WHOLE = "(ip[6:2] & 0x1fff = 0 and ip[0] & 15 >= 5)"  # what follows is a header, where it should be


def expression(fields: Fields) -> str:
    """What the fields say of frames without VLAN tags, in the language of ``match``."""
    families = [family for family in (4, 6) if fields.ip in (None, family) and _possible(fields, family)]
    texts = [_family(fields, family) for family in families]
    return " or ".join(f"({text})" for text in texts) or "ether[0] = 256 and ether[0] = 255"


def _possible(fields: Fields, family: int) -> bool:
    sides = [side.network for side in (fields.src, fields.dst) if side and side.network]
    return all(network.version == family for network in sides)


def _family(fields: Fields, family: int) -> str:
    four = family == 4
    protocol, ttl = ("ip[9]", "ip[8]") if four else ("ip6[6]", "ip6[7]")
    parts = ["ip" if four else "ip6"]
    parts += [_any(protocol, fields.protocol), _any("len", fields.length), _any(ttl, fields.ttl)]
    parts += [side.text(way) for way, side in (("src", fields.src), ("dst", fields.dst)) if side]
    if fields.fragment:
        kinds = {
            "no": "ip[6:2] & 0x3fff = 0",
            "first": "ip[6:2] & 0x3fff = 0x2000",
            "later": "ip[6:2] & 0x1fff != 0",
        }
        parts.append(_or([kinds[each] for each in fields.fragment]) if four else
                     "ip6" if "no" in fields.fragment else "ip6[0] = 256")  # fmt: skip
    start = "(ip[0] & 15) * 4" if four else "40"
    layer = "ip" if four else "ip6"
    if fields.needs_ports:
        parts.append(f"({protocol} = 6 or {protocol} = 17)" + f" and {_WHOLE}" * four)
        for place, spans in ((0, fields.src_port), (2, fields.dst_port)):
            parts.append(_any(f"{layer}[{start} + {place}:2]", spans))
    if fields.tcp_flags:
        value, mask = fields.tcp_flags
        parts.append(f"{protocol} = 6" + f" and {_WHOLE}" * four)
        parts.append(f"{layer}[{start} + 13] & {mask} = {value}")
    if fields.payload:
        parts.append(_payload_text(fields.payload, layer, protocol, start, four))
    if fields.established is not None:
        parts.append("state established" if fields.established else "state new")
    return " and ".join(f"({part})" for part in parts if part)


def _payload_text(payload: Payload, layer: str, protocol: str, start: str, four: bool) -> str:
    whole = _WHOLE if four else "ip6"
    tcp = f"({layer}[{start} + 12] >> 4) * 4"
    cases = [
        (f"{protocol} = 17 and {whole}", f"{start} + 8"),
        (f"{protocol} = 6 and {whole}", f"{start} + {tcp}"),
        (f"not (({protocol} = 6 or {protocol} = 17) and {whole})", start),
    ]
    texts = []
    for condition, base in cases:
        tests = [
            f"{layer}[{base} + {payload.at + at}] = {value}"
            for at, (value, mask) in enumerate(zip(payload.value, payload.mask, strict=True))
            if mask
        ]
        texts.append(f"({condition}) and {' and '.join(tests)}")
    return _or(texts)


def _any(what: str, spans: Spans) -> str:
    return _or(
        [
            f"{what} = {low}" if low == high else f"({what} >= {low} and {what} <= {high})"
            for low, high in spans
        ]
    )


def _or(texts: list[str]) -> str:
    return " or ".join(f"({text})" for text in texts)
