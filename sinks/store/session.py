"""Sessions: a connection a client comes back to, with its settings and temporary tables."""

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

MOST = 200  # each holds a connection; clients that name a new session per query must not pile up


@dataclass(slots=True)
class _Session:
    connection: Connection
    ends: float
    locked: bool


class Sessions:
    """Who holds which connection. Not thread-safe: used from the event loop's lock holders only."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._by_name: dict[str, _Session] = {}

    def take(self, name: str, check: bool) -> Connection:
        """The session's connection, locked until :meth:`release`; raises 372 or 373."""
        self._expire()
        session = self._by_name.get(name)
        if session is None:
            if check:
                raise StoreError(SESSION_NOT_FOUND, "Session not found")
            if len(self._by_name) >= MOST:
                self._make_room()
            session = _Session(self._engine.borrow(), 0, True)
            self._by_name[name] = session
            return session.connection
        if session.locked:
            raise StoreError(SESSION_IS_LOCKED, f"Session {name} is locked by a concurrent client")
        session.locked = True
        return session.connection

    def release(self, name: str, timeout: float) -> None:
        """The request is over; the session lives for ``timeout`` seconds more."""
        session = self._by_name[name]
        session.locked = False
        session.ends = time.monotonic() + timeout

    def close(self) -> None:
        """Drop them all."""
        for session in self._by_name.values():
            session.connection.close()
        self._by_name.clear()

    def _expire(self) -> None:
        now = time.monotonic()
        for name in [name for name, each in self._by_name.items() if not each.locked and each.ends < now]:
            self._engine.give_back(self._by_name.pop(name).connection)

    def _make_room(self) -> None:
        free = [(each.ends, name) for name, each in self._by_name.items() if not each.locked]
        if not free:
            raise StoreError(TOO_MANY_SIMULTANEOUS_QUERIES, f"Too many sessions at once: {MOST}")
        self._engine.give_back(self._by_name.pop(min(free)[1]).connection)
