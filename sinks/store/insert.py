"""Run an INSERT whose data comes with the request: any input format, piece by piece."""

from typing import Any

from sinks.store.answer import Answer, Server, Summary
from sinks.store.connection import Connection
from sinks.store.errors import from_engine
from sinks.store.request import Asked
from sinks.store.statement import Statement
from sinks.store.wire import Wire


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
    connection: Connection, asked: Asked, statement: Statement, first: bytes, wire: Wire, server: Server
) -> Answer:
    """``first`` is the data that came with the statement; the rest is read from the wire.

    The answer is made after the engine committed. A body that breaks off commits no block that it had not
    filled (about a million rows each), as with a server.
    """
    stream = _begin(connection, statement)
    try:
        piece = first
        while piece or not wire.whole:
            if piece:
                connection.raw.insert_append(stream, piece)
            piece = b"" if wire.whole else wire.read()
        result = connection.raw.insert_done(stream)
    except RuntimeError as error:
        raise from_engine(error) from None
    except BaseException:
        connection.raw.insert_cancel(stream)
        raise
    return server.whole(b"", Summary.of(result), asked.query_id, statement.format, "")


def _begin(connection: Connection, statement: Statement) -> Any:
    try:
        return connection.raw.send_insert(statement.sql, statement.format)
    except RuntimeError as error:
        raise from_engine(error) from None
