"""What faults are made of: small programs, run as `python faults_work.py NAME ARGUMENT…`, each for a while.

They join the cgroup directories named in $FAULT_CGROUPS before anything else, and end by themselves.
"""

import mmap
import os
import random
import socket
import struct
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

PAGE = 4096
LONGEST_S = 60.0


def join() -> None:
    for each in filter(None, os.environ.get("FAULT_CGROUPS", "").split(":")):
        Path(each, "cgroup.procs").write_text(str(os.getpid()))


def hog(share: str = "1") -> None:
    """Wants that share of a CPU, a hundredth of a second at a time."""
    end = time.monotonic() + LONGEST_S
    busy = float(share) * 0.01
    while (now := time.monotonic()) < end:
        while time.monotonic() - now < busy:
            pass
        if busy < 0.01:
            time.sleep(0.01 - busy)


def fork(times: str) -> None:
    """So many short processes at a time."""
    end = time.monotonic() + LONGEST_S
    running = 0
    while time.monotonic() < end:
        if running >= int(times):
            os.wait()
            running -= 1
        if not os.fork():
            while time.thread_time() < 0.02:
                pass
            os._exit(0)
        running += 1


def copy() -> None:
    """Copies zeros in the kernel."""
    end = time.monotonic() + LONGEST_S
    source, target = os.open("/dev/zero", os.O_RDONLY), os.open("/dev/null", os.O_WRONLY)
    while time.monotonic() < end:
        os.write(target, os.read(source, 1 << 20))


def grow(megabytes: str) -> None:
    """Children that want more memory than there is, one after the other."""
    end = time.monotonic() + LONGEST_S
    while time.monotonic() < end:
        if not os.fork():
            kept = [os.urandom(1 << 20) for _ in range(int(megabytes))]
            time.sleep(len(kept))
            os._exit(0)
        os.wait()


def write(file: str, megabytes: str) -> None:
    """Writes a file anew, again and again, as fast as it goes."""
    end = time.monotonic() + LONGEST_S
    while time.monotonic() < end:
        with Path(file).open("wb", buffering=0) as made:
            for _ in range(int(megabytes)):
                made.write(bytes(1 << 20))


def thrash(file: str) -> None:
    """Reads a mapped file's pages at random, again and again."""
    end = time.monotonic() + LONGEST_S
    fd = os.open(file, os.O_RDONLY)
    with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as memory:
        memory.madvise(mmap.MADV_RANDOM)
        pages = len(memory) // PAGE
        while time.monotonic() < end:
            for _ in range(200):
                _ = memory[random.randrange(pages) * PAGE]


def read_direct(device: str) -> None:
    """Reads 4 kB of a device at a time, past the page cache, at random places; a pause between."""
    end = time.monotonic() + LONGEST_S
    fd = os.open(device, os.O_RDONLY | os.O_DIRECT)
    size = os.lseek(fd, 0, os.SEEK_END) // PAGE
    with mmap.mmap(-1, PAGE) as buffer:
        while time.monotonic() < end:
            os.preadv(fd, [buffer], random.randrange(size) * PAGE)
            time.sleep(0.002)


def write_direct(device: str) -> None:
    """Writes 64 kB of a device at a time, past the page cache."""
    end = time.monotonic() + LONGEST_S
    size = 1 << 16
    fd = os.open(device, os.O_WRONLY | os.O_DIRECT)
    places = os.lseek(fd, 0, os.SEEK_END) // size
    with mmap.mmap(-1, size) as buffer:
        while time.monotonic() < end:
            os.pwritev(fd, [buffer], random.randrange(places) * size)
            time.sleep(0.002)


def serve(address: str, port: str, pause_s: str, every: str = "1") -> None:
    """Answers each line, every so many-th after a pause; one client at a time."""
    with socket.create_server((address, int(port))) as server:
        while True:
            peer, _ = server.accept()
            with peer, peer.makefile("rb") as lines:
                peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for number, _ in enumerate(lines):
                    if number % int(every) == 0:
                        time.sleep(float(pause_s))
                    peer.sendall(b"an answer\n")


def ask(address: str, port: str, every_s: str = "0.05") -> None:
    """Asks a line at a time over one connection."""
    end = time.monotonic() + LONGEST_S
    with connected(address, port) as server, server.makefile("rb") as lines:
        while time.monotonic() < end:
            server.sendall(b"a question\n")
            lines.readline()
            time.sleep(float(every_s))


def swallow(address: str, port: str) -> None:
    """Takes all that clients send."""

    def take(peer: socket.socket) -> None:
        with peer, suppress(OSError):
            while peer.recv(1 << 16):
                pass

    with socket.create_server((address, int(port))) as server:
        while True:
            threading.Thread(target=take, args=(server.accept()[0],), daemon=True).start()


def send(address: str, port: str, bytes_s: str) -> None:
    """Sends at most so many bytes a second."""
    end = time.monotonic() + LONGEST_S
    piece = b"x" * max(int(float(bytes_s) / 50), 1)
    with connected(address, port) as server:
        while time.monotonic() < end:
            server.sendall(piece)
            time.sleep(0.02)


def connected(address: str, port: str) -> socket.socket:
    end = time.monotonic() + 10
    while True:
        try:
            made = socket.create_connection((address, int(port)), timeout=30)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # Nothing is sent again to a namespace that is gone: the end is a reset.
            made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return made
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


if __name__ == "__main__":
    join()
    globals()[sys.argv[1]](*sys.argv[2:])
