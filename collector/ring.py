"""A BPF ring buffer's memory as one numpy array: no Python statement per event.

    ring = Ring(loaded.maps["tcp_flow"], dtype.event(stream))
    events = ring.read(limit=10_000)      # a structured array of its own memory; may be empty
    ring.waiting                          # bytes made and not read yet
    ring.close()

The kernel maps the data twice in a row, so that what wraps is still one stretch. All records of a ring have
one size, so the stretch is an array of (header word, event); a record still being written ends the read
there, one that was discarded is left out. The reader's position moves on after the copy. Layout:
kernel/bpf/ringbuf.c and Documentation/bpf/ringbuf.rst.
"""

import mmap
import os
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
            self._consumer_page = mmap.mmap(table.fd, PAGE)
            self._rest = mmap.mmap(table.fd, PAGE + 2 * self.bytes, prot=mmap.PROT_READ, offset=PAGE)
        except OSError as error:
            raise BpfleetError(f"cannot map ring {table.name}: {os.strerror(error.errno or 0)}") from None
        self._consumer = np.frombuffer(self._consumer_page, "<u8", 1)
        self._producer = np.frombuffer(self._rest, "<u8", 1)
        self._data = np.frombuffer(self._rest, "u1", offset=PAGE)

    @property
    def waiting(self) -> int:
        """Bytes that the kernel made and this reader has not read."""
        return int(self._producer[0]) - int(self._consumer[0])

    @property
    def capacity(self) -> int:
        """Events the ring holds before the kernel has to count some as lost."""
        return self.bytes // self._record.itemsize

    def read(self, limit: int = 100_000) -> "NDArray[np.void]":
        """Copy out at most ``limit`` events, oldest first."""
        position, size = int(self._consumer[0]), self._record.itemsize
        count = min((int(self._producer[0]) - position) // size, limit)
        if count == 0:
            return np.empty(0, self.dtype)
        start = position % self.bytes
        records = self._data[start : start + count * size].view(self._record)
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
        del self._consumer, self._producer, self._data
        self._consumer_page.close()
        self._rest.close()
