"""Run a statement that carries no data, and send what it yields while it is being made."""

import secrets
from collections.abc import Iterator
from typing import Any

from sinks.store.answer import Answer, Server, Summary
from sinks.store.connection import Connection
from sinks.store.errors import StoreError, from_engine
from sinks.store.join import Join, has_header, possible
from sinks.store.request import Asked
from sinks.store.statement import Statement
from sinks.store.wire import ClientGone, Wire

_WHOLE = 1 << 18  # bytes; a result up to this size has Content-Length and a complete summary


def run(connection: Connection, asked: Asked, statement: Statement, wire: Wire, server: Server) -> Answer:
    """Serve it; of an answer that was streamed, only the end is left (``wire.started``).

    Who has read all comes back at once, and must find its session free: the end is sent when it is.
    Raises :class:`StoreError`, :class:`ClientGone`.
    """
    form = statement.format or asked.format
    if not (statement.streams and possible(form)):
        return _at_once(connection, asked, statement, form, server)
    pieces = _pieces(connection, statement.sql, form, asked.params)
    join = Join(form)
    summary = Summary()
    held: list[bytes] = []
    for piece, part in pieces:
        held.append(join.add(piece))
        summary = part
        if part.result_bytes > _WHOLE:
            return _stream(pieces, held, join, asked, form, wire, server)
    if not held and has_header(form):
        return _at_once(connection, asked, statement, form, server)
    return server.whole(b"".join([*held, join.end()]), summary, asked.query_id, form, asked.encoding)


def _at_once(connection: Connection, asked: Asked, statement: Statement, form: str, server: Server) -> Answer:
    result = connection.run(statement.sql, form, asked.params)
    return server.whole(result.bytes(), Summary.of(result), asked.query_id, form, asked.encoding)


def _pieces(
    connection: Connection, text: bytes, form: str, params: dict[str, str]
) -> Iterator[tuple[bytes, Summary]]:
    try:
        stream = connection.raw.send_query(text, form, params=params)
    except RuntimeError as error:
        raise from_engine(error) from None
    summary = Summary()
    done = False
    try:
        while (result := _fetch(connection, stream)) is not None and result.rows_read():
            summary.read_rows, summary.read_bytes = result.storage_rows_read(), result.storage_bytes_read()
            summary.result_rows += result.rows_read()
            summary.result_bytes += result.size()
            summary.elapsed = result.elapsed()
            yield result.bytes(), summary
        done = True
    except StoreError:
        done = True
        raise
    finally:
        if not done:  # nobody wants the rest
            connection.raw.streaming_cancel_query(stream)


def _fetch(connection: Connection, stream: Any) -> Any:
    try:
        return connection.raw.streaming_fetch_result(stream)
    except RuntimeError as error:
        connection.forget()
        raise from_engine(error) from None


def _stream(
    pieces: Iterator[tuple[bytes, Summary]],
    held: list[bytes],
    join: Join,
    asked: Asked,
    form: str,
    wire: Wire,
    server: Server,
) -> Answer:
    """Headers, what is held, the rest; an error on the way goes into the body, with ClickHouse's mark."""
    encoder = asked.encoding.start()
    tag = secrets.token_hex(8)
    headers = server.headers(asked.query_id, form, asked.encoding) | {"X-ClickHouse-Exception-Tag": tag}
    wire.start(200, headers)
    broken: StoreError | None = None
    try:
        for data in _then(held, pieces, join):
            coded = encoder.compress(data)
            if coded:
                wire.write(coded)
    except StoreError as error:
        broken = error
        text = error.text(server.version).rstrip("\n")
        mark = (
            f"__exception__\r\n{tag}\r\n{text}\n{len(text.encode()) + 1} {tag}\r\n__exception__\r\n".encode()
        )
        wire.write(encoder.compress(mark))
    finally:
        pieces.close()  # type: ignore[attr-defined]
    if broken and wire.gone:
        raise ClientGone
    return Answer(body=encoder.flush())


def _then(held: list[bytes], pieces: Iterator[tuple[bytes, Summary]], join: Join) -> Iterator[bytes]:
    while held:
        yield held.pop(0)
    for piece, _ in pieces:
        yield join.add(piece)
    yield join.end()
