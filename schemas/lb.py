"""What operators write about the balancer, on both sides of Kafka: checked whole, one error refuses it all.

    balancer = model.load("lb.yaml"); model.parse(tree); balancer.vips["web"].reals

Docs: docs/balancer.md has every setting with an example.
"""

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import yaml
from msgspec import Meta, Struct, field

from schemas.desired import Kind
from schemas.errors import UsageError

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Port = Annotated[int, Meta(ge=0, le=65535)]
Positive = Annotated[int, Meta(ge=1)]
Mac = Annotated[str, Meta(pattern="^([0-9a-f]{2}:){5}[0-9a-f]{2}$")]
MAX_KEYS = 4096  # of the program's table of VIPs: one for each VIP, one for each address
NAME = re.compile(r"[\w.:@-]{1,64}", re.ASCII)
Hex = Annotated[str, Meta(pattern="^([0-9a-f]{2}){1,8}$")]


class Real(Struct, forbid_unknown_fields=True, frozen=True, omit_defaults=True):
    """A server behind a VIP."""

    address: str
    weight: Annotated[int, Meta(ge=0, le=65535)] = 100  # 0: no new flows, like `drain`
    drain: bool = False  # keeps the flows it has
    quic_id: Hex | None = None  # server id in the connection ids it makes
    mac: Mac | None = None  # next hop; otherwise the balancer's

    @property
    def wanted(self) -> int:
        """Its weight in the ring."""
        return 0 if self.drain else self.weight


class Check(Struct, forbid_unknown_fields=True, frozen=True, omit_defaults=True):
    """How the reals of a VIP are asked whether they are well, over the path that carries data."""

    kind: Literal["tcp", "http"] = "tcp"
    port: Port = 0  # 0: the VIP's
    path: str = "/"  # http: a status below 400 is well
    host: str = ""  # http: the name asked for, the VIP's address by default
    interval_seconds: Annotated[float, Meta(ge=0.05, le=3600)] = 2
    timeout_seconds: Annotated[float, Meta(ge=0.05, le=60)] = 1
    rise: Positive = 2  # successes in a row that bring a real back
    fall: Positive = 3  # failures in a row that take it out


class Vip(Struct, forbid_unknown_fields=True, frozen=True, omit_defaults=True):
    """An address (or prefix), a port (0: any) and a protocol, and who serves them."""

    address: str
    port: Port
    reals: list[Real]
    protocol: Literal["tcp", "udp"] = "tcp"
    encapsulation: Literal["ipip", "gue"] = "ipip"
    source_hash: bool = False  # the client's port does not count
    untracked: bool = False  # changed slots move at once: for stateless services
    quic_id_bytes: Annotated[int, Meta(ge=0, le=8)] = 0  # length of server ids; 0: no routing by them
    source_routes: dict[str, str] = {}  # client prefix → address of a real
    sample: Annotated[int, Meta(ge=0, le=1 << 24)] = 0  # a flow record every so many packets; 0: none
    idle_seconds: Annotated[float, Meta(gt=0, le=86_400)] = 300  # then a silent flow is forgotten
    udp_idle_seconds: Annotated[float, Meta(gt=0, le=3_600)] = 30
    check: Check | None = None  # none: every real counts as well

    @property
    def network(self) -> Network:
        """Its addresses."""
        return ipaddress.ip_network(self.address)

    @property
    def is_prefix(self) -> bool:
        """Whether it has more than one address."""
        return self.network.num_addresses > 1


class Limits(Struct, forbid_unknown_fields=True, frozen=True, omit_defaults=True):
    """Sizes of the maps; fixed when they are made."""

    vips: Annotated[int, Meta(ge=1, le=4095)] = 1023
    backends: Annotated[int, Meta(ge=1, le=65534)] = 16383
    flows: Positive = 262_144


class Balancer(Struct, forbid_unknown_fields=True, frozen=True, omit_defaults=True):
    """Everything about the balancer of one host."""

    vips: dict[str, Vip] = {}
    interfaces: list[str] = []
    mode: Literal["auto", "native", "generic"] = "auto"
    source_ipv4: str = "10.254.0.0/16"  # outer sources: host bits vary with the flow
    source_ipv6: str = "fd00:254::/96"
    next_hop: Mac | None = None  # where encapsulated packets go; otherwise asked of the kernel
    mtu: Annotated[int, Meta(ge=1400, le=65535)] = 1500  # of the way to the reals
    seed: Annotated[int, Meta(ge=0, le=(1 << 62) - 1)] = (
        0x2070_6665_6C65_6574  # of flow hashes; same everywhere
    )
    limits: Limits = field(default_factory=Limits)


