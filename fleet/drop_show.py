"""What `bpfleet drop` shows: published rules, what hosts made of them, and what happened to them."""

import json
from typing import Any

import click
import msgspec
import yaml

from fleet.desired import Board
from fleet.desired_command import scope_text
from fleet.drop_edit import published, spec_of
from schemas import desired
from schemas.clickhouse import connect, explain
from schemas.config import Config
from schemas.desired import Document, now_us
from schemas.errors import BpfleetError, UsageError
from schemas.filter import FILTER, Spec, expression_of
from schemas.filter_expression import compile_expression

COUNTED = (
    "SELECT rule, sumIf(packets, verdict = 'drop'), sumIf(packets, verdict = 'shadow'),"
    " sumIf(packets, verdict = 'pass') FROM filter_stats"
    " WHERE ts >= {since:DateTime64(6)} AND rule IN {rules:Array(String)} GROUP BY rule"
)
EVENTS = (
    "SELECT toString(each.ts) AS ts, host, rule, event, mode, action, author, source, dropped, shadowed,"
    " passed, samples, legitimate, duration_us, reason, match FROM filter_event AS each"
    " WHERE each.ts >= now() - {seconds:UInt64} AND ({rule:String} = '' OR rule = {rule:String})"
    " ORDER BY each.ts"
)
LONG = 60  # characters of an expression in a table


def rows(config: Config, everything: bool) -> list[dict[str, Any]]:
    """One for each rule, in the order in which hosts try them; ``everything``: for other documents too."""
    known = _known(config)
    specs = {name: spec_of(each) for name, each in known.items()}
    rules = sorted((spec.rule.order, name) for name, spec in specs.items() if spec.rule is not None)
    counts = _counted(config, [known[name] for _, name in rules])
    found = [_row(known[name], specs[name], counts.get(name)) for _, name in rules]
    if everything:
        found += [_row(known[name], spec, None) for name, spec in sorted(specs.items()) if spec.rule is None]
    return found


def _known(config: Config) -> dict[str, Document]:
    board = Board(config)
    try:
        known = published(board)
    finally:
        board.close()
    doubtful = sum(each.document.kind == FILTER.name for each, _ in board.doubtful.values())
    if doubtful:
        click.echo(f"{doubtful} more on the topic are not believed: `bpfleet desired list filter`", err=True)
    return known


def _row(document: Document, spec: Spec, counted: tuple[int, int, int] | None) -> dict[str, Any]:
    left = "" if document.expires is None else f"{max(0, document.expires - now_us()) // 1_000_000}s"
    numbers = dict(zip(("dropped", "shadow", "passed"), counted or ("", "", ""), strict=True))
    common = {"rule": document.id, "left": left, "scope": scope_text(document)} | numbers
    if spec.rule is None:
        return common | {"mode": "", "action": "", "match": _content(spec)}
    rule = spec.rule
    match = rule.match or " ".join(f"{name}={value}" for name, value in (rule.fields or {}).items())
    return common | {"mode": rule.mode, "action": rule.action, "match": match}


def _content(spec: Spec) -> str:
    if spec.set is not None:
        return f"{len(spec.set.prefixes)} prefixes of @{spec.set.name}"
    if spec.allow is not None:
        return " ".join(spec.allow)[:LONG]
    return f"{spec.watch.samples} samples a second" if spec.watch is not None else ""


def _counted(config: Config, rules: list[Document]) -> dict[str, tuple[int, int, int]]:
    """Packets dropped, in shadow, passed by each rule since it was published; none without ClickHouse."""
    from clickhouse_connect.driver.exceptions import ClickHouseError

    if not rules:
        return {}
    since = min(each.created for each in rules) / 1e6
    parameters = {"since": since, "rules": [each.id for each in rules]}
    try:
        client = connect(config.clickhouse)
        try:
            answer = client.query(COUNTED, parameters=parameters).result_rows
        finally:
            client.close()
    except (ClickHouseError, OSError, BpfleetError):
        return {}
    return {rule: (dropped, shadow, passed) for rule, dropped, shadow, passed in answer}


def text(config: Config, name: str) -> str:
    """A rule as YAML, and its classic BPF. Raises :class:`UsageError` for one that is not published."""
    document = _known(config).get(name)
    if document is None:
        raise UsageError(f"there is no {name}; `bpfleet drop list --all` shows what there is")
    tree = {
        "id": document.id, "author": document.author, "comment": document.comment,
        "scope": msgspec.to_builtins(document.scope), "revision": document.revision, **document.spec,
    }  # fmt: skip
    lines = [yaml.safe_dump(json.loads(json.dumps(tree)), sort_keys=False).rstrip()]
    rule = spec_of(document).rule
    if rule is not None:
        if rule.fields is not None:
            lines.append(f"# like: {expression_of(rule)}")
        for at, each in enumerate(compile_expression(expression_of(rule)).instructions):
            lines.append(f"# {at:4d}: code {each.code:#04x} jt {each.jt} jf {each.jf} k {each.k:#x}")
    lines.append(f"# what hosts said: bpfleet desired show filter/{name}")
    return "\n".join(lines)


def events(config: Config, name: str | None, since: str) -> list[dict[str, Any]]:
    """Rows of `filter_event`, oldest first."""
    from clickhouse_connect.driver.exceptions import ClickHouseError

    parameters = {"seconds": desired.seconds(since), "rule": name or ""}
    client = connect(config.clickhouse)
    try:
        return list(client.query(EVENTS, parameters=parameters).named_results())
    except (ClickHouseError, OSError) as error:
        raise explain(error, config.clickhouse) from None
    finally:
        client.close()
