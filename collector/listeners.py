"""Rows of `listen_drop`: listening TCP sockets of the collector's network namespace, told by sock_diag(7).

No tracepoint tells of a connection that finds a listener's queue full; the kernel counts it at the socket.
"""

import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from collector.companion import Row

SOCK_DIAG_BY_FAMILY, NETLINK_SOCK_DIAG = 20, 4
REQUEST_DUMP = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
DONE, ERROR = 3, 2  # message types of netlink
LISTEN = 1 << 10  # a bit for each state of TCP
MEMORY_INFO, DROPS = 7, 8  # attribute INET_DIAG_SKMEMINFO; place of the drops in it
HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
SOCKET = struct.Struct("=4x2s2x16s16x4x8s4xII8x")  # port, address, cookie, accept queue, its limit
BUFFER = 1 << 16


@dataclass(frozen=True)
class Listener:
    """One listening socket now."""

    cookie: bytes  # names it as long as it lives
    address: str
    port: int
    queued: int
    limit: int
    drops: int  # since it was made


class Listeners:
    """What each listener gained between two calls of :meth:`rows`."""

    def __init__(self) -> None:
        self._before: dict[bytes, int] = {}

    def rows(self) -> Iterator[Row]:
        """A row for each that turned a connection away or has one waiting. Raises OSError."""
        now = list(listeners())
        before, self._before = self._before, {each.cookie: each.drops for each in now}
        for each in now:
            drops = each.drops - before.get(each.cookie, 0)
            if drops or each.queued:
                yield {
                    "local_address": each.address, "local_port": each.port, "drops": drops,
                    "queued": each.queued, "limit": each.limit,
                }  # fmt: skip


def listeners() -> Iterator[Listener]:
    """Every listening TCP socket."""
    for family in (socket.AF_INET, socket.AF_INET6):
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as channel:
            body = struct.pack("=BBBxI48x", family, socket.IPPROTO_TCP, 1 << MEMORY_INFO - 1, LISTEN)
            channel.send(HEADER.pack(HEADER.size + len(body), SOCK_DIAG_BY_FAMILY, REQUEST_DUMP, 1, 0) + body)
            yield from _answers(channel, family)


def _answers(channel: socket.socket, family: int) -> Iterator[Listener]:
    while True:
        data = channel.recv(BUFFER)
        while len(data) >= HEADER.size:
            length, kind, *_ = HEADER.unpack_from(data)
            if kind == ERROR:
                code = -struct.unpack_from("=i", data, HEADER.size)[0]
                raise OSError(code, f"sock_diag: {os.strerror(code).lower()}")
            if kind == DONE:
                return
            yield listener(data[HEADER.size : length], family)
            data = data[length + 3 & ~3 :]


def listener(message: bytes, family: int) -> Listener:
    """A socket from the kernel's struct inet_diag_msg and the attributes after it."""
    port, address, cookie, queued, limit = SOCKET.unpack_from(message)
    drops, at = 0, SOCKET.size
    while at + 4 <= len(message):
        length, kind = struct.unpack_from("=HH", message, at)
        if kind == MEMORY_INFO and length >= 4 + 4 * (DROPS + 1):
            drops = struct.unpack_from("=I", message, at + 4 + 4 * DROPS)[0]
        at += max(length + 3 & ~3, 4)
    text = socket.inet_ntop(family, address[:4] if family == socket.AF_INET else address)
    return Listener(cookie, text, int.from_bytes(port, "big"), queued, limit, drops)
