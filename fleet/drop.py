"""`bpfleet drop`: packet filters of the fleet, as documents of kind `filter`.

Changes go to Kafka. The filter of one host alone, without Kafka, is `bpfleet drop local …`, which is in the
collector's package and joins this group by the entry points `drop.…`. Imports are late.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fleet.desired_options import How, publish_options, scope_options, ttl
from schemas.errors import UsageError

if TYPE_CHECKING:
    from fleet.desired import Board, Draft
    from schemas.config import Config
    from schemas.desired import Document, Scope
    from schemas.filter import RuleSpec

EXAMPLES = """\b
Examples:
  bpfleet drop watch --interface eth0                              sample what passes, on every host
  bpfleet drop add 'udp and src port 53 and len > 500' --ttl 1h    in shadow: counts and samples
  bpfleet drop list                                                rules, and what they matched
  bpfleet drop enforce rule-1 --wait                               return when all hosts drop
  bpfleet drop set bots bots.txt                                   then: src in @bots
  bpfleet drop allow 10.0.0.0/8                                    no rule touches these
  bpfleet drop apply rules.yaml --label site=fra                   all of a file
  bpfleet drop local add 'udp' --ttl 1h -i eth0                    this host alone, without Kafka
"""
LIST_TTL = click.option("--ttl", "life", help="How long it lives: 30s, 15m, 2h, 7d; default: until removed.")
FIELD = click.option(
    "--field", "pairs", multiple=True, metavar="NAME=VALUE",
    help="Instead of EXPRESSION: protocol=udp, src_port=53 …; hosts need no compile.",
)  # fmt: skip
Made = tuple[Sequence["Draft"], Sequence[str]]  # to publish, ids to end


@click.group(epilog=EXAMPLES)
def drop() -> None:
    """Sample and drop packets in XDP, on the hosts of the fleet: rules in the language of tcpdump."""


def _publish(config: "Config", how: How, make: "Callable[[dict[str, Document]], Made]", same: str) -> None:
    """Publish what ``make`` makes of what is published; ``same``: what to say when that is nothing."""
    from fleet.drop_edit import published

    def publish(board: "Board") -> "list[Document]":
        drafts, ended = make(published(board))
        made = board.publish(drafts) if drafts else []
        made += board.delete([f"filter/{each}" for each in ended], how.comment) if ended else []
        if not made and not how.as_json:
            click.echo(same)
        return made

    how.run(config, publish)


@drop.command()
@click.argument("expression", required=False, default="")
@FIELD
@click.option("--ttl", "life", required=True, help="How long it lives: 30s, 15m, 2h, 7d. The kernel ends it.")
@click.option("--id", "name", default="", help="Its name; default: rule-N.")
@click.option("--action", default="drop", help="drop, pass, sample, or `limit N pps per source /32`.")
@click.option("--enforce", "enforced", is_flag=True, help="At once; default: shadow, count and sample only.")
@click.option("--order", default=500, show_default=True, help="0 to 1000; rules of low order come first.")
@click.option("--sample", default=200, show_default=True, help="Samples per second and host.")
@click.option("--force", is_flag=True, help="No guard holds it in shadow or takes it back.")
@scope_options
@publish_options
@click.pass_obj
def add(
    config: "Config", expression: str, pairs: tuple[str, ...], life: str, name: str, action: str,
    enforced: bool, order: int, sample: int, force: bool, scope: "Scope", how: How,
) -> None:  # fmt: skip
    """Add a rule: EXPRESSION is pcap-filter(7), `src|dst in @SET` and `state new|established`."""
    from fleet.desired import Draft
    from fleet.drop_edit import check, next_name, sets_of, tree
    from schemas import filter as documents

    rule = documents.read({"rule": {
        "match": expression, "fields": _pairs(pairs), "action": action, "order": order, "sample": sample,
        "mode": "enforce" if enforced else "shadow", "force": force,
    }}).rule  # fmt: skip
    assert rule is not None
    documents.action_of(action)
    documents.fields_of(rule)
    seconds = ttl(life)

    def make(known: "dict[str, Document]") -> Made:
        if name in known:
            raise UsageError(f"rule {name} exists; remove it first, or choose another --id")
        check(rule, sets_of(known))
        spec = tree(documents.Spec(rule=rule))
        return [Draft(documents.FILTER, name or next_name(known), spec, scope, seconds, how.comment)], []

    documents.check_name(name)
    _publish(config, how, make, "")


def _pairs(pairs: tuple[str, ...]) -> dict[str, str] | None:
    for each in pairs:
        if "=" not in each:
            raise UsageError(f"--field takes NAME=VALUE, not `{each}`")
    return {name: value for name, _, value in (each.partition("=") for each in pairs)} or None


@drop.command()
@click.argument("names", nargs=-1, required=True)
@publish_options
@click.pass_obj
def rm(config: "Config", names: tuple[str, ...], how: How) -> None:
    """End rules; also sets, as set:NAME, and the lists and watches that `list --all` shows."""

    def make(known: "dict[str, Document]") -> Made:
        ended: list[str] = []
        for name in names:
            found = [each for each in known if each == name or each.startswith(f"{name}:")]
            if not found:
                raise UsageError(f"there is no rule {name}; `bpfleet drop list` shows those there are")
            ended += found
        return [], ended

    _publish(config, how, make, "")


def _edit(config: "Config", names: tuple[str, ...], how: How, edit: "Callable[[RuleSpec], RuleSpec]") -> None:
    from fleet.drop_edit import edited

    _publish(config, how, lambda known: (edited(known, names, edit, how.comment), []), "")


@drop.command()
@click.argument("names", nargs=-1, required=True)
@publish_options
@click.pass_obj
def shadow(config: "Config", names: tuple[str, ...], how: How) -> None:
    """Let rules count and sample only."""
    import msgspec

    _edit(config, names, how, lambda rule: msgspec.structs.replace(rule, mode="shadow"))


@drop.command()
@click.argument("names", nargs=-1, required=True)
@click.option("--force", is_flag=True, help="No guard holds them in shadow or takes them back.")
@publish_options
@click.pass_obj
def enforce(config: "Config", names: tuple[str, ...], force: bool, how: How) -> None:
    """Put rules in force: from now on they drop or limit. Hosts hold back what would hit connections."""
    import msgspec

    _edit(
        config, names, how,
        lambda rule: msgspec.structs.replace(rule, mode="enforce", force=force or rule.force),
    )  # fmt: skip


@drop.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@scope_options
@publish_options
@click.pass_obj
def apply(config: "Config", file: Path, scope: "Scope", how: How) -> None:
    """Publish FILE (YAML: allow, sets, rules), and end what its last apply published and it no longer has."""
    from fleet.drop_edit import file_drafts
    from schemas.filter_file import read

    wanted, origin = read(file), f"file:{file.stem[:60]}"
    _publish(config, how, lambda known: file_drafts(known, wanted, origin, scope), "nothing to change")


@drop.command("set")
@click.argument("name")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@LIST_TTL
@scope_options
@publish_options
@click.pass_obj
def set_(config: "Config", name: str, file: Path, life: str | None, scope: "Scope", how: How) -> None:
    """Make the address set NAME hold the prefixes of FILE, one a line; only what changed is sent."""
    from fleet.drop_edit import set_drafts
    from schemas.filter_file import prefixes_of

    prefixes, seconds = prefixes_of(file), ttl(life)
    _publish(
        config, how, lambda known: set_drafts(known, name, prefixes, scope, seconds, how.comment),
        f"@{name} is published like this",
    )  # fmt: skip


@drop.command()
@click.argument("prefixes", nargs=-1)
@click.option("--id", "name", default="main", show_default=True, help="Which list; all of them count.")
@LIST_TTL
@scope_options
@publish_options
@click.pass_obj
def allow(
    config: "Config", prefixes: tuple[str, ...], name: str, life: str | None, scope: "Scope", how: How
) -> None:
    """Make PREFIXES an allow-list: frames from or to them meet no rule. None: the list ends."""
    _document(config, f"allow:{name}", {"allow": list(prefixes)} if prefixes else None, life, scope, how)


@drop.command()
@click.option("--id", "name", default="main", show_default=True, help="Which watch.")
@click.option("--samples", default=1000, show_default=True, help="Of passed traffic, per second and host.")
@click.option("--off", is_flag=True, help="End it.")
@LIST_TTL
@scope_options
@publish_options
@click.pass_obj
def watch(
    config: "Config", name: str, samples: int, off: bool, life: str | None, scope: "Scope", how: How
) -> None:
    """Put the filter on interfaces (default: those of default routes), to sample what passes."""
    _document(config, f"watch:{name}", None if off else {"watch": {"samples": samples}}, life, scope, how)


def _document(config: "Config", name: str, spec: Any, life: str | None, scope: "Scope", how: How) -> None:
    """One document of its own, or its end."""
    from fleet.desired import Draft
    from schemas.filter import FILTER

    seconds = ttl(life)

    def make(known: "dict[str, Document]") -> Made:
        if spec is None:
            return [], [name] if name in known else []
        return [Draft(FILTER, name, spec, scope, seconds, how.comment)], []

    _publish(config, how, make, f"there is no {name}")


@drop.command("list")
@click.option("--all", "everything", is_flag=True, help="Also sets, allow-lists and watches.")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
@click.pass_obj
def list_(config: "Config", everything: bool, as_json: bool) -> None:
    """Show the rules in their order, and what they matched on all hosts (where ClickHouse answers)."""
    from fleet.drop_show import rows

    found = rows(config, everything)
    if as_json:
        for row in found:
            click.echo(json.dumps(row, ensure_ascii=False))
        return
    from fleet.sql import console, table

    names = ("rule", "mode", "action", "left", "dropped", "shadow", "passed", "scope", "match")
    console().print(table(names, [tuple(row[name] for name in names) for row in found]))


@drop.command()
@click.argument("name")
@click.pass_obj
def show(config: "Config", name: str) -> None:
    """Print a rule whole, its expression, and what each host made of it."""
    from fleet.drop_show import text

    click.echo(text(config, name))


@drop.command()
@click.argument("name", required=False)
@click.option("--since", default="7d", show_default=True, help="How far back: 15m, 2h, 7d.")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
@click.pass_obj
def log(config: "Config", name: str | None, since: str, as_json: bool) -> None:
    """Show what happened to rules (to NAME) on every host: from the table filter_event."""
    from fleet.drop_show import events

    found = events(config, name, since)
    if as_json:
        for row in found:
            click.echo(json.dumps(row, ensure_ascii=False))
        return
    from fleet.sql import console, table

    names = ("ts", "host", "rule", "event", "mode", "author", "dropped", "reason")
    console().print(table(names, [tuple(row[each] for each in names) for row in found]))
