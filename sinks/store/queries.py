"""The life of one request: from its head, through a worker thread, to its answer or its client's leaving."""

import asyncio
import contextlib
import dataclasses
import logging
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from sinks.store import form, insert, native, select, statement
from sinks.store.answer import Answer, Server, Summary
from sinks.store.codec import Decoder
from sinks.store.connection import Connection
from sinks.store.engine import Engine
from sinks.store.errors import (
    QUERY_IS_TOO_LARGE,
    QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING,
    READONLY,
    SYNTAX_ERROR,
    TOO_MANY_SIMULTANEOUS_QUERIES,
    UNKNOWN_EXCEPTION,
    StoreError,
)
from sinks.store.request import Asked, authenticate, understand, yes
from sinks.store.session import Sessions
from sinks.store.wire import PIECE, ClientGone, Wire

MOST_QUERIES = 64
log = logging.getLogger("bpfleet.store")


class Running:
    """What a request runs now, to be killed when its client leaves; never what runs there after it."""

    def __init__(self, engine: Engine, query_id: str) -> None:
        self.query_id = query_id
        self._engine = engine
        self._connection: Connection | None = None
        self.only_reads = False
        self._guard = threading.Lock()

    @contextlib.contextmanager
    def on(self, connection: Connection) -> Iterator[None]:
        """While inside, ``connection`` works for this request."""
        self._connection = connection
        try:
            yield
        finally:
            with self._guard:  # a kill under way ends first
                self._connection = None

    @contextlib.contextmanager
    def held(self) -> Iterator[str]:
        """While inside, the connection gets no other request; its tag, empty when it has none now."""
        with self._guard:
            yield self._connection.tag if self._connection else ""

    def kill(self) -> None:
        """Nobody waits for the answer."""
        with self._guard:
            if self._connection:
                self._engine.kill(self._connection)


