"""``bpfleet diagnose``: what ails a host, or each of the fleet."""

import json
import re
import time
from typing import Any

import click

from schemas.config import Config
from schemas.errors import UsageError

UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600}
LONGEST_S = 86_400
EXAMPLES = """\b
Examples:
  bpfleet diagnose                              every host, the last five minutes
  bpfleet diagnose --host web-3 --since 10s     one host, now
  bpfleet diagnose --json | jq '.[] | select(.verdict != "nothing_wrong")'
  bpfleet diagnose --watch                      a service: verdicts into the table `verdict`
"""


@click.command(epilog=EXAMPLES)
@click.option("--host", default="", help="Only this host; its peers still count as such.")
@click.option("--since", default="5m", show_default=True, metavar="TIME", help="The window: 30s, 5m, 1h.")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
@click.option("--watch", "watching", is_flag=True, help="Judge every few seconds and write to the table.")
@click.option("--every", default=2.0, show_default=True, help="With --watch: seconds between judgements.")
@click.pass_obj
def diagnose(config: Config, host: str, since: str, as_json: bool, watching: bool, every: float) -> int:
    """Say what ails a host: CPUs, a quota, a neighbour, memory, a disk, the network, a server, or nothing.

    Each verdict comes with its score, the figures against the host's own last hour and against its peers, the
    culprit, and the SQL that shows it. Exits with 1 when something is wrong, 0 when nothing is.
    """
    from clickhouse_connect.driver.exceptions import ClickHouseError

    from schemas.clickhouse import connect, explain

    window = seconds(since)
    try:
        if watching:
            return _watch(config, max(every, 0.5), as_json)
        client = connect(config.clickhouse)
        try:
            from fleet.diagnose.judge import judge

            rows = judge(client, config, time.time_ns() // 1000, window, host)
        finally:
            client.close()
    except (ClickHouseError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise explain(error, config.clickhouse) from None
    if host and not rows:
        raise UsageError(
            f"no host {host} sent anything in the last {since}; `bpfleet status` lists the hosts"
        )
    if as_json:
        click.echo(json.dumps([_tree(row) for row in rows], indent=2))
    else:
        _print(rows)
    return int(any(row["verdict"] != "nothing_wrong" for row in rows))


def seconds(text: str) -> float:
    """``90s``, ``5m``, ``1h`` in seconds. Raises :class:`UsageError`."""
    found = re.fullmatch(r"([0-9]{1,6})(s|m|min|h)?", text.strip())
    window = int(found[1]) * UNITS[found[2] or "s"] if found else 0
    if not 5 <= window <= LONGEST_S:
        raise UsageError(f"--since is a time of 5s to 24h like 30s, 5m or 1h, not `{text}`")
    return float(window)


def _watch(config: Config, every: float, as_json: bool) -> int:
    from fleet.diagnose.watch import watch
    from schemas.clickhouse import connect

    for rows in watch(config, lambda: connect(config.clickhouse), every):
        for row in rows:
            if as_json:
                click.echo(json.dumps(_tree(row) if "verdict" in row else row))
            elif "error" in row:
                click.echo(f"bpfleet: {row['error']}; trying again", err=True)
            else:
                said = time.strftime("%H:%M:%S", time.gmtime(row["ts"] / 1e6))
                click.echo(
                    f"{said} {row['target_host']}  {row['verdict']}  {row['score']:.2f}  {row['summary']}"
                )
    return 0


def _tree(row: dict[str, Any]) -> dict[str, Any]:
    from schemas.rows import time_text

    times = ("ts", "window_from", "window_to", "began")
    shown: dict[str, Any] = {name: time_text(row[name]) for name in times if name in row}
    return {**row, **shown, "evidence": json.loads(row["evidence"])}


def _print(rows: list[dict[str, Any]]) -> None:
    from rich.markup import escape

    from fleet.sql import console, table

    out = console()
    for row in rows:
        good = row["verdict"] in ("nothing_wrong", "no_data")
        style = "green" if row["verdict"] == "nothing_wrong" else "yellow" if good else "red"
        score = f"score {row.get('score', 0):.2f}"
        out.print(f"[bold]{escape(row['target_host'])}[/]  [{style}]{row['verdict']}[/]  {score}")
        out.print(f"  {escape(row['summary'])}", soft_wrap=True)
        figures = json.loads(row["evidence"])
        if figures:
            shown = [
                (each["metric"], each["thing"], f"{each['value']:.4g} {each['unit']}",
                 _number(each["threshold"]), f"{each['baseline']:.4g} ± {each['spread']:.2g}",
                 _number(each["peers"]))
                for each in figures
            ]  # fmt: skip
            out.print(table(("figure", "of", "value", "threshold", "last hour", "peers"), shown))
        if not good:
            out.print(f'  [dim]bpfleet sql "{escape(row["question"])}"[/]\n', soft_wrap=True)


def _number(value: float) -> str:
    return f"{value:.4g}" if value > 0 else "—"
