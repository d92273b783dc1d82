"""The routes of the HTTP interface."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from sinks.store.engine import Engine
from sinks.store.queries import Queries


def make(engine: Engine, queries: Queries) -> Starlette:
    """The ASGI application; it stops the engine with itself."""

    async def ok(_: Request) -> PlainTextResponse:
        return PlainTextResponse("Ok.\n")

    @contextlib.asynccontextmanager
    async def life(_: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(queries.close)
        await asyncio.to_thread(engine.stop)

    routes = [Route("/ping", ok), Route("/replicas_status", ok)]
    application = Starlette(routes=routes, lifespan=life)
    for path in ("/", "/query"):
        application.router.routes.append(Route(path, queries, methods=["GET", "HEAD", "POST"]))
    return application
