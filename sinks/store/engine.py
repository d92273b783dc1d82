"""The one owner of a database directory: opens the engine, hands out connections, closes it in order."""

import fcntl
import itertools
import os
import shutil
from pathlib import Path
from typing import Any

from schemas.config import Store
from schemas.errors import BpfleetError
from sinks.store import engine_config
from sinks.store.connection import TAG, Connection


class Engine:
    """ClickHouse in process on ``directory``; inert until take() and start(). One process may own it."""

    def __init__(self, directory: Path, settings: Store) -> None:
        self.directory = directory
        self.settings = settings
        self.version = ""
        self.timezone = "UTC"
        self._lock: int | None = None
        self._path = ""
        self._first: Connection | None = None
        self._numbers = itertools.count(1)
        self._idle: list[Connection] = []

    def take(self) -> None:
        """Make the directory ours; raises :class:`BpfleetError` when it can't be had."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._lock = _own(self.directory / "lock")
            config = engine_config.write(self.directory, self.settings)
            shutil.rmtree(self.directory / "tmp", ignore_errors=True)  # what a killed one left
            (self.directory / "tmp").mkdir()
        except OSError as error:
            raise BpfleetError(
                f"cannot write {self.directory}: {error.strerror}; check its owner or set state_dir"
            ) from None
        os.environ["TMPDIR"] = str(self.directory / "tmp")  # where the engine works; it opens no other
        self._path = f"{self.directory / 'data'}?config-file={config}"

    def start(self) -> None:
        """Open it, once it is taken; raises :class:`BpfleetError` when it is broken."""
        kept = any((self.directory / "data" / "metadata" / "default").glob("*.sql"))
        self._first = self._open("upkeep")  # the engine lives as long as one connection does
        _plain_default_database(self._first, kept)
        self.version, self.timezone = self._first.row("SELECT version(), timezone()")

    def connect(self) -> Connection:
        """A client's connection: settings, database and temporary tables are nobody else's."""
        connection = self._open(f"bpfleet-{next(self._numbers)}")
        connection.run(f"SET ROLE {engine_config.CLIENT_ROLE}")
        return connection

    def borrow(self) -> Connection:
        """A connection for one request; give it back with :meth:`give_back`."""
        try:
            return self._idle.pop()
        except IndexError:
            return self.connect()

    def give_back(self, connection: Connection) -> None:
        """Keep a few that nobody changed; the rest are closed."""
        if connection.pristine and len(self._idle) < 8:
            self._idle.append(connection)
        else:
            connection.close()

    def kill(self, connection: Connection) -> None:
        """Stop what runs on ``connection`` now; returns at once."""
        assert self._first
        with self._first.busy:
            self._first.run(f"KILL QUERY WHERE Settings['{TAG}'] = '{connection.tag}' ASYNC")

    def _open(self, tag: str) -> Connection:
        try:
            return Connection(_raw(self._path), tag)
        except RuntimeError as error:
            reason = " ".join(str(error).split(", Stack trace")[0].split())[:300]
            advice = "restore it from a backup, or set another state_dir"
            raise BpfleetError(f"cannot open the store in {self.directory}: {reason}; {advice}") from None

    def stop(self) -> None:
        """Close everything; what was acknowledged is on disk already."""
        for each in [*self._idle, *([self._first] if self._first else [])]:
            each.close()
        self._idle.clear()
        self._first = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _raw(path: str) -> Any:
    from chdb import _chdb

    module: Any = _chdb
    return module.connect(path)


def _own(lock: Path) -> int:
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
        os.close(descriptor)
        advice = "stop that one, or set another state_dir"
        raise BpfleetError(f"the store in {lock.parent} is in use by process {holder}; {advice}") from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    return descriptor


def _plain_default_database(connection: Connection, kept: bool) -> None:
    """The engine lays host files over its database `default` at each start: have the plain one instead.

    ``kept``: it holds tables. An empty one does not attach again after a kill, and need not.
    """
    (engine,) = connection.row("SELECT engine FROM system.databases WHERE name = 'default'")
    if engine == "Overlay":
        for verb in ("DETACH", "ATTACH") if kept else ("DROP", "CREATE"):
            plain = " ENGINE = Atomic" if verb == "CREATE" else ""
            connection.run(f"{verb} DATABASE default{plain}")
