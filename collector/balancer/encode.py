"""From the configuration to the bytes of the maps."""

import hashlib
import ipaddress
import socket
import struct
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from collector.balancer import maglev, next_hop, ring, vip_table
from collector.balancer.dataplane import Dataplane, u32
from collector.balancer.flow import PROTOCOLS, mapped
from collector.balancer.layout import (
    BACKEND,
    CONSTANTS,
    FLAGS,
    PREFIX_KEY,
    QUIC_KEY,
    SETTINGS,
    SOURCE_KEY,
    VIP,
    record,
)
from collector.balancer.ledger import Ledger
from collector.balancer.maglev import Array
from collector.bpf_map import Map, possible_cpus
from schemas.errors import BpfleetError
from schemas.lb import Balancer, Real, Vip

HEADER_BYTES = {("ipip", 4): 20, ("ipip", 6): 40, ("gue", 4): 28, ("gue", 6): 48}
_NEVER = 0xFFFFFFFF
_REFILL_TICKS = 16


class Hops:
    """The next hops of a configuration's reals.

    ``known`` has the hops in force by real: they count where nobody answers now, and with ``trust`` unasked.
    """

    def __init__(self, balancer: Balancer, known: dict[str, next_hop.Hop], *, trust: bool) -> None:
        self._balancer = balancer
        self._known = known
        self._trust = trust
        self._found: dict[str, next_hop.Hop] = {}

    def resolve(self) -> None:
        """Ask for all of them. Raises :class:`BpfleetError`."""
        reals = [real for vip in self._balancer.vips.values() for real in vip.reals]
        asked = {real.address for real in reals if not self._mac(real)}
        if self._trust:
            self._found = {each: self._known[each] for each in asked if each in self._known}
        hops, reasons = (
            next_hop.find(sorted(asked - self._found.keys())) if asked - self._found.keys() else ({}, {})
        )
        self._found |= hops
        for address, reason in reasons.items():
            if address not in self._known:
                raise BpfleetError(reason)
            self._found[address] = self._known[address]

    def _mac(self, real: Real) -> str | None:
        return real.mac or self._balancer.next_hop

    def of(self, real: Real) -> next_hop.Hop:
        """Where packets to ``real`` go; with an address given by hand they leave where they came in."""
        mac = self._mac(real)
        if not mac:
            return self._found[real.address]
        if not self._balancer.interfaces:
            return next_hop.Hop("", 0, next_hop.mac_bytes(mac) + bytes(6))
        return replace(next_hop.via(self._balancer.interfaces[0], mac), interface="")


def known_hops(plane: Dataplane, ledger: Ledger) -> dict[str, next_hop.Hop]:
    """The hop of each real that has a backend, from the map."""
    backends = plane.read_backends()
    names = dict(socket.if_nameindex())
    hops = {}
    for number, (_, address) in ledger.names().items():
        one = backends[number]
        index = int(one["ifindex"])
        if one["mtu"] and index in names:
            hops[address] = next_hop.Hop(names[index], index, one["macs"].tobytes())
    return hops


def _redirects(balancer: Balancer, hop: next_hop.Hop) -> bool:
    """Whether packets leave by an interface that they need not have come in by."""
    return hop.interface != "" and balancer.interfaces != [hop.interface]


def backend(balancer: Balancer, vip: Vip, real: Real, hops: Hops, *, live: bool) -> bytes:
    """``struct lb_backend`` of a real of a VIP; ``live``: its flows go on."""
    address = ipaddress.ip_address(real.address)
    hop = hops.of(real)
    flags = FLAGS["BACKEND_LIVE"] if live else 0
    flags |= FLAGS["BACKEND_IPV6"] if address.version == 6 else 0
    flags |= FLAGS["BACKEND_GUE"] if vip.encapsulation == "gue" else 0
    flags |= FLAGS["BACKEND_REDIRECT"] if _redirects(balancer, hop) else 0
    source = ipaddress.ip_network(balancer.source_ipv4 if address.version == 4 else balancer.source_ipv6)
    varied = 0 if vip.encapsulation == "gue" else int(source.hostmask) & 0xFFFFFFFF
    mtu = balancer.mtu - HEADER_BYTES[vip.encapsulation, address.version]
    return record(
        BACKEND, flags=flags, mtu=mtu, ifindex=hop.index,
        checksum=_header_sum(real, source.network_address) if address.version == 4 else 0,
        source_mask=int.from_bytes(struct.pack("!I", varied), "little"), macs=hop.macs,
        source=mapped(source.network_address), address=mapped(address),
    )  # fmt: skip


def _header_sum(real: Real, source: Any) -> int:
    """The sum of the 16-bit words of the outer IPv4 header that are the same for every packet."""
    destination = ipaddress.ip_address(real.address).packed
    fixed = struct.pack("!BBHHHBBH", 0x45, 0, 0, 0, 0x4000, CONSTANTS["TTL"], 0, 0)
    return sum(struct.unpack("<10H", fixed + source.packed + destination))


def ring_digest(vip: Vip, numbers: list[int]) -> str:
    """What the ring depends on; the same digest, the same ring."""
    parts = sorted((number, real.wanted) for number, real in zip(numbers, vip.reals, strict=True))
    return hashlib.blake2b(repr((parts, vip.untracked)).encode(), digest_size=16).hexdigest()


