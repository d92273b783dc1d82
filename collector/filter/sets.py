"""Address sets as the kernel searches them (bpf/xdp/filter_sets.h): built whole with numpy, put in place at
once.

All sets share one table: an address leads to a mask with a bit for each set. On a two-core machine a million
random IPv4 prefixes take a second to parse and 0.2 s to build; a change of one part of them parses that part
alone (collector.filter.lists).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_network
from socket import AF_INET6, inet_pton
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collector.filter.layout import CHUNK, MAX_SETS, SPAN
from schemas.errors import UsageError

TOP = 1 << 32
Spans = NDArray[np.int64]
Prefix6 = tuple[int, int]


@dataclass(frozen=True)
class Tables:
    """What goes into the maps."""

    chunks: NDArray[Any]  # CHUNK, 65536
    spans: NDArray[Any]  # SPAN
    hints6: NDArray[np.uint64]  # 1024 words
    prefixes6: dict[bytes, int]  # key of the trie → mask

    @property
    def flags(self) -> tuple[bool, bool]:
        """Whether there is anything of IPv4, of IPv6."""
        return bool(len(self.spans) > 1 or self.spans["sets"].any()), bool(self.prefixes6)


@dataclass(frozen=True)
class Prefixes:
    """A set, parsed: IPv4 as rows (start, end), ascending, without overlap; IPv6 as (address, length)."""

    ipv4: Spans
    ipv6: tuple[Prefix6, ...]


def parse(texts: Sequence[str], where: str) -> Prefixes:
    """Prefixes of a set. Raises :class:`UsageError` naming the first that is none."""
    four = [text for text in texts if ":" not in text]
    six = tuple(_prefix6(text, where) for text in texts if ":" in text)
    return Prefixes(_merge(_ipv4(four, where)), six)


def _prefix6(text: str, where: str) -> Prefix6:
    address, slash, bits = text.partition("/")
    try:
        number, length = int.from_bytes(inet_pton(AF_INET6, address), "big"), int(bits) if slash else 128
    except (OSError, ValueError):  # odd, or wrong: the slow way knows
        network = _network(text, where)
        return int(network.network_address), network.prefixlen
    if not 0 <= length <= 128:
        _network(text, where)
    return number >> (128 - length) << (128 - length), length


def join(parts: Sequence[Prefixes]) -> Prefixes:
    """Several as one."""
    if len(parts) == 1:
        return parts[0]
    spans = np.concatenate([each.ipv4 for each in parts]) if parts else np.empty((0, 2), np.int64)
    return Prefixes(_merge(spans), tuple(network for each in parts for network in each.ipv6))


def _network(text: str, where: str) -> Any:
    try:
        return ip_network(text.strip(), strict=False)
    except ValueError:
        raise UsageError(f"{where}: `{text}` is not an address or prefix like 192.0.2.0/24") from None


def _ipv4(texts: Sequence[str], where: str) -> Spans:
    """(start, end) of each, end exclusive."""
    if not texts:
        return np.empty((0, 2), np.int64)
    full = [text if "/" in text else text + "/32" for text in texts]
    plain = " ".join(full).replace(".", " ").replace("/", " ")
    try:
        numbers = np.array(plain.split(), dtype=np.int64).reshape(len(texts), 5)
    except ValueError:
        numbers = np.full((1, 5), -1, np.int64)
    if (numbers < 0).any() or (numbers[:, :4] > 255).any() or (numbers[:, 4] > 32).any():
        for text in texts:
            _network(text, where)
        raise UsageError(f"{where}: prefixes are written like 192.0.2.0/24")
    address = numbers[:, 0] << 24 | numbers[:, 1] << 16 | numbers[:, 2] << 8 | numbers[:, 3]
    size = np.int64(1) << (32 - numbers[:, 4])
    start = address & -size
    return np.stack([start, start + size], axis=1)


def _merge(spans: Spans) -> Spans:
    """The same addresses as ascending spans that neither overlap nor touch."""
    if not len(spans):
        return spans
    spans = spans[np.argsort(spans[:, 0], kind="stable")]
    reach = np.maximum.accumulate(spans[:, 1])
    first = np.concatenate([[True], spans[1:, 0] > reach[:-1]])
    starts = spans[first, 0]
    last = np.concatenate([np.flatnonzero(first)[1:] - 1, [len(spans) - 1]])
    return np.stack([starts, reach[last]], axis=1)


def build(sets: Mapping[int, Prefixes]) -> Tables:
    """Tables for sets by their bit."""
    if max(sets, default=0) > MAX_SETS:
        raise UsageError(f"more than {MAX_SETS} address sets; join some, or leave out those no rule names")
    points = np.sort(np.concatenate([[0], *(each.ipv4.ravel() for each in sets.values())]), kind="stable")
    points = points[np.concatenate([[True], points[1:] != points[:-1]]) & (points < TOP)]
    masks = np.zeros(len(points), np.uint32)
    for bit, each in sets.items():
        if len(each.ipv4):
            at = np.searchsorted(each.ipv4[:, 0], points, side="right") - 1
            inside = (at >= 0) & (points < each.ipv4[at, 1])
            masks |= inside.astype(np.uint32) << np.uint32(bit)
    changes = np.concatenate([[True], masks[1:] != masks[:-1]])
    spans = np.empty(int(changes.sum()), SPAN)
    spans["start"], spans["sets"] = points[changes], masks[changes]
    hints, prefixes = _ipv6(sets)
    return Tables(_chunks(spans), spans, hints, prefixes)


def _chunks(spans: NDArray[Any]) -> NDArray[Any]:
    starts = spans["start"].astype(np.int64)
    low = np.arange(65_536, dtype=np.int64) << 16
    first = np.searchsorted(starts, low, side="right") - 1
    last = np.searchsorted(starts, low + 0xFFFF, side="right") - 1
    chunks = np.empty(65_536, CHUNK)
    one = first == last
    chunks["first"] = np.where(one, spans["sets"][first], first)
    chunks["count"] = np.where(one, 0, last - first + 1)
    return chunks


def _ipv6(sets: Mapping[int, Prefixes]) -> tuple[NDArray[np.uint64], dict[bytes, int]]:
    """The bitmap and the trie. A longer prefix carries the sets of all that cover it: one match tells all."""
    masks: dict[Prefix6, int] = {}
    for bit, each in sets.items():
        for prefix in each.ipv6:
            masks[prefix] = masks.get(prefix, 0) | 1 << bit
    lengths = sorted({length for _, length in masks})
    prefixes = {}
    for (address, length), own in masks.items():
        mask = own
        for shorter in lengths:
            if shorter >= length:
                break
            mask |= masks.get((address >> (128 - shorter) << (128 - shorter), shorter), 0)
        prefixes[length.to_bytes(4, "little") + address.to_bytes(16, "big")] = mask
    return _hints(masks), prefixes


def _hints(prefixes: Iterable[Prefix6]) -> NDArray[np.uint64]:
    """Every value that the first 32 bits of a prefix's addresses can fold to, marked in a bitmap."""
    marked = np.zeros(65_536, np.bool_)
    starts = np.array([address >> 96 for address, length in prefixes if length >= 32], np.uint32)
    marked[(starts ^ starts >> 16) & 0xFFFF] = True
    for address, length in prefixes:
        if length < 16:
            marked[:] = True
        elif length < 32:
            start = address >> 96
            marked[(start ^ start >> 16) & 0xFFFF ^ np.arange(1 << 32 - length)] = True
    return np.packbits(marked, bitorder="little").view("<u8").astype(np.uint64)
