"""A BPF ring buffer's memory as one numpy array: no Python statement per event.

    ring = Ring(loaded.maps["tcp_flow"], dtype.event(stream))
    events = ring.read(limit=10_000)      # a structured array of its own memory; may be empty
    ring.waiting                          # bytes made and not read yet
    ring.close()

All records of a ring have one size, so what waits is an array of (header word, event); a record still being
written ends the read there, one that was discarded is left out. The reader's position moves on after the
copy. The data is mapped when the first event is there, and once (the kernel would map it twice in a row, and
count it twice as memory of this process): what wraps is joined. Layout: kernel/bpf/ringbuf.c and
Documentation/bpf/ringbuf.rst.
"""

import mmap
import os
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collector.bpf_map import Map
from schemas.errors import BpfleetError

BUSY, DISCARD = 1 << 31, 1 << 30
HEADER = 8  # bytes before each record: its length with two flags, and its page offset
PAGE = mmap.PAGESIZE


class Ring:
    """The one reader of a ring whose events all are ``dtype``. Not for two threads at once."""

    def __init__(self, table: Map, dtype: "np.dtype[np.void]") -> None:
        self.name = table.name
        self.fd = table.fd  # epoll tells here when the program woke its reader
        self.bytes = table.max_entries
        self.dtype = dtype
        stride = HEADER + (dtype.itemsize + 7 & ~7)
        self._record = np.dtype(
            {
                "names": ["length", "event"],
                "formats": ["<u4", dtype],
                "offsets": [0, HEADER],
                "itemsize": stride,
            }
        )
        try:
            self._pages = [mmap.mmap(table.fd, PAGE), self._mapped(PAGE, PAGE)]
        except OSError as error:
            raise BpfleetError(f"cannot map ring {table.name}: {os.strerror(error.errno or 0)}") from None
        self._consumer = memoryview(self._pages[0]).cast("Q")
        self._producer = memoryview(self._pages[1]).cast("Q")

    def _mapped(self, size: int, offset: int) -> mmap.mmap:
        return mmap.mmap(self.fd, size, prot=mmap.PROT_READ, offset=offset)

    @cached_property
    def _data(self) -> "NDArray[np.uint8]":
        """The ring itself."""
        self._pages.append(self._mapped(self.bytes, 2 * PAGE))
        return np.frombuffer(self._pages[-1], np.uint8)

    @property
    def waiting(self) -> int:
        """Bytes that the kernel made and this reader has not read."""
        return self._producer[0] - self._consumer[0]

    @property
    def capacity(self) -> int:
        """Events the ring holds before the kernel has to count some as lost."""
        return self.bytes // self._record.itemsize

    def waits(self, events: int) -> bool:
        """Whether so many events wait, or more."""
        return self.waiting >= events * self._record.itemsize

    def read(self, limit: int = 100_000) -> "NDArray[np.void]":
        """Copy out at most ``limit`` events, oldest first."""
        position, size = self._consumer[0], self._record.itemsize
        count = min((self._producer[0] - position) // size, limit)
        if count == 0:
            return np.empty(0, self.dtype)
        records = self._bytes(position % self.bytes, count * size).view(self._record)
        lengths = records["length"].copy()
        busy = lengths & BUSY != 0
        if busy.any():
            count = int(busy.argmax())
            records, lengths = records[:count], lengths[:count]
        self._check(lengths)
        kept: NDArray[Any] = lengths & DISCARD == 0
        events = np.array(records["event"]) if kept.all() else records["event"][kept]
        self._consumer[0] = position + count * size
        return events

    def _bytes(self, start: int, count: int) -> "NDArray[np.uint8]":
        """That many bytes of the ring from a place, on from its beginning behind its end."""
        rest = start + count - self.bytes
        if rest <= 0:
            return self._data[start : start + count]
        return np.concatenate([self._data[start:], self._data[:rest]])

    def _check(self, lengths: "NDArray[np.uint32]") -> None:
        """All records have the declared size, or they are not what the declaration says."""
        wrong = lengths & ~np.uint32(DISCARD) != self.dtype.itemsize
        if wrong.any():
            found = int(lengths[int(wrong.argmax())]) & ~DISCARD
            size = self.dtype.itemsize
            raise BpfleetError(
                f"ring {self.name} has a record of {found} bytes, not {size}; restart the collector"
            )

    def close(self) -> None:
        """Unmap; arrays that were read stay valid."""
        self._consumer.release()
        self._producer.release()
        self.__dict__.pop("_data", None)
        for each in self._pages:
            each.close()
