"""Prometheus metrics on loopback: the last health figures, as text.

A few lines of HTTP in a thread instead of a library: 3 MB less, and a scrape never waits for the main loop.
"""

import socket
import threading
from collections.abc import Mapping

from schemas.errors import BpfleetError

NAMES = {"program": ("probe", "hook"), "stream": ("stream",), "process": ()}
GAUGES = {"rss_bytes", "spool_bytes", "spool_batches", "kafka_up", "up"}
Totals = Mapping[tuple[str, ...], Mapping[str, int]]


def exposition(totals: Totals) -> str:
    """Totals by (kind, label values…) in the text format, version 0.0.4."""
    families: dict[str, list[str]] = {}
    for (kind, *values), numbers in totals.items():
        labels = ",".join(
            f'{name}="{_escape(value)}"' for name, value in zip(NAMES[kind], values, strict=False)
        )
        for name, number in numbers.items():
            family = f"bpfleet_{kind}_{name}" + ("" if name in GAUGES else "_total")
            families.setdefault(family, []).append(f"{family}{{{labels}}} {number}")
    lines = []
    for family, samples in families.items():
        lines += [f"# TYPE {family} {'counter' if family.endswith('_total') else 'gauge'}", *samples]
    return "\n".join(lines) + "\n"


def _escape(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


class Endpoint:
    """Answers every request on 127.0.0.1 with :attr:`text`."""

    def __init__(self, port: int) -> None:
        """Listen; port 0 takes a free one. Raises :class:`BpfleetError` if the port is taken."""
        self.text = ""
        try:
            self._socket = socket.create_server(("127.0.0.1", port))
        except OSError as error:
            raise BpfleetError(
                f"cannot serve metrics on 127.0.0.1:{port}: {error.strerror}; set collector.metrics_port"
            ) from None
        self.port = int(self._socket.getsockname()[1])
        threading.Thread(target=self._serve, name="metrics", daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return  # closed
            with client:
                try:
                    self._answer(client)
                except OSError:
                    continue

    def _answer(self, client: socket.socket) -> None:
        client.settimeout(1.0)
        client.recv(8192)
        body = self.text.encode()
        head = (
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        client.sendall(head.encode() + body)

    def close(self) -> None:
        """Stop listening."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
