"""``bpfleet schema``: what is declared, everything that follows from it, and putting it into the store."""

import json
from typing import Any

import click

from schemas import ddl, declare, wire
from schemas.clickhouse import connect, explain
from schemas.config import Config
from schemas.declare import Stream
from schemas.errors import UsageError
from schemas.topics import topic


@click.group()
def schema() -> None:
    """List, show and apply the declarations that every stream comes from."""


@schema.command("list")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def list_(as_json: bool) -> None:
    """Every stream: its probe, where its rows come from, how many columns, how long they are kept."""
    from fleet.sql import console, table

    rows = [
        (each.name, each.probe, each.source, len(each.fields), f"{each.ttl_days} d", each.doc)
        for each in declare.streams().values()
    ]
    names = ("stream", "probe", "from", "columns", "kept", "what")
    if as_json:
        click.echo(json.dumps([dict(zip(names, row, strict=True)) for row in rows], indent=2))
    else:
        console().print(table(names, rows))


@schema.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="The declaration as it stands.")
@click.pass_obj
def show(config: Config, name: str, as_json: bool) -> None:
    """Everything that follows from the declaration of a probe or stream NAME.

    The fields with their types in C, on the wire and in ClickHouse; the kernel's struct; the Avro schema
    of its batches; the statements that make its table.
    """
    probes = declare.load()
    found = (
        probes[name].streams if name in probes else [s for s in declare.streams().values() if s.name == name]
    )
    if not found:
        raise UsageError(f"no stream or probe `{name}`; `bpfleet schema list` shows what there is")
    for stream in found:
        if as_json:
            click.echo(json.dumps(json.loads(stream.declaration), indent=2))
        else:
            _show(stream, config)
    if not as_json and any(each.kernel_fields for each in found):
        from schemas.c_header import generate

        _section("C, prepended to its program")
        click.echo(generate(probes[found[0].probe]))


def _section(title: str) -> None:
    click.secho(f"\n── {title} " + "─" * max(0, 96 - len(title)), fg="cyan")


def _show(stream: Stream, config: Config) -> None:
    from fleet.sql import console, table
    from schemas.columns import packing_name

    click.secho(f"{stream.name}", bold=True, nl=False)
    click.echo(f"  {stream.doc}\n{stream.source} · topic {topic(stream.name)} · kept {stream.ttl_days} days")
    rows: list[Any] = [
        (each.name, str(each.c or "—"), packing_name(each), *ddl.columns(stream)[each.name], each.doc)
        for each in stream.fields
    ]
    console().print(table(("column", "kernel", "wire", "ClickHouse", "codec", "meaning"), rows))
    text = wire.batch_schema(stream)
    _section(f"Avro schema of a batch, fingerprint {wire.fingerprint(text):016x}")
    click.echo(json.dumps(json.loads(text), indent=1))
    _section("ClickHouse")
    for statement in ddl.create(stream, config.clickhouse):
        click.echo(statement + ";")


@schema.command()
@click.option("--dry-run", is_flag=True, help="Print the statements; change nothing.")
@click.option("--backfill", is_flag=True, help="Build new indexes and rollups for older rows, too.")
@click.pass_obj
def apply(config: Config, dry_run: bool, backfill: bool) -> None:
    """Make the database and every table; add columns, indexes and rollups that are new. Safe to run again.

    Indexes and rollups hold for rows written from now on; answers are the same without them, only later.
    Those of an older version, which no schema declares any more, are removed.
    """
    from clickhouse_connect.driver.exceptions import ClickHouseError

    client = connect(config.clickhouse, database="")
    try:
        count = sum(_run(client, each, dry_run) for each in _statements(client, config, backfill))
    except (ClickHouseError, OSError) as error:
        raise explain(error, config.clickhouse) from None
    click.echo(f"{count} statements {'to run' if dry_run else 'run'}; the store has what the schemas declare")


def _run(client: Any, statement: str, dry_run: bool) -> int:
    if dry_run:
        click.echo(statement + ";")
    else:
        client.command(statement)
    return 1


def _statements(client: Any, config: Config, backfill: bool) -> list[str]:
    target = config.clickhouse
    existing: dict[str, dict[str, str]] = {}
    for name, column, kind in _asked(client, config, "columns", "table, name, type"):
        existing.setdefault(name, {})[column] = kind
    extras: dict[str, dict[str, str]] = {}
    for source, kind in (("data_skipping_indices", "INDEX"), ("projections", "PROJECTION")):
        for table, name in _asked(client, config, source, "table, name"):
            extras.setdefault(table, {})[name] = kind
    made = dict(_asked(client, config, "tables", "name, create_table_query"))
    statements = [] if existing else [ddl.database(target)]
    for stream in declare.streams().values():
        if stream.name in existing:
            local = ddl.local_name(stream, target)
            statements += ddl.evolve(stream, existing[stream.name], target)
            statements += ddl.renew_extras(
                stream, extras.get(local, {}), made.get(local, ""), target, backfill
            )
        else:
            statements += ddl.create(stream, target)
    return statements


def _asked(client: Any, config: Config, source: str, wanted: str) -> list[Any]:
    query = f"SELECT {wanted} FROM system.{source} WHERE database = {{database:String}}"
    rows: list[Any] = client.query(query, parameters={"database": config.clickhouse.database}).result_rows
    return rows
