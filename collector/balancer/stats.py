"""Rows of `lb_stats`: what the kernel's counters gained, exactly once.

    stats = Stats(file)
    columns = stats.gained(plane, ledger, now_us)      # None: nothing rose
    stats.pend(number)                                 # the batch they will be; then they are shipped
    stats.settle(arrives=True)                         # they have that number now

What was shipped, and which batch was about to be, stands in ``file``: a successor asks what became of that
batch, so that over restarts, upgrades and kills the rows add up to the kernel's own counters, no row missing
and none twice. Per-CPU counters are read, not taken: reading loses nothing.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from collector.balancer.dataplane import Dataplane
from collector.balancer.layout import REASONS
from collector.balancer.ledger import Ledger
from collector.sequence import boot_id
from schemas.columns import Column, Dictionary

Key = tuple[str, str, str, str]  # VIP, real, reason, verdict
ROWS = 4_000  # of one batch
Counts = tuple[int, int, int]  # packets, bytes, flows


class Shipped(Struct):
    """The file: counters of which maps, how far they were shipped, and what batch ``number`` added.

    ``drained``: drains that were told.
    """

    maps: str = ""
    counts: list[tuple[Key, Counts]] = []
    number: int = -1  # -1: none
    added: list[tuple[Key, Counts]] = []
    drained: list[str] = []


class Stats:
    """See the module. For one thread."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.shipped = self._read()
        self._before: dict[Key, Counts] = dict(self.shipped.counts)
        self._added: dict[Key, Counts] = dict(self.shipped.added)
        self._at_us = 0

    @property
    def doubtful(self) -> int:
        """The batch that this process, or an earlier one, was about to ship; -1: none."""
        return self.shipped.number

    def _read(self) -> Shipped:
        try:
            return msgspec.json.decode(self.file.read_bytes(), type=Shipped)
        except (OSError, msgspec.DecodeError):
            return Shipped()

    def gained(self, plane: Dataplane, known: Ledger, now_us: int) -> Mapping[str, Column] | None:
        """Columns of what rose (of at most ROWS counters) since what is settled; None if nothing did."""
        maps = f"{boot_id().hex()} {plane.maps['lb_counters'].id}"
        if maps != self.shipped.maps:
            self.shipped, self._before = Shipped(maps=maps), {}
        rose = [(key, now) for key, now in read(plane, known).items() if now != self._before.get(key)][:ROWS]
        self._added = dict(rose)
        interval = now_us - self._at_us if self._at_us else 1_000_000
        self._at_us = now_us
        if not rose:
            return None
        totals = np.array([now for _, now in rose], np.int64)
        before = np.array([self._before.get(key, (0, 0, 0)) for key, _ in rose], np.int64)
        return _columns([key for key, _ in rose], totals, totals - before, now_us, interval)

    def pend(self, number: int) -> None:
        """What was gained last is about to be batch ``number``."""
        self.shipped.number = number
        self.write()

    def settle(self, *, arrives: bool) -> None:
        """That batch has its number (then it arrives, or is declared lost), or it never will."""
        if arrives:
            self._before |= self._added
        self._added, self.shipped.number = {}, -1

    def write(self) -> None:
        """Have the file say it."""
        self.shipped.counts, self.shipped.added = list(self._before.items()), list(self._added.items())
        fresh = self.file.with_name(f"{self.file.name}.new")  # not the ledger's, which has the same stem
        fresh.write_bytes(msgspec.json.encode(self.shipped))
        fresh.replace(self.file)


def read(plane: Dataplane, known: Ledger) -> dict[Key, Counts]:
    """Every counter that is not 0, by its name."""
    found: dict[Key, Counts] = {}
    counters = plane.read_counters(known.backends.top + 1)
    for number, name in known.backends.names().items():
        one = counters[number]
        if one["packets"]:
            vip, _, real = name.rpartition(" ")
            found[vip, real, "", "sent"] = (int(one["packets"]), int(one["bytes"]), int(one["flows"]))
    reasons = plane.read_reasons(known.vips.top + 1)
    names = known.vips.names()
    for number, at in zip(*np.nonzero(reasons), strict=True):
        if at < len(REASONS) and (number in names or not number):
            key = (names.get(int(number), ""), "", REASONS[at].name, REASONS[at].verdict)
            found[key] = (int(reasons[number, at]), 0, 0)
    return found


def _columns(
    keys: list[Key], totals: NDArray[np.int64], gained: NDArray[np.int64], now_us: int, interval: int
) -> Mapping[str, Column]:
    rows = len(keys)
    columns: dict[str, Column] = {
        "ts": np.full(rows, now_us, np.int64), "interval_us": np.full(rows, interval, np.int64)
    }  # fmt: skip
    for at, name in enumerate(("vip", "real", "reason", "verdict")):
        columns[name] = dictionary([key[at] for key in keys])
    for at, name in enumerate(("packets", "bytes", "flows")):
        columns[name], columns[f"{name}_total"] = gained[:, at], totals[:, at]
    return columns


def dictionary(texts: list[str]) -> Dictionary:
    """A column of strings."""
    values = list(dict.fromkeys(texts))
    places = {text: at for at, text in enumerate(values)}
    return Dictionary(values, np.array([places[each] for each in texts], np.uint32))


def named(numbers: NDArray[Any], names: Mapping[int, str]) -> Dictionary:
    """A column of strings for numbers; one without a name stays a number."""
    distinct, index = np.unique(numbers, return_inverse=True)
    return Dictionary([names.get(each, str(each)) for each in distinct.tolist()], index.astype(np.uint32))
