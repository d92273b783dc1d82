"""From documents of desired state to what the filter is to do; what cannot be is refused here."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from collector.desired_worker import Outcome
from collector.filter import language
from collector.filter.interfaces import missing
from collector.filter.language import Rule, Scope
from schemas import filter as documents
from schemas.desired import Document
from schemas.errors import BpfleetError, UsageError
from schemas.filter import ORDER, RuleSpec, Spec

DEFAULT_SAMPLES = 1000  # of passed traffic per second


@dataclass
class Wanted:
    """What documents ask for. Rules are in their order."""

    rules: list[Rule] = field(default_factory=list)
    documents: dict[str, Document] = field(default_factory=dict)  # of the rules, by name
    forced: set[str] = field(default_factory=set)  # rules that no guard may touch
    sets: dict[str, dict[str, list[str]]] = field(default_factory=dict)  # set → digest of its part → prefixes
    allow: list[str] = field(default_factory=list)
    lists: set[str] = field(default_factory=set)  # documents of sets and allow-lists
    watches: list[tuple[str, ...]] = field(default_factory=list)  # patterns of interfaces
    samples: int = DEFAULT_SAMPLES
    refused: dict[str, Outcome] = field(default_factory=dict)  # by document

    @property
    def scopes(self) -> list[tuple[str, ...]]:
        """Patterns of interfaces of each rule."""
        return [tuple(each.scope.interfaces) for each in self.rules]


class Known:
    """What the documents of the last call say: large ones are not read again."""

    def __init__(self) -> None:
        self._specs: dict[str, tuple[Document, Spec, str]] = {}

    def keep(self, given: Iterable[Document]) -> None:
        """Forget all others."""
        same = {each.id: each for each in given}
        self._specs = {name: each for name, each in self._specs.items() if same.get(name) is each[0]}

    def read(self, document: Document) -> tuple[Spec, str]:
        """Its content, and its digest if it is a list. Raises :class:`UsageError`."""
        known = self._specs.get(document.id)
        if known is None or known[0] is not document:
            spec = documents.read(document.spec)
            known = document, spec, document.digest if spec.set is not None else ""
            self._specs[document.id] = known
        return known[1:]


def gather(given: Sequence[Document], known: Known) -> Wanted:
    """All documents as one; those that make no sense, alone or with the others, are in ``refused``."""
    wanted = Wanted()
    known.keep(given)
    rules: list[tuple[int, str, Document, RuleSpec]] = []
    samples = []
    for document in given:
        try:
            spec, digest = known.read(document)
            _take(wanted, document, spec, digest)
        except UsageError as error:
            wanted.refused[document.id] = Outcome("refused", str(error))
            continue
        if spec.rule is not None:
            rules.append((spec.rule.order, document.id, document, spec.rule))
        if spec.watch is not None:
            samples.append(spec.watch.samples)
    wanted.samples = max(samples, default=DEFAULT_SAMPLES)
    for _, name, document, rule in sorted(rules, key=lambda each: each[:2]):
        try:
            made = _rule(document, rule)
            language.check(made, [*wanted.sets])
        except (BpfleetError, msgspec.ValidationError) as error:
            wanted.refused[name] = Outcome("refused", str(error))
            continue
        wanted.rules.append(made)
        wanted.documents[name] = document
        if rule.force:
            wanted.forced.add(name)
    return wanted


def _take(wanted: Wanted, document: Document, spec: Spec, digest: str) -> None:
    if spec.set is not None or spec.allow is not None:
        wanted.lists.add(document.id)
    if spec.set is not None:
        if document.scope.interfaces:
            raise UsageError("an address set belongs to the whole host; leave --interface out")
        wanted.sets.setdefault(spec.set.name, {})[digest] = spec.set.prefixes
    elif spec.allow is not None:
        if document.scope.interfaces:
            raise UsageError("an allow-list belongs to the whole host; leave --interface out")
        wanted.allow += spec.allow
    elif spec.watch is not None:
        wanted.watches.append(document.scope.interfaces)


def _rule(document: Document, rule: RuleSpec) -> Rule:
    tree = {
        "id": document.id, "match": rule.match, "fields": rule.fields, "action": rule.action,
        "mode": rule.mode, "sample": rule.sample, "author": document.author, "comment": document.comment,
        "scope": Scope(interfaces=list(document.scope.interfaces)), "ends": document.expires or 0,
    }  # fmt: skip
    return msgspec.convert(tree, Rule, from_attributes=True)


def rule_spec(rule: Rule) -> RuleSpec:
    """A rule of a file as a document holds it."""
    return RuleSpec(rule.match, rule.fields, rule.action, rule.mode, rule.sample, ORDER)


def outcome_of(wanted: Wanted, given: Iterable[Document], held: Mapping[str, str], trouble: Mapping[str, str]
               ) -> dict[str, Outcome]:  # fmt: skip
    """What to answer for each document: refused, held in shadow, failed on an interface, or applied."""
    answers = {}
    for document in given:
        name = document.id
        answer = wanted.refused.get(name, Outcome())
        if name in held:
            answer = Outcome("refused", held[name])
        elif answer.state == "applied":
            reasons = [why for place, why in trouble.items() if document.scope.covers_interface(place)]
            reasons = [*filter(None, [missing(document.scope.interfaces)]), *reasons]
            if reasons and name not in wanted.lists:
                answer = Outcome("failed", reasons[0])
        answers[name] = answer
    return answers
