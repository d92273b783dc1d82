"""BPF maps through bpf(2): one element, all elements, batches. Standard library only.

    table = Map.create(MapType.LPM_TRIE, 8, 4, 10_000, "sets", flags=NO_PREALLOC)
    table.update(key, value); table.lookup(key); table.delete(key)        # bytes in, bytes (or None) out
    table.update_many(keys, values, count)                                # one call for very many elements
    keys, values, count = table.read()                                    # everything, for np.frombuffer
    table = Map.of(fd); table = Map.pinned("/sys/fs/bpf/bpfleet/vips"); table.pin(path); table.close()

Values of per-CPU maps hold one value per possible CPU, each rounded up to 8 bytes (:attr:`Map.stride`).
"""

import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from pathlib import Path

from collector import bpf_sys
from collector.bpf_sys import Attr, BpfError, Command, pack, system_call

NO_PREALLOC = 1  # BPF_F_NO_PREALLOC: tries demand it, hashes become lazy
NO_EXIST, EXIST = 1, 2  # update flags
NOT_SUPPORTED = 524  # what a kind of map, or a kernel, without a batch says
BATCH_BYTES = 1 << 16  # buffers of one batch call: most maps are nearly empty, a big one is read in several


class MapType(IntEnum):
    """``enum bpf_map_type``: the kinds bpfleet uses."""

    HASH = 1
    ARRAY = 2
    PROG_ARRAY = 3
    PERCPU_HASH = 5
    PERCPU_ARRAY = 6
    STACK_TRACE = 7
    LRU_HASH = 9
    LRU_PERCPU_HASH = 10
    LPM_TRIE = 11
    ARRAY_OF_MAPS = 12
    HASH_OF_MAPS = 13
    DEVMAP = 14
    RINGBUF = 27


PER_CPU = {MapType.PERCPU_HASH, MapType.PERCPU_ARRAY, MapType.LRU_PERCPU_HASH}


@cache
def possible_cpus() -> int:
    """How many values an element of a per-CPU map has (Linux: /sys/devices/system/cpu/possible)."""
    text = Path("/sys/devices/system/cpu/possible").read_text().strip()
    ranges = (each.partition("-") for each in text.split(","))
    return sum(int(last or first) - int(first) + 1 for first, _, last in ranges)


