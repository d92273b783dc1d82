"""A request's data as a file that the engine can open by name: in memory, on disk once it is large."""

import mmap
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from sinks.store.connection import Connection, literal
from sinks.store.statement import tokens

IN_MEMORY = 64 << 20  # bytes
KEPT, KEPT_BYTES = 2, 32 << 20  # memory files for the next bodies: fresh pages cost more than their content
GROWTH = 1 << 20  # bytes by which a memory file grows at least
_kept: list["_Memory"] = []


class _Memory:
    """A file in memory, written through a mapping: write() would lock each of its pages."""

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("insert")
        os.ftruncate(self.descriptor, GROWTH)
        self._pages = mmap.mmap(self.descriptor, GROWTH)
        self._end = GROWTH  # of the file: pages behind it must not be touched

    def put(self, at: int, piece: bytes) -> None:
        """Write there; the file grows as needed."""
        end = at + len(piece)
        if end > self._end:
            self._end = max(end, self._end + min(self._end, 16 * GROWTH), GROWTH)
            self._pages.resize(self._end)
        self._pages[at:end] = piece

    def cut(self, size: int) -> None:
        """It ends there."""
        self._end = size
        self._pages.resize(max(1, size))
        os.ftruncate(self.descriptor, size)

    def close(self) -> None:
        """Give it back."""
        self._pages.close()
        os.close(self.descriptor)


class Body:
    """Write pieces, then hand :meth:`whole` to the engine; the file has no name anybody else could use."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._memory: _Memory | None = None
        self._file: int | None = None  # on disk, instead
        self._size = 0

    def write(self, piece: bytes) -> None:
        """Append; raises OSError when the disk is full."""
        if self._file is None and self._size + len(piece) > IN_MEMORY:
            self._move_to_disk()
        if self._file is None:
            self._memory = self._memory or _memory()
            self._memory.put(self._size, piece)
        else:
            _append(self._file, piece)
        self._size += len(piece)

    def whole(self) -> str:
        """All is written: the file's path, valid in this process until the end of the ``with`` block."""
        if self._file is not None:
            return f"/proc/self/fd/{self._file}"
        self._memory = self._memory or _memory()
        self._memory.cut(self._size)  # what an earlier body left behind it
        return f"/proc/self/fd/{self._memory.descriptor}"

    def _move_to_disk(self) -> None:
        self._directory.mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=self._directory) as file:
            self._file = os.dup(file.fileno())
        if self._memory is not None:
            at = 0
            while at < self._size and (
                piece := os.pread(self._memory.descriptor, min(1 << 20, self._size - at), at)
            ):
                _append(self._file, piece)
                at += len(piece)
            self._memory.close()
            self._memory = None

    def __enter__(self) -> "Body":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            os.close(self._file)
        if self._memory is not None:
            if self._size > KEPT_BYTES or len(_kept) >= KEPT:
                self._memory.close()
            else:
                _kept.append(self._memory)


def _memory() -> _Memory:
    try:
        return _kept.pop()
    except IndexError:
        return _Memory()


def _append(file: int, piece: bytes) -> None:
    rest = memoryview(piece)
    while rest:
        rest = rest[os.write(file, rest) :]


def load(
    connection: Connection, insert: bytes, form: str, body: Body, params: Mapping[str, str] | None = None
) -> Any:
    """Insert a body in ``form``; ``insert`` is the statement up to its FORMAT.

    The engine reads a file: its own interface for sending pieces says that all is well when the rows could
    not be written (a violated constraint, a full disk).
    """
    head, own_settings = _before_settings(insert)
    source = f" FROM INFILE {literal(body.whole())} COMPRESSION 'none' ".encode()
    return connection.run(head + source + own_settings + b" FORMAT " + form.encode(), form, params)


def _before_settings(sql: bytes) -> tuple[bytes, bytes]:
    """An INSERT's text before and from its own SETTINGS, between which the file is named."""
    for token in tokens(sql.decode("latin-1")):
        if token.upper == "SETTINGS" and token.depth == 0:
            start = token.end - len("SETTINGS")
            return sql[:start], sql[start:]
    return sql, b""
