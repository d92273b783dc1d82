"""Where a packet to a real goes first: interface and link-layer address, from the kernel's own routing."""

import fcntl
import ipaddress
import json
import socket
import struct
import subprocess
import time
from dataclasses import dataclass
from typing import Any

from schemas.errors import BpfleetError

_PATIENCE = 2.0  # seconds for a neighbour to answer
_DISCARD = 9
_SIOCGIFHWADDR = 0x8927


@dataclass(frozen=True)
class Hop:
    """An interface and the two link-layer addresses of a frame: to, from."""

    interface: str
    index: int
    macs: bytes  # 12 bytes


def _run(command: list[str], questions: str = "") -> str:
    try:
        done = subprocess.run(command, input=questions, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BpfleetError(f"cannot run ip: {error.strerror}; install iproute2") from None
    if done.returncode and not questions:
        raise BpfleetError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def mac_bytes(text: str) -> bytes:
    """Six bytes of ``aa:bb:cc:dd:ee:ff``."""
    return bytes.fromhex(text.replace(":", ""))


def via(interface: str, mac: str) -> Hop:
    """A hop whose address is known."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16s24x", interface.encode())
        own = fcntl.ioctl(any_socket, _SIOCGIFHWADDR, request)[18:24]
    return Hop(interface, socket.if_nametoindex(interface), mac_bytes(mac) + own)


def find(addresses: list[str]) -> tuple[dict[str, Hop], dict[str, str]]:
    """The hops to these addresses, and why there is none to others; two questions for all of them.

    The hop of an address behind a router is the router.
    """
    ways = _routes(addresses)
    reasons = {
        each: f"no route to real {each}; add one or set next_hop" for each in addresses if each not in ways
    }
    hops: dict[str, Hop] = {}
    end = time.monotonic() + _PATIENCE
    while missing := [each for each in ways if each not in hops]:
        known = _neighbours()
        for address in missing:
            gateway, interface = ways[address]
            if (gateway, interface) in known:
                hops[address] = via(interface, known[gateway, interface])
        if time.monotonic() > end:
            break
        asleep = {ways[each][0] for each in missing if each not in hops}
        for gateway in asleep:
            _wake(gateway)
        if asleep:
            time.sleep(0.05)
    for address, (gateway, interface) in ways.items():
        if address not in hops:
            reasons[address] = (
                f"{gateway} on {interface} does not answer, the way to real {address}; set next_hop"
            )
    return hops, reasons


def _routes(addresses: list[str]) -> dict[str, tuple[str, str]]:
    """address → (gateway or itself, interface), for those that have a route."""
    questions = "".join(f"route get {each}\n" for each in addresses)
    lines = _run(["ip", "-j", "-force", "-batch", "-"], questions).splitlines()
    found = {}
    for route in (each for line in lines if line.startswith("[") for each in json.loads(line)):
        if "dev" in route and "dst" in route:
            address = str(ipaddress.ip_address(route["dst"]))
            found[address] = (
                str(route.get("gateway") or route.get("via", {}).get("host") or address),
                route["dev"],
            )
    given = {str(ipaddress.ip_address(each)): each for each in addresses}
    return {given[address]: way for address, way in found.items() if address in given}


def in_force(addresses: list[str]) -> dict[str, tuple[int, bytes]]:
    """address → (interface's number, link-layer address) of its hop, as routes and neighbours are now.

    Nothing is asked of the network: who is not known has no entry.
    """
    numbers = {name: number for number, name in socket.if_nameindex()}
    known = _neighbours()
    return {
        address: (numbers[way[1]], mac_bytes(known[way]))
        for address, way in _routes(addresses).items()
        if way in known and way[1] in numbers
    }


def _neighbours() -> dict[tuple[str, str], str]:
    """(address, interface) → link-layer address, of everyone the kernel knows."""
    told: list[dict[str, Any]] = json.loads(_run(["ip", "-j", "neigh", "show"]) or "[]")
    return {
        (each["dst"], each["dev"]): each["lladdr"]
        for each in told
        if "lladdr" in each and "dev" in each and "FAILED" not in each.get("state", [])
    }


def _wake(address: str) -> None:
    """Make the kernel look for a neighbour: one empty datagram to the discard port."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as one:
        try:
            one.sendto(b"", (address, _DISCARD))
        except OSError:
            return
