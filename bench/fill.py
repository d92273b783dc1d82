"""Rows of every stream in bulk, made by the engine itself: to test and time dashboards.

The same expressions as `bpfleet simulate`, without Kafka and sink. Twelve hosts of two regions.
"""

from collections.abc import Sequence
from typing import Any

from bench.fill_events import EVENT_STREAMS
from fleet.simulate import generate
from fleet.simulate.plan import Effect, Fleet
from schemas import ddl, declare
from schemas.config import Clickhouse
from schemas.ddl import quote

HOSTS = 12
COLUMNS = {name: own for name, (_, own) in generate.STREAMS.items()} | EVENT_STREAMS
LOSSES = {
    "lost": "if(cityHash64(number) % 200 = 0, 3, 0)",
    "reason": "if(part % 7 = 6, 'killed', '')",
    "kind": "['stream', 'stream', 'stream', 'program', 'process', 'stream', 'loss'][part % 7 + 1]",
}
FAULTS = {"collector_health": COLUMNS["collector_health"] | LOSSES}  # a simulated fleet has only planted ones


def fleet(begin: float, end: float) -> Fleet:
    """Twelve hosts, named as a fleet that is there."""
    return Fleet(HOSTS, begin, end, prefix="")


def make(client: Any, database: str, names: list[str] | None = None) -> None:
    """The database and the tables of the named streams, or of all."""
    where = Clickhouse(database=database)
    client.command(ddl.database(where))
    for name, stream in declare.streams().items():
        if names is None or name in names:
            for statement in ddl.create(stream, where):
                client.command(statement)


def insert(
    client: Any, database: str, name: str, rows: int, begin: float, end: float, effects: Sequence[Effect] = ()
) -> None:
    """``rows`` rows of a stream, evenly from ``begin`` to ``end`` (seconds since 1970), in order of time."""
    stream, own = declare.streams()[name], (COLUMNS | FAULTS)[name]
    envelope = {"boot": "toUUID('00000000-0000-0000-0000-000000000001')", "seq": "intDiv(number, 100)",
                "sample_rate": "1"}  # fmt: skip
    own = generate.complete(stream, own | envelope, effects)
    select = generate.statement(stream, own, fleet(begin, end), rows, seconds=1, effects=effects)
    names = [each for each in ddl.columns(stream) if each in own]
    columns = ["ts", *names, *([] if "host" in own else ["host"])]
    client.command(
        f"INSERT INTO {quote(database)}.{quote(name)} ({', '.join(map(quote, columns))}) "
        f"{select}, max_partitions_per_insert_block = 1000"
    )
