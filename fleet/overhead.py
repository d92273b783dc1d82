"""``bpfleet overhead``: what seeing costs, per program, host and fleet."""

import json
from typing import Any

import click

from schemas.config import Config
from schemas.errors import UsageError

EXAMPLES = """\b
Examples:
  bpfleet overhead                       programs of the whole fleet, costliest first
  bpfleet overhead --by host             each host: programs and collector together
  bpfleet overhead --host web-3 --since 1h
  bpfleet overhead --json | jq '.[] | select(.cpu_percent > 0.1)'
"""
# A host's capacity is its CPUs times the time its collector reported; the heartbeat tells how many it has.
CORES = "SELECT host, toFloat64(argMax(cores, ts)) AS cores FROM host WHERE {since} AND {hosts} GROUP BY host"
LIVED = (
    "SELECT host, sum(interval_us) AS lived_us FROM collector_health WHERE kind = 'process' AND {since}"
    " AND {hosts} GROUP BY host"
)
ROWS = (
    "SELECT host, kind, probe, program, sum(run_ns) AS run_ns, sum(runs) AS runs, sum(cpu_us) AS cpu_us"
    " FROM collector_health WHERE kind IN ('program', 'process') AND interval_us > 0 AND {since} AND {hosts}"
    " GROUP BY host, kind, probe, program"
)
COSTS = (
    f"SELECT *, greatest(lived_us, 1) AS time_us FROM ({ROWS}) AS r"
    f" LEFT JOIN ({LIVED}) AS l USING (host) LEFT JOIN ({CORES}) AS c USING (host)"
)
SPENT = "(run_ns / 1e3 + cpu_us)"  # µs of CPU
PER_HOST = f"{SPENT} / (time_us * greatest(cores, 1)) * 100"
BY = {
    "program": (
        "SELECT if(kind = 'process', 'collector', probe) AS probe, program, uniqExact(host) AS hosts,"
        " if(sum(runs) > 0, sum(run_ns) / sum(runs), 0) AS ns_per_event,"
        " sum(runs / time_us * 1e6) AS events_per_second, avg({share}) AS cpu_percent,"
        " max({share}) AS worst_percent FROM ({costs}) GROUP BY probe, program, kind"
        " ORDER BY cpu_percent DESC"
    ),
    "host": (
        "SELECT host, max(cores) AS cpus, sum(if(kind = 'program', {share}, 0)) AS programs_percent,"
        " sum(if(kind = 'process', {share}, 0)) AS collector_percent, sum({share}) AS cpu_percent,"
        " sum(runs / time_us * 1e6) AS events_per_second FROM ({costs}) GROUP BY host"
        " ORDER BY cpu_percent DESC"
    ),
    "both": (
        "SELECT host, if(kind = 'process', 'collector', probe) AS probe, program,"
        " if(sum(runs) > 0, sum(run_ns) / sum(runs), 0) AS ns_per_event,"
        " sum(runs / time_us * 1e6) AS events_per_second, sum({share}) AS cpu_percent FROM ({costs})"
        " GROUP BY host, probe, program, kind ORDER BY host, cpu_percent DESC"
    ),
}
EVENTS = (
    "SELECT ts, host, probe, action, level, setting, value_before, value_after, round(total_percent, 3) AS"
    " total_percent, budget_percent, reason FROM overhead_event WHERE {since} AND {hosts} ORDER BY ts"
)


@click.command(epilog=EXAMPLES)
@click.option("--host", default="", help="Only this host.")
@click.option("--since", default="10m", show_default=True, metavar="TIME", help="The window: 30s, 10m, 1h.")
@click.option("--by", type=click.Choice(sorted(BY)), default="program", show_default=True,
              help="A row for each program of the fleet, each host, or both.")  # fmt: skip
@click.option("--events", is_flag=True, help="What the budget did instead: slowed, detached, restored.")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
@click.pass_obj
def overhead(config: Config, host: str, since: str, by: str, events: bool, as_json: bool) -> None:
    """Show what bpfleet costs: ns per event, events/s and share of CPU, of programs and hosts.

    Shares are of all CPUs of a host; over several hosts, their mean and the worst. `collector` is the agent's
    own process. The budget is collector.budget_percent of each host.
    """
    from clickhouse_connect.driver.exceptions import ClickHouseError

    from schemas.clickhouse import connect, explain

    window = _seconds(since)
    client = connect(config.clickhouse)
    try:
        result = client.query(
            statement(EVENTS if events else BY[by]), parameters={"host": host, "seconds": window}
        )
    except (ClickHouseError, OSError) as error:
        if "UNKNOWN_TABLE" in str(error):
            raise UsageError("no host has told what it costs yet; `bpfleet status` says who is up") from None
        raise explain(error, config.clickhouse) from None
    finally:
        client.close()
    rows = [dict(zip(result.column_names, row, strict=True)) for row in result.result_rows]
    if not rows and not events:
        raise UsageError(
            f"nothing from {host or 'any host'} in the last {since}; `bpfleet status` says who is up"
        )
    _print(rows, as_json)


def statement(form: str) -> str:
    """The SQL of a view, with ``{host:String}`` and ``{seconds:Float64}`` left open."""
    since = "ts > subtractSeconds(now64(6), {seconds:Float64})"
    hosts = "({host:String} = '' OR host = {host:String})"
    costs = COSTS.format(since=since, hosts=hosts)
    return form.format(share=PER_HOST, costs=costs, since=since, hosts=hosts)


def _seconds(text: str) -> float:
    from fleet.diagnose.command import seconds

    return seconds(text)


def _print(rows: list[dict[str, Any]], as_json: bool) -> None:
    from fleet.sql import console, table

    if as_json:
        click.echo(json.dumps(rows, indent=2, default=str))
        return
    if not rows:
        click.echo("the budget had nothing to do")
        return
    console().print(table(list(rows[0]), [tuple(row.values()) for row in rows]))