def slots(vip: Vip, numbers: list[int]) -> Array:
    """The backend number of each slot."""
    owners = _owners(tuple(real.address for real in vip.reals), tuple(real.wanted for real in vip.reals))
    wanted: Array = np.array(numbers, np.uint16)[owners]
    return wanted


@lru_cache(maxsize=16)  # a real that many VIPs share is drained from all of them at once: they have one ring
def _owners(addresses: tuple[str, ...], weights: tuple[int, ...]) -> Array:
    return maglev.ring(addresses, weights).astype(np.uint16)


def _vip_flags(vip: Vip) -> int:
    chosen = {
        "VIP_QUIC": vip.quic_id_bytes > 0,
        "VIP_SOURCE_ROUTES": bool(vip.source_routes),
        "VIP_SOURCE_HASH": vip.source_hash,
        "VIP_UNTRACKED": vip.untracked,
    }
    return sum(FLAGS[name] for name, on in chosen.items() if on)


def _entry(balancer: Balancer, vip: Vip, number: int, learn_until: int, key: bytes) -> bytes:
    rest = record(
        VIP, number=number, seed=balancer.seed, flags=_vip_flags(vip),
        sample_mask=vip.sample - 1 if vip.sample else _NEVER, idle=ring.ticks(vip.idle_seconds),
        learn_until=learn_until, quic_id_bytes=vip.quic_id_bytes,
    )  # fmt: skip
    return key + rest[len(key) :]


def write_vips(plane: Dataplane, ledger: Ledger, balancer: Balancer, changing: list[str]) -> None:
    """Everything packets are looked up by; UDP VIPs whose ring is about to change begin to learn."""
    now = ring.now_ticks()
    old = plane.read_vips()
    learning = {int(each["number"]): int(each["learn_until"]) for each in old[old["used"] == 1]}
    entries: dict[bytes, bytes] = {}
    for name, vip in balancer.vips.items():
        number, address = ledger.vips.taken[name], vip_table.address_of(vip.network)
        until = learning.get(number, 0)
        if name in changing and vip.protocol == "udp":
            until = now + ring.ticks(vip.udp_idle_seconds)
        for key in (vip_table.key(address, vip.port, PROTOCOLS[vip.protocol]), vip_table.key(address)):
            entries[key] = _entry(balancer, vip, number, until, key)
    _sync(plane.maps["lb_prefixes"], _prefixes(balancer), add_only=True)
    _sync(plane.maps["lb_sources"], _sources(ledger, balancer))
    _sync(plane.maps["lb_quic_ids"], _quic_ids(ledger, balancer))
    _write_settings(plane, balancer)
    table = vip_table.build(entries)
    if table.tobytes() != old.tobytes():
        plane.write_vips(table)
    _sync(plane.maps["lb_prefixes"], _prefixes(balancer))


def _prefixes(balancer: Balancer) -> dict[bytes, bytes]:
    found = {}
    for vip in balancer.vips.values():
        if vip.is_prefix:
            network = vip.network
            length = network.prefixlen + (96 if network.version == 4 else 0)
            key = record(PREFIX_KEY, length=length, address=mapped(network.network_address))
            found[key] = vip_table.address_of(network)
    return found


def _sources(ledger: Ledger, balancer: Balancer) -> dict[bytes, bytes]:
    found = {}
    for name, vip in balancer.vips.items():
        for text, real in vip.source_routes.items():
            network = ipaddress.ip_network(text)
            length = 32 + network.prefixlen + (96 if network.version == 4 else 0)
            number = ledger.vips.taken[name]
            key = record(SOURCE_KEY, length=length, vip=number, address=mapped(network.network_address))
            found[key] = u32(ledger.backend(name, real))
    return found


def _quic_ids(ledger: Ledger, balancer: Balancer) -> dict[bytes, bytes]:
    """A server id stands for its real in every configuration rotation but the unroutable one."""
    found = {}
    for name, vip in balancer.vips.items():
        for real in vip.reals:
            if real.quic_id:
                server = bytes.fromhex(real.quic_id).ljust(CONSTANTS["QUIC_ID_BYTES"], b"\0")
                for rotation in range(7):
                    key = record(QUIC_KEY, vip=ledger.vips.taken[name], rotation=rotation, id=server)
                    found[key] = u32(ledger.backend(name, real.address))
    return found


def _sync(table: Map, wanted: dict[bytes, bytes], *, add_only: bool = False) -> None:
    """Bring a small map to what is wanted, key by key."""
    for key, value in wanted.items():
        if table.lookup(key) != value:
            table.update(key, value)
    if not add_only:
        for key in [each for each in table if each not in wanted]:
            table.delete(key)


def _write_settings(plane: Dataplane, balancer: Balancer) -> None:
    """``budget``: half the table may fill at once; ``refill``: again within the longest idle time."""
    flows = plane.maps["lb_flows"].max_entries
    budget = max(1, flows // 2 // possible_cpus())
    idle = max((ring.ticks(vip.idle_seconds) for vip in balancer.vips.values()), default=1)
    value = record(
        SETTINGS, any_port=any(vip.port == 0 for vip in balancer.vips.values()),
        prefixes=any(vip.is_prefix for vip in balancer.vips.values()),
        budget=budget, refill=max(1, budget * _REFILL_TICKS // idle),
    )  # fmt: skip
    plane.maps["lb_settings"].update(u32(0), value)
