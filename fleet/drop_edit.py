"""What `bpfleet drop` writes: documents of kind `filter`, made from commands, files and what is published.

Large sets travel in parts: a prefix always falls into the same part, so that a change publishes few of them.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import entry_points
from typing import Any
from zlib import crc32

import msgspec

from fleet.desired import Board, Draft
from schemas import filter as documents
from schemas.desired import Document, Scope, now_us
from schemas.errors import UsageError
from schemas.filter import FILTER, RuleSpec, Spec
from schemas.filter_expression import compile_expression
from schemas.filter_file import Document as File
from schemas.filter_file import Rule

PART = 4_000  # prefixes of a part, on average
Edit = Callable[[RuleSpec], RuleSpec]


def published(board: Board) -> dict[str, Document]:
    """Documents of kind filter in force, by their ids."""
    now = now_us()
    known = (each.document for each in board.refresh().values())
    return {each.id: each for each in known if each.kind == FILTER.name and not each.deleted
            and not each.expired(now)}  # fmt: skip


def spec_of(document: Document) -> Spec:
    """Its content. Raises :class:`UsageError` for one of another version."""
    return documents.read(document.spec)


def tree(spec: Spec) -> Any:
    """A spec as it travels."""
    return msgspec.to_builtins(spec)


def sets_of(known: Mapping[str, Document]) -> dict[str, list[str]]:
    """All published address sets, whole."""
    found: dict[str, list[str]] = {}
    for document in known.values():
        spec = spec_of(document)
        if spec.set is not None:
            found.setdefault(spec.set.name, []).extend(spec.set.prefixes)
    return found


def check(rule: RuleSpec, sets: Iterable[str]) -> None:
    """Refuse a rule that no host could take: its sets, its program. Raises :class:`UsageError`.

    Where the collector is installed, its compiler has a say, and the kernel's verifier if it may be asked.
    """
    documents.check({"rule": msgspec.to_builtins(rule)})
    asked = compile_expression(documents.expression_of(rule)).sets()
    missing = asked - set(sets)
    if missing:
        raise UsageError(f"there is no address set @{min(missing)}; `bpfleet drop set` publishes one")
    for entry in entry_points(group="bpfleet.trials"):
        if entry.name == FILTER.name:
            entry.load()(rule)


def next_name(known: Mapping[str, Document]) -> str:
    """``rule-N``, the first that is free."""
    return next(f"rule-{n}" for n in range(1, len(known) + 2) if f"rule-{n}" not in known)


def edited(known: Mapping[str, Document], names: Sequence[str], edit: Edit, comment: str) -> list[Draft]:
    """New revisions of rules, with the scope and the end that they have. Raises :class:`UsageError`."""
    drafts = []
    for name in names:
        document = known.get(name)
        spec = spec_of(document) if document else Spec()
        if document is None or spec.rule is None:
            raise UsageError(f"there is no rule {name}; `bpfleet drop list` shows those there are")
        left = math.ceil(((document.expires or 0) - now_us()) / 1e6)
        changed = msgspec.structs.replace(spec, rule=edit(spec.rule))
        comment_now = comment or document.comment
        drafts.append(Draft(FILTER, name, tree(changed), document.scope, max(1, left), comment_now))
    return drafts


def set_drafts(
    known: Mapping[str, Document], name: str, prefixes: Iterable[str], scope: Scope, ttl_s: int | None,
    comment: str = "", origin: str = "",
) -> tuple[list[Draft], list[str]]:  # fmt: skip
    """(documents of a set that are new or differ, ids of parts that are no longer)."""
    unique = sorted(set(prefixes))
    count = 1 << max(0, math.ceil(math.log2(max(1, len(unique)) / PART)))
    parts: list[list[str]] = [[] for _ in range(count)]
    for prefix in unique:
        parts[crc32(prefix.encode()) % count].append(prefix)
    ids = [f"set:{name}" if count == 1 else f"set:{name}:{number}-{count}" for number in range(count)]
    drafts = []
    for part_id, part in zip(ids, parts, strict=True):
        spec = tree(Spec(set=documents.SetSpec(name, part), origin=origin))
        before = known.get(part_id)
        kept = scope if scope != Scope() or before is None else before.scope
        same = before is not None and before.spec == spec and before.scope == kept
        if not same or ttl_s is not None:
            drafts.append(Draft(FILTER, part_id, spec, kept, ttl_s, comment))
    stale = [each.id for each in known.values()
             if _set_name(each) == name and each.id not in ids]  # fmt: skip
    return drafts, stale


def _set_name(document: Document) -> str:
    spec = spec_of(document)
    return spec.set.name if spec.set is not None else ""


def file_drafts(
    known: Mapping[str, Document], file: File, origin: str, scope: Scope
) -> tuple[list[Draft], list[str]]:
    """(what a file wants that is not published so, ids of what an earlier apply of it wanted alone)."""
    names = {*file.sets, *sets_of(known)}
    drafts: list[Draft] = []
    wanted: set[str] = set()
    for name, prefixes in file.sets.items():
        more, _ = set_drafts(known, name, prefixes, scope, None, "", origin)
        drafts += more
        wanted |= {each.id for each in known.values() if _set_name(each) == name} | {each.id for each in more}
    for place, rule in enumerate(file.rules):
        drafts += _rule_draft(known, rule, place, origin, scope, names)
        wanted.add(rule.id)
    if file.allow:
        place_id = f"allow:{origin.partition(':')[2]}"
        spec = tree(Spec(allow=file.allow, origin=origin))
        wanted.add(place_id)
        if place_id not in known or known[place_id].spec != spec:
            drafts.append(Draft(FILTER, place_id, spec, scope))
    stale = [each.id for each in known.values() if spec_of(each).origin == origin and each.id not in wanted]
    return drafts, stale


def _rule_draft(
    known: Mapping[str, Document], rule: Rule, place: int, origin: str, scope: Scope, names: Iterable[str]
) -> list[Draft]:
    before = known.get(rule.id)
    if before is not None and spec_of(before).origin not in ("", origin):
        raise UsageError(f"rule {rule.id} is already published from elsewhere; give it another id")
    spec = RuleSpec(rule.match, rule.fields, rule.action, rule.mode, rule.sample, min(1000, 100 + place))
    try:
        check(spec, names)
        left = rule.expires - time.time()
    except UsageError as error:
        raise UsageError(f"rule {rule.id}: {error}") from None
    own = Scope(scope.hosts, {**scope.labels, **rule.scope.labels},
                tuple(rule.scope.interfaces) or scope.interfaces)  # fmt: skip
    whole = tree(Spec(rule=spec, origin=origin))
    if before is not None and not rule.created and (before.spec, before.scope) == (whole, own):
        return []  # it keeps the age it has
    return [Draft(FILTER, rule.id, whole, own, max(1, math.ceil(left)), rule.comment)]
