"""`bpfleet kafka`, `bpfleet store`: the two embedded servers in the foreground."""

import signal
import threading

import click

from schemas import config as settings


@click.command()
@click.option("--config", "file", metavar="FILE", help="Settings (YAML); default /etc/bpfleet/bpfleet.yaml.")
def kafka(file: str | None) -> None:
    """Run the embedded Kafka in the foreground.

    One Apache Kafka node (KRaft) on loopback, its data in STATE_DIR/kafka. The first start fetches Kafka's
    artifacts with Maven; Java 17 or newer must be there. Ctrl-C or SIGTERM stops it cleanly.
    """
    from sinks import kafka_install
    from sinks.kafka_server import KafkaServer, port_of

    config = settings.load(file)
    server = KafkaServer(config.state_dir, port_of(config.kafka.servers), kafka_install.libs_dir())
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
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
@click.option("--config", "file", metavar="FILE", help="Settings (YAML); default /etc/bpfleet/bpfleet.yaml.")
def store(file: str | None) -> None:
    """Run the embedded ClickHouse endpoint in the foreground.

    The ClickHouse engine in this process, behind the HTTP interface of a ClickHouse server:
    clickhouse-connect, Grafana and curl work as with a server. Its data is in STATE_DIR/store.
    Ctrl-C or SIGTERM stops it; inserts and queries that run are finished first.
    """
    from sinks.store.server import serve

    serve(settings.load(file), click.echo)


@click.command()
@click.pass_obj
def sink(config: settings.Config) -> None:
    """Move batches from Kafka into ClickHouse, exactly once.

    Reads every bpfleet.<stream>.v1 topic as one member of the group sink.group, makes and extends tables
    as schemas arrive, and inserts Native blocks. Start as many as you like: they share the partitions.
    Messages that no table can take go to bpfleet.dead.v1 with their reason; when most do, the sink stops
    (exit code 3) instead of draining the topic. Metrics are on loopback, port sink.metrics_port.
    SIGTERM finishes the batches under way, commits, and exits 0 within seconds.
    """
    from sinks.daemon import run

    run(config)
