"""Attacks whose mitigator is gone (killed, restarted, its host lost): who finds them next goes on with them.

The records say what is known of them, the published rules what is in force. So a restart leaves no gap
between a rule's end and the next one, an attack keeps its one record, and of two services one takes over.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from fleet.attacks import ALTERNATIVES, Attack, listed
from fleet.mitigate_case import SECOND, Case, Rule, Tally
from fleet.mitigate_distill import Pattern, whole
from fleet.mitigate_tally import LATE_S
from fleet.mitigate_vectors import BY_NAME
from schemas.config import Clickhouse
from schemas.desired import Document

SILENT_S = 20  # a record is written every five seconds while somebody minds it
OLDEST_S = 86_400


def orphans(
    client: Any, config: Clickhouse, rules: Callable[[], Mapping[str, Document]], mine: Collection[str],
    now_us: int,
) -> list[Case]:  # fmt: skip
    """Cases of attacks that are active and that nobody records any more; ``rules`` tells what is published.

    ``mine``: ids that this process minds. Raises :class:`BpfleetError`.
    """
    found = [
        attack
        for attack in listed(client, config, OLDEST_S)
        if attack.state == "active" and attack.id not in mine and now_us - attack.revision > SILENT_S * SECOND
    ]
    known = rules() if found else {}
    return [_case(attack, known) for attack in found]


def _case(attack: Attack, published: Mapping[str, Document]) -> Case:
    vectors = [each for each in attack.vectors.split(", ") if each]
    names = [each for each in attack.rules.split(", ") if each]
    expressions = [each[1:-1] for each in attack.expression.split(ALTERNATIVES)]
    tally = Tally(
        attack.packets, attack.dropped, attack.after, attack.after_dropped, attack.legitimate,
        attack.legitimate_lost, attack.peak_pps, attack.peak_bps, attack.first_drop, attack.source_count,
        attack.sources, {each for each in attack.hosts.split(", ") if each},
    )  # fmt: skip
    case = Case(whole(attack.target), attack.began, attack.detected, attack.policy, vectors, id=attack.id,
                tally=tally)  # fmt: skip
    case.counted = case.last_seen = attack.revision // SECOND - LATE_S
    case.written = attack.revision
    for name, expression in zip(names, expressions, strict=False):
        case.rules.append(_rule(name, expression, published.get(name)))
    if attack.after:
        case.in_force = attack.first_drop
    return case


def _rule(name: str, expression: str, document: Document | None) -> Rule:
    spec = document.spec.get("rule", {}) if document else {}
    pattern = Pattern(spec.get("fields", {}), expression, 1.0, 0.0, 0, 0)
    if document is None:
        return Rule(name, "", pattern, "lapsed", 0)
    vector = document.comment.partition(" on ")[0]
    stage = "enforced" if spec.get("mode") == "enforce" else "held"
    return Rule(
        name, vector if vector in BY_NAME else "", pattern, stage, document.created, document.revision,  # type: ignore[arg-type]
        enforced=document.created if stage == "enforced" else 0, arrived=True, expires=document.expires or 0,
    )  # fmt: skip
