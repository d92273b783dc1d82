"""Prefixes from text, by the million, what they cover, and whether addresses lie in them.

IPv4 addresses are numbers (int64), IPv6 addresses 16 bytes (S16), which compare as numbers do.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_network
from socket import AF_INET6, inet_pton
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.errors import UsageError

Addresses = NDArray[Any]
TOP = 1 << 32
LENGTHS = {str(length): length for length in range(129)}
# Of a prefix's two halves what belongs to its hosts, by its length.
HOSTS = np.array([divmod((1 << 128 - length) - 1, 1 << 64) for length in range(129)], np.uint64)


@dataclass(frozen=True)
class Edges:
    """Where prefixes of one family begin and end, so that some more can be added and taken away again.

    From each point on, `steps` prefixes more (or fewer) cover the addresses; points ascend, no step is 0.
    """

    points: Addresses
    steps: NDArray[np.int32]

    @classmethod
    def of(cls, starts: Addresses, ends: Addresses) -> "Edges":
        """Of prefixes in any order; no end is given of one that reaches to the last address."""
        points = np.concatenate([starts, ends])
        order = np.argsort(points, kind="stable")
        points, steps = points[order], np.where(order < len(starts), 1, -1).astype(np.int32)
        if not len(points):
            return cls(points, steps)
        at = np.flatnonzero(np.concatenate([[True], points[1:] != points[:-1]]))
        return cls(points[at], np.add.reduceat(steps, at))._reduced()

    def plus(self, few: "Edges", sign: int = 1) -> "Edges":
        """With some more prefixes (or, of sign -1, without some that are there)."""
        if not len(few.points):
            return self
        at = np.searchsorted(self.points, few.points)
        known = np.zeros(len(at), np.bool_)
        within = at < len(self.points)
        known[within] = self.points[at[within]] == few.points[within]
        steps = self.steps.copy()
        steps[at[known]] += sign * few.steps[known]
        points = np.insert(self.points, at[~known], few.points[~known])
        return Edges(points, np.insert(steps, at[~known], sign * few.steps[~known]))._reduced()

    def _reduced(self) -> "Edges":
        kept = self.steps != 0
        return self if kept.all() else Edges(self.points[kept], self.steps[kept])

    def turns(self) -> Addresses:
        """Where covered addresses begin, end, begin again …, in turns."""
        inside = np.cumsum(self.steps) > 0
        return self.points[np.flatnonzero(inside != np.concatenate([[False], inside[:-1]]))]


def ipv4(texts: Sequence[str], where: str) -> Edges:
    """Edges of IPv4 prefixes. Raises :class:`UsageError` naming a wrong one."""
    starts, ends = _ipv4(texts, where)
    return Edges.of(starts, ends[ends < TOP])


def ipv6(texts: Sequence[str], where: str) -> Edges:
    """Edges of IPv6 prefixes. Raises :class:`UsageError` naming a wrong one."""
    first, last = _ipv6(texts, where)
    return Edges.of(in_order(first), in_order(_after(last)))


def in_order(halves: NDArray[np.uint64]) -> Addresses:
    """Addresses given as two numbers each, as bytes."""
    return np.ascontiguousarray(halves.astype(">u8")).view("S16").reshape(-1)


def halves(addresses: Addresses) -> NDArray[np.uint64]:
    """Each address as two numbers."""
    return np.ascontiguousarray(addresses).view(">u8").reshape(-1, 2).astype(np.uint64)


def _after(last: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The addresses that follow these; none follows the highest of all."""
    following = last + np.array([0, 1], np.uint64)
    following[:, 0] += following[:, 1] == 0
    return following[following.any(axis=1)]


def _network(text: str, where: str) -> Any:
    try:
        return ip_network(text.strip(), strict=False)
    except ValueError:
        raise UsageError(f"{where}: `{text}` is not an address or prefix like 192.0.2.0/24") from None


def _ipv4(texts: Sequence[str], where: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First address of each, and the one behind its last."""
    if not texts:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    full = [text if "/" in text else text + "/32" for text in texts]
    plain = " ".join(full).replace(".", " ").replace("/", " ")
    try:
        numbers = np.array(plain.split(), dtype=np.int64).reshape(len(texts), 5)
    except ValueError:
        numbers = np.full((1, 5), -1, np.int64)
    if (numbers < 0).any() or (numbers[:, :4] > 255).any() or (numbers[:, 4] > 32).any():
        for text in texts:
            _network(text, where)
        raise UsageError(f"{where}: prefixes are written like 192.0.2.0/24")
    address = numbers[:, 0] << 24 | numbers[:, 1] << 16 | numbers[:, 2] << 8 | numbers[:, 3]
    size = np.int64(1) << (32 - numbers[:, 4])
    start = address & -size
    return start, start + size


def _ipv6(texts: Sequence[str], where: str) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """First and last address of each, as halves."""
    parts = [text.partition("/") for text in texts]
    try:
        raw = b"".join([inet_pton(AF_INET6, address) for address, _, _ in parts])
        lengths = [LENGTHS[bits] if slash else 128 for _, slash, bits in parts]
    except (OSError, ValueError, KeyError):  # odd, or wrong: the slow way knows
        found = [_network(text, where) for text in texts]
        raw = b"".join(each.network_address.packed for each in found)
        lengths = [each.prefixlen for each in found]
    hosts = HOSTS[lengths] if lengths else np.empty((0, 2), np.uint64)
    given = np.frombuffer(raw, ">u8").reshape(-1, 2).astype(np.uint64)
    return given & ~hosts, given | hosts


def in_bytes(four: Edges, six: Edges) -> NDArray[Any]:
    """What both cover as (first, last) of 16 bytes each, IPv4 mapped, ascending without overlap."""
    turns = four.turns()
    mapped = np.stack([np.zeros(len(turns), np.uint64), 0xFFFF << 32 | turns.astype(np.uint64)], axis=1)
    if len(turns) % 2:
        mapped = np.concatenate([mapped, np.array([[0, 1 << 48]], np.uint64)])
    whole = halves(six.plus(Edges.of(in_order(mapped[::2]), in_order(mapped[1::2]))).turns())
    before = whole[1::2] - np.array([0, 1], np.uint64)
    before[:, 0] -= before[:, 1] == 2**64 - 1
    if len(whole) % 2:
        before = np.concatenate([before, np.full((1, 2), 2**64 - 1, np.uint64)])
    return np.stack([in_order(whole[::2]), in_order(before)], axis=1)


def networks(prefixes: Sequence[str], where: str) -> NDArray[Any]:
    """Prefixes of both families as :func:`in_bytes` has them. Raises :class:`UsageError`."""
    four = [text for text in prefixes if ":" not in text]
    six = [text for text in prefixes if ":" in text]
    return in_bytes(ipv4(four, where), ipv6(six, where))


def contains(spans: NDArray[Any], addresses: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which of the addresses (rows, 16) lie in spans made by :func:`networks`."""
    if not len(spans) or not len(addresses):
        return np.zeros(len(addresses), np.bool_)
    asked = np.ascontiguousarray(addresses).view("S16").reshape(-1)  # compared byte by byte, as numbers are
    at = np.searchsorted(spans[:, 0], asked, side="right") - 1
    inside: NDArray[np.bool_] = (at >= 0) & (asked <= spans[np.maximum(at, 0), 1])
    return inside
