"""Which interfaces of this host the filter is on: those that documents name, else the ways into the host."""

import socket
from collections.abc import Iterable, Sequence
from pathlib import Path

from schemas.desired import matches

NET = Path("/proc/thread-self/net")
LOOPBACK = "lo"
_EVERYWHERE6 = "0" * 32


def present() -> list[str]:
    """All interfaces of this network namespace, loopback aside."""
    return sorted(name for _, name in socket.if_nameindex() if name != LOOPBACK)


def uplinks() -> list[str]:
    """Interfaces that default routes leave by; all there are where there is no such route."""
    found = {line.split()[0] for line in _lines("route")[1:] if line.split()[1] == "00000000"}
    for line in _lines("ipv6_route"):
        destination, length, *_, name = line.split()
        if destination == _EVERYWHERE6 and length == "00" and name != LOOPBACK:
            found.add(name)
    return sorted(found & set(present())) or present()


def _lines(name: str) -> list[str]:
    file = NET / name
    return file.read_text().splitlines() if file.exists() else []


def chosen(scopes: Iterable[Sequence[str]], watched: Iterable[Sequence[str]]) -> list[str]:
    """The interfaces for rules and watches with these scopes (patterns; none: wherever the filter is).

    Watches that name interfaces say where rules hold that name none; without such, that is the uplinks.
    """
    names, wanted = present(), set()
    places = [each for each in watched if each]
    base = {name for each in places for name in names if matches(each, name)} if places else set(uplinks())
    for scope in [*scopes, *watched]:
        wanted |= {name for name in names if matches(scope, name)} if scope else base
    return sorted(wanted)


def missing(scope: Sequence[str]) -> str:
    """Why a document of this scope holds nowhere on this host; empty: it does."""
    names = present()
    if not scope or any(matches(scope, name) for name in names):
        return ""
    return f"no interface here is called {' or '.join(scope)}; there are: {', '.join(names) or 'none'}"


def indexes() -> dict[str, int]:
    """Each interface's number: an interface that was made anew has another."""
    return {name: number for number, name in socket.if_nameindex()}
