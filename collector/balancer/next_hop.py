"""Where a packet to a real goes first: interface and link-layer address, from the kernel's own routing."""

import json
import socket
import subprocess
import time
from dataclasses import dataclass
from typing import Any

from schemas.errors import BpfleetError

_PATIENCE = 2.0  # seconds for a neighbour to answer
_DISCARD = 9


@dataclass(frozen=True)
class Hop:
    """An interface and the two link-layer addresses of a frame: to, from."""

    interface: str
    index: int
    macs: bytes  # 12 bytes


def _ask(*words: str) -> Any:
    try:
        done = subprocess.run(["ip", "-j", *words], capture_output=True, text=True, check=False)
    except OSError as error:
        raise BpfleetError(f"cannot run ip: {error.strerror}; install iproute2") from None
    if done.returncode:
        raise BpfleetError(f"ip {' '.join(words)}: {done.stderr.strip()}")
    return json.loads(done.stdout or "[]")


def mac_bytes(text: str) -> bytes:
    """Six bytes of ``aa:bb:cc:dd:ee:ff``."""
    return bytes.fromhex(text.replace(":", ""))


def via(interface: str, mac: str) -> Hop:
    """A hop whose address is known."""
    own = _ask("link", "show", "dev", interface)[0]["address"]
    return Hop(interface, socket.if_nametoindex(interface), mac_bytes(mac) + mac_bytes(own))


def find(address: str) -> Hop:
    """The hop to ``address``. Raises :class:`BpfleetError` if there is no route or nobody answers."""
    try:
        route = _ask("route", "get", address)[0]
    except (BpfleetError, IndexError) as error:
        raise BpfleetError(f"no route to real {address} ({error}); add one or set next_hop") from None
    gateway, interface = route.get("gateway", address), route["dev"]
    end = time.monotonic() + _PATIENCE
    while True:
        for each in _ask("neigh", "show", "to", gateway, "dev", interface):
            if "lladdr" in each and "FAILED" not in each.get("state", []):
                return via(interface, each["lladdr"])
        if time.monotonic() > end:
            raise BpfleetError(
                f"{gateway} on {interface} does not answer, the way to real {address}; set next_hop"
            )
        _wake(gateway)
        time.sleep(0.05)


def _wake(address: str) -> None:
    """Make the kernel look for a neighbour: one empty datagram to the discard port."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as one:
        try:
            one.sendto(b"", (address, _DISCARD))
        except OSError:
            return
