"""``bpfleet forensics``: ask about what is long past without writing SQL, or take the SQL and go on."""

import shlex
from collections.abc import Callable
from typing import Any

import click

from fleet.forensics.question import Question, questions
from schemas.config import Config

EPILOG = """\b
Examples:
  bpfleet forensics address 198.51.100.23 --since 90d
  bpfleet forensics dropped 203.0.113.9 --json
  bpfleet forensics changes --host db7 --until 2026-05-01T12:30:00 --since 2026-05-01T11:30:00
  bpfleet forensics sources --since 1h --sql     the statement, ready for bpfleet sql
"""


@click.group(epilog=EPILOG)
def forensics() -> None:
    """Ask what happened: who did what to whom, when, and what we did about it.

    Each question is a statement of SQL with parameters; docs/forensics.md shows answers.
    """


def _asker(question: Question) -> Callable[..., None]:
    def ask(config: Config, **told: Any) -> None:
        as_json, as_csv, only_sql, limit = (told.pop(name) for name in ("as_json", "as_csv", "sql", "limit"))
        values = question.values(told, told.pop("since"), told.pop("until"))
        if only_sql:
            words = "".join(
                f" \\\n  --param {shlex.quote(f'{each}={value}')}" for each, value in values.items()
            )
            click.echo(f"bpfleet sql{words} \"$(cat <<'END'\n{question.sql}\nEND\n)\"")
            return
        _answer(config, question.sql, values, "json" if as_json else "csv" if as_csv else "table", limit)

    return ask


def _answer(config: Config, sql: str, values: dict[str, str], form: str, limit: int) -> None:
    from clickhouse_connect.driver.exceptions import ClickHouseError

    from fleet.sql import FORMATS, print_table, stream
    from schemas.clickhouse import connect, explain

    client = connect(config.clickhouse)
    try:
        if form == "table":
            if not print_table(client, sql, values, limit):
                click.echo(f"nothing from {values['since']} to {values['until']} UTC", err=True)
        else:
            stream(client, sql, values, FORMATS[form])
    except (ClickHouseError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise explain(error, config.clickhouse) from None
    finally:
        client.close()


def _command(question: Question) -> click.Command:
    parameters: list[click.Parameter] = []
    wanted = []
    for each in question.parameters:
        if each.default is None:
            parameters.append(click.Argument([each.name]))
            wanted.append(f"{each.name.upper()} is {each.doc}.")
        else:
            option = f"--{each.name.replace('_', '-')}"
            parameters.append(click.Option([option], default=each.default, help=each.doc.capitalize() + "."))
    parameters += [
        click.Option(["--since"], default=question.since, show_default=True, help="How long ago, or a time."),
        click.Option(["--until"], default="0s", help="How long ago, or a time.  [default: now]"),
        click.Option(["--json", "as_json"], is_flag=True, help="One object a line."),
        click.Option(["--csv", "as_csv"], is_flag=True, help="For spreadsheets."),
        click.Option(["--sql"], is_flag=True, help="Print the statement instead of asking."),
        click.Option(
            ["--limit"],
            default=1000,
            show_default=True,
            type=click.IntRange(min=1),
            help="Rows a table shows at most.",
        ),
    ]
    text = "\n\n".join([question.asks, question.doc, " ".join(wanted)])
    return click.Command(
        question.name, callback=click.pass_obj(_asker(question)), params=parameters, help=text,
        short_help=question.asks,
    )  # fmt: skip


for each in questions().values():
    forensics.add_command(_command(each))
