"""The rule language: pcap-filter(7), address sets, connection state, and what to do with what matches.

    id: dns-reflection
    match: udp and src port 53 and udp[10:2] & 0x8000 != 0 and len > 500 and not src in @resolvers
    action: limit 100 pps per source /24      # or drop, pass, sample
    mode: shadow                              # count and sample only; or enforce
    ttl: 1h                                   # from `created`; the kernel itself ends it
    scope: {labels: {site: fra}, interfaces: [eth0]}

Rules are tried in their order: the first that is enforced and drops or passes decides. A rule of the table
kind has ``fields`` instead of ``match``: masked fields, ranges and sets (collector.filter.fields).
"""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from collector.filter.decision import Graph
from collector.filter.matcher import Flag
from collector.filter.pcap import Instruction, Program
from collector.filter.symbolic import PLACEHOLDER, decide
from schemas.errors import UsageError

NAME = r"[a-z0-9][a-z0-9_.-]{0,62}"
MAX_TTL = 90 * 86_400
MAX_EXPRESSION = 8_000  # characters
_DURATION = re.compile(r"(\d{1,7})\s*(s|m|h|d)?")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, None: 1}
_LIMIT = re.compile(r"limit\s+(\d{1,9})\s*pps\s+per\s+source\s*/\s*(\d{1,3})")
_EXTENSION = re.compile(
    rf"\b(?:(?P<way>src|dst)\s+)?in\s+@(?P<set>{NAME})|\bstate\s+(?P<state>[a-z]+)\b", re.IGNORECASE
)
_HOST_NAME = re.compile(
    r"\b(?:host|net|gateway|src|dst)\s+(?!host\b|net\b|port\b|portrange\b|or\b|and\b|in\b|proto\b|broadcast\b)"
    r"([a-z_][a-z0-9_-]*(?:\.[a-z0-9_-]+)*)(?![\w.:])",
    re.IGNORECASE,
)
_HEX_ADDRESS = re.compile(r"[0-9a-f]{1,4}", re.IGNORECASE)

Interface = Annotated[str, Meta(pattern=r"^[^/\s]{1,15}$")]
Action = Literal["drop", "pass", "sample", "limit"]


class Scope(Struct, forbid_unknown_fields=True, frozen=True):
    """Where a rule holds; empty: everywhere."""

    labels: dict[str, str] = {}  # all of them, as the host has them
    interfaces: list[Interface] = []

    def covers(self, labels: Mapping[str, str], interface: str) -> bool:
        """Whether an interface of a host with these labels is meant."""
        labelled = all(labels.get(key) == value for key, value in self.labels.items())
        return labelled and (not self.interfaces or interface in self.interfaces)


class Rule(Struct, forbid_unknown_fields=True, frozen=True, omit_defaults=True):
    """One rule, as operators write it and as it travels."""

    id: Annotated[str, Meta(pattern=f"^{NAME}$")]
    ttl: str  # mandatory: 30s, 15m, 2h, 7d
    match: str = ""
    fields: dict[str, str] | None = None  # the table kind, instead of `match`
    action: str = "drop"
    mode: Literal["shadow", "enforce"] = "shadow"
    sample: Annotated[int, Meta(ge=0, le=100_000)] = 200  # samples per second, on one host
    scope: Scope = Scope()
    author: str = ""
    comment: str = ""
    created: int = 0  # seconds since 1970; 0: now, set when it is accepted

    @property
    def seconds(self) -> int:
        """The time to live."""
        found = _DURATION.fullmatch(self.ttl.strip())
        seconds = int(found[1]) * _SECONDS[found[2]] if found else 0
        if not 0 < seconds <= MAX_TTL:
            raise UsageError(
                f"rule {self.id}: ttl `{self.ttl}` is not a time like 30s, 15m, 2h, 7d, at most 90d"
            )
        return seconds

    @property
    def expires(self) -> float:
        """When it ends, in seconds since 1970."""
        return (self.created or time.time()) + self.seconds


class Document(Struct, forbid_unknown_fields=True):
    """All that one apply sets: the allow-list, address sets, rules in their order."""

    allow: list[str] = field(default_factory=list)  # prefixes (of sources or destinations) no rule touches
    sets: dict[str, list[str]] = field(default_factory=dict)
    rules: list[Rule] = field(default_factory=list)
    serial: int = 0  # grows with each change; a collector takes no older one


