"""Address tables in the kernel: written beside the ones in force, then put in force by one word."""

import mmap
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from collector.bpf_map import Map
from collector.filter.layout import ALLOWING, CHUNK, CONFIG, SETS4, SETS6, SPAN
from collector.filter.sets import Tables

GRACE_S = 0.01  # no CPU looks at a table that was replaced longer ago than this
ADDRESS_FLAGS = SETS4 | SETS6 | ALLOWING


@dataclass
class AddressTables:
    """Owner of what filter_chunks, filter_spans, filter_hints6 and filter_prefixes6 hold."""

    maps: Mapping[str, Map]
    region: tuple[int, int] = (0, 0)  # spans in force
    replaced: float = 0.0

    def place(self, count: int) -> int | None:
        """Where ``count`` spans fit beside those in force; None: nowhere, the map is too small."""
        start, end = self.region
        if count <= start:
            return 0
        return end if end + count <= self.maps["filter_spans"].max_entries else None

    def write(self, tables: Tables, allowing: bool) -> tuple[int, int]:
        """Write tables beside those in force → (half, flags) for :meth:`put`, or for a program's own start.

        The caller made sure of the room (:meth:`place`). IPv6 prefixes change in place, each atomically: new
        ones first.
        """
        time.sleep(max(0.0, self.replaced + GRACE_S - time.monotonic()))
        at = self.place(len(tables.spans))
        assert at is not None
        half = 1 - self.config()[3]
        chunks = tables.chunks.copy()
        chunks["first"] += np.where(chunks["count"] > 0, at, 0).astype(np.uint32)
        _store(self.maps["filter_chunks"], chunks, half << 16)
        _store(self.maps["filter_spans"], tables.spans, at)
        self._write_ipv6(tables)
        self.region = (at, at + len(tables.spans))
        four, six = tables.flags
        return half, SETS4 * four | SETS6 * six | ALLOWING * allowing

    def _write_ipv6(self, tables: Tables) -> None:
        trie = self.maps["filter_prefixes6"]
        hints = self.maps["filter_hints6"]
        for key, mask in tables.prefixes6.items():
            trie.update(key, mask.to_bytes(4, "little"))
        numbers = np.arange(len(tables.hints6), dtype="<u4")
        hints.update_many(numbers.tobytes(), tables.hints6.astype("<u8").tobytes(), len(numbers))
        there, _, count = trie.read()
        size = trie.key_size
        for key in (bytes(there[at * size : (at + 1) * size]) for at in range(count)):
            if key not in tables.prefixes6:
                trie.delete(key)

    def config(self) -> tuple[int, ...]:
        """What is in force: flags, window, budget, half, 0."""
        value = self.maps["filter_config"].lookup(bytes(4))
        assert value is not None
        return CONFIG.unpack(value)

    def put(self, half: int, flags: int, window: int, budget: int) -> None:
        """Put tables in force, and the rest of the configuration with them."""
        self.maps["filter_config"].update(bytes(4), CONFIG.pack(flags, window, budget, half, 0))
        self.replaced = time.monotonic()


def _store(table: Map, rows: "np.ndarray[Any, Any]", at: int) -> None:
    """Rows into an array map, through the memory shared with the kernel."""
    if not len(rows):
        return
    size = -(-table.max_entries * rows.dtype.itemsize // mmap.PAGESIZE) * mmap.PAGESIZE
    assert rows.dtype in (CHUNK, SPAN)
    with mmap.mmap(table.fd, size) as memory:
        whole = np.frombuffer(memory, rows.dtype, table.max_entries)
        whole[at : at + len(rows)] = rows
        del whole
