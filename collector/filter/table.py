"""Table rules in the kernel (bpf/xdp/filter_table.h): for each value of a field, the rules that it serves.

A rule is written while its bit is not in force; then one word puts it in force. No program is made.
"""

import mmap
from collections.abc import Iterable, Mapping
from ipaddress import IPv6Address
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collector.bpf_map import Map
from collector.filter.layout import FIELDS, TABLE
from schemas.filter_fields import Fields, Side, Spans

CLASS, PROTOCOL, TTL, FLAGS, DESTINATION = 0, 64, 320, 576, 832
DESTINATION_PORT, SOURCE_PORT, LENGTH = 1856, 1856 + 65_536, 1856 + 131_072
PARTS = {PROTOCOL: 256, TTL: 256, DESTINATION_PORT: 65_536, SOURCE_PORT: 65_536, LENGTH: 65_536}
FAMILIES, PIECES = {None: (1, 2), 4: (1,), 6: (2,)}, {"no": 0, "first": 1, "later": 2}
PORTS, TCP = 1, 2  # what a frame may have
ANY, NONE = bytes(16), bytes(16)


class RuleTable:
    """The rules of ``filter_bits`` and ``filter_fields``, by their slots."""

    def __init__(self, maps: Mapping[str, Map]) -> None:
        self.maps = maps

    def write(self, wanted: Mapping[int, Fields], numbers: Mapping[str, int]) -> int:
        """Make the table say this; the bits to put in force. ``numbers``: bits of address sets."""
        if not wanted:
            return 0
        table = self.maps["filter_bits"]
        size = -(-table.max_entries * 8 // mmap.PAGESIZE) * mmap.PAGESIZE
        with mmap.mmap(table.fd, size) as memory:
            bits = np.frombuffer(memory, "<u8", table.max_entries)
            for slot, each in wanted.items():
                self._rule(bits, slot - TABLE, each, _rest(each, numbers))
            del bits
        return sum(1 << slot - TABLE for slot in wanted)

    def _rule(self, bits: NDArray[Any], number: int, fields: Fields, rest: bytes) -> None:
        """One rule. What is there already stays; else no frame fits it until all of it is written."""
        place, bit = number.to_bytes(4, "little"), np.uint64(1 << number)
        wanted = _serving(fields)
        wrong = wanted != (bits & bit != 0)
        if not wrong.any() and self.maps["filter_fields"].lookup(place) == rest:
            return
        bits[:PROTOCOL] &= ~bit
        self.maps["filter_fields"].update(place, rest)
        bits[wrong & ~wanted] &= ~bit
        late = np.flatnonzero(wanted)
        bits[late[late >= PROTOCOL]] |= bit
        bits[late[late < PROTOCOL]] |= bit


def _serving(fields: Fields) -> NDArray[np.bool_]:
    """Which values of each part serve a rule."""
    serving = np.zeros(LENGTH + 65_536, np.bool_)
    spans: dict[int, Spans] = {
        PROTOCOL: fields.protocol, TTL: fields.ttl, DESTINATION_PORT: fields.dst_port,
        SOURCE_PORT: fields.src_port, LENGTH: fields.length,
    }  # fmt: skip
    for start, size in PARTS.items():
        for low, high in spans[start] or ((0, size - 1),):
            serving[start + low : start + high + 1] = True
    serving[[CLASS + kind for kind in _classes(fields)]] = True
    value, mask = fields.tcp_flags or (0, 0)
    serving[FLAGS : FLAGS + 256] = np.arange(256) & mask == value
    address, covered = _masked(fields.dst)
    for at in range(4):
        start = DESTINATION + 256 * at
        serving[start : start + 256] = np.arange(256) & covered[12 + at] == address[12 + at]
    return serving


def _classes(fields: Fields) -> Iterable[int]:
    needs = PORTS * fields.needs_ports | (PORTS | TCP) * (fields.tcp_flags is not None)
    pieces = {PIECES[each] for each in fields.fragment or PIECES}
    for family in FAMILIES[fields.ip]:
        for piece in pieces:
            for has in range(4):
                if has & needs == needs:
                    yield family << 4 | piece << 2 | has


def _masked(side: Side | None) -> tuple[bytes, bytes]:
    """A prefix as an address and a mask of 16 bytes each, IPv4 mapped."""
    if side is None or side.network is None:
        return ANY, NONE
    network = side.network
    if network.version == 6:
        return network.network_address.packed, network.netmask.packed
    return (
        IPv6Address(0xFFFF << 32 | int(network.network_address)).packed,
        IPv6Address(((1 << 96) - 1) << 32 | int(network.netmask)).packed,
    )


def _rest(fields: Fields, numbers: Mapping[str, int]) -> bytes:
    payload = fields.payload
    state = {None: 0, False: 1, True: 2}[fields.established]
    sets = [
        1 << numbers[side.set] if side and side.set and side.outside == outside else 0
        for side in (fields.src, fields.dst)
        for outside in (False, True)
    ]
    return FIELDS.pack(
        *_masked(fields.src), *_masked(fields.dst), payload.value if payload else b"",
        payload.mask if payload else b"", *sets, payload.at if payload else 0,
        len(payload.value) if payload else 0, state, 0,
    )  # fmt: skip
