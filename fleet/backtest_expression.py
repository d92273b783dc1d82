"""A rule's expression over stored samples: libpcap judges the bytes; sets and connection state are columns.

pcap-filter(7) knows neither `in @set` nor `state established`. Each is true or false of a sample, so the
expression is compiled once for every combination that occurs, with a constant in their places.
"""

import re
from collections.abc import Mapping, Sequence
from ipaddress import IPv6Network, ip_network

import numpy as np
from numpy.typing import NDArray

from fleet.samples import Block
from schemas.errors import UsageError
from schemas.pcap import Program

EXTENSION = re.compile(
    r"\b(?:(?P<way>src|dst)\s+)?in\s+@(?P<set>[a-z0-9][a-z0-9_.-]{0,62})|\bstate\s+(?P<state>[a-z]+)\b",
    re.IGNORECASE,
)
ALWAYS, NEVER = "(len >= 0)", "(len > 1000000)"
MOST_FLAGS = 8
MAPPED = 0xFFFF_0000_0000
Mask = NDArray[np.bool_]


class Prefixes:
    """A set of address ranges, of which membership is asked for whole columns."""

    def __init__(self, texts: Sequence[str]) -> None:
        """Raises :class:`UsageError` for what is no prefix."""
        spans = sorted((int(net.network_address), int(net.broadcast_address)) for net in map(network, texts))
        merged: list[list[int]] = []
        for low, high in spans:
            if merged and low <= merged[-1][1] + 1:
                merged[-1][1] = max(high, merged[-1][1])
            else:
                merged.append([low, high])
        # S16 compares as bytes; trailing zeros, which numpy drops, are the least of all.
        self._low = np.array([low.to_bytes(16, "big") for low, _ in merged], "S16")
        self._high = np.array([high.to_bytes(16, "big") for _, high in merged], "S16")

    def has(self, addresses: NDArray[np.bytes_]) -> Mask:
        """Which of the addresses (S16) are in it."""
        if not len(self._low):
            return np.zeros(len(addresses), bool)
        at = np.searchsorted(self._low, addresses, "right").astype(np.int64) - 1
        return (at >= 0) & (addresses <= self._high[np.maximum(at, 0)])


def network(text: str) -> IPv6Network:
    """An address or prefix as stored: IPv4 mapped. Raises :class:`UsageError`."""
    try:
        parsed = ip_network(text.strip(), strict=False)
    except ValueError as error:
        raise UsageError(f"`{text}` is no address or prefix: {error}") from None
    if isinstance(parsed, IPv6Network):
        return parsed
    return IPv6Network((MAPPED | int(parsed.network_address), 96 + parsed.prefixlen))


class Expression:
    """An expression of the rule language, ready to judge blocks of samples."""

    def __init__(self, text: str, sets: Mapping[str, Sequence[str]] | None = None) -> None:
        """``sets``: prefixes by name. Raises :class:`UsageError` with what is wrong."""
        self.text = text
        self._flags: list[tuple[str, str]] = []
        self._plain = self._mark(text)
        if "@" in self._plain:
            raise UsageError(f"{text!r}: an address set is used as `src in @name` or `dst in @name`")
        if len(self._flags) > MOST_FLAGS:
            raise UsageError(f"{text!r}: at most {MOST_FLAGS} sets and states in one expression; split it")
        self._sets: dict[str, Prefixes] = {}
        for kind, name in self._flags:
            if kind != "established":
                if name not in (sets or {}):
                    raise UsageError(f"there is no address set @{name} here; give it with --set {name}=FILE")
                self._sets[name] = Prefixes((sets or {})[name])
        self._programs: dict[int, Program] = {}
        self._program((1 << len(self._flags)) - 1)  # a mistake shows now

    def select(self, block: Block) -> Mask:
        """Which samples it matches."""
        numbers = np.zeros(len(block), np.int64)
        for bit, (kind, name) in enumerate(self._flags):
            numbers |= self._flag(block, kind, name).astype(np.int64) << bit
        mask = np.zeros(len(block), bool)
        for number in np.unique(numbers).tolist() if self._flags else [0]:
            those = np.flatnonzero(numbers == number) if self._flags else slice(None)
            part = block[those]
            mask[those] = self._program(number).select(part["raw"], part["captured"], part["length"])
        return mask

    def _flag(self, block: Block, kind: str, name: str) -> Mask:
        if kind == "established":
            return np.asarray(block["established"] != 0)
        return self._sets[name].has(block[kind])

    def _mark(self, text: str) -> str:
        def mark(found: re.Match[str]) -> str:
            if found["state"]:
                state = found["state"].lower()
                if state not in ("new", "established"):
                    raise UsageError(f"{text!r}: state is `new` or `established`, not `{state}`")
                return ("not " if state == "new" else "") + self._place("established", "")
            way = {"src": ("source",), "dst": ("destination",)}.get((found["way"] or "").lower())
            places = [self._place(each, found["set"]) for each in way or ("source", "destination")]
            return f"({' or '.join(places)})"

        return EXTENSION.sub(mark, text)

    def _place(self, kind: str, name: str) -> str:
        if (kind, name) not in self._flags:
            self._flags.append((kind, name))
        return f"\0{self._flags.index((kind, name))}\0"

    def _program(self, number: int) -> Program:
        if number not in self._programs:
            text = self._plain
            for bit in range(len(self._flags)):
                text = text.replace(f"\0{bit}\0", ALWAYS if number >> bit & 1 else NEVER)
            self._programs[number] = Program(text)
        return self._programs[number]
