"""Prefixes from text, by the million, and whether addresses lie in them."""

from collections.abc import Sequence
from ipaddress import ip_network
from socket import AF_INET6, inet_pton
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.errors import UsageError

Spans = NDArray[np.int64]  # rows (start, end) of IPv4, end exclusive
Prefix6 = tuple[int, int]  # address, length


def ipv4(texts: Sequence[str], where: str) -> Spans:
    """IPv4 prefixes as ascending spans without overlap. Raises :class:`UsageError` naming a wrong one."""
    return merge(_ipv4(texts, where))


def prefix6(text: str, where: str) -> Prefix6:
    """An IPv6 prefix. Raises :class:`UsageError`."""
    address, slash, bits = text.partition("/")
    try:
        number, length = int.from_bytes(inet_pton(AF_INET6, address), "big"), int(bits) if slash else 128
    except (OSError, ValueError):  # odd, or wrong: the slow way knows
        network = _network(text, where)
        return int(network.network_address), network.prefixlen
    if not 0 <= length <= 128:
        _network(text, where)
    return number >> (128 - length) << (128 - length), length


def _network(text: str, where: str) -> Any:
    try:
        return ip_network(text.strip(), strict=False)
    except ValueError:
        raise UsageError(f"{where}: `{text}` is not an address or prefix like 192.0.2.0/24") from None


def _ipv4(texts: Sequence[str], where: str) -> Spans:
    """(start, end) of each, end exclusive."""
    if not texts:
        return np.empty((0, 2), np.int64)
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
    return np.stack([start, start + size], axis=1)


def merge(spans: Spans) -> Spans:
    """The same addresses as ascending spans that neither overlap nor touch."""
    if not len(spans):
        return spans
    spans = spans[np.argsort(spans[:, 0], kind="stable")]
    reach = np.maximum.accumulate(spans[:, 1])
    first = np.concatenate([[True], spans[1:, 0] > reach[:-1]])
    starts = spans[first, 0]
    last = np.concatenate([np.flatnonzero(first)[1:] - 1, [len(spans) - 1]])
    return np.stack([starts, reach[last]], axis=1)


def in_bytes(four: Spans, six: Sequence[Prefix6]) -> NDArray[Any]:
    """Spans of both families as (first, last) of 16 bytes each, IPv4 mapped, ascending without overlap."""
    edges = np.zeros((len(four), 2, 16), np.uint8)
    edges[:, :, 10:12] = 255
    inclusive = four - np.array([0, 1])
    edges[:, :, 12:] = inclusive.astype(">u4").view(np.uint8).reshape(-1, 2, 4)
    found = edges.view("S16").reshape(-1, 2)
    if not six:
        return found
    spans = [(address, address + (1 << 128 - length) - 1) for address, length in six]
    spans += [(0xFFFF << 32 | int(first), 0xFFFF << 32 | int(last)) for first, last in inclusive]
    merged: list[tuple[int, int]] = []
    for first, last in sorted(spans):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    raw = b"".join(edge.to_bytes(16, "big") for span in merged for edge in span)
    return np.frombuffer(raw, "S16").reshape(-1, 2)


def networks(prefixes: Sequence[str], where: str) -> NDArray[Any]:
    """Prefixes of both families as :func:`in_bytes` has them. Raises :class:`UsageError`."""
    four = [text for text in prefixes if ":" not in text]
    return in_bytes(ipv4(four, where), [prefix6(text, where) for text in prefixes if ":" in text])


def contains(spans: NDArray[Any], addresses: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which of the addresses (rows, 16) lie in spans made by :func:`networks`."""
    if not len(spans) or not len(addresses):
        return np.zeros(len(addresses), np.bool_)
    asked = np.ascontiguousarray(addresses).view("S16").reshape(-1)  # compared byte by byte, as numbers are
    at = np.searchsorted(spans[:, 0], asked, side="right") - 1
    inside: NDArray[np.bool_] = (at >= 0) & (asked <= spans[np.maximum(at, 0), 1])
    return inside
