"""Desired state of kind `filter`: rules, address sets, allow-lists, and where traffic is watched.

A document is one of these (docs/filter.md has them all):

    {"rule": {"match": "udp and src port 53", "mode": "enforce"}}       its id is the rule's name
    {"rule": {"fields": {"protocol": "udp", "src_port": "53"}}}         no compile on any host
    {"set": {"name": "bots", "prefixes": ["192.0.2.0/24"]}}             several documents may fill one set
    {"allow": ["10.0.0.0/8"]}                                           no rule touches these
    {"watch": {"samples": 1000}}                                        sample what passes

Rules need a time to live; lists and watches may last.
"""

import re
from typing import Annotated, Any, Literal, Protocol

import msgspec
from msgspec import Meta, Struct

from schemas import filter_fields
from schemas.desired import Kind
from schemas.errors import UsageError
from schemas.filter_expression import NAME, compile_expression
from schemas.filter_fields import Fields
from schemas.filter_prefixes import networks

MAX_PREFIXES = 25_000  # of one document: it must travel; a set may have many documents
ORDER = 500  # rules are tried by their order, then by their names
_LIMIT = re.compile(r"limit\s+(\d{1,9})\s*pps\s+per\s+source\s*/\s*(\d{1,3})")

Action = Literal["drop", "pass", "sample", "limit"]
Prefix = Annotated[str, Meta(max_length=50)]


class Limit(Struct, frozen=True):
    """A rate per source prefix."""

    packets_per_second: int
    prefix: int  # 32 or 24 bits of an IPv4 source; an IPv6 source counts by its /64


class RuleSpec(Struct, forbid_unknown_fields=True, frozen=True, omit_defaults=True):
    """What frames, and what becomes of them."""

    match: str = ""
    fields: dict[str, str] | None = None  # the table kind, instead of `match`
    action: Annotated[str, Meta(max_length=100)] = "drop"
    mode: Literal["shadow", "enforce"] = "shadow"
    sample: Annotated[int, Meta(ge=0, le=100_000)] = 200  # samples per second, on one host
    order: Annotated[int, Meta(ge=0, le=1000)] = ORDER
    force: bool = False  # no guard holds it in shadow or takes it back


class Asking(Protocol):
    """What asks something of a frame: a rule of a document, or of a host's own file."""

    @property
    def match(self) -> str:
        """An expression, or nothing."""

    @property
    def fields(self) -> dict[str, str] | None:
        """Fields, or nothing."""


class SetSpec(Struct, forbid_unknown_fields=True, frozen=True):
    """Prefixes of an address set, or a part of them."""

    name: Annotated[str, Meta(pattern=f"^{NAME}$")]
    prefixes: Annotated[list[Prefix], Meta(max_length=MAX_PREFIXES)]


class WatchSpec(Struct, forbid_unknown_fields=True, frozen=True, omit_defaults=True):
    """Where the filter is, whatever rules there are."""

    samples: Annotated[int, Meta(ge=0, le=100_000)] = 1000  # of passed traffic per second, on one host


class Spec(Struct, forbid_unknown_fields=True, frozen=True, omit_defaults=True):
    """A document's content: exactly one of these."""

    rule: RuleSpec | None = None
    set: SetSpec | None = None
    allow: Annotated[list[Prefix], Meta(max_length=MAX_PREFIXES)] | None = None
    watch: WatchSpec | None = None
    origin: Annotated[str, Meta(max_length=100)] = ""  # who keeps it: a file that was applied, a service


def read(spec: Any) -> Spec:
    """The parsed document. Raises :class:`UsageError` for one that is none."""
    try:
        found = msgspec.convert(spec, Spec)
    except (msgspec.ValidationError, RecursionError) as error:
        reason = str(error).replace("`$.", "`").replace("`$", "`spec")
        raise UsageError(f"{reason}; docs/filter.md says what a filter document holds") from None
    given = [name for name in ("rule", "set", "allow", "watch") if getattr(found, name) is not None]
    if len(given) != 1:
        raise UsageError(f"a filter document holds one of rule, set, allow, watch; this has {len(given)}")
    return found


def check_name(name: str) -> None:
    """A rule's name, if one is given. Raises :class:`UsageError`."""
    if name and not re.fullmatch(NAME, name):
        raise UsageError(f"`{name}` is not a rule's name: lower case letters, digits, . _ -, at most 63")


def action_of(text: str) -> tuple[Action, Limit | None]:
    """What a rule does. Raises :class:`UsageError`."""
    plain = " ".join(text.split())
    if plain in ("drop", "pass", "sample"):
        return plain, None  # type: ignore[return-value]
    found = _LIMIT.fullmatch(plain)
    if not found:
        raise UsageError(f"`{text}` is not drop, pass, sample or `limit N pps per source /32`")
    rate, bits = int(found[1]), int(found[2])
    if bits not in (24, 32) or not 0 < rate <= 1_000_000:
        raise UsageError("a limit is 1 to 1000000 pps per source /32 or /24")
    return "limit", Limit(rate, bits)


def fields_of(rule: "Asking") -> Fields | None:
    """The parsed fields of a table rule; None for one with an expression. Raises :class:`UsageError`."""
    if (rule.fields is None) == (not rule.match.strip()):
        raise UsageError("give a rule either `match` (an expression) or `fields`")
    return None if rule.fields is None else filter_fields.parse(rule.fields)


def expression_of(rule: "Asking") -> str:
    """The rule as an expression, also one of the table kind: for a Judge (schemas.filter_expression)."""
    fields = fields_of(rule)
    return rule.match if fields is None else filter_fields.expression(fields)


def check(spec: Any) -> None:
    """Everything that can be wrong with a document by itself. Raises :class:`UsageError`."""
    found = read(spec)
    if found.rule is not None:
        action_of(found.rule.action)
        fields = fields_of(found.rule)
        if fields is None:
            compile_expression(found.rule.match)
        else:
            filter_fields.check_possible(fields)
    elif found.set is not None:
        networks(found.set.prefixes, f"@{found.set.name}")
    elif found.allow is not None:
        networks(found.allow, "allow")


def _is_rule(spec: Any) -> bool:
    return isinstance(spec, dict) and "rule" in spec


FILTER = Kind("filter", check, must_expire=_is_rule)
