"""`bpfleet collect` and `bpfleet check`. Everything heavy is imported when a command runs."""

import click


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
    "--config",
    "-c",
    metavar="FILE",
    help="Settings, YAML. Default: $BPFLEET_CONFIG, then /etc/bpfleet/bpfleet.yaml.",
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
def collect(config: str | None, patterns: tuple[str, ...], to_stdout: bool) -> None:
    """Run the collector on this host, in the foreground, until SIGTERM or Ctrl-C.

    Loads the probes into the kernel, reads their events, ships them to Kafka as Avro batches. While Kafka is
    away they are kept in a bounded spool under state_dir and delivered in order later. A probe that this
    kernel cannot run is reported and left out. Needs root, or the capabilities of the systemd unit; gives up
    all but four of them once the probes are attached.
    """
    from collector.main import collect as run
    from schemas.config import load

    settings = load(config)
    if patterns:
        settings.collector.probes = list(patterns)
    raise SystemExit(run(settings, to_stdout=to_stdout))
