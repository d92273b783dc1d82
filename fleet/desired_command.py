"""``bpfleet desired``: what is wanted of the fleet, what the hosts made of it, and who wanted what when."""

import json
from typing import Any

import click
import msgspec

from fleet.acknowledge import Answer, history
from fleet.desired import Board
from fleet.desired_options import How, expected, print_answers, publish_options
from schemas import desired as documents
from schemas.config import Config
from schemas.desired import Document, Refused, Sealed, Trust, now_us
from schemas.errors import UsageError
from schemas.rows import time_text
from schemas.signing import public_key

EXAMPLES = """\b
Examples:
  bpfleet desired list                      everything that is wanted now
  bpfleet desired show filter/ntp-flood     one document, and what each host said to it
  bpfleet desired rm filter/ntp-flood --wait
  bpfleet desired log filter --since 7d     who did what, and what became of it
"""


@click.group(epilog=EXAMPLES)
def desired() -> None:
    """Desired state of all kinds: probes, forwarding rules, filters (docs/desired-state.md)."""


def signature(sealed: Sealed) -> str:
    """Who signed a document, as far as can be told here."""
    if not sealed.key:
        return ""
    try:
        key = public_key(sealed.key)
        Trust({sealed.key: key}, ()).signer(sealed)
    except (Refused, UsageError):
        return "does not fit"
    return sealed.key


@desired.command("list")
@click.argument("kind", required=False)
@click.option("--all", "everything", is_flag=True, help="Also what has expired or was removed.")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
@click.pass_obj
def list_(config: Config, kind: str | None, everything: bool, as_json: bool) -> None:
    """What is wanted now (of one KIND)."""
    board = Board(config)
    try:
        found = sorted(board.refresh().values(), key=lambda each: each.document.name)
    finally:
        board.close()
    now = now_us()
    rows = [_row(each, now) for each in found
            if everything or not (each.document.deleted or each.document.expired(now))]  # fmt: skip
    rows += [_row(each, now) | {"state": "not believed"} for each, _ in board.doubtful.values()]
    rows = [each for each in rows if kind in (None, each["document"].partition("/")[0])]
    if as_json:
        click.echo(json.dumps(rows, ensure_ascii=False, indent=2))
        return
    from fleet.sql import console, table

    names = ("document", "state", "author", "since", "ends", "signed", "scope", "comment")
    console().print(table(names, [tuple(row[name] for name in names) for row in rows]))


def _row(sealed: Sealed, now: int) -> dict[str, Any]:
    document = sealed.document
    state = "removed" if document.deleted else "expired" if document.expired(now) else "wanted"
    return {
        "document": document.name, "state": state, "author": document.author,
        "since": time_text(document.created), "ends": time_text(document.expires) if document.expires else "",
        "signed": signature(sealed)[:24], "scope": scope_text(document), "comment": document.comment,
        "revision": document.revision,
    }  # fmt: skip


def scope_text(document: Document) -> str:
    """Whom a document is for, in words."""
    scope = document.scope
    labels = [f"{name}={value}" for name, value in scope.labels.items()]
    parts = [*scope.hosts, *labels, *(f"on {each}" for each in scope.interfaces)]
    return " ".join(parts) or "every host"


@desired.command()
@click.argument("name", metavar="KIND/ID")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
@click.pass_obj
def show(config: Config, name: str, as_json: bool) -> None:
    """One document, and what each host in its scope made of it."""
    board = Board(config)
    try:
        sealed = board.refresh().get(name)
    finally:
        board.close()
    if sealed is None:
        doubt = board.doubt(name)
        raise UsageError(f"there is no {name}{doubt}; `bpfleet desired list --all` shows what there is")
    document = sealed.document
    heard = history(config, document)
    answers: dict[tuple[str, str], Answer | None] = dict.fromkeys(
        ((name, host) for host in sorted(expected(document, config) - heard.keys())), None
    )
    answers |= {(name, host): heard[host] for host in sorted(heard)}
    if as_json:
        tree = msgspec.to_builtins(document) | {"digest": document.digest, "signed": signature(sealed)}
        tree["hosts"] = {
            host: {"state": each.state, "reason": each.reason, "ts": each.ts} if each else None
            for (_, host), each in answers.items()
        }
        click.echo(json.dumps(tree, ensure_ascii=False, indent=2))
        return
    for label, value in _row(sealed, now_us()).items():
        click.echo(f"{label:>9}  {value}")
    click.echo(json.dumps(document.spec, ensure_ascii=False, indent=2))
    print_answers([document], answers, False)


@desired.command()
@click.argument("names", metavar="KIND/ID...", nargs=-1, required=True)
@click.option("--unseen", is_flag=True, help="Also what the topic no longer has: hosts may.")
@publish_options
@click.pass_obj
def rm(config: Config, names: tuple[str, ...], unseen: bool, how: How) -> None:
    """End documents: hosts stop doing what they say."""
    how.run(config, lambda board: board.delete(names, how.comment, unseen=unseen))


LOG = """
SELECT * FROM (SELECT * FROM (
SELECT ts, 'published' AS what, host, kind, id, revision, author,
       if(deleted, 'removed', 'wanted') AS state, comment AS reason, digest
FROM desired WHERE ts > now64(6) - {seconds:Float64} AND {name:String} IN ('', kind, concat(kind, '/', id))
UNION ALL
SELECT ts, 'host said' AS what, host, kind, id, revision, author, state, reason, digest
FROM applied WHERE ts > now64(6) - {seconds:Float64} AND {name:String} IN ('', kind, concat(kind, '/', id))
) ORDER BY ts DESC LIMIT {limit:UInt32}) ORDER BY ts
"""


@desired.command()
@click.argument("name", metavar="[KIND[/ID]]", default="")
@click.option("--since", default="1d", show_default=True, help="How far back: 90s, 15m, 2h, 7d.")
@click.option("--limit", default=1000, show_default=True, help="The latest rows, so many at most.")
@click.option("--json", "as_json", is_flag=True, help="One object a line.")
@click.pass_obj
def log(config: Config, name: str, since: str, limit: int, as_json: bool) -> None:
    """The audit trail, from ClickHouse: what was published, and what each host did, in order."""
    from clickhouse_connect.driver.exceptions import ClickHouseError

    from fleet.sql import console, table
    from schemas.clickhouse import connect, explain

    client = connect(config.clickhouse)
    parameters = {"seconds": documents.seconds(since), "name": name, "limit": limit}
    try:
        result = client.query(LOG, parameters=parameters)
    except (ClickHouseError, OSError) as error:
        raise explain(error, config.clickhouse) from None
    finally:
        client.close()
    if as_json:
        for row in result.result_rows:
            click.echo(json.dumps(dict(zip(result.column_names, row, strict=True)), default=str))
    else:
        console().print(table(result.column_names[:-1], [row[:-1] for row in result.result_rows]))
