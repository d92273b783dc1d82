"""Forms: parameters too long for a URL, and external tables that come with a query."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sinks.store import statement
from sinks.store.body import Body, load
from sinks.store.connection import Connection, quoted
from sinks.store.errors import BAD_ARGUMENTS
from sinks.store.errors import StoreError as Error

LARGEST = 64 << 20  # bytes of a form: it is held in memory
_DISPOSITION = re.compile(
    rb'(?i)content-disposition:[^\r\n]*?[; ]name="([^"]*)"(?:[^\r\n]*?filename="([^"]*)")?'
)


@dataclass(slots=True)
class Form:
    """``fields`` count as URL parameters, ``files`` are the data of external tables."""

    fields: dict[str, str] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)


def is_form(content_type: str) -> bool:
    """Whether the body is one; any other body is SQL or data."""
    return content_type.lower().startswith("multipart/form-data")


def parse(content_type: str, body: bytes) -> Form:
    """Take multipart/form-data apart; raises :class:`StoreError` when it is none."""
    found = re.search(r'(?i)boundary="?([^";\s]{1,200})', content_type)
    if not found:
        raise Error(BAD_ARGUMENTS, "multipart/form-data has no boundary")
    parts = (b"\r\n" + body).split(b"\r\n--" + found[1].encode())
    if len(parts) < 2 or not parts[-1].startswith(b"--"):
        raise Error(BAD_ARGUMENTS, "multipart/form-data ends in the middle")
    form = Form()
    for part in parts[1:-1]:
        head, _, content = part.partition(b"\r\n\r\n")
        name = _DISPOSITION.search(head)
        if not name:
            raise Error(BAD_ARGUMENTS, "a part of multipart/form-data has no name")
        if name[2] is None:
            form.fields[name[1].decode(errors="replace")] = content.decode(errors="surrogateescape")
        else:
            form.files[name[1].decode(errors="replace")] = content
    return form


class External:
    """The external tables of one request: temporary tables that live as long as its query."""

    def __init__(self, files: Mapping[str, bytes], url: Mapping[str, str]) -> None:
        self._tables = {
            name: (_structure(name, url), url.get(f"{name}_format", "TabSeparated"), data)
            for name, data in files.items()
        }

    def fill(self, connection: Connection, spill: Path) -> None:
        """Make them; the connection is nobody else's afterwards."""
        for name, (structure, form, data) in self._tables.items():
            connection.pristine = False
            made = statement.parse(f"CREATE TEMPORARY TABLE {quoted(name)} ({structure})".encode())
            connection.run(made.sql)
            with Body(spill) as body:
                body.write(data)
                load(connection, f"INSERT INTO {quoted(name)}".encode(), form, body)

    def drop(self, connection: Connection) -> None:
        """A session goes on without them."""
        for name in self._tables:
            connection.run(f"DROP TEMPORARY TABLE IF EXISTS {quoted(name)}")


def settings_of(files: Mapping[str, bytes]) -> set[str]:
    """Parameters that describe external tables, and are no settings."""
    return {f"{name}_{part}" for name in files for part in ("format", "structure", "types")}


def _structure(name: str, url: Mapping[str, str]) -> str:
    if structure := url.get(f"{name}_structure"):
        return structure
    types = url.get(f"{name}_types")
    if not types:
        raise Error(BAD_ARGUMENTS, f"External table {name} has neither {name}_structure nor {name}_types")
    return ", ".join(f"_{at} {each}" for at, each in enumerate(_split(types), 1))


def _split(types: str) -> list[str]:
    """At commas outside parentheses."""
    return re.findall(r"(?:[^,(]|\([^()]*(?:\([^()]*\)[^()]*)*\))+", types)
