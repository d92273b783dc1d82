"""`bpfleet kafka`, `store`: the embedded servers; `bpfleet sink`, `replay`: from one into the other."""

import signal
import threading

import click

from schemas.config import Config


@click.command()
@click.pass_obj
def kafka(config: Config) -> None:
    """Run the embedded Kafka in the foreground.

    One Apache Kafka node (KRaft) on loopback, its data in STATE_DIR/kafka. The first start fetches Kafka's
    artifacts with Maven; Java 17 or newer must be there. Ctrl-C or SIGTERM stops it cleanly.
    """
    from sinks import kafka_install
    from sinks.kafka_server import KafkaServer, port_of

    server = KafkaServer(config.state_dir, port_of(config.kafka.servers), kafka_install.libs_dir())
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: stop.set())
    click.echo(f"kafka: starting in {server.directory}")
    try:
        server.start()
        server.wait_ready()
        click.echo(f"kafka: ready on {server.servers}")
        server.wait(stop)
    finally:
        server.stop()
    click.echo("kafka: stopped")


@click.command()
@click.pass_obj
def store(config: Config) -> None:
    """Run the embedded ClickHouse endpoint in the foreground.

    The ClickHouse engine in this process, behind the HTTP interface of a ClickHouse server:
    clickhouse-connect, Grafana and curl work as with a server. Its data is in STATE_DIR/store.
    Ctrl-C or SIGTERM stops it; inserts and queries that run are finished first.
    """
    from sinks.store.server import serve

    serve(config, click.echo)


@click.command()
@click.pass_obj
def sink(config: Config) -> None:
    """Move batches from Kafka into ClickHouse, exactly once.

    Reads every bpfleet.<stream>.v1 topic as one member of the group sink.group, makes and extends tables
    as schemas arrive, and inserts Native blocks. Start as many as you like: they share the partitions.
    Messages that no table can take go to bpfleet.dead.v1 with their reason; when most do, the sink stops
    (exit code 3) instead of draining the topic. Metrics are on loopback, port sink.metrics_port.
    SIGTERM finishes the batches under way, commits, and exits 0 within seconds.
    """
    from sinks.daemon import run

    run(config)


@click.command()
@click.argument("topic", required=False)
@click.option("--partition", type=click.IntRange(0), help="Only this partition.")
@click.option("--from", "first", type=click.IntRange(0), help="First offset; default: the oldest kept.")
@click.option("--to", "end", type=click.IntRange(0), help="End before this offset; default: all stored.")
@click.option("--dead", is_flag=True, help="The dead letters instead of a topic.")
@click.option("--reason", help="With --dead: only letters of this reason.")
@click.pass_obj
def replay(
    config: Config,
    topic: str | None,
    partition: int | None,
    first: int | None,
    end: int | None,
    dead: bool,
    reason: str | None,
) -> None:
    """Feed a TOPIC's messages, or the dead letters, to their tables again.

    What the store has already is left out, so that repeating a replay adds nothing. Use it after a table was
    lost, or when what made letters dead is mended: `bpfleet replay --dead --reason incompatible`.
    """
    from sinks.replay import Replay

    if dead == bool(topic):
        raise click.UsageError("give a TOPIC, or --dead")
    with Replay(config) as run:
        report = run.letters(reason) if dead else run.topic(topic or "", partition, first, end)
    click.echo(str(report))