@dataclass(frozen=True)
class Limit:
    """A rate per source prefix."""

    packets_per_second: int
    prefix: int  # bits of an IPv4 source; an IPv6 source counts by as many bits of its first 64 × 2


@dataclass(frozen=True)
class Expression:
    """A compiled expression and the flags behind its placeholders."""

    text: str
    program: Program
    flags: tuple[
        tuple[str, str], ...
    ]  # ("source", set name) | ("destination", set name) | ("established", "")

    @property
    def instructions(self) -> Sequence[Instruction]:
        """Classic BPF, with placeholders."""
        return self.program.instructions

    def sets(self) -> set[str]:
        """The address sets it names."""
        return {argument for name, argument in self.flags if name != "established"}

    def bound(self, numbers: Mapping[str, int]) -> tuple[Flag, ...]:
        """Flags with the numbers that sets have in the kernel."""
        return tuple(Flag(name, numbers.get(argument, 0)) for name, argument in self.flags)


def action(rule: Rule) -> tuple[Action, Limit | None]:
    """What a rule does. Raises :class:`UsageError`."""
    text = " ".join(rule.action.split())
    if text in ("drop", "pass", "sample"):
        return text, None  # type: ignore[return-value]
    found = _LIMIT.fullmatch(text)
    if not found:
        raise UsageError(
            f"rule {rule.id}: `{rule.action}` is not drop, pass, sample or `limit N pps per source /32`"
        )
    rate, bits = int(found[1]), int(found[2])
    if bits not in (24, 32) or not 0 < rate <= 1_000_000:
        raise UsageError(f"rule {rule.id}: a limit is 1 to 1000000 pps per source /32 or /24")
    return "limit", Limit(rate, bits)


def compile_expression(text: str) -> Expression:
    """Text to classic BPF. Raises :class:`UsageError` saying what is wrong with it."""
    if len(text) > MAX_EXPRESSION:
        raise UsageError(
            f"the expression has {len(text)} characters, more than {MAX_EXPRESSION}; use an address set"
        )
    _refuse_names(text)
    flags: list[tuple[str, str]] = []

    def placeholder(name: str, argument: str, wanted: int = 1) -> str:
        if (name, argument) not in flags:
            flags.append((name, argument))
        return f"ether[{PLACEHOLDER + flags.index((name, argument))}:1] = {wanted}"

    def replace(found: re.Match[str]) -> str:
        if found["state"]:
            state = found["state"].lower()
            if state not in ("new", "established"):
                raise UsageError(f"{text!r}: state is `new` or `established`, not `{state}`")
            return f"({placeholder('established', '', int(state == 'established'))})"
        ways = {"src": ("source",), "dst": ("destination",)}.get((found["way"] or "").lower())
        return (
            "("
            + " or ".join(placeholder(way, found["set"]) for way in ways or ("source", "destination"))
            + ")"
        )

    plain = _EXTENSION.sub(replace, text)
    if "@" in plain:
        raise UsageError(f"{text!r}: an address set is used as `src in @name`, `dst in @name` or `in @name`")
    return Expression(text, Program(plain), tuple(flags))


def _refuse_names(text: str) -> None:
    """Names would be looked up in DNS, with another answer on another day."""
    for name in _HOST_NAME.findall(text):
        if not _HEX_ADDRESS.fullmatch(name):
            raise UsageError(f"{text!r}: `{name}` is no address; write addresses, not names")


def check(rule: Rule, sets: Sequence[str] = ()) -> Expression | None:
    """Everything that can be wrong with a rule by itself; its expression if it has one.

    Raises :class:`UsageError` naming the rule and the reason.
    """
    action(rule)
    _ = rule.seconds
    if (rule.fields is None) == (not rule.match.strip()):
        raise UsageError(f"rule {rule.id}: give it either `match` (an expression) or `fields`")
    if rule.fields is not None:
        return None
    try:
        expression = compile_expression(rule.match)
        decide(Graph(), expression.instructions, [0] * len(expression.flags))
    except UsageError as error:
        raise UsageError(f"rule {rule.id}: {error}") from None
    missing = expression.sets() - set(sets)
    if missing:
        raise UsageError(
            f"rule {rule.id}: there is no address set @{min(missing)}; define it or correct the name"
        )
    return expression
