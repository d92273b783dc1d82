"""Messages between the loader and its child: a length, a JSON text, descriptors. Standard library only."""

import json
import os
import re
import socket
import struct
from typing import Any

MAX_FDS = 253  # SCM_MAX_FD: descriptors the kernel passes with one message


def send(channel: socket.socket, message: dict[str, Any], fds: list[int]) -> None:
    """Send ``message`` with at most :data:`MAX_FDS` descriptors; they stay open here."""
    text = json.dumps(message).encode()
    socket.send_fds(channel, [struct.pack("=I", len(text))], fds)
    channel.sendall(text)


def receive(channel: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """The next message and its descriptors, which are the caller's now; None at the end."""
    head, fds, _, _ = socket.recv_fds(channel, 4, MAX_FDS)
    for fd in fds:
        os.set_inheritable(fd, False)
    text = _exactly(channel, struct.unpack("=I", head)[0]) if len(head) == 4 else None
    if text is None:
        for fd in fds:
            os.close(fd)
        return None
    return json.loads(text), fds


def first_error(said: str) -> str:
    """The line in which a compiler (or a Python traceback) says what is wrong; "" if there is none."""
    for line in said.splitlines():
        if re.search(r"error:|Error at line|LLVM ERROR|Error: ", line):
            return line.strip()
    return ""


def _exactly(channel: socket.socket, size: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < size:
        part = channel.recv(size - len(parts))
        if not part:
            return None
        parts += part
    return bytes(parts)
