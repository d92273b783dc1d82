"""One connection to the engine, and the settings that one request puts over those of its session."""

import json
import re
import threading
from collections.abc import Mapping
from typing import Any

from sinks.store.errors import UNKNOWN_SETTING, StoreError, from_engine

# A setting that means nothing here; `system.processes` shows it, so that a query is found by its connection.
TAG = "distributed_cache_client_id"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*\Z")


def literal(text: str) -> str:
    """A ClickHouse string literal."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def quoted(name: str) -> str:
    """A ClickHouse identifier, whatever is in it."""
    return "`" + name.replace("\\", "\\\\").replace("`", "\\`") + "`"


class Connection:
    """Serves one request at a time (``busy``). Everything here blocks: call it from a thread.

    ``pristine`` says that no statement changed it for good, so another client may have it next.
    """

    def __init__(self, raw: Any, tag: str) -> None:
        self.raw = raw
        self.tag = tag
        self.busy = threading.Lock()
        self.pristine = True
        self._overlay: dict[str, tuple[str, str]] = {}  # name → (what the request asked for, what was there)
        self._home = "default"  # the session's own database
        self._database = self._home  # where we are
        # Without `implicit_select` a word that is no statement is a syntax error, as on a server.
        self.run(f"SET {TAG} = {literal(tag)}, implicit_select = 0")

    def run(
        self, text: str | bytes, form: str = "TabSeparated", params: Mapping[str, str] | None = None
    ) -> Any:
        """One statement to its end; the engine's result object. Raises :class:`StoreError`."""
        try:
            return self.raw.query(text, form, params=dict(params or {}))
        except RuntimeError as error:
            self.forget()
            raise from_engine(error) from None

    def forget(self) -> None:
        """After a failed query: the engine would begin the next answer with what this one had written."""
        try:
            self.raw.query("SELECT 1", "Null")
        except RuntimeError:
            self.pristine = False  # whoever comes next gets another connection

    def row(self, text: str) -> list[str]:
        """The first row's columns, as text."""
        line = self.run(text).bytes().decode().split("\n", 1)[0]
        return line.split("\t") if line else []

    def prepare(self, database: str, settings: Mapping[str, str]) -> None:
        """Make this request's database and settings hold, and those of an earlier request end."""
        wanted = database or self._home
        if wanted != self._database:
            self.run(f"USE {quoted(wanted)}")
            self._database = wanted
        gone = {name: was for name, (_, was) in self._overlay.items() if name not in settings}
        news = {
            name: value for name, value in settings.items() if self._overlay.get(name, (None,))[0] != value
        }
        if not gone and not news:
            return
        was = self._current([name for name in news if name not in self._overlay])
        self.run("SET " + ", ".join(f"{name} = {literal(value)}" for name, value in (gone | news).items()))
        for name in gone:
            del self._overlay[name]
        for name, value in news.items():
            before = self._overlay[name][1] if name in self._overlay else was[name]
            self._overlay[name] = (value, before)

    def changed_for_good(self) -> None:
        """A statement set something that lasts (SET, USE, a temporary table)."""
        self.pristine = False
        (self._home,) = self.row("SELECT currentDatabase()")
        self._database = self._home

    def close(self) -> None:
        """Free it; whatever ran on it must have ended."""
        self.raw.close()

    def _current(self, names: list[str]) -> dict[str, str]:
        if not names:
            return {}
        bad = next((name for name in names if not _NAME.match(name)), None)
        if bad is not None:
            raise StoreError(UNKNOWN_SETTING, f"Unknown setting {bad!r}")
        asked = ", ".join(f"toString(getSetting({literal(name)}))" for name in names)
        line = self.run(f"SELECT {asked}", "JSONCompactStringsEachRow").bytes()
        return dict(zip(names, json.loads(line), strict=True))
