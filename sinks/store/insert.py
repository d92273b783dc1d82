"""Run an INSERT whose data comes with the request: any input format, whole or not at all."""

from pathlib import Path
from typing import Any

from sinks.store.answer import Answer, Server, Summary
from sinks.store.body import Body, load
from sinks.store.codec import PLAIN
from sinks.store.connection import Connection
from sinks.store.errors import NOT_ENOUGH_SPACE, StoreError
from sinks.store.request import Asked
from sinks.store.statement import Statement
from sinks.store.wire import Wire

_ROWS = "_bpfleet_input"  # the table that stands for input() while its data is loaded


def settings(asked: Asked, statement: Statement) -> dict[str, str]:
    """The request's settings; an INSERT without a token is never taken for a repeated one.

    Every table remembers tokens (``engine_config``); the engine would also compare the data itself, and drop
    equal blocks that are no repetition.
    """
    token = "insert_deduplication_token"
    if statement.kind != "INSERT" or asked.settings.get(token) or token in statement.text:
        return asked.settings
    off = {"deduplicate_insert": "disable", "deduplicate_insert_select": "disable"}
    return off | asked.settings


def run(
    connection: Connection,
    asked: Asked,
    statement: Statement,
    first: bytes,
    wire: Wire,
    server: Server,
    spill: Path,
) -> Answer:
    """``first`` is the data that came with the statement; the rest is read from the wire.

    The answer is made after the engine committed. All data is here before the engine starts: a body that
    breaks off stores nothing. ``spill`` is a directory for large ones.
    """
    with Body(spill) as body:
        try:
            body.write(first)
            while not wire.whole:
                for piece in wire.read():
                    body.write(piece)
        except OSError as error:
            raise StoreError(NOT_ENOUGH_SPACE, f"Cannot keep the data to insert: {error.strerror}") from None
        if statement.input:
            result = _through_input(connection, asked, statement, body)
        else:
            result = load(connection, statement.sql, statement.format, body, asked.params)
    return server.whole(b"", Summary.of(result), asked.query_id, statement.format, PLAIN)


def _through_input(connection: Connection, asked: Asked, statement: Statement, body: Body) -> Any:
    """INSERT … SELECT … FROM input('structure'): the engine takes no file there, so a table stands in."""
    assert statement.input
    start, end, structure = statement.input
    connection.run(f"CREATE TEMPORARY TABLE {_ROWS} AS SELECT * FROM null({structure})".encode("latin-1"))
    try:
        load(connection, f"INSERT INTO {_ROWS}".encode(), statement.format, body)
        text = f"{statement.text[:start]} {_ROWS} {statement.text[end:]}".encode("latin-1")
        return connection.run(text, statement.format, asked.params)
    finally:
        connection.run(f"DROP TEMPORARY TABLE {_ROWS}")