class Queries:
    """ASGI endpoint for `/` and `/query`."""

    def __init__(self, engine: Engine, user: str, password: str) -> None:
        self._engine = engine
        self._user = user
        self._password = password
        self._spill = engine.directory / "tmp"
        self._sessions = Sessions(engine)
        self._workers = ThreadPoolExecutor(MOST_QUERIES, "query")
        self._running: set[Running] = set()

    @property
    def server(self) -> Server:
        """What answers say about us."""
        return Server(self._engine.version, self._engine.timezone, socket.gethostname())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, whatever it is."""
        request = Request(scope, receive)
        wire = Wire(receive, send)
        query_id = request.query_params.get("query_id", "")
        in_blocks = False
        try:
            authenticate(request, self._user, self._password)
            in_blocks = yes(request.query_params, "compress")
            wire.decoder = _decoder(request)
            asked, head = await self._understood(request, wire)
            query_id = asked.query_id
            if asked.query or request.method == "POST":
                answer = await self._answer(asked, head, wire)
            else:
                answer = Answer(200, b"Ok.\n", self.server.headers())
        except StoreError as error:
            answer = self.server.error(error, query_id, in_blocks)
        except ClientGone:
            return
        except Exception as error:
            log.exception("unexpected")
            if wire.started:
                raise
            answer = self.server.error(
                StoreError(UNKNOWN_EXCEPTION, f"{type(error).__name__}: {error}"), query_id
            )
        if not wire.started:
            headers = answer.headers | {"Content-Length": str(len(answer.body))}
            if not wire.whole and request.method == "POST":
                headers["Connection"] = "close"  # the rest of the body is not wanted
            await wire.begin(answer.status, headers)
        await wire.push(b"" if request.method == "HEAD" else answer.body, more=False)

    async def _understood(self, request: Request, wire: Wire) -> tuple[Asked, bytes]:
        """The request and the head of its body, which is empty when the body was a form."""
        kind = request.headers.get("content-type", "")
        if not form.is_form(kind):
            asked = understand(request, form.Form())
            return asked, await wire.next_piece()
        body = await wire.next_piece(form.LARGEST)
        if not wire.whole:
            raise StoreError(QUERY_IS_TOO_LARGE, f"A form may have {form.LARGEST} bytes")
        return understand(request, form.parse(kind, body)), b""

    async def _answer(self, asked: Asked, head: bytes, wire: Wire) -> Answer:
        if len(self._running) >= MOST_QUERIES:
            message = f"Too many simultaneous queries. Maximum: {MOST_QUERIES}"
            raise StoreError(TOO_MANY_SIMULTANEOUS_QUERIES, message)
        if any(each.query_id == asked.query_id for each in self._running):
            message = f"Query with id = {asked.query_id} is already running"
            raise StoreError(QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING, message)
        loop = asyncio.get_running_loop()
        running = Running(self._engine, asked.query_id)
        self._running.add(running)

        async def gone() -> None:
            await loop.run_in_executor(None, running.kill)

        watcher = asyncio.create_task(wire.watch(gone))
        try:
            return await loop.run_in_executor(self._workers, self._serve, asked, head, wire, running)
        finally:
            self._running.discard(running)
            watcher.cancel()

    def _serve(self, asked: Asked, head: bytes, wire: Wire, running: Running) -> Answer:
        """In a worker thread: from the head of the body to the answer."""
        text = f"{asked.query}\n".encode() + head if asked.query else head
        parsed = statement.parse(text)
        if parsed.data is None and not wire.whole:
            raise StoreError(QUERY_IS_TOO_LARGE, f"Max query size exceeded: {PIECE} bytes")
        if greeting := native.greeting(parsed.text, asked.revision, *self.server.name_version_timezone):
            return self.server.whole(greeting, Summary(), asked.query_id, "Native", asked.encoding)
        with self._connection(asked) as connection, running.on(connection):
            connection.prepare(asked.database, insert.settings(asked, parsed))
            if not asked.external:
                return self._run(connection, asked, parsed, text, wire, running)
            asked.external.fill(connection, self._spill)
            try:
                return self._run(connection, asked, parsed, text, wire, running)
            finally:
                asked.external.drop(connection)

    def _run(
        self,
        connection: Connection,
        asked: Asked,
        parsed: statement.Statement,
        text: bytes,
        wire: Wire,
        running: Running,
    ) -> Answer:
        if parsed.kind == "INSERT" and asked.read_only:
            raise StoreError(READONLY, f"{self._user}: Cannot execute query in readonly mode")
        if parsed.data is not None:
            return insert.run(connection, asked, parsed, text[parsed.data :], wire, self.server, self._spill)
        plan = connection.raw.classify_query(parsed.sql)
        if plan["statement_count"] == 0:
            raise _unreadable(connection, parsed.sql)
        if plan["statement_count"] > 1:
            raise StoreError(SYNTAX_ERROR, "Syntax error (Multi-statements are not allowed)")
        effect = plan["query_class"].name
        lasting = effect == "CONTROL"
        if effect != "READ_ONLY":
            if asked.read_only and parsed.kind not in ("SET", "USE"):
                raise StoreError(READONLY, f"{self._user}: Cannot execute query in readonly mode")
            parsed = dataclasses.replace(parsed, streams=False)
        if lasting:
            connection.prepare("", {})
        running.only_reads = effect == "READ_ONLY"
        with self._killing(parsed) as parsed:
            answer = select.run(connection, asked, parsed, wire, self.server)
        if lasting:
            connection.changed_for_good()
        return answer

    @contextlib.contextmanager
    def _killing(self, parsed: statement.Statement) -> Iterator[statement.Statement]:
        """KILL QUERY by an id that a client chose: to the engine, the query is known by its connection."""
        query_id = statement.killed(parsed)
        with contextlib.ExitStack() as held:
            meant = [each for each in list(self._running) if query_id and each.query_id == query_id]
            tags = [held.enter_context(each.held()) for each in meant]
            yield statement.kill_tagged(parsed, [tag for tag in tags if tag])

    @contextlib.contextmanager
    def _connection(self, asked: Asked) -> Iterator[Connection]:
        if not asked.session:
            connection = self._engine.borrow()
            try:
                yield connection
            finally:
                self._engine.give_back(connection)
            return
        connection = self._sessions.take(asked.session, asked.session_check)
        try:
            yield connection
        finally:
            self._sessions.release(asked.session, asked.session_timeout)

    def stop_reading(self) -> None:
        """Nothing new is to come: end the queries that run, let the inserts finish."""
        for each in list(self._running):
            if each.only_reads:
                each.kill()

    def close(self) -> None:
        """After the last request, or past the time they had: end what runs, then the sessions."""
        for each in list(self._running):
            each.kill()
        self._workers.shutdown()
        self._sessions.close()


def _decoder(request: Request) -> Decoder:
    """Of a request's body; a form's parts are never in blocks."""
    whole = not form.is_form(request.headers.get("content-type", ""))
    in_blocks = whole and yes(request.query_params, "decompress")
    return Decoder(request.headers.get("content-encoding", "").lower(), in_blocks)


def _unreadable(connection: Connection, sql: bytes) -> StoreError:
    """What the engine's parser says of a statement that is none; nothing of it is run."""
    try:
        connection.run(f"SELECT formatQuery(unhex('{sql.hex()}'))")
    except StoreError as error:
        return StoreError(error.code, str(error).partition(": In scope ")[0])
    return StoreError(SYNTAX_ERROR, "Empty query")
