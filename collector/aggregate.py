"""Aggregates of the kernel as rows: what each key gained since the previous read.

    table = Aggregate(loaded.maps["runq_latency"], stream, near=loaded.maps.get("runq_latency_near"))
    keys, values = table.read()           # structured arrays, one row for each key that changed
    table.reclaim(idle_reads=600)         # forget keys that did not change for so many reads

The map is a per-CPU hash of counters that only grow, perhaps with an array in front of it (collector.near);
values are summed over CPUs. A read is a few system calls and numpy throughout: no Python statement per key;
while the map has the same keys, only those that changed are looked at. A key that :meth:`Aggregate.reclaim`
removes starts again at zero when it comes back; what it gained between the last read and its removal is part
of the next read. A map that is filling (each program that starts brings keys of its own, and leaves them) is
emptied as it is read, and :attr:`Aggregate.crowded` asks for the next read soon.
"""

import numpy as np
from numpy.typing import NDArray

from collector.bpf_map import Map, possible_cpus
from collector.keys import changed_rows, distinct
from collector.near import Gains, Near
from schemas import dtype
from schemas.declare import Stream

CROWDED = 0.25  # share of a map that is taken: it might be full before its idle keys are reclaimed


class Aggregate:
    """The reader of one aggregate map. ``crowded``: it fills so fast that it should be read soon."""

    crowded = False

    def __init__(self, table: Map, stream: Stream, near: Map | None = None) -> None:
        self.table = table
        self.key = dtype.key(stream)
        self.value = dtype.value(stream)
        self._near = Near(near, stream) if near else None
        self._strided = dtype.value(stream, table.stride)
        self._each = np.dtype((self._strided, possible_cpus()))
        self._whole = np.dtype((np.void, table.element_size))
        # Keys are kept as opaque bytes, compared whole, padding included.
        self._opaque = np.dtype(f"V{table.key_size}")
        self._keys = np.empty(0, self._opaque)  # of the previous read
        self._values = np.empty(0, self.value)
        self._idle = np.empty(0, np.int64)  # reads since each key last changed
        self._raw: tuple[bytearray, NDArray[np.void]] | None = None  # keys and values as the kernel gave them
        self._places = np.empty(0, np.intp)  # of each raw key among them
        self._late: list[Gains] = []  # of keys that were reclaimed
        self._used, self._moved = -1, True

    def read(self, used: int | None = None) -> Gains:
        """(keys, values): keys that changed since the previous read, and by how much.

        ``used``: a number that moves before the hash changes; while it stands still the hash is not read.
        """
        gains = [*self._late]
        if used is None or self._may_have_changed(used):
            gains.append(self._hash())
        else:
            self._idle += 1
        if self._near:
            gains.append(self._near.read())
        self._late = []
        gains = [each for each in gains if len(each[0])]
        return self._merge(gains) if gains else (np.empty(0, self.key), np.empty(0, self.value))

    def _may_have_changed(self, used: int) -> bool:
        """Once more after it moved, too: it moves first, and a program may have been on its way."""
        before, self._moved = self._moved, used != self._used
        self._used = used
        return before or self._moved or self.crowded

    def _merge(self, gains: list[Gains]) -> Gains:
        """Each key once, with the sum of its gains."""
        keys, values = (np.concatenate(each) for each in zip(*gains, strict=True))
        first, place = distinct(keys)
        if len(first) < len(keys):
            total = np.zeros(len(first), self.value)
            for name in self.value.names or ():
                np.add.at(total[name], place, values[name])
            keys, values = keys[first], total
        return keys.view(self.key), values

    def _hash(self) -> Gains:
        """What each key of the hash gained since the previous read."""
        emptied = self.crowded
        raw_keys, raw_values, count = self.table.read(delete=emptied)
        self.crowded = count > CROWDED * self.table.max_entries
        each = np.frombuffer(raw_values, self._each, count)
        values = np.frombuffer(raw_values, self._whole, count)
        before, self._raw = self._raw, (raw_keys, values)
        if before is not None and before[0] == raw_keys:
            gains = self._same_keys(each, changed_rows(values, before[1]) if count else self._places)
        else:
            gains = self._other_keys(np.frombuffer(raw_keys, self._opaque, count), each)
        if emptied:
            self._forget(np.zeros(len(self._keys), bool))
        return gains

    def _forget(self, kept: "NDArray[np.bool_]") -> None:
        """The map has lost all other keys."""
        self._keys, self._values, self._idle = self._keys[kept], self._values[kept], self._idle[kept]
        self._raw = None

    def _same_keys(self, each: "NDArray[np.void]", rows: "NDArray[np.intp]") -> Gains:
        """Gains of the rows that changed, of a map that has the keys it had."""
        self._idle += 1
        if not len(rows):
            return self._keys[:0], self._values[:0]
        places = self._places[rows]
        values = self._sum(each[rows])
        grown = values.copy()
        for name in self.value.names or ():
            grown[name] -= self._values[name][places]
        self._values[places] = values
        self._idle[places] = 0
        return self._keys[places], grown

    def _other_keys(self, raw: "NDArray[np.void]", each: "NDArray[np.void]") -> Gains:
        """Gains by comparing what the previous read had of each key."""
        first, self._places = distinct(raw)
        if len(first) < len(raw):  # one twice, as the map changed while it was read
            self._raw = None
        keys, values = raw[first], self._sum(each[first])
        before = self._places_before(keys)
        there = before >= 0
        grown, changed = values.copy(), np.zeros(len(keys), bool)
        for name in self.value.names or ():
            grown[name][there] -= self._values[name][before[there]]
            changed |= (grown[name] != 0).any(axis=tuple(range(1, grown[name].ndim)))
        idle = np.zeros(len(keys), np.int64)
        idle[there] = self._idle[before[there]] + 1
        idle[changed] = 0
        self._keys, self._values, self._idle = keys, values, idle
        return keys[changed], grown[changed]

    def _places_before(self, keys: "NDArray[np.void]") -> "NDArray[np.intp]":
        """Where each key (all different) stood in the previous read; -1: it is new."""
        known = len(self._keys)
        first, which = distinct(np.concatenate([self._keys, keys]))
        place = np.full(len(first), -1, np.intp)
        place[which[:known]] = np.arange(known)
        return place[which[known:]]

    def _sum(self, each: "NDArray[np.void]") -> "NDArray[np.void]":
        """Sums over the second axis, the CPUs."""
        total = np.zeros(len(each), self.value)
        for name in self.value.names or ():
            total[name] = each[name].sum(axis=1, dtype=self.value[name].base)
        return total

    def reclaim(self, idle_reads: int) -> int:
        """Delete keys that did not change for ``idle_reads`` reads; returns how many the hash lost.

        A program that held the value at that very moment may add to what is gone already.
        """
        chosen = self._idle >= idle_reads
        for at in np.flatnonzero(chosen):
            self._remove(int(at))
        if chosen.any():
            self._forget(~chosen)
        if self._near:
            self._late.append(self._near.reclaim(idle_reads))
        return int(chosen.sum())

    def _remove(self, at: int) -> None:
        """Take one key out of the hash; its gain since the last read waits for the next one."""
        raw = self.table.take(self._keys[at].tobytes())
        if raw is None:
            return
        gain = self._sum(np.frombuffer(raw, self._strided).reshape(1, -1))
        for name in self.value.names or ():
            gain[name] -= self._values[name][at]
        if any(gain[name].any() for name in self.value.names or ()):
            self._late.append((self._keys[at : at + 1], gain))
