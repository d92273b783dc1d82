"""From samples of an attack to the narrowest rule that covers them: each field as tight as the samples allow.

A field whose values have all been seen (few new ones: Good and Turing's estimate) is held to just these; one
whose values spread is held to their range and a margin, if that rules anything out. A rule of fields needs no
compile on any host, and as an expression it is backtested by libpcap.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network

import numpy as np
from numpy.typing import NDArray

from fleet.mitigate_flows import payload
from fleet.mitigate_vectors import Vector
from fleet.mitigate_words import words
from fleet.samples import Block, judge
from schemas import filter_fields
from schemas.filter_expression import Judge

COVERS = (0.999, 0.99, 0.95, 0.9)  # of the attack's packets, by each field; less when more would hurt others
UNSEEN = 0.003  # of the packets may have values that no sample had
MOST_VALUES = 16
DOMAINS = {"length": (14, 1514), "ttl": (1, 255), "source_port": (0, 65_535), "destination_port": (0, 65_535)}
FIELDS = {"length": "length", "ttl": "ttl", "source_port": "src_port", "destination_port": "dst_port"}
PAYLOAD, LEAST_PAYLOAD = 16, 4  # bytes looked at; fewer that agree say nothing
FLAG_BITS = {1: "fin", 2: "syn", 4: "rst", 8: "psh", 16: "ack", 32: "urg"}
Network = IPv4Network | IPv6Network


@dataclass(frozen=True)
class Pattern:
    """A rule's content, and how it did on the samples it was made from."""

    fields: dict[str, str]
    expression: str
    covers: float  # share of the attack's packets
    legitimate: float  # share of the legitimate packets that match
    matched: int  # legitimate packets that match
    judged: int  # legitimate packets looked at

    @property
    def words(self) -> str:
        """What it matches, for people."""
        return words(self.fields)


def distill(
    vector: Vector, attack: Block, legitimate: Block, target: IPv6Network, most: float = 0.0
) -> Pattern:
    """The narrowest rule for samples of an attack, tried on legitimate ones.

    Among an attack's samples may be a few of people that nobody knows yet. A rule that would match more than
    ``most`` of the legitimate packets is therefore made again from the bulk of the samples alone.
    """
    best: Pattern | None = None
    for cover in COVERS:
        pattern = tried(_fields(vector, attack, target, cover), attack, legitimate)
        if best is None or pattern.legitimate < best.legitimate:
            best = pattern
        if best.legitimate <= most:
            break
    assert best is not None
    return best


def _fields(vector: Vector, attack: Block, target: IPv6Network, cover: float) -> dict[str, str]:
    fields = dict(vector.fields) | {"dst": str(plain(target))}
    weight = attack["weight"].astype(float)
    ported = np.isin(attack["protocol"], (6, 17)) & (attack["fragment"] & 0x1FFF == 0)
    if not vector.fields:
        fields["protocol"] = _spans(np.unique(attack["protocol"]).tolist())
    for column, name in FIELDS.items():
        if name not in fields and (not name.endswith("port") or ported.all()):
            text = tight(attack[column].astype(np.int64), weight, DOMAINS[column], cover)
            if text:
                fields[name] = text
    if vector.is_tcp:
        fields["tcp_flags"] = _flags(attack["tcp_flags"], weight, cover) or fields.get("tcp_flags", "")
    fields |= {"payload": _payload(attack, weight, cover), "src": _sources(attack, weight, cover)}
    return {name: text for name, text in fields.items() if text}


def tried(fields: dict[str, str], attack: Block, legitimate: Block) -> Pattern:
    """Fields as a pattern: what they match of both."""
    expression = filter_fields.expression(filter_fields.parse(fields))
    by = Judge(expression)
    hit, hurt = judge(by, attack), judge(by, legitimate)
    total, known = int(legitimate["weight"].sum()), int(attack["weight"].sum())
    matched = int(legitimate["weight"][hurt].sum())
    return Pattern(
        fields, expression, float(attack["weight"][hit].sum()) / known if known else 0.0,
        matched / total if total else 0.0, matched, total,
    )  # fmt: skip


