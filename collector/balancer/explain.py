"""Why a flow goes where it goes, read from the maps in the kernel: VIP, slot, real, and from where.

``explain(state, Flow.parse("tcp 192.0.2.7:4711 -> 198.51.100.1:443"))`` follows the program step by step.
"""

import ipaddress
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from collector.balancer import ring, vip_table
from collector.balancer.dataplane import u32
from collector.balancer.flow import PROTOCOLS, Flow, mapped, slot_of, unmapped
from collector.balancer.layout import FLAGS, FLOW_ENTRY, PREFIX_KEY, SETTINGS, SOURCE_KEY, VIP_KEY, record
from collector.balancer.maglev import Array
from collector.balancer.state import State


@dataclass(frozen=True)
class Explanation:
    """The answer; ``slot`` and ``real`` are None where it ends before them. ``source`` is ring, table, former
    or route."""

    vip: str
    number: int
    slot: int | None
    real: str | None
    source: str
    why: str


def explain(state: State, flow: Flow) -> Explanation:
    """Where the next packet of ``flow`` (not its first) would go."""
    table = state.plane.read_vips()
    found = _find_vip(state, table, flow)
    if found is None:
        return Explanation("", 0, None, None, "", f"no VIP has {flow.destination}:{flow.destination_port}")
    number = int(found["number"])
    names = {value: name for name, value in state.ledger.vips.taken.items()}
    name = names.get(number, f"number {number}")
    flags = int(found["flags"])
    if flags & FLAGS["VIP_SOURCE_ROUTES"]:
        routed = _lookup_source(state, number, flow)
        if routed and _live(state)[routed]:
            return Explanation(
                name, number, None, _real(state, routed), "route", "a source prefix names the real"
            )
    slot = slot_of(flow.hash(int(found["seed"]), source_only=bool(flags & FLAGS["VIP_SOURCE_HASH"])))
    backend, source, why = _follow_ring(state, found, slot, flow)
    if flags & FLAGS["VIP_QUIC"]:
        why += "; a QUIC connection id of a real would win over this"
    return Explanation(name, number, slot, _real(state, backend), source, why)


def _real(state: State, backend: int) -> str | None:
    if backend == 0:
        return None
    return str(unmapped(bytes(state.plane.read_backends()[backend]["address"])))


def _entry(table: Array, key: bytes) -> np.void | None:
    for place in vip_table.places(key):
        if table[place].tobytes()[: VIP_KEY.itemsize] == key:
            entry: np.void = table[place]
            return entry
    return None


def _find_vip(state: State, table: Array, flow: Flow) -> np.void | None:
    settings: Any = np.frombuffer(state.plane.maps["lb_settings"].lookup(u32(0)) or b"", SETTINGS)[0]
    addresses = [mapped(flow.destination)]
    prefix = state.plane.maps["lb_prefixes"].lookup(record(PREFIX_KEY, length=128, address=addresses[0]))
    if settings["prefixes"] and prefix:
        addresses.append(prefix)
    for address in addresses:
        for port in (flow.destination_port, 0):
            found = _entry(table, vip_table.key(address, port, PROTOCOLS[flow.protocol]))
            if found is not None:
                return found
    return None


def _lookup_source(state: State, number: int, flow: Flow) -> int:
    key = record(SOURCE_KEY, length=160, vip=number, address=mapped(flow.source))
    found = state.plane.maps["lb_sources"].lookup(key)
    return int(struct.unpack("=I", found)[0]) if found else 0


def _live(state: State) -> Array:
    """Of each backend number, whether its flows go on."""
    live: Array = state.plane.read_backends()["flags"] & FLAGS["BACKEND_LIVE"] != 0
    return live


def _follow_ring(state: State, vip: np.void, slot: int, flow: Flow) -> tuple[int, str, str]:
    """(backend, source, why) as bpf/xdp/balancer_track.h has it."""
    number = int(vip["number"])
    slots = state.plane.read_ring(number)
    assert slots is not None
    current, former, until = (int(slots[slot][each]) for each in ("current", "former", "until"))
    now = ring.now_ticks()
    if not until or now > until:
        return current, "ring", f"slot {slot} is steady: the ring alone decides"
    raw = state.plane.maps["lb_flows"].lookup(flow.table_key(number))
    live = _live(state)
    if raw:
        entry = np.frombuffer(raw, FLOW_ENTRY)[0]
        if live[entry["backend"]] and now - int(entry["seen"]) <= int(vip["idle"]):
            return int(entry["backend"]), "table", f"slot {slot} changed lately and the flow is remembered"
    if not former or not live[former]:
        return current, "ring", f"slot {slot} changed lately; its former real is gone, so the ring decides"
    if flow.protocol == "udp" and now >= int(vip["learn_until"]):
        return current, "ring", f"slot {slot} changed lately; a UDP flow that nobody remembers by now is new"
    new = _real(state, current)
    return former, "former", f"slot {slot} changed lately: flows of before stay, new ones go to {new}"


def lines(flow: Flow, found: Explanation) -> list[str]:
    """An explanation for people."""
    if not found.vip:
        return [f"{found.why}: the packet is passed to this host"]
    where = found.real or "nowhere: the VIP has no live real"
    family = "IPv6" if found.real and ipaddress.ip_address(found.real).version == 6 else "IPv4"
    slot = "-" if found.slot is None else str(found.slot)
    return [
        f"VIP   {found.vip} (number {found.number})", f"slot  {slot}",
        f"real  {where} ({family})", f"from  {found.source}: {found.why}",
    ]  # fmt: skip
