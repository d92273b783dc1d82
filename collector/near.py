"""The per-CPU array in front of an aggregate's hash (bpf/common/near.h): what its entries gained.

Each entry, one for every place and CPU, names its key and counts for it alone until :meth:`Near.reclaim`
clears the place. Entries are compared with themselves as they were, word by word; the few that changed are
looked at.
"""

import numpy as np
from numpy.typing import NDArray

from collector.bpf_map import ArrayReader, Map, possible_cpus
from collector.keys import changed_rows
from schemas import dtype
from schemas.declare import Stream

TAKEN = 2  # enum in near.h
Gains = tuple["NDArray[np.void]", "NDArray[np.void]"]  # keys as opaque bytes, values; a key may come twice


class Near:
    """The reader of one such array."""

    def __init__(self, table: Map, stream: Stream) -> None:
        self.table = table
        self._reader = ArrayReader(table)
        self.value = dtype.value(stream)
        key_size = dtype.key(stream).itemsize
        self._entry = np.dtype(
            {
                "names": ["state", "key", "value"],
                "formats": ["<u8", f"V{key_size}", self.value],
                "offsets": [0, 8, 8 + (key_size + 7 & ~7)],
                "itemsize": table.stride,
            }
        )
        count = table.max_entries * possible_cpus()
        self._before = np.zeros(count, self._entry)
        self._idle = np.zeros(count, np.int64)  # reads since each entry last changed
        self._nothing: Gains = np.empty(0, self._entry["key"]), np.empty(0, self.value)

    def read(self) -> Gains:
        """What each taken entry gained since the previous read."""
        now = np.frombuffer(self._reader.read(), self._entry)
        rows = changed_rows(now, self._before)
        self._idle += 1
        if not len(rows):
            return self._nothing
        grown, changed = self._gains(now[rows], self._before[rows])
        self._before = now
        self._idle[rows[changed]] = 0
        return now["key"][rows[changed]], grown[changed]

    def _gains(self, now: "NDArray[np.void]", before: "NDArray[np.void]") -> Gains:
        """(gain of every entry, whether it has any)."""
        grown, changed = now["value"].copy(), np.zeros(len(now), bool)
        for name in self.value.names or ():
            grown[name] -= before["value"][name]
            changed |= (grown[name] != 0).any(axis=tuple(range(1, grown[name].ndim)))
        return grown, changed & (now["state"] == TAKEN)

    def reclaim(self, idle_reads: int) -> Gains:
        """Free the places where every CPU's entry is idle; what they gained since the last read."""
        cpus = possible_cpus()
        taken = (self._before["state"] == TAKEN).reshape(-1, cpus)
        idle = (self._idle >= idle_reads).reshape(-1, cpus)
        late: list[Gains] = []
        for place in np.flatnonzero((idle | ~taken).all(axis=1) & taken.any(axis=1)):
            key, entries = int(place).to_bytes(4, "little"), slice(int(place) * cpus, (int(place) + 1) * cpus)
            now = np.frombuffer(self.table.lookup(key) or b"", self._entry)
            self.table.update(key, bytes(self.table.element_size))
            grown, changed = self._gains(now, self._before[entries])
            late.append((now["key"][changed], grown[changed]))
            self._before = self._before.copy()
            self._before[entries] = np.zeros(cpus, self._entry)
        keys, values = zip(self._nothing, *late, strict=True)
        return np.concatenate(keys), np.concatenate(values)
