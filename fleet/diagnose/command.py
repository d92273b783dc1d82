"""``bpfleet diagnose``: what ails a host, or each of the fleet."""

import difflib
import json
import re
import time
from typing import Any

import click

from fleet.flamegraph_question import Window, moment
from schemas.config import Config
from schemas.errors import UsageError

UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600}
LONGEST_S = 86_400
REMEMBERED_S = 30 * 86_400  # hosts heard of since then are named to who misspells one
EXAMPLES = """\b
Examples:
  bpfleet diagnose                              every host, the last five minutes
  bpfleet diagnose --host web-3 --since 10s     one host, now
  bpfleet diagnose --host web-3 --since 15m --until 2026-01-31T03:15
  bpfleet diagnose --json | jq '.[] | select(.verdict != "nothing_wrong")'
  bpfleet diagnose --watch                      a service: verdicts into the table `verdict`
"""


@click.command(epilog=EXAMPLES)
@click.option("--host", default="", help="Only this host; its peers still count as such.")
@click.option("--since", default="5m", show_default=True, metavar="TIME",
              help="The window: 30s, 5m, 1h before its end.")  # fmt: skip
@click.option("--until", default="now", show_default=True, metavar="TIME",
              help="Its end: now, 20m (ago), or ISO 8601 (UTC).")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="For machines.")
@click.option("--watch", "watching", is_flag=True, help="Judge every few seconds and write to the table.")
@click.option("--every", default=2.0, show_default=True, help="With --watch: seconds between judgements.")
@click.pass_obj
def diagnose(config: Config, host: str, since: str, until: str, as_json: bool, watching: bool,
             every: float) -> int:  # fmt: skip
    """Say what ails a host: CPUs, a quota, a neighbour, memory, a disk, the network, a server, or nothing.

    Each verdict comes with its score, the figures against the host's own last hour and against its peers, the
    culprit, and the SQL that shows it. Exits with 1 when something is wrong, 0 when nothing is.
    """
    from clickhouse_connect.driver.exceptions import ClickHouseError

    from fleet.diagnose.judge import judge
    from fleet.diagnose.show import show, tree
    from schemas.clickhouse import connect, explain

    asked = window(since, until)
    try:
        if watching:
            return _watch(config, max(every, 0.5), as_json)
        client = connect(config.clickhouse)
        try:
            rows = judge(client, config, int(asked.end * 1e6), asked.seconds, host)
            if not rows:
                raise UsageError(_nobody(client, host, asked))
        finally:
            client.close()
    except (ClickHouseError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise explain(error, config.clickhouse) from None
    if as_json:
        click.echo(json.dumps([tree(row) for row in rows], indent=2))
    else:
        show(rows, asked)
    return int(any(row["verdict"] != "nothing_wrong" for row in rows))


def window(since: str, until: str = "now") -> Window:
    """The seconds to judge. Raises :class:`UsageError`."""
    end = moment(until.strip(), time.time())
    if end > time.time() + 1:
        raise UsageError(f"--until {until} is still to come")
    return Window(end - seconds(since), end)


def seconds(text: str) -> float:
    """``90s``, ``5m``, ``1h`` in seconds. Raises :class:`UsageError`."""
    found = re.fullmatch(r"([0-9]{1,6})(s|m|min|h)?", text.strip())
    length = int(found[1]) * UNITS[found[2] or "s"] if found else 0
    if not 5 <= length <= LONGEST_S:
        raise UsageError(f"--since is a time of 5s to 24h like 30s, 5m or 1h, not `{text}`")
    return float(length)


def _nobody(client: Any, host: str, asked: Window) -> str:
    """Why there is nothing to judge."""
    names: dict[str, str] = {}
    if client.query("EXISTS TABLE host").result_rows[0][0]:
        names = dict(client.query(
            "SELECT host, formatDateTime(max(ts), '%F %T') FROM host"
            f" WHERE ts > now() - {REMEMBERED_S} GROUP BY host").result_rows)  # fmt: skip
    if not names:
        return "no host has sent anything yet; `bpfleet status` shows what is up"
    if not host:
        return f"no host sent anything in {asked.text()}; the last one heard was {_last(names)}"
    if host in names:
        return f"host {host} sent nothing in {asked.text()}; it was last heard at {names[host]} UTC"
    close = difflib.get_close_matches(host, list(names), n=1, cutoff=0.4)
    meant = f"did you mean `{close[0]}`?" if close else "`bpfleet status` lists them"
    return f"there is no host {host}; {meant}"


def _last(names: dict[str, str]) -> str:
    name, at = max(names.items(), key=lambda each: each[1])
    return f"{name}, at {at} UTC"


def _watch(config: Config, every: float, as_json: bool) -> int:
    from fleet.diagnose.show import tree
    from fleet.diagnose.watch import watch
    from schemas.clickhouse import connect

    for rows in watch(config, lambda: connect(config.clickhouse), every):
        for row in rows:
            if as_json:
                click.echo(json.dumps(tree(row) if "verdict" in row else row))
            elif "error" in row:
                click.echo(f"bpfleet: {row['error']}; trying again", err=True)
            else:
                said = time.strftime("%H:%M:%S", time.gmtime(row["ts"] / 1e6))
                click.echo(
                    f"{said} {row['target_host']}  {row['verdict']}  {row.get('score', 0):.2f}"
                    f"  {row['summary']}"
                )
    return 0
