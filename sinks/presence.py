"""Which messages does a table already hold? For the cases in which a token cannot tell.

A batch's rows of one day land together or not at all, so that one row speaks for all of them, and a message
is known by its envelope: host, boot, sequence number.
"""

from collections.abc import Sequence
from uuid import UUID

from schemas import ddl
from schemas.columns import Dictionary
from schemas.wire import Batch
from sinks.writer import Table, Writer

AT_ONCE = 500  # messages a query


def absent(writer: Writer, table: Table, batches: Sequence[Batch]) -> list[Batch]:
    """Those of ``batches`` (of one day) of which the table has no row.

    Raises :class:`sinks.writer.ServerTrouble`.
    """
    missing: list[Batch] = []
    for first in range(0, len(batches), AT_ONCE):
        some = batches[first : first + AT_ONCE]
        found = _present(writer, table, some)
        missing += [each for each in some if _key(each) not in found]
    return missing


def _key(batch: Batch) -> tuple[str, str, int]:
    envelope = batch.envelope
    return envelope.host, str(UUID(bytes=envelope.boot)), envelope.seq


def _present(writer: Writer, table: Table, batches: Sequence[Batch]) -> set[tuple[str, str, int]]:
    times = [batch.columns["ts"] for batch in batches]
    low = min(int(each.min()) for each in times if not isinstance(each, Dictionary))
    high = max(int(each.max()) for each in times if not isinstance(each, Dictionary))
    name = f"{ddl.quote(writer.database)}.{ddl.quote(table.stream)}"
    query = (
        f"SELECT DISTINCT host, toString(boot), seq FROM {name} "
        "WHERE ts >= fromUnixTimestamp64Micro({low:Int64}, 'UTC') "
        "AND ts <= fromUnixTimestamp64Micro({high:Int64}, 'UTC') "
        "AND host IN {hosts:Array(String)} AND seq IN {seqs:Array(UInt64)}"
    )
    hosts = sorted({each.envelope.host for each in batches})
    seqs = sorted({each.envelope.seq for each in batches})
    return set(writer.rows(query, low=low, high=high, hosts=hosts, seqs=seqs))
