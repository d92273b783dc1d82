"""``bpfleet cat`` and ``bpfleet export``: a topic's batches as rows, for people and for other tools."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from fleet.topic_reader import read
from schemas import wire
from schemas.columns import InvalidBatch
from schemas.config import Config, kafka_options
from schemas.errors import UsageError
from schemas.rows import avro_rows, json_rows
from schemas.topics import Catalog, read_catalog, stream_of, topic

EXAMPLES = """\b
Examples:
  bpfleet cat tcp_flow                       what the topic holds, then stop
  bpfleet cat -f -n 20 packet_drop           the next twenty rows as they come
  bpfleet cat bpfleet.block_io.v1 --host db7 | jq 'select(.count > 100)'
"""


def stream_name(text: str) -> str:
    """``tcp_flow`` or ``bpfleet.tcp_flow.v1`` → ``tcp_flow``."""
    return stream_of(text) or text


def _batches(
    config: Config, name: str, host: str | None, follow: bool, since: int | None
) -> Iterator[tuple[Catalog, wire.Batch]]:
    options = kafka_options(config.kafka)
    catalog = read_catalog(options)
    skipped = 0
    for message in read(options, topic(name), follow=follow, since_ms=since):
        try:
            batch = catalog.schemas.decode(message)
        except InvalidBatch as error:
            skipped += 1
            click.echo(f"bpfleet: a message cannot be read: {error}", err=True)
            continue
        if host in (None, batch.envelope.host) and batch.stream in catalog.streams:
            yield catalog, batch
    if skipped:
        click.echo(f"bpfleet: {skipped} messages could not be read", err=True)


@click.command(epilog=EXAMPLES)
@click.argument("stream")
@click.option("-n", "--rows", default=0, help="Stop after so many rows; 0 is no limit.")
@click.option("-f", "--follow", is_flag=True, help="Begin at the end and wait for more, as tail -f.")
@click.option("--host", help="Only rows of this host.")
@click.pass_obj
def cat(config: Config, stream: str, rows: int, follow: bool, host: str | None) -> None:
    """Print the rows of STREAM (or topic) as JSON, one object a line, straight from Kafka."""
    printed = 0
    for catalog, batch in _batches(config, stream_name(stream), host, follow, None):
        for row in json_rows(catalog.streams[batch.stream], batch):
            sys.stdout.write(json.dumps(row, ensure_ascii=False) + "\n")
            printed += 1
            if printed == rows:
                return
        if follow:
            sys.stdout.flush()


EXPORT_EXAMPLES = """\b
Examples:
  bpfleet export tcp_flow -o flows.avro
  bpfleet export packet_drop --host web3 -o drops.avro && python -m fastavro drops.avro | head
"""


@click.command(epilog=EXPORT_EXAMPLES)
@click.argument("stream")
@click.option("-o", "--output", required=True, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--host", help="Only rows of this host.")
@click.option("--since-ms", type=int, help="Only messages newer than this time (ms since 1970).")
@click.pass_obj
def export(config: Config, stream: str, output: Path, host: str | None, since_ms: int | None) -> None:
    """Write the rows of STREAM into an ordinary Avro container file that any Avro library reads."""
    import fastavro

    catalog_and_batches = _batches(config, stream_name(stream), host, False, since_ms)
    first = next(catalog_and_batches, None)
    if first is None:
        raise UsageError(f"{topic(stream_name(stream))} holds no row to export")
    declared = first[0].streams[first[1].stream]
    count = 0

    def rows() -> Iterator[Any]:
        nonlocal count
        for batch in (first[1], *(each for _, each in catalog_and_batches)):
            for row in avro_rows(declared, batch):
                count += 1
                yield row

    try:
        with output.open("wb") as file:
            fastavro.writer(file, fastavro.parse_schema(wire.row_schema(declared)), rows(), codec="deflate")
    except OSError as error:
        raise UsageError(f"cannot write {output}: {error.strerror}") from None
    click.echo(f"{count} rows of {declared.name} in {output} ({output.stat().st_size:,} bytes)", err=True)
