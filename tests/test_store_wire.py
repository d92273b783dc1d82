"""A client that stands still, on either side of an exchange, is given up after a while."""

import asyncio

import pytest
from starlette.types import Message

from sinks.store.wire import ClientGone, Wire


async def never() -> Message:
    await asyncio.sleep(60)
    raise AssertionError


async def stuck(_: Message) -> None:
    await asyncio.sleep(60)


def test_a_body_that_does_not_come() -> None:
    async def read() -> None:
        wire = Wire(never, stuck)
        wire.patience = 0.05
        with pytest.raises(ClientGone):
            await wire.next_piece()
        assert wire.gone

    asyncio.run(read())


def test_an_answer_that_is_not_taken() -> None:
    async def write() -> None:
        wire = Wire(never, stuck)
        wire.patience = 0.05
        with pytest.raises(ClientGone):
            await wire.push(b"x", more=True)
        with pytest.raises(ClientGone):
            await wire.push(b"y", more=True)

    asyncio.run(write())


def test_pieces_are_gathered_and_counted() -> None:
    parts = [b"a" * 10, b"b" * 10, b"c" * 10]

    async def receive() -> Message:
        body = parts.pop(0)
        return {"type": "http.request", "body": body, "more_body": bool(parts)}

    async def read() -> None:
        wire = Wire(receive, stuck)
        assert await wire.next_piece(15) == b"a" * 10 + b"b" * 10
        assert not wire.whole
        assert await wire.next_piece(15) == b"c" * 10
        assert wire.whole
        assert await wire.next_piece() == b""

    asyncio.run(read())
