"""Rows of `filter_stats`: what the kernel's counters gained, exactly once, over restarts and kills.

How far they were shipped, and which batch was about to be, stands in a file: a successor asks what became of
that batch (docs/decisions/0053-sums-that-survive-kills.md has why).
"""

import logging
from collections.abc import Mapping
from pathlib import Path

import msgspec
from msgspec import Struct

from collector.bpf_map import Map
from collector.clock import now_us
from collector.companion import Row
from collector.filter import figures
from collector.filter.figures import ALLOWED, Figures
from collector.filter.layout import VERDICTS
from collector.passage import Passage, Way
from collector.sequence import boot_id

log = logging.getLogger("bpfleet.collector")
# By rule: packets, then bytes, in the order of VERDICTS; "": frames let through, allowed.
Counters = dict[str, list[int]]


class Shipped(Struct):
    """The file: of which maps, how far they were shipped, and how far batch ``number`` (-1: none) goes."""

    maps: str = ""
    at: int = 0
    counters: Counters = {}
    number: int = -1
    next_at: int = 0
    next_counters: Counters = {}


class Stats:
    """See the module. For one thread at a time."""

    def __init__(self, file: Path, way: Way) -> None:
        self._file, self._passage = file, Passage(way)
        self._shipped = self._read()

    def start(self) -> None:
        """The numbers of batches are known."""
        self._passage.start()

    def _read(self) -> Shipped:
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=Shipped)
        except (OSError, msgspec.DecodeError):
            return Shipped()

    def rows(self, maps: Mapping[str, Map], rules: Mapping[str, Figures]) -> list[Row]:
        """What was gained since the last rows; all of them are to be shipped as one batch.

        None of counters never seen before: who knows since when they count. None while it is not known what
        became of the last rows.
        """
        if not self._settle():
            return []
        at, now, before = now_us(), _counters(maps, rules), self._shipped
        mark = f"{boot_id().hex()} {maps['filter_counters'].id}"
        if before.maps != mark:
            self._keep(Shipped(mark, at, now))
            return []
        common = {"ts": at, "interval_us": at - before.at}
        rows = [common | row for name, each in now.items() for row in _rows(name, each, before.counters)]
        number = self._passage.send(len(rows))
        self._keep(Shipped(mark, before.at, before.counters, number, at, now))
        return rows

    def _settle(self) -> bool:
        """Whether it is known how far counters were shipped."""
        last = self._shipped
        if last.number < 0:
            return True
        arrives = self._passage.arrives(last.number)
        if arrives is None:
            return False
        at, counters = (last.next_at, last.next_counters) if arrives else (last.at, last.counters)
        self._shipped = Shipped(last.maps, at, counters)
        return True

    def _keep(self, shipped: Shipped) -> None:
        self._shipped = shipped
        partial = self._file.with_suffix(".partial")
        try:
            partial.write_bytes(msgspec.json.encode(shipped))
            partial.replace(self._file)
        except OSError as error:
            log.warning("cannot write %s: %s; after a kill counters may miss a second", self._file, error)


def _counters(maps: Mapping[str, Map], rules: Mapping[str, Figures]) -> Counters:
    beside = figures.scratch(maps)
    passed, size, allowed = (int(beside[name].sum()) for name in ("packets", "bytes", "allowed"))
    return {"": [passed, allowed, 0, size, 0, 0]} | {
        name: [*each.packets, *each.bytes] for name, each in rules.items() if any(each.packets)
    }


def _rows(rule: str, now: list[int], known: Counters) -> list[Row]:
    """A counter that fell was begun anew."""
    before = known.get(rule) or [0] * 6
    gains = [one - other if one >= other else one for one, other in zip(now, before, strict=True)]
    verdicts = VERDICTS if rule else (VERDICTS[0], ALLOWED)
    return [{"rule": rule, "verdict": verdict, "packets": gains[at], "bytes": gains[at + 3]}
            for at, verdict in enumerate(verdicts) if gains[at] or not (rule or at)]  # fmt: skip
