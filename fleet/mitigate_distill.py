"""From samples of an attack to the narrowest rule that covers them: each field as tight as the samples allow.

A field whose values have all been seen (few new ones: Good and Turing's estimate) is held to just these; one
whose values spread is held to their range and a margin, if that rules anything out. A rule of fields needs no
compile on any host, and as an expression it is backtested by libpcap.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

import numpy as np
from numpy.typing import NDArray

from fleet.mitigate_judge import header
from fleet.mitigate_vectors import Vector
from fleet.samples import Block, judge
from schemas import filter_fields
from schemas.filter_expression import Judge

COVER = 0.999  # of the attack's packets, by each field
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
    def text(self) -> str:
        """The fields in one line."""
        return " ".join(f"{name}={value}" for name, value in self.fields.items())


def distill(vector: Vector, attack: Block, legitimate: Block, target: IPv6Network) -> Pattern:
    """The narrowest rule for samples of an attack, tried on legitimate ones."""
    fields = dict(vector.fields) | {"dst": str(plain(target))}
    weight = attack["weight"].astype(float)
    ported = np.isin(attack["protocol"], (6, 17)) & (attack["fragment"] & 0x1FFF == 0)
    if not vector.fields:
        fields["protocol"] = _spans(np.unique(attack["protocol"]).tolist())
    for column, name in FIELDS.items():
        if name not in fields and (not name.endswith("port") or ported.all()):
            text = tight(attack[column].astype(np.int64), weight, DOMAINS[column])
            if text:
                fields[name] = text
    if vector.is_tcp:
        fields["tcp_flags"] = _flags(attack["tcp_flags"], weight) or fields.get("tcp_flags", "")
    fields |= {"payload": _payload(attack, weight), "src": _sources(attack, weight)}
    return tried({name: text for name, text in fields.items() if text}, attack, legitimate)


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


def tight(values: NDArray[np.int64], weight: NDArray[np.float64], domain: tuple[int, int]) -> str:
    """Values or a range that hold nearly all of the packets; empty if that would rule out little."""
    distinct, index, count = np.unique(values, return_inverse=True, return_counts=True)
    share = np.bincount(index, weight) / weight.sum()
    order = np.argsort(share)[::-1]
    enough = int(np.searchsorted(np.cumsum(share[order]), COVER - 1e-9)) + 1
    kept = np.sort(distinct[order[:enough]])
    unseen = float((count == 1).sum()) / len(values)
    if len(kept) <= MOST_VALUES and (unseen <= UNSEEN or len(distinct) == 1):
        return _spans(kept.tolist())
    margin = int((kept[-1] - kept[0]) * max(0.05, min(1.0, 4.0 / len(values)))) + 1
    low, high = max(domain[0], int(kept[0]) - margin), min(domain[1], int(kept[-1]) + margin)
    if high - low > 0.6 * (domain[1] - domain[0]):
        return ""
    return f"{low}-{high}"


def plain(network: IPv6Network) -> Network:
    """A prefix as people write it: IPv4 unmapped."""
    mapped = network.network_address.ipv4_mapped
    if mapped is None or network.prefixlen < 96:
        return network
    return IPv4Network((mapped, network.prefixlen - 96))


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


def _flags(flags: NDArray[np.uint8], weight: NDArray[np.float64]) -> str:
    """Flags that nearly all packets agree on, set or not set."""
    held, looked = [], []
    for bit, name in FLAG_BITS.items():
        share = float(weight[flags & bit != 0].sum() / weight.sum())
        if share >= COVER or share <= 1 - COVER:
            looked.append(name)
            held += [name] * (share >= COVER)
    return f"{'+'.join(held)}/{'+'.join(looked)}" if looked else ""


def _payload(attack: Block, weight: NDArray[np.float64]) -> str:
    """Bytes behind the headers that nearly all packets share, as OFFSET:HEX; empty if there are few."""
    plain_frames = attack["raw"][:, 12].astype(int) << 8 | attack["raw"][:, 13]
    if not np.isin(plain_frames, (0x0800, 0x86DD)).all():
        return ""  # VLAN tags: the bytes lie elsewhere
    whole = attack["fragment"] & 0x1FFF == 0
    start = header(attack)
    rows = np.arange(len(attack))
    start = start + np.where(whole & (attack["protocol"] == 17), 8, 0)
    offset = attack["raw"][rows, np.minimum(start + 12, 127)] >> 4
    start = start + np.where(whole & (attack["protocol"] == 6), offset.astype(np.int64) * 4, 0)
    pairs = []
    for at in range(PAYLOAD):
        there = start + at < np.minimum(attack["captured"], 128)
        values = np.bincount(attack["raw"][rows, np.minimum(start + at, 127)], weight * there, 256)
        pairs.append(f"{values.argmax():02x}" if values.max() >= COVER * weight.sum() else "..")
    if PAYLOAD - pairs.count("..") < LEAST_PAYLOAD:
        return ""
    return "0:" + "".join(pairs)


def _sources(attack: Block, weight: NDArray[np.float64]) -> str:
    """The prefix that nearly all packets come from; empty if it is (nearly) the whole internet."""
    sources, index = np.unique(attack["source"], return_inverse=True)
    share = np.bincount(index, weight) / weight.sum()
    order = np.argsort(share)[::-1]
    kept = sources[order[: int(np.searchsorted(np.cumsum(share[order]), COVER - 1e-9)) + 1]]
    prefix = common_prefix(kept)
    network = plain(prefix) if prefix else None
    if network is None or network.prefixlen < (8 if network.version == 4 else 16):
        return ""
    return str(network)
