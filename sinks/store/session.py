"""Sessions: a connection a client comes back to, with its settings and temporary tables."""

import threading
import time
from dataclasses import dataclass

from sinks.store.connection import Connection
from sinks.store.engine import Engine
from sinks.store.errors import (
    SESSION_IS_LOCKED,
    SESSION_NOT_FOUND,
    TOO_MANY_SIMULTANEOUS_QUERIES,
    StoreError,
)

# Who left an answer in the middle comes back before its query has ended: wait so long for it to end.
PATIENCE = 0.5
MOST = 200  # each holds a connection; clients that name a new session per query must not pile up


@dataclass(slots=True)
class _Session:
    connection: Connection
    ends: float
    locked: bool


class Sessions:
    """Who holds which connection; thread-safe."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._by_name: dict[str, _Session] = {}
        self._changed = threading.Condition()

    def take(self, name: str, check: bool) -> Connection:
        """The session's connection, locked until :meth:`release`; raises 372 or 373."""
        with self._changed:
            self._expire()
            self._changed.wait_for(lambda: not self._locked(name), PATIENCE)
            if self._locked(name):
                raise StoreError(SESSION_IS_LOCKED, f"Session {name} is locked by a concurrent client")
            session = self._by_name.get(name)
            if session is None:
                if check:
                    raise StoreError(SESSION_NOT_FOUND, "Session not found")
                if len(self._by_name) >= MOST:
                    self._make_room()
                session = self._by_name[name] = _Session(self._engine.borrow(), 0, True)
            session.locked = True
            return session.connection

    def release(self, name: str, timeout: float) -> None:
        """The request is over; the session lives for ``timeout`` seconds more."""
        with self._changed:
            session = self._by_name[name]
            session.locked = False
            session.ends = time.monotonic() + timeout
            self._changed.notify_all()

    def close(self) -> None:
        """Drop them all."""
        for session in self._by_name.values():
            session.connection.close()
        self._by_name.clear()

    def _locked(self, name: str) -> bool:
        return name in self._by_name and self._by_name[name].locked

    def _expire(self) -> None:
        now = time.monotonic()
        for name in [name for name, each in self._by_name.items() if not each.locked and each.ends < now]:
            self._engine.give_back(self._by_name.pop(name).connection)

    def _make_room(self) -> None:
        free = [(each.ends, name) for name, each in self._by_name.items() if not each.locked]
        if not free:
            raise StoreError(TOO_MANY_SIMULTANEOUS_QUERIES, f"Too many sessions at once: {MOST}")
        self._engine.give_back(self._by_name.pop(min(free)[1]).connection)
