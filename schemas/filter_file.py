"""The filter's rules as files have them: YAML or JSON, for a host or for the fleet.

    allow: [10.0.0.0/8]                       # no rule touches frames from or to these
    sets: {bots: {file: bots.txt}, resolvers: [192.0.2.53]}
    rules:
    - id: dns-reflection
      match: udp and src port 53 and udp[10:2] & 0x8000 != 0 and len > 500 and not src in @resolvers
      action: limit 100 pps per source /24    # or drop, pass, sample
      mode: shadow                            # count and sample only; or enforce
      ttl: 1h                                 # from `created`; the kernel itself ends it
      scope: {labels: {site: fra}, interfaces: [eth0]}

Rules are tried in their order: the first that is enforced and drops or passes decides. A rule of the table
kind has ``fields`` instead of ``match``: masked fields, ranges and sets (schemas.filter_fields).
"""

import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import yaml
from msgspec import Meta, Struct, field

from schemas.desired import matches
from schemas.errors import UsageError
from schemas.filter_expression import NAME

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


def read(file: Path) -> Document:
    """A document from a file; a set may name a file of prefixes, one a line: ``bots: {file: bots.txt}``."""
    try:
        tree = yaml.safe_load(file.read_text()) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"cannot read {file}: {' '.join(str(error).split())}") from None
    sets = tree.get("sets") if isinstance(tree, dict) else None
    sets = sets if isinstance(sets, dict) else {}
    for name, value in list(sets.items()):
        if isinstance(value, dict) and set(value) == {"file"}:
            sets[name] = prefixes_of(file.parent / str(value["file"]))
    try:
        return msgspec.convert(tree, Document)
    except msgspec.ValidationError as error:
        raise UsageError(f"{file}: {error}; see docs/filter.md") from None


def prefixes_of(file: Path) -> list[str]:
    """Prefixes from a file: one a line, ``#`` begins a comment."""
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {file}: {error}") from None
    return [text for line in lines if (text := line.partition("#")[0].strip())]