def load(file: str | Path) -> Balancer:
    """Read and check a YAML file. Raises :class:`UsageError`."""
    try:
        tree = yaml.safe_load(Path(file).read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {file}: {error}") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from None
    return parse(tree or {}, str(file))


def parse(tree: Any, source: str = "balancer") -> Balancer:
    """Check a tree of plain values. Raises :class:`UsageError` that names the place and the reason."""
    try:
        balancer = msgspec.convert(tree, Balancer)
    except msgspec.ValidationError as error:
        raise UsageError(f"{source}: {error}; docs/balancer.md has every setting") from None
    try:
        check(balancer)
    except ValueError as error:
        raise UsageError(f"{source}: {error}") from None
    return balancer


def dump(balancer: Balancer) -> dict[str, Any]:
    """The tree that :func:`parse` reads; what has its default is left out."""
    tree = msgspec.to_builtins(balancer)
    assert isinstance(tree, dict)
    return tree


def check(balancer: Balancer) -> None:
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
    for name, text, version in (
        ("source_ipv4", balancer.source_ipv4, 4),
        ("source_ipv6", balancer.source_ipv6, 6),
    ):
        network = _network(name, text)
        if network.version != version:
            raise ValueError(f"{name}: {text} is not an IPv{version} prefix")
    for name, vip in balancer.vips.items():
        if not NAME.fullmatch(name):
            raise ValueError(f"`{name}` is no name for a VIP: letters, digits and _ . : @ -, at most 64")
        _check_vip(name, vip)
    _check_overlaps(balancer.vips)


def _network(what: str, text: str) -> Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None


def _address(what: str, text: str) -> Address:
    if "%" in text:
        raise ValueError(f"{what}: {text} names an interface; give an address that is routed")
    try:
        return ipaddress.ip_address(text)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None


def _check_vip(name: str, vip: Vip) -> None:
    network = _network(f"VIP {name}", vip.address)
    if network.is_multicast or network.is_unspecified:
        raise ValueError(f"VIP {name}: {vip.address} cannot be served; give a unicast address")
    addresses = [_address(f"VIP {name}: real", real.address) for real in vip.reals]
    for address in addresses:
        if address.is_multicast or address.is_unspecified or address.is_loopback:
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
    if vip.check and not (vip.check.port or vip.port):
        raise ValueError(f"VIP {name}: check needs a port, because the VIP takes any")
    if vip.check and vip.is_prefix:
        raise ValueError(f"VIP {name}: a prefix cannot be checked; check a VIP of one address")
    _check_routes(name, vip, set(addresses))


def _check_routes(name: str, vip: Vip, reals: set[Address]) -> None:
    for prefix, real in vip.source_routes.items():
        if _network(f"VIP {name}: source_routes", prefix).version != vip.network.version:
            raise ValueError(f"VIP {name}: source_routes: {prefix} is not of the VIP's address family")
        if _address(f"VIP {name}: source_routes", real) not in reals:
            raise ValueError(f"VIP {name}: source_routes: {real} is none of its reals")
    ids = [real.quic_id for real in vip.reals if real.quic_id]
    if ids and vip.protocol != "udp":
        raise ValueError(f"VIP {name}: quic_id needs protocol udp")
    if any(len(each) != 2 * vip.quic_id_bytes for each in ids):
        raise ValueError(f"VIP {name}: every quic_id must have quic_id_bytes ({vip.quic_id_bytes}) bytes")
    if len(set(ids)) < len(ids):
        raise ValueError(f"VIP {name}: two reals have the same quic_id")


def _check_overlaps(vips: dict[str, Vip]) -> None:
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


def _range(vip: Vip) -> tuple[int, int]:
    network = vip.network
    return int(network.network_address), int(network.broadcast_address)


def check_spec(spec: Any) -> None:
    """Whether the spec of a document makes sense anywhere. Raises :class:`UsageError`."""
    if not isinstance(spec, dict):
        raise UsageError("the spec of a balancer is a mapping like the file of `bpfleet lb apply`")
    if not parse(spec, "spec").vips:
        raise UsageError("no VIP; `bpfleet desired rm lb/ID` takes a balancer down")


LB = Kind("lb", check_spec)
