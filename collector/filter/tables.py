"""Address tables in the kernel: written beside the ones in force, then put in force by one word."""

import mmap
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from collector.bpf_map import Map
from collector.filter.layout import ALLOWING, SETS4, SETS6, Config
from collector.filter.sets import Table

GRACE_S = 0.01  # no CPU looks at a table that was replaced longer ago than this
FAMILIES = ("", "6")  # how names of their maps end
HALF = 65_536  # chunks of one table
Region = tuple[int, int]  # of spans: the first, and the one behind the last


class Family:
    """The tables of one family: the one in force, and room for another."""

    def __init__(self, maps: Mapping[str, Map], suffix: str, region: Region) -> None:
        self._chunks, self._spans = maps[f"filter_chunks{suffix}"], maps[f"filter_spans{suffix}"]
        self._hints = maps.get(f"filter_hints{suffix}")
        self.region = region
        self.table: Table | None = None  # in force; None: nobody knows
        self._written: tuple[int, Table, Region] | None = None  # half, and what it has

    def place(self, count: int) -> int | None:
        """Where ``count`` spans fit beside those in force; None: nowhere, the map is too small."""
        start, end = self.region
        if count <= start:
            return 0
        return self._spans.max_entries - count if end + count <= self._spans.max_entries else None

    def write(self, table: Table, half: int) -> int:
        """Write a table beside the one in force, whose half is given → the half that has it then."""
        if table is self.table:
            return half
        at = self.place(len(table.spans))
        assert at is not None
        half = 1 - half
        chunks = table.chunks.copy()
        chunks["first"] += np.where(chunks["count"] > 0, at, 0).astype(np.uint32)
        _store(self._chunks, chunks, half * HALF)
        _store(self._spans, table.spans, at)
        if self._hints is not None:
            _store(self._hints, table.hints, half * len(table.hints))
        self._written = half, table, (at, at + len(table.spans))
        return half

    def settle(self, half: int) -> None:
        """This half is in force."""
        if self._written is not None and self._written[0] == half:
            _, self.table, self.region = self._written
        self._written = None


class AddressTables:
    """Owner of what filter_chunks, filter_spans and filter_hints hold, of both families."""

    def __init__(self, maps: Mapping[str, Map], regions: tuple[Region, Region] = ((0, 0), (0, 0))) -> None:
        """``regions``: where the spans in force are."""
        self._config = maps["filter_config"]
        self._families = [Family(maps, *each) for each in zip(FAMILIES, regions, strict=True)]
        self._replaced = 0.0

    @property
    def regions(self) -> tuple[Region, Region]:
        """Where the spans in force are."""
        four, six = self._families
        return four.region, six.region

    def fit(self, tables: tuple[Table, Table]) -> bool:
        """Whether there is room for them beside those in force."""
        return all(
            table is family.table or family.place(len(table.spans)) is not None
            for family, table in zip(self._families, tables, strict=True)
        )

    def write(self, tables: tuple[Table, Table], allowing: bool) -> Config:
        """Write tables beside those in force → the configuration that puts them there.

        The caller made sure of the room (:meth:`fit`), and fills in what is not about addresses.
        """
        time.sleep(max(0.0, self._replaced + GRACE_S - time.monotonic()))
        before = self.config()
        halves = [family.write(table, half) for family, table, half
                  in zip(self._families, tables, (before.half, before.half6), strict=True)]  # fmt: skip
        flags = SETS4 * tables[0].used | SETS6 * tables[1].used | ALLOWING * allowing
        return replace(before, flags=flags, half=halves[0], half6=halves[1])

    def config(self) -> Config:
        """What is in force."""
        value = self._config.lookup(bytes(4))
        assert value is not None
        return Config.unpack(value)

    def put(self, config: Config) -> None:
        """Put tables in force, and the rest of the configuration with them."""
        self._config.update(bytes(4), config.pack())
        for family, half in zip(self._families, (config.half, config.half6), strict=True):
            family.settle(half)
        self._replaced = time.monotonic()


def _store(table: Map, rows: "np.ndarray[Any, Any]", at: int) -> None:
    """Rows into an array map, through the memory shared with the kernel."""
    if not len(rows):
        return
    assert rows.dtype.itemsize == table.value_size
    size = -(-table.max_entries * table.value_size // mmap.PAGESIZE) * mmap.PAGESIZE
    with mmap.mmap(table.fd, size) as memory:
        whole = np.frombuffer(memory, rows.dtype, table.max_entries)
        whole[at : at + len(rows)] = rows
        del whole
