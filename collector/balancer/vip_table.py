"""The table of VIPs that the program reads: each key in one of two places, see bpf/xdp/balancer_vip.h."""

import hashlib
import ipaddress
import struct

import numpy as np

from collector.balancer.flow import HASH_A, HASH_B, mapped
from collector.balancer.layout import CONSTANTS, VIP, VIP_KEY, record
from collector.balancer.maglev import Array
from schemas.errors import BpfleetError

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
PLACES_LOG2 = CONSTANTS["VIP_PLACES_LOG2"]
PLACES = 1 << PLACES_LOG2
MAX_KEYS = PLACES // 4  # so that nearly every key has its first place
_WORD = (1 << 64) - 1
_MOVES = 500


def key(address: bytes, port: int = 0, protocol: int = 0) -> bytes:
    """The key of an address (16 bytes), a port (0: any) and a protocol; all 0 but the address: itself."""
    network_order = int.from_bytes(struct.pack("!H", port), "little")
    return record(VIP_KEY, address=address, port=network_order, protocol=protocol, used=1)


def address_of(network: Network) -> bytes:
    """The 16 bytes VIPs are known by: their address, or the made-up one of their prefix."""
    if network.num_addresses == 1:
        return mapped(network.network_address)
    return b"\xff" * 8 + hashlib.blake2b(str(network).encode(), digest_size=8).digest()


def places(key: bytes) -> tuple[int, int]:
    """The two places of a key."""
    high, low, word = struct.unpack("<QQI", key)
    value = low + high * HASH_B + word * HASH_B & _WORD
    value = (value ^ value >> 32) * HASH_A & _WORD
    return value >> (64 - PLACES_LOG2), value >> (64 - 2 * PLACES_LOG2) & (PLACES - 1)


def build(entries: dict[bytes, bytes]) -> Array:
    """All places with the entries (``struct lb_vip``, which starts with its key) in them."""
    if len(entries) > MAX_KEYS:
        raise BpfleetError(
            f"{len(entries)} VIP keys are too many, {MAX_KEYS} fit; use prefixes or any-port VIPs"
        )
    taken: dict[int, bytes] = {}
    for each in entries:
        _place(taken, each)
    table = np.zeros((PLACES, VIP.itemsize), np.uint8)
    for place, each in taken.items():
        table[place] = np.frombuffer(entries[each], np.uint8)
    return table


def _place(taken: dict[int, bytes], homeless: bytes) -> None:
    """Cuckoo: a key without a free place puts out the one in its place, which moves to its other one."""
    at = places(homeless)[0]
    for _ in range(_MOVES):
        first, second = places(homeless)
        for place in (first, second):
            if place not in taken:
                taken[place] = homeless
                return
        taken[at], homeless = homeless, taken[at]
        first, second = places(homeless)
        at = second if at == first else first
    raise BpfleetError("these VIPs do not fit into the table of VIPs together; change one port or address")
