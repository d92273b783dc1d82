"""What goes out: rules as signed desired state, steps and records as rows; and what hosts say."""

import time
from collections.abc import Callable
from typing import Any, Literal, Protocol

from fleet.acknowledge import Answer, Watch, live_hosts
from fleet.attacks import RULE_PREFIX
from fleet.desired import Board, Draft
from fleet.mitigate_case import SECOND, Case, Rule
from schemas.config import Config
from schemas.desired import Document, now_us
from schemas.filter import FILTER

HOSTS_S = 20.0  # how often it is asked which hosts there are
Say = Callable[[dict[str, Any]], None]
ORDER = 600  # behind rules that people wrote, which have 500


class Answers(Protocol):
    """Where a mitigator's decisions go."""

    def note(self, event: dict[str, Any]) -> None:
        """A step; sent with the next flush."""

    def record(self, row: dict[str, Any]) -> None:
        """An attack's record; sent with the next flush."""

    def publish(self, case: Case, rule: Rule, mode: Literal["shadow", "enforce"]) -> None:
        """Have all hosts take the rule."""

    def renew(self, case: Case, rule: Rule) -> None:
        """Give a rule in force more time."""

    def published(self) -> dict[str, Document]:
        """Rules that are published, by name: for attacks that another process began to answer."""

    def listen(self, cases: list[Case], now_us: int) -> None:
        """Take in what hosts said since the last call."""

    def flush(self) -> None:
        """Send what waits."""


class Published:
    """The real one. For one thread; touches Kafka in the constructor already.

    Raises :class:`BpfleetError` when Kafka does not answer.
    """

    def __init__(self, config: Config, say: Say | None = None) -> None:
        self._config, self._say = config, say
        self._board = Board(config)
        self._watch = Watch(config)
        self._board.refresh()
        self._steps: list[dict[str, Any]] = []
        self._records: list[dict[str, Any]] = []
        self._asked = 0.0
        self._hosts: set[str] = set()
        self._refresh_hosts()

    def note(self, event: dict[str, Any]) -> None:
        """See :class:`Answers`."""
        self._steps.append(event)
        if self._say:
            self._say(event)

    def record(self, row: dict[str, Any]) -> None:
        """See :class:`Answers`."""
        self._records.append(row)

    def publish(self, case: Case, rule: Rule, mode: Literal["shadow", "enforce"]) -> None:
        """See :class:`Answers`."""
        self._send(case, rule, mode)
        rule.stage = "shadow" if mode == "shadow" else "enforced"
        if mode == "enforce":
            rule.enforced = rule.published
        self.note(case.event("published" if mode == "shadow" else "enforced", rule.published, rule))

    def renew(self, case: Case, rule: Rule) -> None:
        """See :class:`Answers`. What somebody else changed or removed meanwhile stays as they left it."""
        sealed = self._board.refresh().get(f"{FILTER.name}/{rule.name}")
        if sealed is None or sealed.document.revision != rule.revision:
            rule.stage = "removed"
            who = f" by {sealed.document.author}" if sealed else ""
            self.note(case.event("released", now_us(), rule, reason=f"it was changed{who}: hands off"))
            return
        self._send(case, rule, "enforce" if rule.stage == "enforced" else "shadow")
        self.note(case.event("renewed", rule.published, rule))

    def _send(self, case: Case, rule: Rule, mode: str) -> None:
        ttl = self._config.mitigate.rule_ttl_s
        spec = {"rule": {"fields": rule.pattern.fields, "mode": mode, "order": ORDER}}
        comment = f"{rule.vector} on {case.row(0)['target']}, attack {case.id}"
        (document,) = self._board.publish([Draft(FILTER, rule.name, spec, ttl_s=ttl, comment=comment)])
        rule.published, rule.revision = document.created, document.revision
        rule.expires = document.created + ttl * SECOND
        rule.heard.clear()
        rule.arrived = False

    def published(self) -> dict[str, Document]:
        """See :class:`Answers`."""
        documents = [each.document for each in self._board.refresh().values()]
        return {each.id: each for each in documents if each.kind == FILTER.name and not each.deleted
                and not each.expired(now_us()) and each.id.startswith(RULE_PREFIX)}  # fmt: skip

    def listen(self, cases: list[Case], now_us: int) -> None:
        """See :class:`Answers`."""
        if cases:
            self._refresh_hosts()
        while said := self._watch.poll(0):
            for answer in said:
                for case in cases:
                    for rule in case.rules:
                        if answer.name == f"filter/{rule.name}" and answer.revision == rule.revision:
                            self._heard(case, rule, answer, now_us)

    def _heard(self, case: Case, rule: Rule, answer: Answer, now_us: int) -> None:
        if answer.state in ("refused", "failed"):
            what = "rolled_back" if rule.stage == "enforced" else "refused"
            self.note(case.event(what, now_us, rule, hosts=1, reason=f"{answer.host}: {answer.reason}"))
            if rule.stage == "enforced":  # what one host saw of it holds for all
                self._send(case, rule, "shadow")
                rule.stage = "held"
            return
        rule.heard.add(answer.host)
        if rule.arrived or not self._hosts <= rule.heard:
            return
        rule.arrived = True
        what = "in_force" if rule.stage == "enforced" else "arrived"
        self.note(case.event(what, answer.heard, rule, hosts=len(rule.heard)))
        if rule.stage == "enforced" and not case.in_force:
            case.in_force = answer.heard

    def _refresh_hosts(self) -> None:
        if time.monotonic() - self._asked > HOSTS_S or not self._asked:
            self._hosts = set(live_hosts(self._config))
            self._asked = time.monotonic()

    def flush(self) -> None:
        """See :class:`Answers`."""
        steps, self._steps = self._steps, []
        records, self._records = self._records, []
        self._board.events.ship("attack_event", steps)
        self._board.events.ship("attack", records)

    def close(self) -> None:
        """Give the connections back."""
        self._watch.close()
        self._board.close()


class Told:
    """For `--dry-run` and tests: nothing leaves; steps and records are kept, or printed."""

    def __init__(self, say: Say | None = None) -> None:
        self.steps: list[dict[str, Any]] = []
        self.records: list[dict[str, Any]] = []
        self._say = say

    def note(self, event: dict[str, Any]) -> None:
        """See :class:`Answers`."""
        self.steps.append(event)
        if self._say:
            self._say(event)

    def record(self, row: dict[str, Any]) -> None:
        """See :class:`Answers`."""
        self.records.append(row)

    def publish(self, case: Case, rule: Rule, mode: Literal["shadow", "enforce"]) -> None:
        """See :class:`Answers`."""
        self.note(case.event("suggested", rule.published, rule, reason="dry run: nothing is published"))

    def renew(self, case: Case, rule: Rule) -> None:
        """See :class:`Answers`."""

    def published(self) -> dict[str, Document]:
        """See :class:`Answers`."""
        return {}

    def listen(self, cases: list[Case], now_us: int) -> None:
        """See :class:`Answers`."""

    def flush(self) -> None:
        """See :class:`Answers`."""
