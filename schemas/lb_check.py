"""What no field of a balancer's configuration shows alone: contradictions, and what cannot be served.

check(balancer)   # ValueError with the reason, or nothing
"""

import ipaddress
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from schemas.lb import Balancer, Check, Vip

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
MAX_KEYS = 4096  # of the program's table of VIPs: one for each VIP, one for each address
MAX_ROUTES = 32_768  # source prefixes of all VIPs: half the map, so that old and new ones fit at once
MAX_QUIC_IDS = 4_681  # the same; the map has each id for seven rotations
NAME = re.compile(r"[\w.:@-]{1,64}", re.ASCII)
MAC = re.compile(r"([0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}")
INTERFACE = re.compile(r"[^\s/\0]{1,15}")
_MAPPED = ipaddress.ip_network("::ffff:0:0/96")
_BROADCAST = ipaddress.ip_address("255.255.255.255")
_NEVER = [
    ipaddress.ip_network(each)
    for each in (
        "0.0.0.0/8",
        "127.0.0.0/8",
        "224.0.0.0/4",
        "255.255.255.255",
        "::",
        "::1",
        "ff00::/8",
        "fe80::/10",
    )
]


def check(balancer: "Balancer") -> None:
    """All that one field alone does not show. Raises ValueError with the reason."""
    if len(balancer.vips) > balancer.limits.vips:
        raise ValueError(f"{len(balancer.vips)} VIPs, but limits.vips is {balancer.limits.vips}; raise it")
    keys = len(balancer.vips) + len({vip.address for vip in balancer.vips.values()})
    if keys > MAX_KEYS:
        raise ValueError(
            f"{len(balancer.vips)} VIPs and their addresses are {keys} keys, {MAX_KEYS} fit; use prefixes "
            "or port 0 for all ports of an address"
        )
    backends = sum(len(vip.reals) for vip in balancer.vips.values())
    if backends > balancer.limits.backends:
        raise ValueError(f"{backends} reals of all VIPs, but limits.backends is {balancer.limits.backends}")
    _check_host(balancer)
    for name, vip in balancer.vips.items():
        if not NAME.fullmatch(name):
            raise ValueError(f"`{name}` is no name for a VIP: letters, digits and _ . : @ -, at most 64")
        _check_vip(name, vip)
        if vip.check:
            _check_check(name, vip, vip.check)
        _check_routes(name, vip)
    _check_sizes(balancer)
    _check_overlaps(balancer.vips)


def _check_sizes(balancer: "Balancer") -> None:
    """What must fit into maps of a fixed size."""
    routes = sum(len(vip.source_routes) for vip in balancer.vips.values())
    if routes > MAX_ROUTES:
        raise ValueError(f"{routes} source_routes of all VIPs, {MAX_ROUTES} fit")
    ids = sum(bool(real.quic_id) for vip in balancer.vips.values() for real in vip.reals)
    if ids > MAX_QUIC_IDS:
        raise ValueError(f"{ids} reals with a quic_id, {MAX_QUIC_IDS} fit")


def _check_host(balancer: "Balancer") -> None:
    """The settings beside the VIPs."""
    for name, text, version in (
        ("source_ipv4", balancer.source_ipv4, 4),
        ("source_ipv6", balancer.source_ipv6, 6),
    ):
        network = _network(name, text)
        if network.version != version:
            raise ValueError(f"{name}: {text} is not an IPv{version} prefix")
        if _is_never(network):
            raise ValueError(f"{name}: {text} holds addresses that nobody may send from; give another prefix")
    for name in balancer.interfaces:
        if not INTERFACE.fullmatch(name):
            raise ValueError(f"interfaces: `{name}` is no name of an interface")
        if balancer.interfaces.count(name) > 1:
            raise ValueError(f"interfaces: {name} appears twice")
    _check_mac("next_hop", balancer.next_hop)


def _check_mac(what: str, text: str | None) -> None:
    if text is None:
        return
    if not MAC.fullmatch(text):
        raise ValueError(f"{what}: `{text}` is no link address, write it like 02:00:00:00:00:01")
    if int(text[1], 16) & 1 or not int(text.replace(":", ""), 16):
        raise ValueError(f"{what}: {text} is not the address of one station")


def _network(what: str, text: str) -> Network:
    try:
        network = ipaddress.ip_network(text)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None
    if network.version == 6 and network.overlaps(_MAPPED):
        raise ValueError(f"{what}: {text} holds IPv4 addresses in IPv6; write them as IPv4")
    return network


def _is_never(network: Network) -> bool:
    """Whether some of it is nobody's own address anywhere."""
    return any(network.version == each.version and network.overlaps(each) for each in _NEVER)


