"""What `state established` knows: this host's own TCP connections, kept by a program on the socket states."""

import os
from pathlib import Path

from collector import bpf_sys
from collector.bpf_map import Map
from collector.loader import ROOT, Source, load
from schemas.errors import BpfleetError

FILE = ROOT / "xdp" / "filter_connections.bpf.c"
ESTABLISHED = "01"  # in /proc/net/tcp
MAPPED = bytes(10) + b"\xff\xff"


def watch(table: Map, pin: Path | None = None) -> int | None:
    """Fill ``table`` (filter_connections) from now on, and with what there is.

    Returns the descriptor that keeps it so; None if an earlier process pinned one at ``pin``, which goes on.
    Raises :class:`BpfleetError` when this kernel cannot.
    """
    if pin is not None and pin.exists():
        return None
    result = load([Source("filter_connections", FILE, given={table.name: table})])
    if result.failed:
        raise BpfleetError(f"state new|established is not available: {result.failed['filter_connections']}")
    loaded = result.loaded["filter_connections"]
    try:
        link = loaded.programs[0].link_fd
        assert link is not None
        if pin is not None:
            bpf_sys.pin(link, pin)
        _seed(table)
        return os.dup(link)
    finally:
        loaded.close()


def _seed(table: Map) -> None:
    """Connections that are older than we are, from /proc/net; those the program put in are the same."""
    for name in ("tcp", "tcp6"):
        file = Path("/proc/thread-self/net") / name
        if not file.exists():
            continue
        for line in file.read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == ESTABLISHED:
                (local, local_port), (remote, remote_port) = _end(fields[1]), _end(fields[2])
                table.update(local + remote + local_port + remote_port + bytes(4), bytes(8))


def _end(text: str) -> tuple[bytes, bytes]:
    """``0100007F:1F90`` → address of 16 bytes and port, both as on the wire."""
    address, port = text.split(":")
    words = bytes.fromhex(address)
    raw = b"".join(words[at : at + 4][::-1] for at in range(0, len(words), 4))  # printed as the CPU's words
    return raw if len(raw) == 16 else MAPPED + raw, int(port, 16).to_bytes(2, "big")
