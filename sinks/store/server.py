"""`bpfleet store`: the engine and its HTTP endpoint in the foreground."""

import ipaddress
import logging
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import uvicorn

from schemas import config as settings
from schemas.errors import BpfleetError, UsageError
from sinks import heap
from sinks.store import app, confine
from sinks.store.engine import Engine
from sinks.store.queries import Queries


def serve(config: settings.Config, say: Callable[[str], None] = print) -> None:
    """Serve until a signal to stop; what runs then is finished first. Raises :class:`BpfleetError`."""
    heap.keep()
    store = config.store
    password = settings.secret(store.password_file)
    if not password and not _loopback(store.listen):
        raise UsageError(f"the store listens on {store.listen} without a password; set store.password_file")
    listening = _listen(store.listen, store.port)
    directory = Path(config.state_dir) / "store"
    engine = Engine(directory, store)
    say(f"store: opening {directory}")
    engine.take()
    if not confine.apply(directory):
        say("store: this kernel has no Landlock; clients could read files of this host by SQL")
    engine.start()
    host, port = listening.getsockname()[:2]
    say(f"store: ClickHouse {engine.version} on http://{f'[{host}]' if ':' in host else host}:{port}")
    queries = Queries(engine, store.user, password)
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    options = uvicorn.Config(
        app.make(engine, queries),
        log_config=None,
        access_log=False,
        lifespan="on",
        loop="uvloop",
        http="httptools",
        timeout_keep_alive=30,
        timeout_graceful_shutdown=60,
        server_header=False,
    )
    server = _Server(options, queries)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, server.handle_exit)  # in place of the engine's, until uvicorn serves
    server.run(sockets=[listening])
    say("store: stopped")


class _Server(uvicorn.Server):
    """Told to stop, it ends the queries that run and waits for the inserts."""

    def __init__(self, options: uvicorn.Config, queries: Queries) -> None:
        super().__init__(options)
        self._queries = queries

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called by the signal's handler."""
        super().handle_exit(sig, frame)
        threading.Thread(target=self._queries.stop_reading, daemon=True).start()


def _loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listening.bind(address)
        listening.listen(512)
    except OSError as error:
        advice = "stop what listens there or set store.port"
        raise BpfleetError(f"cannot listen on {host}:{port} ({error.strerror}); {advice}") from None
    return listening
