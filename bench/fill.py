"""Plausible rows of every stream, made by the engine itself from row numbers: to test and time dashboards.

Twelve hosts of two regions and three roles; ``web-3`` is in trouble in the last third of the window: a noisy
neighbour, a SYN flood against it, and a disk that slows down.
"""

from typing import Any

from bench.fill_edge import EDGE_STREAMS
from bench.fill_host import HOST_STREAMS
from bench.fill_values import HOST
from schemas import ddl, declare
from schemas.config import Clickhouse
from schemas.ddl import quote

COLUMNS = {**HOST_STREAMS, **EDGE_STREAMS}


def make(client: Any, database: str, names: list[str] | None = None) -> None:
    """The database and the tables of the named streams, or of all."""
    where = Clickhouse(database=database)
    client.command(ddl.database(where))
    for name, stream in declare.streams().items():
        if names is None or name in names:
            for statement in ddl.create(stream, where):
                client.command(statement)


def insert(client: Any, database: str, name: str, rows: int, begin: float, end: float) -> None:
    """``rows`` rows of a stream, evenly from ``begin`` to ``end`` (seconds since 1970), in order of time."""
    stream = declare.streams()[name]
    own = COLUMNS[name]
    unknown = set(own) - set(ddl.columns(stream))
    assert not unknown, f"{name} has no column {unknown}"
    span = int((end - begin) * 1e6)
    times = [
        f"fromUnixTimestamp64Micro({int(begin * 1e6)} + toInt64(number * {span / rows})) AS ts",
        f"fromUnixTimestamp64Micro({int(begin * 1e6)}) AS begin",
        f"ts > fromUnixTimestamp64Micro({int(begin * 1e6) + span * 2 // 3}) AS late",
        "intDiv(number, 2) AS half",
    ]
    made = [f"{own[each]} AS {quote(each)}" for each in ddl.columns(stream) if each in own]
    own_envelope = {"host": HOST, "boot": "toUUID('00000000-0000-0000-0000-000000000001')",
                    "seq": "intDiv(number, 100)", "sample_rate": "1"}  # fmt: skip
    made += [f"{text} AS {quote(each)}" for each, text in own_envelope.items() if each not in own]
    columns = [
        "ts",
        *(each for each in ddl.columns(stream) if each in own),
        *(e for e in own_envelope if e not in own),
    ]
    client.command(
        f"INSERT INTO {quote(database)}.{quote(name)} ({', '.join(map(quote, columns))}) "
        f"WITH {', '.join(times)} SELECT ts, {', '.join(made)} FROM numbers_mt({rows}) "
        "SETTINGS max_partitions_per_insert_block = 1000"
    )
