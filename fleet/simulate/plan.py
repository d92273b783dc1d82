"""What is planted into a simulated fleet, and where a person then finds it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fleet.simulate.values import EDGE, ROLES

PREFIX = "sim-"
LEAST_HOSTS, LEAST_HOURS = 8, 3.5


@dataclass(frozen=True)
class Fleet:
    """Hosts from ``begin`` to ``end`` (seconds since 1970); one seed makes one history."""

    hosts: int
    begin: float
    end: float
    seed: int = 1
    prefix: str = PREFIX

    def host(self, place: int) -> str:
        """Its name, as :data:`fleet.simulate.values.HOST` makes it."""
        return f"{self.prefix}{ROLES[place % EDGE]}-{place}"

    def edges(self) -> list[str]:
        """Those with filter and balancer."""
        return [self.host(place) for place in range(0, self.hosts, EDGE)]

    def ago(self, minutes: float) -> float:
        """That moment before its end."""
        return self.end - minutes * 60


@dataclass(frozen=True)
class Effect:
    """Columns of a stream's rows that are otherwise on some hosts for a while: SQL over the row itself."""

    stream: str
    hosts: tuple[str, ...]
    begin: float
    end: float
    columns: Mapping[str, str]
    where: str = "1"


@dataclass(frozen=True)
class Event:
    """A row of its own."""

    stream: str
    host: str
    ts: float
    columns: Mapping[str, Any]


@dataclass(frozen=True)
class Absence:
    """Nothing comes from a host: of all its streams, or of one, whose batches are lost."""

    host: str
    begin: float
    end: float
    stream: str = ""


@dataclass(frozen=True)
class Look:
    """A panel that shows it: one row has all these texts."""

    board: str
    panel: str
    texts: tuple[str, ...]
    variables: Mapping[str, str] = field(default_factory=dict)
    since: str = "3h"


@dataclass(frozen=True)
class Ask:
    """A question of ``bpfleet forensics`` that tells of it: one row has all these texts."""

    words: tuple[str, ...]
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Incident:
    """One thing that went wrong."""

    name: str
    what: str  # and on which host
    begin: float
    end: float
    effects: tuple[Effect, ...] = ()
    events: tuple[Event, ...] = ()
    absences: tuple[Absence, ...] = ()
    looks: tuple[Look, ...] = ()
    asks: tuple[Ask, ...] = ()


def micros(seconds: float) -> int:
    """As the streams have their times."""
    return int(seconds * 1e6)
