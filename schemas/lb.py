"""What operators write about the balancer, on both sides of Kafka: checked whole, one error refuses it all.

    balancer = model.load("lb.yaml"); model.parse(tree); balancer.vips["web"].reals

Docs: docs/balancer.md has every setting with an example.
"""

import difflib
import ipaddress
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, field

from schemas import yaml_tree
from schemas.desired import Kind
from schemas.errors import UsageError
from schemas.lb_check import Network, check

Port = Annotated[int, Meta(ge=0, le=65535)]
Positive = Annotated[int, Meta(ge=1)]
Hex = Annotated[str, Meta(pattern="^([0-9a-f]{2}){1,8}$")]


class Real(Struct, forbid_unknown_fields=True, frozen=True, omit_defaults=True):
    """A server behind a VIP."""

    address: str
    weight: Annotated[int, Meta(ge=0, le=65535)] = 100  # 0: no new flows, like `drain`
    drain: bool = False  # keeps the flows it has
    quic_id: Hex | None = None  # server id in the connection ids it makes
    mac: str | None = None  # next hop; otherwise the balancer's

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
    flows: Annotated[int, Meta(ge=1, le=1 << 26)] = 262_144


class Balancer(Struct, forbid_unknown_fields=True, frozen=True, omit_defaults=True):
    """Everything about the balancer of one host."""

    vips: dict[str, Vip] = {}
    interfaces: list[str] = []
    mode: Literal["auto", "native", "generic"] = "auto"
    source_ipv4: str = "10.254.0.0/16"  # outer sources: host bits vary with the flow
    source_ipv6: str = "fd00:254::/96"
    next_hop: str | None = None  # where encapsulated packets go; otherwise asked of the kernel
    mtu: Annotated[int, Meta(ge=1400, le=65535)] = 1500  # of the way to the reals
    seed: Annotated[int, Meta(ge=0, le=(1 << 62) - 1)] = (
        0x2070_6665_6C65_6574  # of flow hashes; same everywhere
    )
    limits: Limits = field(default_factory=Limits)


_UNKNOWN = re.compile(r"unknown field `([^`]*)`")
_PARTS: list[tuple[str, type[Struct]]] = [(".reals[", Real), (".check`", Check), (".limits`", Limits)]


def load(file: str | Path) -> Balancer:
    """Read and check a YAML file. Raises :class:`UsageError`."""
    tree = yaml_tree.read(file)
    if tree is None:
        raise UsageError(f"{file} is empty; `bpfleet lb remove` takes a balancer down")
    return parse(tree, str(file))


def parse(tree: Any, source: str = "balancer") -> Balancer:
    """Check a tree of plain values. Raises :class:`UsageError` that names the place and the reason."""
    try:
        balancer = msgspec.convert(tree, Balancer)
    except msgspec.ValidationError as error:
        raise UsageError(f"{source}: {_reason(tree, str(error))}") from None
    try:
        check(balancer)
    except ValueError as error:
        raise UsageError(f"{source}: {error}") from None
    return balancer


def _reason(tree: Any, said: str) -> str:
    """What is wrong, with the VIP's name, which msgspec does not say, and the setting that may be meant."""
    where = ""
    if "`$.vips[...]" in said:
        for name, vip in tree["vips"].items():
            try:
                msgspec.convert(vip, Vip)
            except msgspec.ValidationError as error:
                where, said = f"VIP {name}: ", str(error)
                break
    text = where + said.replace(" - at `$`", "").replace("`$.", "`")
    wrong = _UNKNOWN.search(said)
    if not wrong:
        return f"{text}; docs/balancer.md has every setting"
    kinds = [kind for part, kind in _PARTS if part in said] or [Vip if where else Balancer]
    close = difflib.get_close_matches(wrong[1], kinds[0].__struct_fields__, n=1, cutoff=0.5)
    hint = f"did you mean `{close[0]}`?" if close else "docs/balancer.md has every setting"
    return f"{text}; {hint}"


def dump(balancer: Balancer) -> dict[str, Any]:
    """The tree that :func:`parse` reads; what has its default is left out."""
    tree = msgspec.to_builtins(balancer)
    assert isinstance(tree, dict)
    return tree


def check_spec(spec: Any) -> None:
    """Whether the spec of a document makes sense anywhere. Raises :class:`UsageError`."""
    if not isinstance(spec, dict):
        raise UsageError("the spec of a balancer is a mapping like the file of `bpfleet lb apply`")
    if not parse(spec, "spec").vips:
        raise UsageError("no VIP; `bpfleet desired rm lb/ID` takes a balancer down")


LB = Kind("lb", check_spec)
