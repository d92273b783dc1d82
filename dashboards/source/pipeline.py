"""Pipeline: from the kernel to the table: rates, delay, losses, dead letters, and what it all costs."""

from dashboards.source.board import dashboard
from dashboards.source.panels import (
    ANY_IS_BAD,
    bars,
    link,
    row,
    row_link,
    stat,
    table,
    thresholds,
    timeseries,
)
from dashboards.source.parts import BY_MINUTE, HERE, HERE_BY_MINUTE, HOSTS, MARKS, TIME, WHERE, share

HEALTH = f"collector_health WHERE {HERE_BY_MINUTE}"
STREAMS = f"{HEALTH} AND kind = 'stream'"
TO_HOST = row_link("Host", "host", "host")


def rate(of: str, by: str, where: str, name: str) -> str:
    """A sum of ``collector_health`` a second, by a column."""
    return f"""
SELECT {BY_MINUTE}, {by}, {of} / $__interval_s AS {name}
FROM {where} GROUP BY time, {by} ORDER BY time, {by}"""


# A gap in the numbers of a host's batches that nobody declared as lost.
GAPS = f"""
SELECT host, stream, boot, max(seq) - min(seq) + 1 - uniqExact(seq) AS missing FROM (
  SELECT host, boot, seq, 'tcp_flow' AS stream FROM tcp_flow WHERE {HERE}
  UNION ALL SELECT host, boot, seq, 'packet_drop' AS stream FROM packet_drop WHERE {HERE}
  UNION ALL SELECT host, boot, seq, 'runq_latency' AS stream FROM runq_latency WHERE {HERE})
GROUP BY host, stream, boot"""

TABLES = ("runq_latency", "block_io", "tcp_flow", "packet_drop_count", "pressure", "collector_health", "host")
NEWEST = " UNION ALL\n".join(
    f"SELECT '{name}' AS stream, max(ts) AS newest FROM {name} WHERE {HERE}" for name in TABLES
)

