"""Turns the kernel's timing of BPF programs on for a collector that gave up the right to.

    python timing_keeper.py 7                  a child of the collector's; 7 is a socket
    python timing_keeper.py /run/x.sock        a service, for a collector that never had the right

Whoever sends a byte is given a descriptor: programs are timed until it is closed. That is all that is done
with CAP_SYS_ADMIN, the only capability it keeps. It ends with its collector. Standard library only.
"""

import os
import selectors
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))

from collector import bpf_sys, privileges


def answer(channel: socket.socket) -> bool:
    """Answer one question, with a descriptor or with why not; False when nobody asks any more."""
    try:
        if not channel.recv(1):
            return False
        try:
            fd = bpf_sys.enable_stats()
        except bpf_sys.BpfError as error:
            channel.send(str(error).encode())
            return True
        with bpf_sys.opened(fd):
            socket.send_fds(channel, [b"+"], [fd])
    except OSError:
        return False
    return True


def listen(path: str) -> socket.socket:
    """A socket that only root can reach, in the place of one that was left behind."""
    Path(path).unlink(missing_ok=True)
    mask = os.umask(0o177)
    door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    door.bind(path)
    os.umask(mask)
    door.listen()
    return door


def serve(door: socket.socket) -> None:
    """Answer whoever comes."""
    with selectors.DefaultSelector() as poll:
        poll.register(door, selectors.EVENT_READ)
        while True:
            for key, _ in poll.select():
                channel = key.fileobj
                assert isinstance(channel, socket.socket)
                if channel is door:
                    poll.register(door.accept()[0], selectors.EVENT_READ)
                elif not answer(channel):
                    poll.unregister(channel)
                    channel.close()


def main(place: str) -> None:
    """Serve a socket by its number, or at a path."""
    privileges.drop(frozenset({privileges.Capability.SYS_ADMIN}))
    with suppress(KeyboardInterrupt):
        if not place.isdigit():
            serve(listen(place))
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the collector ends first
        channel = socket.socket(fileno=int(place))
        while answer(channel):
            pass


if __name__ == "__main__":
    main(sys.argv[1])
