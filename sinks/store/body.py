"""A request's data as a file that the engine can open by name: in memory, on disk once it is large."""

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
_kept: list[int] = []


class Body:
    """Write pieces, then hand :attr:`path` to the engine; the file has no name anybody else could use."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        try:
            self._descriptor = _kept.pop()
        except IndexError:
            self._descriptor = os.memfd_create("insert")
        self._size = 0
        self._on_disk = False

    def write(self, piece: bytes) -> None:
        """Append; raises OSError when the disk is full."""
        if not self._on_disk and self._size + len(piece) > IN_MEMORY:
            self._move_to_disk()
        self._append(piece)
        self._size += len(piece)

    def whole(self) -> str:
        """All is written: the file's path, valid in this process until the end of the ``with`` block."""
        os.ftruncate(self._descriptor, self._size)  # what an earlier body left behind it
        return f"/proc/self/fd/{self._descriptor}"

    def _append(self, piece: bytes) -> None:
        rest = memoryview(piece)
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]

    def _move_to_disk(self) -> None:
        self._directory.mkdir(exist_ok=True)
        memory = self._descriptor
        with tempfile.TemporaryFile(dir=self._directory) as file:
            self._descriptor = os.dup(file.fileno())
        self._on_disk = True
        os.ftruncate(memory, self._size)
        os.lseek(memory, 0, os.SEEK_SET)
        while piece := os.read(memory, 1 << 20):
            self._append(piece)
        os.close(memory)

    def __enter__(self) -> "Body":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._on_disk or self._size > KEPT_BYTES or len(_kept) >= KEPT:
            os.close(self._descriptor)
        else:
            os.lseek(self._descriptor, 0, os.SEEK_SET)
            _kept.append(self._descriptor)


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
