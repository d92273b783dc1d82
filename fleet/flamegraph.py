"""``bpfleet flamegraph``: where hosts, cgroups and processes spend time, drawn from one SQL statement."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from schemas.config import Config
from schemas.errors import BpfleetError, UsageError

if TYPE_CHECKING:
    from fleet.flamegraph_question import Question

EXAMPLES = """\b
Examples:
  bpfleet flamegraph -o cpu.svg                              the whole fleet, the last five minutes
  bpfleet flamegraph --host web1 --since 1h --process nginx -o nginx.svg
  bpfleet flamegraph --cgroup /system.slice/db.service --off-cpu --state blocked -o disk.svg
  bpfleet flamegraph --host web1 --diff 1d -o changed.svg    against the same five minutes of yesterday
  bpfleet flamegraph --since 10m --until 5m --diff 30m..20m -o changed.svg
  bpfleet flamegraph --folded | head                         for other tools
"""
Answer = tuple[str, int, int]  # folded stack, ns before, ns after
STATES = ("sleeping", "blocked", "runnable", "stopped")


@click.command(epilog=EXAMPLES)
@click.option("--host", "hosts", multiple=True, help="Of this host; may be given several times.")
@click.option("--since", default="5m", show_default=True, metavar="TIME", help="From: 5m (ago), or ISO 8601.")
@click.option("--until", default="now", show_default=True, metavar="TIME", help="To.")
@click.option("--cgroup", "cgroups", multiple=True, metavar="PATH", help="Of this cgroup and those below.")
@click.option("--process", "processes", multiple=True, metavar="NAME|PID", help="Of threads of this name.")
@click.option("--off-cpu", is_flag=True, help="Time spent waiting, rather than on a CPU.")
@click.option(
    "--state", "states", multiple=True, type=click.Choice(STATES), help="With --off-cpu: these waits."
)
@click.option("--diff", metavar="TIME", help="Compare with: 1h (earlier), or 2h..1h (from, to).")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="The SVG file.")
@click.option("--folded", is_flag=True, help="Print folded stacks and µs instead of drawing.")
@click.option("--show-sql", is_flag=True, help="Print the statement, ready to paste, and do nothing.")
@click.pass_obj
def flamegraph(
    config: Config, hosts: tuple[str, ...], since: str, until: str, cgroups: tuple[str, ...],
    processes: tuple[str, ...], off_cpu: bool, states: tuple[str, ...], diff: str | None,
    output: Path | None, folded: bool, show_sql: bool,
) -> None:  # fmt: skip
    """Draw where time went: on CPUs, or waiting (--off-cpu).

    Width is time. Red against blue in a differential graph (--diff): more, or less, of the whole than before.
    """
    from fleet.flamegraph_question import Question, earlier, window

    after = window(since, until)
    before = earlier(diff, after) if diff else None
    asked = Question(after, before, off_cpu, hosts, cgroups, processes, states)
    if show_sql:
        click.echo(asked.text())
        return
    if not folded and output is None:
        raise UsageError("where to? give -o FILE.svg, or --folded")
    rows = ask(config, asked)
    _write(_folded(asked, rows) if folded else _drawn(asked, rows), output)


def _folded(asked: "Question", rows: list[Answer]) -> str:
    from fleet.flamegraph_tree import fold, lines

    found = lines(fold(rows, asked.scale), differential=asked.before is not None)
    return "\n".join(found) + "\n"


def _drawn(asked: "Question", rows: list[Answer]) -> str:
    from fleet.flamegraph_svg import draw, duration
    from fleet.flamegraph_tree import fold, tree

    what = "Off-CPU time" if asked.off_cpu else "On-CPU time"
    title = " · ".join((what, *asked.hosts, *asked.cgroups, *asked.processes, *asked.states))
    root = tree(fold(rows, asked.scale))
    told = f"{duration(root.after)} in {asked.after.text()}"
    if asked.before:
        told += f"; before: {duration(root.before)} in {asked.before.text()}, at the same length"
    return draw(root, title, told, off_cpu=asked.off_cpu, differential=asked.before is not None)


def ask(config: Config, asked: "Question") -> list[Answer]:
    """What the store has. Raises :class:`BpfleetError`, also when there is nothing."""
    from clickhouse_connect.driver.exceptions import ClickHouseError

    from schemas.clickhouse import connect, explain

    client = connect(config.clickhouse)
    try:
        statement, parameters = asked.sql()
        rows = client.query(statement, parameters=parameters).result_rows
    except (ClickHouseError, OSError) as error:
        raise explain(error, config.clickhouse) from None
    finally:
        client.close()
    if not any(after for _, _, after in rows):
        raise BpfleetError(
            f"no samples in {asked.after.text()} of what was asked for; try a longer --since, or "
            '`bpfleet sql "SELECT host, cgroup, comm, sum(samples) FROM '
            f'{"off_cpu" if asked.off_cpu else "cpu_profile"} GROUP BY ALL ORDER BY 4 DESC LIMIT 20"`'
        )
    return [(str(stack), int(before), int(after)) for stack, before, after in rows]


def _write(text: str, output: Path | None) -> None:
    if output is None:
        sys.stdout.write(text)
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise BpfleetError(f"cannot write {output}: {(error.strerror or 'error').lower()}") from None
    click.echo(f"{output}: {len(text) / 1024:.0f} kB", err=True)
