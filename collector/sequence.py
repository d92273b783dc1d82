"""Sequence numbers of batches, per stream, without a gap across restarts of the collector within one boot.

The file is memory mapped: what was stored is there after SIGKILL, for no cost. ``next`` rises before a batch
exists, so no number is ever given twice; ``settled`` follows what became of the batches (all below it are in
Kafka or declared lost). Between the two lies what nobody can vouch for after a kill: see collector.recovery.
"""

import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from schemas.errors import BpfleetError

MAGIC = 0x3173_6571_6662_7062
STREAMS = 255  # rows in the file
HEAD = np.dtype(
    [("magic", "<u8"), ("boot", "u1", (16,)), ("alive_us", "<i8"), ("clean", "<u8"), ("pad", "u1", (88,))]
)
ROW = np.dtype(
    [("name", "S64"), ("next", "<u8"), ("settled", "<u8"), ("offset", "<i8"), ("partition", "<i8"),
     ("since_us", "<i8"), ("pad", "u1", (24,))]
)  # fmt: skip
SIZE = HEAD.itemsize + STREAMS * ROW.itemsize


@dataclass(frozen=True)
class Mark:
    """How far a stream had come: numbers in [settled, next) were given and not yet vouched for."""

    stream: str
    next: int
    settled: int
    partition: int  # where its newest delivered batch lies in Kafka; -1: none is known
    offset: int
    since_us: int  # when the stream's number 0 was given


class Sequences:
    """The numbers of one boot. One process at a time (collector.recovery holds the lock)."""

    def __init__(self, file: Path, boot: bytes) -> None:
        """Open ``file``, or begin it anew for another boot. Raises :class:`BpfleetError` without space."""
        self.boot = boot
        if not file.exists() or _boot_of(file) != boot:
            _create(file, boot)
        with file.open("r+b") as handle:
            self._map = mmap.mmap(handle.fileno(), SIZE)
        self._head: Any = np.frombuffer(self._map, HEAD, 1)[0]
        self._rows: Any = np.frombuffer(self._map, ROW, STREAMS, HEAD.itemsize)
        self._places = {_name(row): at for at, row in enumerate(self._rows) if row["name"]}
        self._ahead: dict[str, list[tuple[int, int]]] = {}
        self.was_clean = bool(self._head["clean"]) or not self._places
        self.was_alive_us = int(self._head["alive_us"])
        self._head["clean"] = 0

    def take(self, stream: str, now_us: int) -> int:
        """The next number of a stream; given exactly once in the life of a boot."""
        row = self._rows[self._place(stream)]
        number = int(row["next"])
        if not number:
            row["since_us"] = now_us
        row["next"] = number + 1
        return number

    def peek(self, stream: str) -> int:
        """The number that :meth:`take` will give."""
        return int(self._rows[self._place(stream)]["next"])

    def untake(self, stream: str, number: int) -> None:
        """The newest number, just taken, was not used."""
        row = self._rows[self._place(stream)]
        if int(row["next"]) == number + 1:
            row["next"] = number

    def delivered(self, stream: str, number: int, partition: int, offset: int | None) -> None:
        """Kafka has this batch, and (order is kept) all before it that were handed over.

        ``offset`` None: it was sent twice, as the first answer got lost, and the broker, which took it once,
        no longer says where. The place of an earlier batch does as well: it is where a search begins.
        """
        row = self._rows[self._place(stream)]
        if offset is not None:
            row["partition"], row["offset"] = partition, offset
        self._settle(stream, max(int(row["settled"]), number + 1))

    def declared(self, stream: str, first: int, last: int) -> None:
        """These numbers are in the journal of losses."""
        settled = int(self._rows[self._place(stream)]["settled"])
        self._ahead.setdefault(stream, []).append((first, last + 1))
        self._settle(stream, settled)

    def _settle(self, stream: str, below: int) -> None:
        ahead = self._ahead.get(stream, [])
        for first, end in sorted(ahead):
            if first <= below:
                below = max(below, end)
        self._ahead[stream] = [each for each in ahead if each[0] > below]
        self._rows[self._place(stream)]["settled"] = below

    def alive(self, now_us: int) -> None:
        """Note the time: after a kill it tells since when nobody watched."""
        self._head["alive_us"] = now_us

    def close(self) -> None:
        """End in peace."""
        self._head["clean"] = 1
        del self._head, self._rows

    def _place(self, stream: str) -> int:
        place = self._places.get(stream)
        if place is None:
            place = self._places[stream] = len(self._places)
            row = self._rows[place]
            row["next"] = row["settled"] = 0
            row["offset"] = row["partition"] = -1
            row["name"] = stream.encode()
        return place


def _name(row: Any) -> str:
    return bytes(row["name"]).decode()


def _boot_of(file: Path) -> bytes | None:
    raw = file.read_bytes()
    if len(raw) != SIZE:
        return None
    head = np.frombuffer(raw, HEAD, 1)[0]
    return head["boot"].tobytes() if int(head["magic"]) == MAGIC else None


def _create(file: Path, boot: bytes) -> None:
    """A fresh file in place of the old one. Its blocks are reserved: a store into a hole of a full disk
    would be a SIGBUS."""
    head = np.zeros(1, HEAD)
    head["magic"], head["boot"] = MAGIC, np.frombuffer(boot, np.uint8)
    new = file.with_suffix(".new")
    try:
        with new.open("wb") as handle:
            os.posix_fallocate(handle.fileno(), 0, SIZE)
            handle.write(head.tobytes())
        new.replace(file)
    except OSError as error:
        raise BpfleetError(
            f"cannot keep sequence numbers in {file}: {error.strerror}; free space there"
        ) from None


def marks(file: Path) -> tuple[bytes, list[Mark]]:
    """Boot and marks in a file left by an earlier process; (b"", []) if there is none."""
    if not file.exists() or (boot := _boot_of(file)) is None:
        return b"", []
    rows = np.frombuffer(file.read_bytes(), ROW, STREAMS, HEAD.itemsize)
    return boot, [
        Mark(
            _name(row), int(row["next"]), int(row["settled"]), int(row["partition"]), int(row["offset"]),
            int(row["since_us"]),
        )
        for row in rows
        if row["name"]
    ]  # fmt: skip


def boot_id() -> bytes:
    """The kernel's id of this boot, 16 bytes."""
    return bytes.fromhex(Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", ""))
