"""``bpfleet sql``: ask the fleet, read a table; or CSV and JSON for machines."""

import ipaddress
import shutil
import sys
from typing import Any

import click

from schemas.clickhouse import connect, explain
from schemas.config import Config
from schemas.errors import UsageError

FORMATS = {"csv": "CSVWithNames", "json": "JSONEachRow", "tsv": "TSVWithNames"}
EXAMPLES = """\b
Examples:
  bpfleet sql "SHOW TABLES"
  bpfleet sql "SELECT reason, count() FROM packet_drop GROUP BY reason ORDER BY 2 DESC"
  bpfleet sql --param port=443 "SELECT * FROM tcp_flow WHERE remote_port = {port:UInt16} LIMIT 5"
  bpfleet sql --json "SELECT host, max(ts) FROM host GROUP BY host" | jq .
  bpfleet sql < question.sql
"""


@click.command(epilog=EXAMPLES)
@click.argument("query", required=False)
@click.option("--format", "form", type=click.Choice(["table", *FORMATS]), default="table", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Short for --format json: one object a line.")
@click.option("--csv", "as_csv", is_flag=True, help="Short for --format csv.")
@click.option(
    "--param", "parameters", multiple=True, metavar="NAME=VALUE", help="A {NAME:Type} of the query."
)
@click.option("--limit", default=1000, show_default=True, help="Rows a table shows at most.")
@click.pass_obj
def sql(
    config: Config,
    query: str | None,
    form: str,
    as_json: bool,
    as_csv: bool,
    parameters: tuple[str, ...],
    limit: int,
) -> None:
    """Run QUERY (or standard input) on ClickHouse and print what it answers."""
    from clickhouse_connect.driver.exceptions import ClickHouseError

    if query is None:
        query = "" if sys.stdin.isatty() else sys.stdin.read()
    if not query.strip():
        raise UsageError('no query; try: bpfleet sql "SHOW TABLES"')
    form = "json" if as_json else "csv" if as_csv else form
    client = connect(config.clickhouse)
    try:
        if form == "table":
            print_table(client, query, _parameters(parameters), limit)
        else:
            stream(client, query, _parameters(parameters), FORMATS[form])
    except (ClickHouseError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise explain(error, config.clickhouse) from None
    finally:
        client.close()


def _parameters(pairs: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator or not name:
            raise UsageError(f"--param takes NAME=VALUE, not `{pair}`")
        found[name] = value
    return found


def stream(client: Any, query: str, parameters: dict[str, str], form: str) -> None:
    """Write the answer to standard output as it comes, in one of FORMATS."""
    with client.raw_stream(query, parameters=parameters, fmt=form) as body:
        shutil.copyfileobj(body, sys.stdout.buffer)
    sys.stdout.flush()


def print_table(client: Any, query: str, parameters: dict[str, str], limit: int) -> int:
    """Print the answer's first ``limit`` rows for people; returns how many it has."""
    result = client.query(query, parameters=parameters)
    if not result.column_names:
        return 0
    rows = result.result_rows
    console().print(table(result.column_names, rows[:limit]))
    if len(rows) > limit:
        click.echo(f"… {len(rows) - limit} more rows; add LIMIT, --limit, or --format csv", err=True)
    return len(rows)


def console() -> Any:
    """A rich console that never cuts a table short when it writes to a pipe."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 240)


def table(names: Any, rows: Any) -> Any:
    """A rich table; numbers stand right."""
    from rich import box
    from rich.table import Table

    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(names):
        numeric = all(isinstance(row[index], int | float) for row in rows) and bool(rows)
        drawn.add_column(str(name), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(_text(value) for value in row))
    return drawn


def _text(value: Any) -> str:
    from rich.markup import escape

    if value is None:
        return "—"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, ipaddress.IPv6Address):
        return str(value.ipv4_mapped or value)
    return escape(str(value))
