"""``bpfleet probe``: put new probes into running hosts, watch what they find, end them (docs/probes.md)."""

import json
from typing import Any

import click

from fleet.desired_options import How, publish_options, scope_options
from schemas import desired, probe_spec
from schemas.config import Config
from schemas.desired import Scope, now_us
from schemas.errors import UsageError

EXAMPLES = """\b
Examples:
  bpfleet probe library                                  what is ready
  bpfleet probe run slow-open --ttl 5m                   watch it live; Ctrl-C ends it
  bpfleet probe run 'count syscall:openat by comm'
  bpfleet probe run 'log2(latency) function:libc:getaddrinfo by comm, str(arg0)' --label tier=web
  bpfleet probe results slow-open                        from SQL, also when it has ended
  bpfleet probe stop slow-open --wait
"""
RUN = """\b
A probe is written as
  VALUE POINT [until POINT] [by KEY, …] [if CONDITION] [sample N] [rate N]
\b
  VALUE      count · sum(x) · log2(x) · linear(x, from, to, step) · stacks · event · outstanding
  POINT      syscall:openat · tracepoint:sched:sched_process_exec · raw:sched_switch ·
             function:libc:getaddrinfo · uprobe:/usr/bin/bash:readline · usdt:… · software:page-faults:100 ·
             profile:99 · kprobe:… · heap:libc
  KEY        pid, comm, cgroup, cpu, kstack, ustack, and fields of the point; name=x renames
  CONDITION  latency > 10ms && comm != "sshd" && str(filename) in ("/etc/passwd", "/etc/shadow")
\b
Examples:
  bpfleet probe run slow-open
  bpfleet probe run mine.yaml --host 'web*' --ttl 1h --wait
  bpfleet probe run 'log2(latency) syscall:fsync by comm' --for 10s --json
  bpfleet probe run --value event --at syscall:openat --by comm --by 'str(filename)' --if 'retval < 0'
  bpfleet probe run 'sum(arg0) uprobe:libc:malloc by comm sample 100' --dry-run
"""


@click.group(epilog=EXAMPLES)
def probe() -> None:
    """New probes on running hosts: no restart, no change of code."""


@probe.command(epilog=RUN)
@click.argument("what", required=False, default="", metavar="[PROBE]")
@click.option("--id", "name", help="Call it so; default: the library's or file's name, or the point's.")
@click.option("--ttl", default="10m", show_default=True, help="It ends by itself after this time.")
@click.option("--at", help="The point.")
@click.option("--until", help="The point that ends what begins at --at.")
@click.option("--pair", multiple=True, help="What both points have in common; default: the thread.")
@click.option("--if", "condition", help="A condition.")
@click.option("--by", multiple=True, help="A key, or a field of events; again for more.")
@click.option("--value", help="What to measure.")
@click.option("--sample", type=int, help="Take one in N; counts are weighted.")
@click.option("--rate", type=int, help="Events a second and host at most.")
@click.option("--cgroup", help="Only these cgroups and those below: a pattern as /system.slice/*.")
@click.option("--pid", type=int, help="Only this process.")
@click.option("--max-cpu", type=float, help="Share of a host's CPU it may cost, as 0.01.")
@click.option("--for", "duration", help="End it after so long, then print the results.")
@click.option("--keep", is_flag=True, help="Ctrl-C leaves it running.")
@click.option("--no-follow", is_flag=True, help="Publish and return.")
@click.option("--dry-run", is_flag=True, help="Print the C it becomes; send nothing.")
@scope_options
@publish_options
@click.pass_obj
def run(
    config: Config, /, what: str, name: str | None, ttl: str, condition: str | None, duration: str | None,
    keep: bool, no_follow: bool, dry_run: bool, scope: Scope, how: How, **options: Any,
) -> None:  # fmt: skip
    """Run a PROBE on every host in scope and watch its results.

    PROBE is the name of a ready one (`bpfleet probe library`), a YAML or JSON file, or one line. Options
    replace parts of it.
    """
    from fleet import probe_choice, probe_dry
    from fleet.desired import Draft

    options["by"], options["pair"] = list(options["by"]), list(options["pair"])
    given = {key: value for key, value in options.items() if value} | {"if": condition}
    choice = probe_choice.choose(what, given)
    checked = probe_spec.check(choice.spec)
    if dry_run:
        click.echo(probe_dry.source(checked))
        return
    seconds = desired.seconds(duration) if duration else None
    draft = Draft(
        probe_spec.PROBE, name or choice.name, choice.spec, scope, desired.seconds(ttl), how.comment
    )
    if seconds is None and (no_follow or how.wait_s is not None or how.as_json):
        how.run(config, lambda board: board.publish([draft]))
        return
    from fleet.probe_live import follow

    follow(config, draft, checked, how, seconds, keep)