def tight(
    values: NDArray[np.int64], weight: NDArray[np.float64], domain: tuple[int, int], cover: float = COVERS[0]
) -> str:
    """Values or a range that hold nearly all of the packets; empty if that would rule out little."""
    distinct, index, count = np.unique(values, return_inverse=True, return_counts=True)
    share = np.bincount(index.reshape(-1), weight) / weight.sum()
    order = np.argsort(share)[::-1]
    enough = int(np.searchsorted(np.cumsum(share[order]), cover - 1e-9)) + 1
    kept = np.sort(distinct[order[:enough]])
    unseen = float((count == 1).sum()) / len(values)
    if len(kept) <= MOST_VALUES and (unseen <= UNSEEN or len(distinct) == 1):
        return _spans(kept.tolist())
    first, last = _shortest(distinct, share, cover)
    margin = int((last - first) * max(0.05, min(1.0, 4.0 / len(values)))) + 1
    low, high = max(domain[0], first - margin), min(domain[1], last + margin)
    if high - low > 0.6 * (domain[1] - domain[0]):
        return ""
    return f"{low}-{high}"


def _shortest(distinct: NDArray[np.int64], share: NDArray[np.float64], cover: float) -> tuple[int, int]:
    """The shortest range that holds so much of the packets; ``distinct`` is in order."""
    until = np.cumsum(share)
    ends = np.searchsorted(until, until - share + cover - 1e-9)
    begins = np.flatnonzero(ends < len(distinct))
    at = int(begins[np.argmin(distinct[ends[begins]] - distinct[begins])]) if len(begins) else 0
    return int(distinct[at]), int(distinct[ends[at]] if len(begins) else distinct[-1])


def plain(network: IPv6Network) -> Network:
    """A prefix as people write it: IPv4 unmapped."""
    mapped = network.network_address.ipv4_mapped
    if mapped is None or network.prefixlen < 96:
        return network
    return IPv4Network((mapped, network.prefixlen - 96))


def whole(text: str) -> IPv6Network:
    """The inverse of :func:`plain`."""
    network = ip_network(text)
    if isinstance(network, IPv6Network):
        return network
    return IPv6Network((f"::ffff:{network.network_address}", network.prefixlen + 96))


def common_prefix(addresses: NDArray[np.bytes_]) -> IPv6Network | None:
    """The longest prefix of all addresses (S16); None for none at all."""
    if not len(addresses):
        return None
    ordered = np.sort(addresses)
    low = int.from_bytes(bytes(ordered[0]).ljust(16, b"\0"), "big")
    high = int.from_bytes(bytes(ordered[-1]).ljust(16, b"\0"), "big")
    return IPv6Network((low, 128 - (low ^ high).bit_length()), strict=False)


def _spans(values: Iterable[int]) -> str:
    spans: list[list[int]] = []
    for value in values:
        if spans and value == spans[-1][1] + 1:
            spans[-1][1] = value
        else:
            spans.append([value, value])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in spans)


def _flags(flags: NDArray[np.uint8], weight: NDArray[np.float64], cover: float) -> str:
    """Flags that nearly all packets agree on, set or not set."""
    held, looked = [], []
    for bit, name in FLAG_BITS.items():
        share = float(weight[flags & bit != 0].sum() / weight.sum())
        if share >= cover or share <= 1 - cover:
            looked.append(name)
            held += [name] * (share >= cover)
    return f"{'+'.join(held)}/{'+'.join(looked)}" if looked else ""


def _payload(attack: Block, weight: NDArray[np.float64], cover: float) -> str:
    """Bytes behind the headers that nearly all packets share, as OFFSET:HEX; empty if there are few."""
    rows, start = np.arange(len(attack)), payload(attack)
    pairs = []
    for at in range(PAYLOAD):
        there = start + at < np.minimum(attack["captured"], 128)
        values = np.bincount(attack["raw"][rows, np.minimum(start + at, 127)], weight * there, 256)
        pairs.append(f"{values.argmax():02x}" if values.max() >= cover * weight.sum() else "..")
    if PAYLOAD - pairs.count("..") < LEAST_PAYLOAD:
        return ""
    return "0:" + "".join(pairs)


def _sources(attack: Block, weight: NDArray[np.float64], cover: float) -> str:
    """The prefix that nearly all packets come from; empty if it is (nearly) the whole internet."""
    sources, index = np.unique(attack["source"], return_inverse=True)
    share = np.bincount(index, weight) / weight.sum()
    order = np.argsort(share)[::-1]
    kept = sources[order[: int(np.searchsorted(np.cumsum(share[order]), cover - 1e-9)) + 1]]
    prefix = common_prefix(kept)
    network = plain(prefix) if prefix else None
    if network is None or network.prefixlen < (8 if network.version == 4 else 16):
        return ""
    return str(network)