PANELS = [
    row("Is anything lost or late?"),
    stat(
        "Lost in the kernel",
        f"SELECT sum(lost) AS events FROM {STREAMS}",
        "short",
        "Events that found no room in a ring or map. Bad: any: raise collector.ring_kb, or sample.",
        link("Probes", "probes"),
        steps=ANY_IS_BAD,
    ),
    stat(
        "Shed",
        f"SELECT sum(shed) AS rows FROM {STREAMS}",
        "short",
        "Rows pushed out of a full spool. Bad: any: Kafka was away for longer than collector.spool_mb lasts.",
        link("Host", "host"),
        steps=ANY_IS_BAD,
    ),
    stat(
        "Refused or invalid",
        f"SELECT sum(refused) + sum(invalid) AS rows FROM {STREAMS}",
        "short",
        "Rows that Kafka will not "
        "have, and events that could not be decoded. Bad: any: a fault of ours; see the collector's log.",
        link("Host", "host"),
        steps=ANY_IS_BAD,
    ),
    stat(
        "Sampled out",
        f"SELECT {share('sum(sampled_out)', 'sum(made) + sum(sampled_out)')} AS share FROM {STREAMS}",
        "percentunit",
        "Share of events left out on purpose; weights make up for it. Bad: near 1 where single events "
        "matter.",
        link("Probes", "probes"),
    ),
    stat(
        "Longest silence",
        f"""
SELECT max(age) AS seconds FROM (
  SELECT dateDiff('second', max(ts), $__toTime) AS age FROM host WHERE {TIME} AND {HOSTS} GROUP BY host)""",
        "s",
        "Time since the last row of the host that has been silent longest: delay of the pipeline "
        "included. Bad: above 120.",
        link("Host", "host"),
        steps=thresholds((None, "green"), (60, "orange"), (120, "red")),
    ),
    stat(
        "Declared losses",
        f"SELECT count() AS ranges FROM {HEALTH} AND kind = 'loss'",
        "short",
        "Ranges of batches that a collector says will never arrive: it was killed, or shed them. Bad: any.",
        link("Host", "host"),
        steps=ANY_IS_BAD,
    ),
    stat(
        "Dead letters",
        f"SELECT sum(dead) AS messages FROM sink_health WHERE {TIME}",
        "short",
        "Messages the sink could not "
        "read; they wait in bpfleet.dead.v1. Bad: any: see why, mend, `bpfleet replay`.",
        link("Fleet", "fleet"),
        steps=ANY_IS_BAD,
    ),
    stat(
        "Sink lag",
        f"SELECT sum(lag) AS messages FROM (SELECT sink, argMax(lag, ts) AS lag FROM sink_health "
        f"WHERE {TIME} GROUP BY sink)",
        "short",
        "Messages that are in Kafka and not in the store yet. Bad: thousands, or growing.",
        link("Host", "host"),
        steps=thresholds((None, "green"), (1_000, "orange"), (10_000, "red")),
    ),
    stat(
        "Delay to the table",
        f"SELECT sum(delay_us * inserts) / greatest(sum(inserts), 1) / 1e6 AS seconds FROM sink_health "
        f"WHERE {TIME}",
        "s",
        "Mean time from an event to its row. Bad: above 5 s.",
        link("Latency", "latency"),
        steps=thresholds((None, "green"), (2, "orange"), (5, "red")),
    ),
    row("Rates"),
    timeseries(
        "Events made, by stream",
        rate("sum(made)", "stream", STREAMS, "events"),
        "ops",
        "Events the kernel side produced. Bad: a stream at zero that should never be.",
        link("Probes", "probes"),
        stack=True,
        least="1m",
    ),
    timeseries(
        "Rows delivered, by stream",
        rate("sum(delivered)", "stream", STREAMS, "rows"),
        "ops",
        "Rows that Kafka acknowledged. Bad: below what is shipped for more than moments.",
        link("Host", "host"),
        stack=True,
        least="1m",
    ),
    timeseries(
        "Lag: rows shipped and not delivered",
        f"""
SELECT {BY_MINUTE}, host, greatest(0, sum(shipped) - sum(delivered) - sum(shed) - sum(refused)) AS rows
FROM {STREAMS} GROUP BY time, host ORDER BY time, host""",
        "short",
        "Rows of a moment that wait in a spool. Bad: it grows: Kafka is away or too slow.",
        link("Host", "host"),
        least="1m",
    ),
    timeseries(
        "Spool",
        f"""
SELECT $__timeInterval(ts) AS time, host, max(spool_bytes) AS bytes
FROM collector_health WHERE {HERE} AND kind = 'process' GROUP BY time, host ORDER BY time, host""",
        "bytes",
        "What waits on each host's disk. Bad: it rises towards collector.spool_mb.",
        link("Host", "host"),
    ),
    timeseries(
        "Bytes made, by stream",
        rate("sum(bytes)", "stream", STREAMS, "bytes"),
        "Bps",
        "Bytes of batches before Kafka's own compression. Bad: one stream leaps: an event storm.",
        link("Probes", "probes"),
        stack=True,
        least="1m",
    ),
    timeseries(
        "Lost, shed, sampled out",
        f"""
SELECT {BY_MINUTE}, sum(lost) / $__interval_s AS lost, sum(shed) / $__interval_s AS shed,
  sum(sampled_out) / $__interval_s AS sampled_out, sum(invalid) / $__interval_s AS invalid
FROM {STREAMS} GROUP BY time ORDER BY time""",
        "ops",
        "What did not arrive, by the stage that let it go. Bad: anything but sampled out.",
        link("Host", "host"),
        least="1m",
    ),
    row("Delay and gaps"),
    timeseries(
        "Lag of the sinks",
        f"""
SELECT $__timeInterval(ts) AS time, sink, max(lag) AS messages
FROM sink_health WHERE {TIME} GROUP BY time, sink ORDER BY time, sink""",
        "short",
        "Messages in Kafka that are not in the store yet. "
        "Bad: it grows: start another sink, or see what the store does.",
        link("Host", "host"),
    ),
    timeseries(
        "Delay from event to row",
        f"""
SELECT $__timeInterval(ts) AS time, sink, sum(delay_us * inserts) / greatest(sum(inserts), 1) / 1e6 AS delay
FROM sink_health WHERE {TIME} GROUP BY time, sink ORDER BY time, sink""",
        "s",
        "Mean time from the newest event of an insert to its row. Bad: above 5 s.",
        link("Latency", "latency"),
    ),
    timeseries(
        "Rows inserted",
        f"""
SELECT $__timeInterval(ts) AS time, sink, sum(inserted) / $__interval_s AS rows
FROM sink_health WHERE {TIME} GROUP BY time, sink ORDER BY time, sink""",
        "ops",
        "Rows a second that the store acknowledged. Bad: below "
        "what is delivered to Kafka for more than moments.",
        link("Host", "host"),
        stack=True,
    ),
    timeseries(
        "Dead letters and retries",
        f"""
SELECT $__timeInterval(ts) AS time, sum(dead) AS dead, sum(retries) AS retried, sum(expired) AS expired
FROM sink_health WHERE {TIME} GROUP BY time ORDER BY time""",
        "short",
        "Messages that could not be read, inserts tried again, messages "
        "gone before they were read. Bad: any.",
        link("Host", "host"),
        bars=True,
    ),
    bars(
        "Age of the newest row, by table",
        f"SELECT stream, dateDiff('second', newest, $__toTime) AS age FROM ({NEWEST}) ORDER BY age DESC",
        "s",
        "End-to-end delay: how far behind the end of the window each table is. Bad: above 10 s for tables "
        "that always get rows; quiet tables are old by nature.",
        link("Host", "host"),
        size=(12, 8),
        steps=thresholds((None, "green"), (30, "orange"), (120, "red")),
    ),
    table(
        "Batches that are missing",
        f"SELECT host, stream, boot, missing FROM ({GAPS}) ORDER BY missing DESC LIMIT 100",
        "Holes in the numbers of a host's batches; those at the edge of the window do not count. Bad: any "
        "that is not among the declared losses.",
        link("Host", "host"),
        units={"missing": "short"},
        links={"host": TO_HOST},
        size=(12, 8),
    ),
    table(
        "Declared losses and restarts",
        f"""
SELECT ts AS time, host, kind, stream, reason, seq_from, seq_to, lost, blind_us
FROM collector_health WHERE {HERE} AND kind IN ('loss', 'restart') ORDER BY ts DESC LIMIT 200""",
        "What collectors say of their own ends. Bad: killed, shed; a long time blind.",
        link("Host", "host"),
        units={"time": "dateTimeAsIso", "lost": "short", "blind_us": "µs"},
        links={"host": TO_HOST},
        size=(12, 8),
    ),
    table(
        "Who is behind",
        f"""
SELECT host, sum(made) AS made, sum(shipped) AS shipped, sum(delivered) AS delivered, sum(lost) AS lost,
  sum(shed) AS shed,
  sum(sampled_out) AS sampled_out
FROM {STREAMS} GROUP BY host ORDER BY lost + shed DESC, made DESC LIMIT 200""",
        "Sums by host. Bad: delivered far below shipped.",
        link("Host", "host"),
        unit="short",
        links={"host": TO_HOST},
        size=(12, 8),
    ),
    row("What it costs"),
    timeseries(
        "CPU of programs",
        f"""
SELECT {BY_MINUTE}, program, sum(run_ns) / 1e9 / $__interval_s AS cores
FROM {HEALTH} AND kind = 'program' GROUP BY time, program ORDER BY time, program""",
        "percentunit",
        "Share of one CPU that each "
        "program took, over the chosen hosts together. Bad: above 1 % of a host's CPUs.",
        link("Probes", "probes"),
        stack=True,
        least="1m",
    ),
    timeseries(
        "CPU of collectors",
        f"""
SELECT {BY_MINUTE}, host, sum(cpu_us) / 1e6 / $__interval_s AS cores
FROM {HEALTH} AND kind = 'process' GROUP BY time, host ORDER BY time, host""",
        "percentunit",
        "Share of one CPU that each collector's process took. Bad: above 10 %.",
        link("Host", "host"),
        least="1m",
    ),
    table(
        "Programs",
        f"""
SELECT program, probe, sum(runs) AS times, sum(run_ns) / greatest(sum(runs), 1) AS each,
  sum(run_ns) AS total, sum(missed) AS missed
FROM {HEALTH} AND kind = 'program' GROUP BY program, probe ORDER BY total DESC LIMIT 100""",
        "What each program costs a run and in all. "
        "Bad: above 2 µs a run on a hot path; missed: it met itself.",
        link("Probes", "probes"),
        units={"times": "short", "each": "ns", "total": "ns", "missed": "short"},
        size=(12, 8),
    ),
    table(
        "What the overhead budget did",
        f"""
SELECT ts AS time, host, probe, action, level, total_percent, budget_percent, probe_percent, reason
FROM overhead_event WHERE {HERE} ORDER BY ts DESC LIMIT 200""",
        "Probes slowed or taken off since all together cost too much. Bad: over_budget, detached.",
        link("Probes", "probes"),
        units={
            "time": "dateTimeAsIso",
            "total_percent": "percent",
            "budget_percent": "percent",
            "probe_percent": "percent",
        },
        links={"host": TO_HOST},
        size=(12, 8),
    ),
]

DASHBOARD = dashboard(
    "pipeline",
    "Pipeline",
    "From the kernel to the table: rates, delay, losses and what it costs.",
    PANELS,
    variables=WHERE,
    annotations=MARKS,
)
