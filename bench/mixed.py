"""An ordinary mixed load: computing, files, processes, sockets, threads, memory; always the same.

``python -m bench.mixed`` does it once. Most of its time is its own, as with servers and builds; on the
way the kernel has some 35,000 system calls a second, faults, switches and a few programs to start.
"""

import hashlib
import json
import os
import socket
import sqlite3
import subprocess
import tempfile
import threading
import zlib
from pathlib import Path

ROUNDS = 20


def compute(seed: int) -> int:
    """Compress, hash, parse."""
    text = json.dumps(
        [{"id": at, "name": f"user {at * seed % 977}", "tags": ["a", "b"] * 3} for at in range(900)]
    )
    packed = zlib.compress(text.encode() * 2, 6)
    return len(hashlib.sha256(packed).hexdigest()) + len(json.loads(text)) + len(zlib.decompress(packed))


def files(place: Path) -> None:
    """Write, read, rename, remove small files."""
    for at in range(12):
        file = place / f"{at}.tmp"
        file.write_bytes(os.urandom(8192))
        assert len(file.read_bytes()) == 8192
        file.rename(place / f"{at}.done").unlink()


def database(place: Path) -> int:
    """A few transactions and a query."""
    with sqlite3.connect(place / "db") as base:
        base.execute("CREATE TABLE IF NOT EXISTS t (k INTEGER, v TEXT)")
        base.execute("PRAGMA synchronous = OFF")
        for at in range(8):
            base.executemany("INSERT INTO t VALUES (?, ?)", ((at * n, "x" * 50) for n in range(60)))
            base.commit()
        return int(base.execute("SELECT count(DISTINCT k) FROM t").fetchone()[0])


def requests(server: socket.socket) -> None:
    """Ask and answer over loopback, as a client of a web service does."""
    for _ in range(6):
        with socket.create_connection(server.getsockname()) as client:
            accepted, _ = server.accept()
            with accepted:
                for _ in range(12):
                    client.sendall(b"GET /item HTTP/1.1\r\n\r\n")
                    accepted.recv(4096)
                    accepted.sendall(bytes(2000))
                    client.recv(4096)


def threads() -> None:
    """Hand things over between threads."""
    turn = threading.Condition()
    given: list[int] = []

    def take() -> None:
        for _ in range(40):
            with turn:
                turn.wait_for(lambda: given)
                given.pop()
                turn.notify()

    taker = threading.Thread(target=take)
    taker.start()
    for at in range(40):
        with turn:
            turn.wait_for(lambda: not given)
            given.append(at)
            turn.notify()
    taker.join()


def main() -> None:
    """The whole load once."""
    with tempfile.TemporaryDirectory() as directory, socket.create_server(("127.0.0.1", 0)) as server:
        place = Path(directory)
        for at in range(ROUNDS):
            for seed in range(12):
                compute(seed + at)
            files(place)
            database(place)
            requests(server)
            threads()
            subprocess.run(["/bin/true"], check=True)
            bytearray(8 << 20)


if __name__ == "__main__":
    main()
