"""Forensics: needles and timelines in a month of packet samples, in the embedded engine on two cores."""

import os
import re
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from bench.common import Row, Times
from fleet.forensics.question import moment, questions
from schemas import config, ddl, declare
from sinks.store.connection import Connection
from sinks.store.engine import Engine

ROWS = int(os.environ.get("BENCH_FORENSICS_ROWS", "100000000"))
DAYS, ROUNDS = 30, 7
STREAM = declare.streams()["packet_sample"]
RARE, ATTACKER, EVERYWHERE = "::ffff:203.0.113.30", "::ffff:203.0.113.9", "::ffff:192.168.7.7"
NEEDLES = {
    "seen once a day": RARE,
    "of an attack: 20,000 frames in ten minutes": ATTACKER,
    "seen 22 times every day, never twice at once": EVERYWHERE,
}
# Sources: a third from a pool that comes again, the rest never twice; destinations: few are most.
FILL = """
INSERT INTO bench.packet_sample (ts, source, destination, weight, length, source_port, destination_port,
  protocol, ttl, tcp_flags, verdict, rule, host, boot, seq, sample_rate)
SELECT toDateTime64(toStartOfDay(now()), 6, 'UTC') - toIntervalDay({day})
    + toIntervalMicrosecond(number * intDiv(86400000000, {rows})),
  toIPv6(concat('::ffff:',
    IPv4NumToString(toUInt32(if(rand(1) % 3 = 0, 3232235520 + rand(2) % 50000, rand(3)))))),
  toIPv6(concat('::ffff:10.0.', toString(rand(4) % 2), '.',
    toString(intDiv((rand(5) % 4096) * (rand(6) % 4096), 65536)))),
  [1, 10, 100, 1000][1 + rand(7) % 4], [60, 60, 60, 1500, 576, 120][1 + rand(8) % 6], 1024 + rand(9) % 64512,
  [80, 443, 53, 123, 22][1 + rand(10) % 5], [6, 6, 17][1 + rand(11) % 3], 64 - rand(12) % 20,
  [2, 16, 18, 24][1 + rand(13) % 4],
  if(rand(14) % 10 < 7, 'pass', 'drop'),
  if(rand(14) % 10 < 7, '', concat('rule-', toString(rand(15) % 12))),
  concat('host-', toString(rand(16) % 20)), toUUID('00000000-0000-0000-0000-000000000001'),
  intDiv(number, 1000), 1
FROM numbers({rows})
"""
ONE = """
INSERT INTO bench.packet_sample (ts, source, destination, weight, length, destination_port, protocol, verdict,
  host)
SELECT toDateTime64(toStartOfDay(now()), 6, 'UTC') - toIntervalDay({day})
    + toIntervalMillisecond({ms} * number),
  toIPv6('{source}'), toIPv6('::ffff:10.0.0.7'), 100, 512, 53, 17, 'drop',
  concat('host-', toString(number % 20))
FROM numbers({rows})
"""


def fill(engine: Connection, settings: config.Config) -> None:
    """A month, a partition a day, each merged."""
    engine.run(ddl.database(settings.clickhouse))
    (create,) = ddl.create(STREAM, settings.clickhouse)
    engine.run(create)
    for day in range(DAYS):
        engine.run(FILL.format(day=day, rows=ROWS // DAYS))
        engine.run(ONE.format(day=day, ms=0, source=RARE, rows=1))
    engine.run(ONE.format(day=17, ms=30, source=ATTACKER, rows=20_000))
    engine.run("OPTIMIZE TABLE bench.packet_sample FINAL")


def statement(name: str, since: str, until: str = "0s", **given: str) -> str:
    """A question with its parameters written out: the engine in process takes it as it is."""
    question = questions()[name]
    now = datetime.now(UTC)
    values = {each.name: each.default or "" for each in question.parameters} | given
    values |= {"since": moment(since, now), "until": moment(until, now)}

    def written(match: re.Match[str]) -> str:
        kind = match[2].replace("'", "\\'")
        return f"CAST('{values[match[1]]}', '{kind}')"

    return re.sub(r"\{(\w+):([^}]*)\}", written, question.sql)


def timed(engine: Connection, query: str) -> Times:
    """Seconds of each round; the first one warms up."""
    seconds = []
    for _ in range(ROUNDS + 1):
        begun = time.perf_counter()
        engine.run(query)
        seconds.append(time.perf_counter() - begun)
    return Times(tuple(seconds[1:]))


def run() -> list[Row]:
    """The three questions of the issue, and what a sample takes on disk."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as directory:
        settings = config.load(None, {})
        settings.clickhouse.database = "bench"
        engine = Engine(Path(directory) / "store", settings.store)
        engine.take()
        engine.start()
        connection = engine.connect()
        try:
            fill(connection, settings)
            return [*_questions(connection), *_sizes(connection)]
        finally:
            connection.close()
            engine.stop()


def _questions(connection: Connection) -> list[Row]:
    connection.run("SET use_query_condition_cache = 0")
    connection.run("USE bench")
    for stream in declare.streams().values():
        if stream is not STREAM:
            target = config.load(None, {}).clickhouse
            target.database = "bench"
            for each in ddl.create(stream, target):
                connection.run(each)
    asked = {
        **{f"one address over all of it, {what}": (statement("address", "60d", address=address), 0.15)
           for what, address in NEEDLES.items()},
        "top sources of an hour": (statement("sources", "121h", "120h", verdict="", top="20"), 0.3),
        "minute timeline of a month": (statement("timeline", "31d", destination="::"), 0.2),
    }  # fmt: skip
    rows = []
    for name, (query, limit) in asked.items():
        times = timed(connection, query)
        rows.append(Row(f"{name}, of {ROWS // 10**6} M rows", times.text("s", 1), "", "", f"≤ {limit} s",
                        times.median <= limit))  # fmt: skip
    return rows


def _sizes(connection: Connection) -> list[Row]:
    columns = connection.run(
        "SELECT sum(column_data_compressed_bytes) / sum(rows), "
        "sumIf(column_data_compressed_bytes, column = 'raw') FROM ("
        "SELECT column, sum(column_data_compressed_bytes) AS column_data_compressed_bytes, "
        "sumIf(rows, column = 'ts') AS rows FROM system.parts_columns "
        "WHERE active AND database = 'bench' AND table = 'packet_sample' GROUP BY column)"
    ).bytes().decode().split()  # fmt: skip
    (disk,) = connection.row(
        "SELECT sum(bytes_on_disk) / sum(rows) FROM system.parts "
        "WHERE active AND database = 'bench' AND table = 'packet_sample'"
    )
    plain = float(columns[0])
    return [
        Row("one sample, columns without its raw head", f"{plain:.1f} B", "", "", "≤ 18 B", plain <= 18),
        Row("with filters, rollups and indexes", f"{float(disk):.1f} B", "", "", "", None),
    ]