def _is_nobody(address: Address) -> bool:
    """The same of one address, quicker: there are thousands of reals."""
    many = address.is_multicast or address == _BROADCAST
    return (
        many
        or address.is_unspecified
        or address.is_loopback
        or (address.version == 6 and address.is_link_local)
    )


def _address(what: str, text: str) -> Address:
    if "%" in text:
        raise ValueError(f"{what}: {text} names an interface; give an address that is routed")
    try:
        address = ipaddress.ip_address(text)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None
    if address in _MAPPED:
        raise ValueError(f"{what}: {text} is an IPv4 address in IPv6; write it as IPv4")
    return address


def _check_vip(name: str, vip: "Vip") -> None:
    network = _network(f"VIP {name}", vip.address)
    if _is_never(network):
        raise ValueError(
            f"VIP {name}: {vip.address} cannot be served; give unicast addresses that are routed"
        )
    addresses = [_address(f"VIP {name}: real", real.address) for real in vip.reals]
    for address in addresses:
        if _is_nobody(address):
            raise ValueError(f"VIP {name}: real {address} cannot be reached; give a unicast address")
        if address in network:
            raise ValueError(f"VIP {name}: real {address} is the VIP itself")
    if len(set(addresses)) < len(addresses):
        raise ValueError(f"VIP {name}: a real appears twice")
    if not any(real.wanted for real in vip.reals):
        raise ValueError(
            f"VIP {name}: no real with a weight that is not draining; give it one or remove the VIP"
        )
    if vip.sample & (vip.sample - 1):
        raise ValueError(f"VIP {name}: sample {vip.sample} is not a power of two")
    for real in vip.reals:
        _check_mac(f"VIP {name}: real {real.address}: mac", real.mac)


def _check_check(name: str, vip: "Vip", check: "Check") -> None:
    if not (check.port or vip.port):
        raise ValueError(f"VIP {name}: check needs a port, because the VIP takes any")
    if vip.is_prefix:
        raise ValueError(f"VIP {name}: a prefix cannot be checked; check a VIP of one address")
    if not re.fullmatch(r"/[!-~]*", check.path):
        raise ValueError(f"VIP {name}: check: path {check.path!r} must start with / and be printable ASCII")
    if not re.fullmatch(r"[!-~]*", check.host):
        raise ValueError(f"VIP {name}: check: host {check.host!r} is no name")


def _check_routes(name: str, vip: "Vip") -> None:
    reals = {ipaddress.ip_address(real.address) for real in vip.reals}
    prefixes: set[Network] = set()
    for text, real in vip.source_routes.items():
        prefix = _network(f"VIP {name}: source_routes", text)
        if prefix.version != vip.network.version:
            raise ValueError(f"VIP {name}: source_routes: {prefix} is not of the VIP's address family")
        if prefix in prefixes:
            raise ValueError(f"VIP {name}: source_routes: {prefix} is there twice")
        prefixes.add(prefix)
        if _address(f"VIP {name}: source_routes", real) not in reals:
            raise ValueError(f"VIP {name}: source_routes: {real} is none of its reals")
    ids = [real.quic_id for real in vip.reals if real.quic_id]
    if ids and vip.protocol != "udp":
        raise ValueError(f"VIP {name}: quic_id needs protocol udp")
    if any(len(each) != 2 * vip.quic_id_bytes for each in ids):
        raise ValueError(f"VIP {name}: every quic_id must have quic_id_bytes ({vip.quic_id_bytes}) bytes")
    if len(set(ids)) < len(ids):
        raise ValueError(f"VIP {name}: two reals have the same quic_id")


def _check_overlaps(vips: dict[str, "Vip"]) -> None:
    """No packet may be for two VIPs, and prefixes must not nest."""
    order = sorted(vips.items(), key=lambda each: (each[1].network.version, *_range(each[1])))
    for at, (name, vip) in enumerate(order):
        end = _range(vip)[1]
        for other_name, other in order[at + 1 :]:
            if other.network.version != vip.network.version or _range(other)[0] > end:
                break
            if vip.is_prefix and other.is_prefix and vip.network != other.network:
                raise ValueError(f"VIPs {name} and {other_name} overlap: prefixes must not nest")
            if vip.protocol == other.protocol and (vip.port == other.port or 0 in (vip.port, other.port)):
                raise ValueError(f"VIPs {name} and {other_name} overlap: same address, protocol and port")


def _range(vip: "Vip") -> tuple[int, int]:
    network = vip.network
    return int(network.network_address), int(network.broadcast_address)
