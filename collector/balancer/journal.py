"""What happened to a balancer, kept on disk until the collector has shipped it: rows of `lb_event`.

Whoever changes the balancer (a command, the collector, its health checks) adds lines of JSON; the collector's
reporter reads them. What it was given it forgets with its next call, so that a kill in between repeats rows
rather than losing them. The file is bounded: past :data:`LIMIT` its older half is given up.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from collector.clock import now_us
from schemas.errors import BpfleetError

Row = dict[str, Any]
LIMIT = 4 << 20  # bytes


class Journal:
    """The file of one balancer; any number of these may be open."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._given = 0  # bytes of the file that the last read returned

    def add(self, *rows: Row) -> None:
        """Append rows; ``ts`` is filled in."""
        if not rows:
            return
        lines = b"".join(json.dumps({"ts": now_us()} | row).encode() + b"\n" for row in rows)
        with self._locked() as file:
            file.seek(0, os.SEEK_END)
            if file.tell() + len(lines) > LIMIT:
                self._halve(file)
            file.write(lines)

    def read(self) -> list[Row]:
        """Rows that were added since the last call, oldest first; those of the last call are forgotten."""
        if not self._has_rows():
            self._given = 0
            return []
        with self._locked() as file:
            content = file.read()
            if 0 < self._given <= len(content):
                content = content[self._given :]
                self._rewrite(file, content)
            self._given = len(content)
        rows = []
        for line in content.splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:  # torn by a power cut
                continue
        return rows

    def _has_rows(self) -> bool:
        try:
            return os.stat(self.file).st_size > 0  # noqa: PTH116 (asked often: a Path costs more)
        except OSError:
            return False

    def _halve(self, file: IO[bytes]) -> None:
        file.seek(0)
        lines = file.read().splitlines(keepends=True)
        self._rewrite(file, b"".join(lines[len(lines) // 2 :]))

    @staticmethod
    def _rewrite(file: IO[bytes], content: bytes) -> None:
        file.seek(0)
        file.write(content)
        file.truncate()

    @contextmanager
    def _locked(self) -> Iterator[IO[bytes]]:
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise BpfleetError(
                f"cannot write {self.file}: {error.strerror}; set state_dir to a writable place"
            ) from None
        with os.fdopen(descriptor, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file