@probe.command("list")
@click.option("--all", "everything", is_flag=True, help="Also what has ended.")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
@click.pass_context
def list_(context: click.Context, everything: bool, as_json: bool) -> None:
    """The probes that are wanted now, and of whom."""
    from fleet.desired_command import list_ as listing

    context.invoke(listing, kind="probe", everything=everything, as_json=as_json)


@probe.command()
@click.argument("name", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
@click.pass_context
def show(context: click.Context, name: str, as_json: bool) -> None:
    """A probe, and on each host: does it run, or why not."""
    from fleet.desired_command import show as showing

    context.invoke(showing, name=f"probe/{name.removeprefix('probe/')}", as_json=as_json)


@probe.command()
@click.argument("names", metavar="ID...", nargs=-1, required=True)
@publish_options
@click.pass_obj
def stop(config: Config, names: tuple[str, ...], how: How) -> None:
    """End probes: hosts detach them and ship what they had counted."""
    full = [f"probe/{each.removeprefix('probe/')}" for each in names]
    how.run(config, lambda board: board.delete(full, how.comment))


@probe.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def library(name: str | None, as_json: bool) -> None:
    """Ready probes; with a NAME, how it is written."""
    from fleet import probe_choice

    ready = probe_choice.ready()
    if name is not None:
        if name not in ready:
            raise UsageError(
                f"there is no probe `{name}`; `bpfleet probe library` lists those that are ready"
            )
        click.echo(ready[name].read_text(), nl=False)
        return
    specs = {each: probe_choice.read(file) for each, file in ready.items()}
    if as_json:
        click.echo(json.dumps({each: {"about": spec.about, "at": spec.at} for each, spec in specs.items()}))
        return
    from fleet.sql import console, table

    rows = [(each, spec.at, spec.value, spec.about) for each, spec in specs.items()]
    console().print(table(("probe", "at", "value", "what it shows"), rows))


@probe.command()
@click.argument("name", metavar="ID")
@click.option("--since", default="1h", show_default=True, help="How far back: 90s, 15m, 2h, 7d.")
@click.option("--limit", default=50, show_default=True, help="Rows at most.")
@click.option("--by-host", is_flag=True, help="Each host for itself.")
@click.option("--json", "as_json", is_flag=True, help="One object a line.")
@click.option("--sql", "show_sql", is_flag=True, help="Print the question rather than the answer.")
@click.pass_obj
def results(
    config: Config, name: str, since: str, limit: int, by_host: bool, as_json: bool, show_sql: bool
) -> None:
    """What a probe has found, from ClickHouse; it may have ended."""
    from fleet.desired import Board
    from fleet.probe_live import store
    from fleet.probe_results import as_json as lines
    from fleet.probe_results import as_table, ask, question
    from fleet.sql import console

    board = Board(config)
    try:
        sealed = board.refresh().get(f"probe/{name}")
    finally:
        board.close()
    with store(config) as client:
        spec = sealed.document.spec if sealed and sealed.document.spec else _last_spec(client, name)
        if spec is None:
            raise UsageError(f"there is no probe {name}; `bpfleet probe list --all` shows what there is")
        asked = question(probe_spec.check(spec), name, 0, desired.seconds(since), limit, by_host)
        if show_sql:
            click.echo(f"{asked.sql}\n-- {json.dumps(asked.parameters)}")
            return
        found = ask(client, asked)
    if as_json:
        for line in lines(found):
            click.echo(line)
    elif found.rows:
        console().print(as_table(found))
    else:
        click.echo(
            f"nothing from {name} in the last {since}; `bpfleet probe show {name}` says what hosts made of it"
        )


def _last_spec(client: Any, name: str) -> Any:
    """The spec of a probe that was removed, from the audit trail."""
    found = client.query(
        "SELECT spec FROM desired WHERE kind = 'probe' AND id = {name:String} AND NOT deleted "
        "ORDER BY ts DESC LIMIT 1",
        parameters={"name": name},
    ).result_rows
    return json.loads(found[0][0]) if found else None


def age_s(since_us: int) -> float:
    """Seconds since, and a second more for clocks that differ."""
    return (now_us() - since_us) / 1e6 + 1
