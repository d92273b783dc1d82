"""The filter of this host as its own commands change it: one change at a time, each in the log."""

import fcntl
import getpass
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from collector import xdp
from collector.filter.figures import Count
from collector.filter.host import Applied, Filter
from collector.filter.language import Document, Rule
from collector.filter.state import State
from schemas.errors import UsageError
from schemas.filter_file import read

FLEET = "documents of desired state rule this host's filter; change them with `bpfleet drop`, without `local`"
Change = Callable[[Document], Document]


class Local:
    """State in ``directory``, pins under ``name`` in bpffs."""

    def __init__(
        self, directory: Path, labels: dict[str, str], name: str = "filter", balancer: Path | None = None
    ) -> None:
        self.directory = directory
        self.balancer = balancer
        self.labels = labels
        self.name = name
        self.log_file = directory / "log.jsonl"

    @property
    def state(self) -> State:
        """What is in force."""
        return State.read(self.directory / "state.json")

    def change(
        self, change: Change, what: str, interfaces: tuple[str, ...] = (), mode: str = "auto"
    ) -> Applied:
        """Apply ``change`` of the document in force; ``what`` goes to the log.

        ``interfaces`` empty: those that have the filter already. Raises UsageError if there are none;
        whatever is raised, nothing has changed.
        """
        with self._lock():
            before = self.state
            if before.fleet:
                raise UsageError(FLEET)
            wanted = list(interfaces) or before.interfaces
            if not wanted:
                raise UsageError("no interface has the filter yet; name them once, like `-i eth0`")
            document, ended = _without_expired(before.document)
            document = change(document)
            document = msgspec.structs.replace(document, serial=before.document.serial + 1)
            with self._filter(wanted, mode) as host:
                applied = host.apply(document)
            for rule in ended:
                self._note("ended", rule=rule.id, ttl=rule.ttl, author=rule.author)
            self._note(what, serial=document.serial, seconds=round(applied.seconds, 3))
            return applied

    def counts(self) -> list[Count]:
        """Counters of the filter in force."""
        if not self.state.interfaces:
            return []
        with self._filter(self.state.interfaces) as host:
            return host.counts()

    def remove(self) -> None:
        """Take the filter off this host; the rules are forgotten."""
        with self._lock():
            state = self.state
            with self._filter(state.interfaces) as host:
                host.detach()
            (self.directory / "state.json").unlink(missing_ok=True)
            self._note("removed")

    def log(self) -> list[dict[str, Any]]:
        """Every change, oldest first."""
        if not self.log_file.exists():
            return []
        return [json.loads(line) for line in self.log_file.read_text().splitlines()]

    def _filter(self, interfaces: list[str], mode: str = "auto") -> Filter:
        pins = xdp.pin_directory(self.name)
        return Filter(
            self.directory, interfaces, labels=self.labels, pins=pins, mode=mode, balancer=self.balancer
        )

    @contextmanager
    def _lock(self) -> Iterator[None]:
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _note(self, what: str, **more: object) -> None:
        who = os.environ.get("SUDO_USER") or getpass.getuser()
        line = json.dumps({"ts": round(time.time(), 3), "who": who, "what": what, **more})
        with self.log_file.open("a") as file:
            file.write(line + "\n")


def _without_expired(document: Document) -> tuple[Document, list[Rule]]:
    ended = [rule for rule in document.rules if rule.expires <= time.time()]
    kept = [rule for rule in document.rules if rule not in ended]
    return msgspec.structs.replace(document, rules=kept), ended


def adding(rule: Rule, first: bool) -> Change:
    """A rule more, behind the others or before them."""

    def change(document: Document) -> Document:
        if any(each.id == rule.id for each in document.rules):
            raise UsageError(f"rule {rule.id} exists; remove it first, or choose another --id")
        rules = [rule, *document.rules] if first else [*document.rules, rule]
        return msgspec.structs.replace(document, rules=rules)

    return change


def editing(names: tuple[str, ...], edit: Callable[[Rule], Rule | None]) -> Change:
    """The named rules changed, or gone where ``edit`` gives None."""

    def change(document: Document) -> Document:
        there = {each.id for each in document.rules}
        for name in names:
            if name not in there:
                raise UsageError(f"there is no rule {name}; `bpfleet drop list` shows those there are")
        edited = [edit(each) if each.id in names else each for each in document.rules]
        return msgspec.structs.replace(document, rules=[each for each in edited if each is not None])

    return change


def replacing(file: Path) -> Change:
    """The whole document from a YAML or JSON file; rules that stay keep the age they have."""
    document = read(file)

    def change(before: Document) -> Document:
        ages = {each.id: each.created for each in before.rules}
        now = int(time.time())
        rules = [msgspec.structs.replace(each, created=each.created or ages.get(each.id) or now)
                 for each in document.rules]  # fmt: skip
        return msgspec.structs.replace(document, rules=rules)

    return change
