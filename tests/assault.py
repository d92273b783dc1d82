"""Who is at the gates: attackers that write frames, clients that download; each in a namespace."""

import ctypes
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CLONE_NEWNET = 0x40000000
SERVICE = "10.99.0.80"
LONGEST_S = 30.0  # an attack that nobody stops ends by itself
libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def inside(space: str) -> Iterator[None]:
    """This thread in another network namespace; sockets made there stay there."""
    with Path("/proc/thread-self/ns/net").open() as home, Path(f"/run/netns/{space}").open() as there:
        assert libc.setns(there.fileno(), CLONE_NEWNET) == 0
        try:
            yield
        finally:
            assert libc.setns(home.fileno(), CLONE_NEWNET) == 0


class Attack(threading.Thread):
    """Frames to all hosts at a steady rate until stopped, or a number of them."""

    def __init__(
        self, sockets: list[socket.socket], frames: list[bytes], rate: float, count: int = 0, ramp: float = 0
    ) -> None:
        super().__init__(daemon=True)
        self.sockets, self.frames, self.rate, self.count = sockets, frames, rate, count
        self.ramp = ramp  # packets per second more in each second
        self.sent = 0  # at each host
        self.stopping = threading.Event()
        self.start()

    def run(self) -> None:
        begun = time.monotonic()
        while not self.stopping.is_set() and (not self.count or self.sent < self.count):
            at = time.monotonic() - begun
            if at > LONGEST_S:
                return
            due = int(at * self.rate + at * at * self.ramp / 2)
            due = min(due, self.count or due)
            for at in range(self.sent, due):
                for each in self.sockets:
                    each.send(self.frames[at % len(self.frames)])
            self.sent = max(self.sent, due)
            self.stopping.wait(0.01)

    def stop(self) -> None:
        self.stopping.set()
        self.join(10)


class Client(threading.Thread):
    """Downloads again and again, on a connection that stays and on new ones; counts what went wrong."""

    def __init__(self, space: str, address: str = SERVICE) -> None:
        super().__init__(daemon=True)
        self.space, self.address = space, address
        self.stopping = threading.Event()
        self.downloads, self.broken = 0, 0
        self.slowest = 0.0
        with inside(space):
            self.kept = socket.create_connection((address, 80), 10)
        self.start()

    def run(self) -> None:
        while not self.stopping.wait(0.1):
            begun = time.monotonic()
            try:
                self._get(self.kept)
                with inside(self.space):
                    fresh = socket.create_connection((self.address, 80), 10)
                with fresh:
                    self._get(fresh)
            except OSError:
                self.broken += 1
                return
            self.downloads += 2
            self.slowest = max(self.slowest, time.monotonic() - begun)

    def _get(self, connection: socket.socket) -> None:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        left, head = 1, b""
        while left > 0:
            data = connection.recv(1 << 18)
            if not data:
                raise ConnectionResetError
            if not head.endswith(b"\r\n\r\n"):
                begin, separator, rest = (head + data).partition(b"\r\n\r\n")
                head = begin + separator
                left = 200_000 - len(rest) if separator else 1
            else:
                left -= len(data)

    def stop(self) -> None:
        self.stopping.set()
        self.join(15)
        self.kept.close()
