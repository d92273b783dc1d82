"""Batches on disk while Kafka is away: a queue of segment files, bounded, in order.

A record is a header with a CRC and the message as it will travel. What was appended survives SIGKILL of the
collector (not a power cut: nothing is synced). The cursor, a memory-mapped number, moves *before* a record is
handed to Kafka: after a kill no record can go out a second time.
At its bound the spool sheds its oldest segment: during an outage the recent past is what people ask for, and
what is missing is one range per stream.
"""

import mmap
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

HEADER = struct.Struct("<4sIIIQ16sBB")
MAGIC = b"bpS1"
SEGMENTS = 16  # a full spool has about so many
OFFSET_BITS = 36


class Label(NamedTuple):
    """Which batch a record is, without its bytes."""

    stream: str
    boot: bytes
    seq: int
    rows: int


@dataclass(frozen=True)
class Record:
    """A batch as it lies in the spool."""

    label: Label
    key: str
    message: bytes

    def packed(self) -> bytes:
        """Header, names, message."""
        name, key = self.label.stream.encode(), self.key.encode()[:255]
        fields = (len(self.message), self.label.rows, self.label.seq, self.label.boot, len(name), len(key))
        body = HEADER.pack(MAGIC, 0, *fields)[8:] + name + key + self.message
        return MAGIC + struct.pack("<I", zlib.crc32(body)) + body


class _Segment:
    """One file of records; ``size`` counts whole ones only."""

    def __init__(self, directory: Path, number: int) -> None:
        self.number = number
        self.path = directory / f"{number:08d}.spool"
        self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.size = os.fstat(self.fd).st_size

    def append(self, data: bytes) -> None:
        """All of ``data`` or, with OSError, none of it."""
        done = 0
        try:
            while done < len(data):
                done += os.pwrite(self.fd, data[done:], self.size + done)
        except OSError:
            os.ftruncate(self.fd, self.size)
            raise
        self.size += len(data)

    def read(self, offset: int) -> tuple[Record, int] | None:
        """The record at ``offset`` and where the next one starts; None at the end or at damage."""
        head = os.pread(self.fd, HEADER.size, offset)
        if len(head) < HEADER.size:
            return None
        magic, crc, length, rows, seq, boot, name_size, key_size = HEADER.unpack(head)
        rest_size = name_size + key_size + length
        if magic != MAGIC or offset + HEADER.size + rest_size > self.size:
            return None
        rest = os.pread(self.fd, rest_size, offset + HEADER.size)
        if zlib.crc32(rest, zlib.crc32(head[8:])) != crc:
            return None
        key = rest[name_size : name_size + key_size].decode("utf-8", "replace")
        label = Label(rest[:name_size].decode(), boot, seq, rows)
        return Record(label, key, rest[name_size + key_size :]), offset + HEADER.size + rest_size

    def labels(self, offset: int) -> Iterator[tuple[Label, int]]:
        """What lies from ``offset`` on, and where each ends."""
        while (found := self.read(offset)) is not None:
            offset = found[1]
            yield found[0].label, offset

    def close(self, *, remove: bool) -> None:
        """Give the file back, or away."""
        os.close(self.fd)
        if remove:
            self.path.unlink(missing_ok=True)


class Spool:
    """A queue of records. Not for two processes at once.

    ``on_shed`` hears of what the bound pushed out, after it is gone: a kill in between leaves numbers that
    recovery finds neither here nor in Kafka.
    """

    def __init__(
        self, directory: Path, limit: int, on_shed: Callable[[list[Label]], None] = lambda _: None
    ) -> None:
        """Open or make the directory. Torn tails are cut off. Raises OSError."""
        directory.mkdir(parents=True, exist_ok=True)
        self._directory, self._limit, self.on_shed = directory, limit, on_shed
        self._cursor_map = _map_cursor(directory / "cursor")
        numbers = sorted(int(each.stem) for each in directory.glob("*.spool"))
        self._segments = [_Segment(directory, number) for number in numbers]
        self.count = 0
        self.damaged = 0  # segments that ended early: the disk gave back other bytes than it got
        self._recover()

    def _recover(self) -> None:
        number, offset = self._cursor()
        for segment in self._segments[:]:
            start = offset if segment.number == number else 0
            ends = [end for _, end in segment.labels(start)] if segment.number >= number else []
            if ends:
                segment.size = ends[-1]
                os.ftruncate(segment.fd, segment.size)
                self.count += len(ends)
            else:
                segment.close(remove=True)
                self._segments.remove(segment)
        # Never write to an old segment again, and never reuse the number of one that was read.
        self._next_number = max([number, *(each.number for each in self._segments)]) + 1
        self._sealed = True

    def __len__(self) -> int:
        return self.count

    @property
    def bytes(self) -> int:
        """Bytes on disk, those already handed over but not yet removed included."""
        return sum(each.size for each in self._segments)

    def labels(self) -> Iterator[Label]:
        """What waits here, oldest first."""
        number, offset = self._cursor()
        for segment in self._segments:
            start = offset if segment.number == number else 0
            yield from (label for label, _ in segment.labels(start))

    def append(self, record: Record) -> None:
        """Put a record at the end; past the bound the oldest go. Raises OSError when the disk is full."""
        data = record.packed()
        if (
            self._sealed
            or not self._segments
            or self._segments[-1].size + len(data) > self._limit // SEGMENTS
        ):
            self._segments.append(_Segment(self._directory, self._next_number))
            self._next_number += 1
            self._sealed = False
        while self.bytes + len(data) > self._limit and len(self._segments) > 1:
            self._shed()
        self._segments[-1].append(data)
        self.count += 1

    def _shed(self) -> None:
        victim = self._segments.pop(0)
        number, offset = self._cursor()
        start = offset if victim.number == number else 0
        labels = [label for label, _ in victim.labels(start)]
        self._set_cursor(self._segments[0].number, 0)
        victim.close(remove=True)
        self.count -= len(labels)
        self.on_shed(labels)

    def take(self) -> Record | None:
        """The oldest record, which the spool forgets before this returns; None when it is empty."""
        while self._segments:
            head = self._segments[0]
            number, offset = self._cursor()
            found = head.read(offset if head.number == number else 0)
            if found is not None:
                self._set_cursor(head.number, found[1])
                self.count -= 1
                if found[1] >= head.size:
                    self._drop_head()
                return found[0]
            self.damaged += (offset if head.number == number else 0) < head.size
            self._drop_head()
        self.count = 0
        return None

    def _drop_head(self) -> None:
        head = self._segments.pop(0)
        self._set_cursor(head.number + 1, 0)
        head.close(remove=True)

    def close(self) -> None:
        """Give the descriptors back; what waits stays."""
        for segment in self._segments:
            segment.close(remove=False)
        self._segments = []

    def _cursor(self) -> tuple[int, int]:
        """(segment, offset) of the oldest record not yet handed over."""
        (value,) = struct.unpack("=Q", self._cursor_map[:8])
        return value >> OFFSET_BITS, value & ((1 << OFFSET_BITS) - 1)

    def _set_cursor(self, number: int, offset: int) -> None:
        self._cursor_map[:8] = struct.pack("=Q", number << OFFSET_BITS | offset)  # one copy of eight bytes


def _map_cursor(file: Path) -> mmap.mmap:
    with file.open("a+b") as handle:
        os.posix_fallocate(handle.fileno(), 0, 8)
        return mmap.mmap(handle.fileno(), 8)
