"""Address tables in the kernel: written beside the ones in force, then put in force by one word."""

import mmap
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from collector.bpf_map import Map
from collector.filter.layout import ALLOWING, CHUNK, SETS4, SETS6, SPAN, Config
from collector.filter.sets import Tables

GRACE_S = 0.01  # no CPU looks at a table that was replaced longer ago than this


@dataclass
class AddressTables:
    """Owner of what filter_chunks, filter_spans, filter_hints6 and filter_prefixes6 hold."""

    maps: Mapping[str, Map]
    region: tuple[int, int] = (0, 0)  # spans in force
    replaced: float = 0.0
    prefixes6: dict[bytes, int] | None = None  # in force; None: nobody knows
    tidied: bool = False  # the other generation is empty

    def place(self, count: int) -> int | None:
        """Where ``count`` spans fit beside those in force; None: nowhere, the map is too small."""
        start, end = self.region
        if count <= start:
            return 0
        return end if end + count <= self.maps["filter_spans"].max_entries else None

    def write(self, tables: Tables, allowing: bool) -> Config:
        """Write tables beside those in force → the configuration that puts them there.

        The caller made sure of the room (:meth:`place`), and fills in what is not about addresses.
        """
        time.sleep(max(0.0, self.replaced + GRACE_S - time.monotonic()))
        at = self.place(len(tables.spans))
        assert at is not None
        before = self.config()
        half = 1 - before.half
        chunks = tables.chunks.copy()
        chunks["first"] += np.where(chunks["count"] > 0, at, 0).astype(np.uint32)
        _store(self.maps["filter_chunks"], chunks, half << 16)
        _store(self.maps["filter_spans"], tables.spans, at)
        generation = before.generation
        if tables.prefixes6 != self.prefixes6:
            generation = 1 - before.generation
            self._write_ipv6(tables, generation)
        self.region = (at, at + len(tables.spans))
        four, six = tables.flags
        flags = SETS4 * four | SETS6 * six | ALLOWING * allowing
        return replace(before, flags=flags, half=half, generation=generation)

    def _write_ipv6(self, tables: Tables, generation: int) -> None:
        """All prefixes under a generation that no packet asks for yet."""
        trie, hints = self.maps["filter_prefixes6"], self.maps["filter_hints6"]
        self.tidy()
        fresh = [_key6(key, generation) for key in tables.prefixes6]
        masks = np.array([*tables.prefixes6.values()], "<u4").tobytes()
        trie.update_many(b"".join(fresh), masks, len(fresh))
        numbers = np.arange(len(tables.hints6), dtype="<u4") + (generation << 10)
        hints.update_many(
            numbers.astype("<u4").tobytes(), tables.hints6.astype("<u8").tobytes(), len(numbers)
        )
        self.prefixes6 = tables.prefixes6

    def tidy(self) -> None:
        """Remove the prefixes of the generation that no packet asks for; takes time, and may wait."""
        if self.tidied:
            return
        time.sleep(max(0.0, self.replaced + GRACE_S - time.monotonic()))
        trie, unused = self.maps["filter_prefixes6"], 1 - self.config().generation
        there, _, count = trie.read()
        keys = np.frombuffer(there, np.uint8).reshape(count, trie.key_size)
        stale = keys[keys[:, 4] == unused]
        trie.delete_many(stale.tobytes(), len(stale))
        self.tidied = True

    def config(self) -> Config:
        """What is in force."""
        value = self.maps["filter_config"].lookup(bytes(4))
        assert value is not None
        return Config.unpack(value)

    def put(self, config: Config) -> None:
        """Put tables in force, and the rest of the configuration with them."""
        if config.generation != self.config().generation:
            self.tidied = False
        self.maps["filter_config"].update(bytes(4), config.pack())
        self.replaced = time.monotonic()


def _key6(key: bytes, generation: int) -> bytes:
    """A prefix's length and address as the trie has it: the generation comes before the address."""
    return (
        (int.from_bytes(key[:4], "little") + 8).to_bytes(4, "little")
        + bytes([generation])
        + key[4:]
        + bytes(3)
    )


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
