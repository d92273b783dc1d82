"""Simulated rows in the store: are there others, have they all come, away with them."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from uuid import UUID

from schemas import declare, simulated
from schemas.config import Clickhouse
from schemas.ddl import quote
from schemas.errors import BpfleetError

OF_SINKS = "sink_health"  # real wherever a sink runs
PATIENCE = 60.0  # seconds without any new row


def tables(client: Any, config: Clickhouse) -> list[str]:
    """The streams that have a table."""
    listed = client.query(
        "SELECT name FROM system.tables WHERE database = {database:String}",
        parameters={"database": config.database},
    ).result_rows
    return [name for (name,) in listed if name in declare.streams()]


def _having(client: Any, config: Clickhouse, condition: str) -> list[str]:
    asked = " UNION ALL ".join(
        f"(SELECT '{each}' FROM {_named(config, each)} WHERE {condition} LIMIT 1)"
        for each in tables(client, config)
    )
    return [name for (name,) in client.query(asked).result_rows] if asked else []


def _named(config: Clickhouse, table: str) -> str:
    return f"{quote(config.database)}.{quote(table)}"


def real(client: Any, config: Clickhouse) -> list[str]:
    """Tables with rows of hosts that are there."""
    return [each for each in _having(client, config, f"NOT ({simulated.SQL})") if each != OF_SINKS]


def simulation(client: Any, config: Clickhouse) -> list[str]:
    """Tables with simulated rows."""
    return _having(client, config, simulated.SQL)


def wait(client: Any, config: Clickhouse, sent: Mapping[str, int], boots: Sequence[bytes],
         progress: Callable[[int], None]) -> None:  # fmt: skip
    """Return when all rows are there. Raises :class:`BpfleetError` when they stop coming."""
    listed = ", ".join(f"toUUID('{UUID(bytes=each)}')" for each in boots)
    here = dict.fromkeys(sent, 0)
    heard = time.monotonic()
    while here != dict(sent):
        present = tables(client, config)
        before = sum(here.values())
        for name in sent:
            if name in present and here[name] != sent[name]:
                query = f"SELECT count() FROM {_named(config, name)} WHERE boot IN ({listed})"
                here[name] = int(client.query(query).first_row[0])
        come = sum(here.values()) - before
        progress(come)
        if come:
            heard = time.monotonic()
        elif time.monotonic() - heard > PATIENCE:
            short = [each for each in sent if here[each] != sent[each]]
            raise BpfleetError(
                f"the rows are in Kafka and do not come to the store ({', '.join(short[:3])} …); "
                "is a sink running? See `bpfleet status`"
            )
        time.sleep(0.2)


def remove(client: Any, config: Clickhouse) -> dict[str, int]:
    """Delete every simulated row; rows by table. Returns when they are gone."""
    gone, mixed = {}, set(real(client, config)) | {OF_SINKS}
    for name in simulation(client, config):
        count = f"SELECT count() FROM {_named(config, name)} WHERE {simulated.SQL}"
        gone[name] = int(client.query(count).first_row[0])
        where = f"{_named(config, name + '_local')} ON CLUSTER {quote(config.cluster)}"
        table = where if config.cluster else _named(config, name)
        if name in mixed:
            client.command(f"ALTER TABLE {table} DELETE WHERE {simulated.SQL} SETTINGS mutations_sync = 2")
        else:  # at once, where a mutation would write every part anew
            client.command(f"TRUNCATE TABLE {table}")
    return gone