@dataclass(frozen=True)
class Map:
    """An open map. The owner of the object closes it; the map lives while anything refers to it."""

    fd: int
    name: str
    type: int
    key_size: int
    value_size: int
    max_entries: int
    id: int

    @classmethod
    def of(cls, fd: int, name: str = "") -> "Map":
        """A map from its descriptor; ``name`` where the kernel's 15 characters are too short."""
        raw = bpf_sys.object_info(fd, 80)
        kind, number, key_size, value_size, entries, _ = struct.unpack_from("=6I", raw)
        return cls(fd, name or raw[24:40].rstrip(b"\0").decode(), kind, key_size, value_size, entries, number)

    @classmethod
    def create(
        cls, kind: MapType, key_size: int, value_size: int, entries: int, name: str, *, flags: int = 0,
        inner_fd: int = 0,
    ) -> "Map":  # fmt: skip
        """A new map; ``inner_fd`` is the template of a map of maps."""
        short = name[:15].encode()
        attributes = pack("7I16s", int(kind), key_size, value_size, entries, flags, inner_fd, 0, short)
        return cls.of(system_call(Command.MAP_CREATE, attributes, f"cannot create map {name}"), name)

    @classmethod
    def pinned(cls, path: str | Path) -> "Map":
        """The map pinned at ``path``."""
        return cls.of(bpf_sys.obj_get(path))

    @property
    def stride(self) -> int:
        """Bytes from one CPU's value to the next (the value's size in an ordinary map)."""
        return (self.value_size + 7) & ~7 if self.type in PER_CPU else self.value_size

    @property
    def element_size(self) -> int:
        """Bytes of one element's value(s), all CPUs together."""
        return self.stride * (possible_cpus() if self.type in PER_CPU else 1)

    def _one(self, command: Command, key: bytes, value: Attr | None, flags: int = 0) -> bool:
        """A call on one key; False where the key is not there."""
        if len(key) != self.key_size:
            raise BpfError(f"map {self.name}: the key has {len(key)} bytes, not {self.key_size}")
        place = ctypes.create_string_buffer(key, len(key))
        address = ctypes.addressof(value) if value else 0
        attributes = pack("IIQQQ", self.fd, 0, ctypes.addressof(place), address, flags)
        try:
            system_call(command, attributes, f"map {self.name}")
        except BpfError as error:
            if error.errno != errno.ENOENT:
                raise
            return False
        return True

    def lookup(self, key: bytes) -> bytes | None:
        """The value of ``key`` (of all CPUs), or None."""
        value = ctypes.create_string_buffer(self.element_size)
        return value.raw if self._one(Command.MAP_LOOKUP, key, value) else None

    def take(self, key: bytes) -> bytes | None:
        """Remove ``key`` of a hash (Linux 5.14 or later) and return its last value, or None."""
        value = ctypes.create_string_buffer(self.element_size)
        return value.raw if self._one(Command.MAP_TAKE, key, value) else None

    def update(self, key: bytes, value: bytes, flags: int = 0) -> None:
        """Set ``key``; ``flags``: NO_EXIST or EXIST demand that it be new or there."""
        if len(value) != self.element_size:
            raise BpfError(f"map {self.name}: the value has {len(value)} bytes, not {self.element_size}")
        if not self._one(Command.MAP_UPDATE, key, ctypes.create_string_buffer(value, len(value)), flags):
            raise BpfError(f"map {self.name}: no such key", errno.ENOENT)

    def delete(self, key: bytes) -> bool:
        """Remove ``key``; False if it was not there."""
        return self._one(Command.MAP_DELETE, key, None)

    def __iter__(self) -> Iterator[bytes]:
        """Every key, one system call each: for maps that have no batches; else see :meth:`read`."""
        place = ctypes.create_string_buffer(self.key_size)
        after = ctypes.create_string_buffer(self.key_size)
        start = 0
        while True:
            attributes = pack("IIQQQ", self.fd, 0, start, ctypes.addressof(after), 0)
            try:
                system_call(Command.MAP_NEXT_KEY, attributes, f"map {self.name}")
            except BpfError as error:
                if error.errno != errno.ENOENT:
                    raise
                return
            yield after.raw
            place.raw = after.raw
            start = ctypes.addressof(place)

    def read(self, *, delete: bool = False, limit: int | None = None) -> tuple[bytearray, bytearray, int]:
        """(keys, values, count) of all elements, packed one after the other; with ``delete`` they go too.

        ``limit``: only so many, of an array the first ones.
        A hash that changes meanwhile may show an element twice or not at all; the next read has it.
        """
        command = Command.MAP_LOOKUP_DELETE_BATCH if delete else Command.MAP_LOOKUP_BATCH
        most = self.max_entries if limit is None else limit
        step = min(most, self.max_entries, max(64, BATCH_BYTES // (self.key_size + self.element_size)))
        keys, values, total = bytearray(), bytearray(), 0
        place = ctypes.create_string_buffer(max(self.key_size, 8))
        start, k, v = 0, *self._buffers(step)
        while True:
            count, ended = self._batch(command, (start, ctypes.addressof(place)), (k, v), step)
            if count < 0:  # a bucket holds more than the buffers
                step *= 2
                k, v = self._buffers(step)
                continue
            keys += memoryview(k)[: count * self.key_size]
            values += memoryview(v)[: count * self.element_size]
            total += count
            if ended or total >= most:
                return keys, values, total
            step = min(step, most - total)
            start = ctypes.addressof(place)

    def _buffers(self, count: int) -> tuple[Attr, Attr]:
        """Room for keys and for values."""
        return (
            ctypes.create_string_buffer(count * self.key_size),
            ctypes.create_string_buffer(count * self.element_size),
        )

    def _batch(
        self, command: Command, position: tuple[int, int], buffers: tuple[Attr, Attr | None], count: int
    ) -> tuple[int, bool]:
        """One batch call → (elements handled or -1: no room, was it the last)."""
        value = ctypes.addressof(buffers[1]) if buffers[1] is not None else 0
        attributes = pack("QQQQIIQQ", *position, ctypes.addressof(buffers[0]), value, count, self.fd, 0, 0)
        ended = False
        try:
            system_call(command, attributes, f"map {self.name}")
        except BpfError as error:
            if error.errno == errno.ENOSPC:
                return -1, False
            if error.errno != errno.ENOENT:
                raise
            ended = True
        return int(struct.unpack_from("=I", attributes.raw, 32)[0]), ended

    def update_many(self, keys: bytes, values: bytes, count: int) -> None:
        """Set ``count`` elements with one call; ``keys`` and ``values`` are packed one after the other."""
        if len(keys) != count * self.key_size or len(values) != count * self.element_size:
            raise BpfError(f"map {self.name}: {count} elements do not have these sizes")
        k, v = ctypes.create_string_buffer(keys, len(keys)), ctypes.create_string_buffer(values, len(values))
        try:
            if count:
                self._batch(Command.MAP_UPDATE_BATCH, (0, 0), (k, v), count)
        except BpfError as error:
            if error.errno != NOT_SUPPORTED:
                raise
            key, value = self.key_size, self.element_size
            for at in range(count):
                self.update(keys[at * key : (at + 1) * key], values[at * value : (at + 1) * value])

    def delete_many(self, keys: bytes, count: int) -> None:
        """Remove ``count`` keys; those already gone do not matter."""
        at = 0
        while at < count:
            rest = keys[at * self.key_size :]
            buffer = ctypes.create_string_buffer(rest, len(rest))
            try:
                done, missing = self._batch(Command.MAP_DELETE_BATCH, (0, 0), (buffer, None), count - at)
            except BpfError:  # a kind of map, or a kernel, without this batch
                done, missing = int(self.delete(rest[: self.key_size])), False
            at += max(done + missing, 1)

    def pin(self, path: str | Path) -> None:
        """Keep the map in bpffs."""
        bpf_sys.pin(self.fd, path)

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self.fd)


class ArrayReader:
    """Reads the whole of an array again and again, with one system call each. For one thread."""

    def __init__(self, table: Map) -> None:
        self._what, self._count = f"map {table.name}", table.max_entries
        self._keys = ctypes.create_string_buffer(self._count * table.key_size)
        self._values = ctypes.create_string_buffer(self._count * table.element_size)
        self._place = ctypes.create_string_buffer(8)
        buffers = (ctypes.addressof(each) for each in (self._place, self._keys, self._values))
        self._attributes = pack("QQQQIIQQ", 0, *buffers, self._count, table.fd, 0, 0)

    def read(self) -> bytes:
        """The values of all elements (of all CPUs), one after the other."""
        struct.pack_into("=I", self._attributes, 32, self._count)
        system_call(Command.MAP_LOOKUP_BATCH, self._attributes, self._what)
        return self._values.raw
