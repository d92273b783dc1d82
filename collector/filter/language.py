"""A host's own document of the filter, as `bpfleet drop --local` and files have it, and the check of a rule.

    id: dns-reflection
    match: udp and src port 53 and udp[10:2] & 0x8000 != 0 and len > 500 and not src in @resolvers
    action: limit 100 pps per source /24      # or drop, pass, sample
    mode: shadow                              # count and sample only; or enforce
    ttl: 1h                                   # from `created`; the kernel itself ends it
    scope: {labels: {site: fra}, interfaces: [eth0]}

Rules are tried in their order: the first that is enforced and drops or passes decides. A rule of the table
kind has ``fields`` instead of ``match``: masked fields, ranges and sets (schemas.filter_fields).
"""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from collector.filter.decision import Graph
from collector.filter.matcher import Flag
from collector.filter.symbolic import decide
from schemas import filter_fields
from schemas.desired import matches
from schemas.errors import UsageError
from schemas.filter import Action, Limit, action_of
from schemas.filter_expression import NAME, Expression, compile_expression
from schemas.filter_fields import Fields

MAX_TTL = 90 * 86_400
_DURATION = re.compile(r"(\d{1,7})\s*(s|m|h|d)?")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, None: 1}

Interface = Annotated[str, Meta(pattern=r"^[^/\s]{1,64}$")]


class Scope(Struct, forbid_unknown_fields=True, frozen=True):
    """Where a rule holds; empty: everywhere."""

    labels: dict[str, str] = {}  # all of them, as the host has them
    interfaces: list[Interface] = []  # names or patterns, `!name` leaves one out

    def covers(self, labels: Mapping[str, str], interface: str) -> bool:
        """Whether an interface of a host with these labels is meant."""
        labelled = all(labels.get(key) == value for key, value in self.labels.items())
        return labelled and matches(self.interfaces, interface)


class Rule(Struct, forbid_unknown_fields=True, frozen=True, omit_defaults=True):
    """One rule, as operators write it."""

    id: Annotated[str, Meta(pattern=f"^{NAME}$")]
    ttl: str = ""  # mandatory in files: 30s, 15m, 2h, 7d
    match: str = ""
    fields: dict[str, str] | None = None  # the table kind, instead of `match`
    action: str = "drop"
    mode: Literal["shadow", "enforce"] = "shadow"
    sample: Annotated[int, Meta(ge=0, le=100_000)] = 200  # samples per second, on one host
    scope: Scope = Scope()
    author: str = ""
    comment: str = ""
    created: int = 0  # seconds since 1970; 0: now, set when it is accepted
    ends: int = 0  # µs since 1970, of rules whose end is known; else created + ttl

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
        return self.ends / 1e6 if self.ends else (self.created or time.time()) + self.seconds

    @property
    def content(self) -> str:
        """What it matches, in one line."""
        return self.match or " ".join(f"{name}={text}" for name, text in (self.fields or {}).items())


class Document(Struct, forbid_unknown_fields=True):
    """All that one apply sets: the allow-list, address sets, rules in their order."""

    allow: list[str] = field(default_factory=list)  # prefixes (of sources or destinations) no rule touches
    sets: dict[str, list[str]] = field(default_factory=dict)
    rules: list[Rule] = field(default_factory=list)
    serial: int = 0  # grows with each change; a collector takes no older one


@dataclass(frozen=True)
class Test:
    """What a rule asks of a frame: an expression, or fields."""

    expression: Expression | None = None
    fields: Fields | None = None

    def sets(self) -> set[str]:
        """The address sets it names."""
        asked = self.expression or self.fields
        return asked.sets() if asked else set()

    @property
    def asks_state(self) -> bool:
        """Whether connections must be followed for it."""
        if self.fields is not None:
            return self.fields.established is not None
        return self.expression is not None and ("established", "") in self.expression.flags


def bound(expression: Expression, numbers: Mapping[str, int]) -> tuple[Flag, ...]:
    """The flags of an expression with the numbers that sets have in the kernel."""
    return tuple(Flag(name, numbers.get(argument, 0)) for name, argument in expression.flags)


def action(rule: Rule) -> tuple[Action, Limit | None]:
    """What a rule does. Raises :class:`UsageError`."""
    try:
        return action_of(rule.action)
    except UsageError as error:
        raise UsageError(f"rule {rule.id}: {error}") from None


def check(rule: Rule, sets: Sequence[str] = ()) -> Test:
    """Everything that can be wrong with a rule by itself; what it asks of a frame.

    Raises :class:`UsageError` naming the rule and the reason.
    """
    action(rule)
    _ = rule.expires
    if (rule.fields is None) == (not rule.match.strip()):
        raise UsageError(f"rule {rule.id}: give it either `match` (an expression) or `fields`")
    try:
        if rule.fields is not None:
            test = Test(fields=filter_fields.parse(rule.fields))
        else:
            test = Test(expression=compile_expression(rule.match))
        if test.expression is not None:
            decide(Graph(), test.expression.instructions, [0] * len(test.expression.flags))
    except UsageError as error:
        raise UsageError(f"rule {rule.id}: {error}") from None
    missing = test.sets() - set(sets)
    if missing:
        raise UsageError(
            f"rule {rule.id}: there is no address set @{min(missing)}; define it or correct the name"
        )
    return test
