"""One HTTP exchange, usable from the worker thread that serves it.

The event loop owns ``receive`` and ``send``; a worker asks it for the next piece of the body and hands it
pieces of the answer, so both directions go at the pace of the slower side.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from starlette.types import Message, Receive, Send

from sinks.store.codec import Decoder

T = TypeVar("T")
PATIENCE = 60.0  # seconds that a client may neither send nor take anything
PIECE = 1 << 20  # bytes gathered before a worker is bothered


class ClientGone(Exception):
    """The client closed the connection: nobody waits for the answer."""


class Wire:
    """Body in, answer out."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self.decoder = Decoder("")
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()  # the body has come whole
        self.gone = False
        self.patience = PATIENCE
        self.started = False

    @property
    def whole(self) -> bool:
        """Whether the body has been read to its end."""
        return self._ended.is_set()

    async def next_pieces(self, least: int = PIECE) -> list[bytes]:
        """At least ``least`` decoded bytes as they came, fewer at the end, none after it."""
        pieces: list[bytes] = []
        size = 0
        while size < least and not self._ended.is_set():
            message = await self._in_time(self._receive())
            if message["type"] == "http.disconnect":
                self.gone = True
                raise ClientGone
            pieces.append(self.decoder.feed(message.get("body", b"")))
            size += len(pieces[-1])
            if not message.get("more_body", False):
                self.decoder.end()
                self._ended.set()
        return pieces

    async def next_piece(self, least: int = PIECE) -> bytes:
        """The same as one."""
        return b"".join(await self.next_pieces(least))

    async def watch(self, gone: Callable[[], Awaitable[None]]) -> None:
        """After the body: wait for the client to leave, then call ``gone``."""
        await self._ended.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        await gone()

    async def begin(self, status: int, headers: dict[str, str]) -> None:
        """Send the status line and headers."""
        self.started = True
        raw = [
            (name.lower().encode("latin-1"), value.encode("latin-1", "replace"))
            for name, value in headers.items()
        ]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    async def push(self, data: bytes, more: bool) -> None:
        """Send a piece of the body; waits while the client is slower than we are."""
        if self.gone:
            raise ClientGone
        message: Message = {"type": "http.response.body", "body": data, "more_body": more}
        await self._in_time(self._send(message))

    async def _in_time(self, what: Awaitable[T]) -> T:
        """A client that stands still must not hold a worker for ever."""
        try:
            async with asyncio.timeout(self.patience):
                return await what
        except TimeoutError:
            self.gone = True
            raise ClientGone from None

    def read(self) -> list[bytes]:
        """next_pieces() for a worker."""
        return self._wait(self.next_pieces())

    def start(self, status: int, headers: dict[str, str]) -> None:
        """begin() for a worker."""
        self._wait(self.begin(status, headers))

    def write(self, data: bytes, more: bool = True) -> None:
        """push() for a worker."""
        self._wait(self.push(data, more))

    def _wait(self, what: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result()
