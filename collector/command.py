"""`bpfleet collect` and `bpfleet check`. Everything heavy is imported when a command runs."""

import click

from schemas.config import Config


@click.command(
    epilog="""\b
Examples:
  bpfleet collect                                  the settings of /etc/bpfleet/bpfleet.yaml
  BPFLEET_KAFKA=kafka1:9092 bpfleet collect        another broker
  bpfleet collect --print --probe tcp_flow         connections as JSON, no Kafka needed
  bpfleet collect --print | jq 'select(.table == "packet_drop")'
"""
)
@click.option(
    "--probe",
    "-p",
    "patterns",
    multiple=True,
    metavar="NAME",
    help="Run only these: names or patterns, `!name` leaves one out. Default: collector.probes.",
)
@click.option(
    "--print",
    "to_stdout",
    is_flag=True,
    help="Write rows as JSON lines to standard output rather than to Kafka.",
)
@click.pass_obj
def collect(config: Config, patterns: tuple[str, ...], to_stdout: bool) -> None:
    """Run the collector on this host, in the foreground, until SIGTERM or Ctrl-C.

    Loads the probes into the kernel, reads their events, ships them to Kafka as Avro batches. While Kafka is
    away they are kept in a bounded spool under state_dir and delivered in order later. A probe that this
    kernel cannot run is reported and left out. Needs root, or the capabilities of the systemd unit; gives up
    all but four of them once the probes are attached.
    """
    from collector.main import collect as run

    if patterns:
        config.collector.probes = list(patterns)
    raise SystemExit(run(config, to_stdout=to_stdout))


@click.command(
    epilog="""\b
Examples:
  bpfleet check                      every probe
  bpfleet check tcp_flow 'block_*'   these
  bpfleet check --json | jq '.[] | select(.ok | not)'
"""
)
@click.argument("probes", nargs=-1, metavar="[PROBE]...")
@click.option("--seconds", default=5.0, show_default=True, help="How long to wait for events of each stream.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print JSON: hooks, rows seen and an example row of each."
)
@click.pass_obj
def check(config: Config, probes: tuple[str, ...], seconds: float, as_json: bool) -> None:
    """Say whether each probe works on this host.

    Loads and attaches it, makes a few harmless things happen (a connection on loopback, a small direct read),
    waits for one decoded event of each of its streams, and detaches. Needs no Kafka. The exit code is 0 when
    all probes work, 1 when one does not.
    """
    from collector import check as checking

    outcomes = checking.check(config, list(probes), seconds)
    click.echo(checking.as_json(outcomes) if as_json else checking.as_table(outcomes))
    raise SystemExit(0 if all(each.ok for each in outcomes) else 1)
