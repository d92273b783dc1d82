"""Address sets as the kernel searches them (bpf/xdp/filter_sets.h): built whole with numpy, put in place at
once.

All sets share one table: an address leads to a mask with a bit for each set. On a two-core machine a million
random IPv4 prefixes take a second to parse and 0.2 s to build; a change of one part of them parses that part
alone (collector.filter.lists).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collector.filter.layout import CHUNK, MAX_SETS, SPAN
from schemas.errors import UsageError
from schemas.filter_prefixes import Prefix6, Spans, in_bytes, ipv4, merge, prefix6

TOP = 1 << 32


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
    six = tuple(prefix6(text, where) for text in texts if ":" in text)
    return Prefixes(ipv4(four, where), six)


def join(parts: Sequence[Prefixes]) -> Prefixes:
    """Several as one."""
    if len(parts) == 1:
        return parts[0]
    spans = np.concatenate([each.ipv4 for each in parts]) if parts else np.empty((0, 2), np.int64)
    return Prefixes(merge(spans), tuple(network for each in parts for network in each.ipv6))


def edges(prefixes: Prefixes) -> NDArray[Any]:
    """The set as :func:`schemas.filter_prefixes.contains` reads it."""
    return in_bytes(prefixes.ipv4, prefixes.ipv6)


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
