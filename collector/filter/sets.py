"""Address sets as the kernel searches them (bpf/xdp/filter_sets.h): built whole with numpy, put in place at
once.

All sets of a family share one table: an address leads to a mask with a bit for each set. Of a large set that
changes only what changed is parsed and sorted (collector.filter.lists).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collector.filter.layout import CHUNK, MAX_SETS, SPAN, SPAN6
from schemas.errors import UsageError
from schemas.filter_prefixes import Addresses, Edges, halves, in_bytes, ipv4, ipv6

Sets = Mapping[int, Edges]  # of one family, by their bit
MARKED_ONE_BY_ONE = 1 << 22  # values of first halves: sets of more have every bit of the bitmap


@dataclass(frozen=True)
class Prefixes:
    """A set, parsed."""

    four: Edges
    six: Edges


@dataclass(frozen=True, eq=False)
class Table:
    """What goes into the maps of a family."""

    chunks: NDArray[Any]  # CHUNK, 65536: by the first 16 bits of an address
    spans: NDArray[Any]  # SPAN or SPAN6
    hints: NDArray[np.uint64]  # of IPv6: 1024 words; else none

    @property
    def used(self) -> bool:
        """Whether any address is in a set."""
        return bool(self.spans["sets"].any())


def parse(texts: Sequence[str], where: str) -> Prefixes:
    """Prefixes of a set. Raises :class:`UsageError` naming the first that is none."""
    four = [text for text in texts if ":" not in text]
    six = [text for text in texts if ":" in text]
    return Prefixes(ipv4(four, where), ipv6(six, where))


def changed(whole: Prefixes, more: Prefixes, fewer: Prefixes) -> Prefixes:
    """``whole`` with some more, and without some that it has; a family that stays is the same object."""
    four, six = more.four.plus(fewer.four, -1), more.six.plus(fewer.six, -1)
    return Prefixes(whole.four.plus(four), whole.six.plus(six))


def edges(prefixes: Prefixes) -> NDArray[Any]:
    """The set as :func:`schemas.filter_prefixes.contains` reads it."""
    return in_bytes(prefixes.four, prefixes.six)


class Built:
    """A family's table, and what it was built of."""

    def __init__(self, build: Callable[[Sets], Table], sets: Sets) -> None:
        self._build, self._sets = build, dict(sets)
        self.table = build(self._sets)

    def of(self, sets: Sets) -> "Built":
        """The same, where all these sets are the same objects; else a new one."""
        same = sets.keys() == self._sets.keys() and all(each is self._sets[bit] for bit, each in sets.items())
        return self if same else Built(self._build, sets)


def build4(sets: Sets) -> Table:
    """The table of IPv4 for sets by their bit."""
    points, masks = _masks(sets, np.zeros(1, np.int64))
    spans = np.empty(len(points), SPAN)
    spans["start"], spans["sets"] = points, masks
    return Table(_chunks(points >> 16, points & 0xFFFF, masks), spans, np.empty(0, np.uint64))


def build6(sets: Sets) -> Table:
    """The table of IPv6 for sets by their bit."""
    points, masks = _masks(sets, np.zeros(1, "S16"))
    numbers = halves(points)
    spans = np.zeros(len(points), SPAN6)
    spans["high"], spans["low"], spans["sets"] = numbers[:, 0], numbers[:, 1], masks
    within = numbers[:, 0] & (2**48 - 1) | (numbers[:, 1] > 0)
    return Table(_chunks(numbers[:, 0] >> 48, within, masks), spans, _hints(numbers[:, 0] >> 32, masks))


def _masks(sets: Sets, zero: Addresses) -> tuple[Addresses, NDArray[np.uint32]]:
    """Points from the lowest address on where the mask of sets changes, and the masks from there."""
    if max(sets, default=0) > MAX_SETS:
        raise UsageError(f"more than {MAX_SETS} address sets; join some, or leave out those no rule names")
    turns = {bit: each.turns() for bit, each in sets.items() if len(each.points)}
    begun = int(len(turns) == 1 and next(iter(turns.values()))[0] == zero[0])
    points = np.concatenate([zero[begun:], *turns.values()])
    bits = [np.zeros(1 - begun, np.uint32)]
    bits += [np.full(len(each), 1 << bit, np.uint32) for bit, each in turns.items()]
    if len(turns) <= 1:  # in order as they are
        return points, np.bitwise_xor.accumulate(np.concatenate(bits))
    order = np.argsort(points, kind="stable")
    points = points[order]
    masks = np.bitwise_xor.accumulate(np.concatenate(bits)[order])
    last = np.flatnonzero(np.concatenate([points[1:] != points[:-1], [True]]))
    points, masks = points[last], masks[last]
    changes = np.flatnonzero(np.concatenate([[True], masks[1:] != masks[:-1]]))
    return points[changes], masks[changes]


def _chunks(top: NDArray[Any], within: NDArray[Any], masks: NDArray[np.uint32]) -> NDArray[Any]:
    """Where the spans are that an address's first 16 bits lead to; ``within``: the rest of each start."""
    numbers = np.arange(65_536, dtype=top.dtype)
    first = np.searchsorted(top, numbers, side="left")
    last = np.searchsorted(top, numbers, side="right") - 1
    behind = (first >= len(top)) | (first > last)
    first -= behind | (within[np.minimum(first, len(top) - 1)] > 0)  # the span that reaches in from before
    chunks = np.empty(65_536, CHUNK)
    one = first == last
    chunks["first"] = np.where(one, masks[first], first)
    chunks["count"] = np.where(one, 0, last - first + 1)
    return chunks


def _hints(starts: NDArray[Any], masks: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """Every value that the first 32 bits of an address in a set can fold to, marked in a bitmap."""
    numbers = np.concatenate([starts, np.array([2**32 - 1], np.uint64)]).astype(np.int64)
    within = np.flatnonzero(masks)
    first, last = numbers[within], numbers[within + 1]
    marked = np.zeros(65_536, np.bool_)
    marked[(first ^ first >> 16) & 0xFFFF] = True
    longer = first < last
    first, counts = first[longer], (last - first)[longer] + 1
    if len(counts) and (counts.max() >= 65_536 or counts.sum() > MARKED_ONE_BY_ONE):
        marked[:] = True
    else:
        begins = np.cumsum(counts) - counts
        values = np.repeat(first - begins, counts) + np.arange(counts.sum())
        marked[(values ^ values >> 16) & 0xFFFF] = True
    return np.packbits(marked, bitorder="little").view("<u8").astype(np.uint64)
