"""Latency: how long things took, as heatmaps; a click on a cell shows what was slow then."""

from dashboards.source.board import dashboard, text
from dashboards.source.panels import heatmap, link, row, table
from dashboards.source.parts import (
    BY_MINUTE,
    CGROUP,
    CGROUPS,
    HERE,
    HERE_BY_MINUTE,
    MARKS,
    WHERE,
    address,
    buckets,
    quantile,
)

CLICK = {
    "title": "What was slow then",
    "url": "/d/bpfleet-latency?${__url_time_range}&${datasource:queryparam}&${region:queryparam}"
    "&${role:queryparam}&${host:queryparam}&${cgroup:queryparam}&var-at=${__value.time}",
}
AT = "fromUnixTimestamp64Milli(toInt64OrZero(${at:singlequote}))"
# A cell is as wide as the interval; without a click, the whole window.
THEN = (
    f"(${{at:singlequote}} = '' OR (ts >= {AT} AND ts < {AT} + INTERVAL greatest($__interval_s, 60) SECOND))"
)


def over_time(values: str, table_name: str, extra: str = "") -> str:
    """A heatmap's columns out of an array of log₂ buckets."""
    return f"""
SELECT time,
  {buckets("spread")}
FROM (
  SELECT {BY_MINUTE}, sumForEach({values}) AS spread
  FROM {table_name} WHERE {HERE_BY_MINUTE}{extra}
  GROUP BY time)
ORDER BY time"""


def slowest(key: str, values: str, table_name: str, count: str, extra: str = "", shown: str = "") -> str:
    """Who had the longest times in the cell that was clicked."""
    return f"""
SELECT {shown or key}, times, {quantile("spread", 0.5)} AS p50, {quantile("spread", 0.99)} AS p99 FROM (
  SELECT {key}, sum({count}) AS times, sumForEach({values}) AS spread
  FROM {table_name} WHERE {HERE} AND {THEN}{extra}
  GROUP BY {key})
ORDER BY p99 DESC, times DESC LIMIT 50"""


OF_CGROUP = f" AND {CGROUPS}"
UNITS = {"times": "short", "p50": "µs", "p99": "µs"}

PANELS = [
    row("Times; click a cell for what was slow then"),
    heatmap(
        "Run queue",
        over_time("waits", "runq_latency", OF_CGROUP),
        "Waits of tasks for a CPU: each column a moment, "
        "each line twice as long as the one below. Bad: colour above 1 ms, or a cloud that rises.",
        link("Host", "host"),
        least="1m",
        click=CLICK,
    ),
    heatmap(
        "Block I/O",
        over_time("latencies", "block_io"),
        "Block requests from issue to completion. Bad: a second "
        "cloud well above the first (a sick device, a full queue), anything above 100 ms.",
        link("Host", "host"),
        least="1m",
        click=CLICK,
    ),
    heatmap(
        "TCP connect",
        over_time("latencies", "tcp_connect", OF_CGROUP),
        "From connect() until the connection stands. "
        "Bad: colour at 1 s, 3 s, 7 s: the first packet was lost and sent again.",
        link("Network", "network"),
        least="1m",
        click=CLICK,
    ),
    heatmap(
        "TCP round trip",
        over_time("rtts", "tcp_rtt", OF_CGROUP),
        "Smoothed round-trip times. Bad: a cloud that rises: queues fill on the way.",
        link("Network", "network"),
        least="1m",
        click=CLICK,
    ),
    heatmap(
        "System calls",
        over_time("latencies", "syscall_latency", OF_CGROUP),
        "How long system calls take. Waiting "
        "ones (poll, futex, read of a socket) are long by nature. Bad: a cloud that was not there before.",
        link("Profiles", "profiles"),
        least="1m",
        click=CLICK,
    ),
    heatmap(
        "Answers of the servers we ask",
        over_time("times", "tcp_response", OF_CGROUP),
        "From the last bytes of a "
        "question to the first of its answer. Bad: it rises while the round trip does not: a slow server.",
        link("Network", "network"),
        least="1m",
        click=CLICK,
    ),
    row("What was slow: in the cell that was clicked, or in the whole window"),
    table(
        "Who waited for a CPU",
        slowest("host, cgroup", "waits", "runq_latency", "count", OF_CGROUP),
        "Cgroups by their 99th percentile. Bad: above 1 ms; who kept them is in the table beside.",
        link("Host", "host"),
        units=UNITS,
        size=(12, 9),
    ),
    table(
        "Who kept them from it",
        f"""
SELECT host, cgroup, by, by_cgroup, sum(waits) AS waits, sum(waited_ns) AS waited, sum(preempted) AS preempted
FROM preemption WHERE {HERE} AND {THEN}{OF_CGROUP}
GROUP BY host, cgroup, by, by_cgroup ORDER BY waited DESC LIMIT 50""",
        "Who had the CPU while others waited 50 µs or more. Bad: other (a noisy neighbour), idle (a quota).",
        link("Profiles", "profiles"),
        units={"waited": "ns", "waits": "short", "preempted": "short"},
        size=(12, 9),
    ),
    table(
        "Slow block requests",
        f"""
SELECT ts AS time, host, device, operation, comm, cgroup, latency_ns, queued_ns, bytes
FROM block_io_slow WHERE {HERE} AND {THEN}{OF_CGROUP} ORDER BY latency_ns DESC LIMIT 50""",
        "Requests past the threshold, "
        "the slowest first. Bad: long in the device: a sick disk; long queued: too many requests.",
        link("Host", "host"),
        units={"time": "dateTimeAsIso", "latency_ns": "ns", "queued_ns": "ns", "bytes": "bytes"},
        size=(12, 9),
    ),
    table(
        "Slow operations on files",
        f"""
SELECT ts AS time, host, operation, filesystem, file, comm, cgroup, latency_ns, bytes, error
FROM file_io WHERE {HERE} AND {THEN}{OF_CGROUP} ORDER BY latency_ns DESC LIMIT 50""",
        "Reads, writes, fsyncs and opens past the threshold. Bad: fsync of a database above 50 ms.",
        link("Host", "host"),
        units={"time": "dateTimeAsIso", "latency_ns": "ns", "bytes": "bytes"},
        size=(12, 9),
    ),
    table(
        "Slow peers",
        slowest(
            "host, remote_address, remote_port",
            "latencies",
            "tcp_connect",
            "count",
            OF_CGROUP,
            shown=f"host, {address('remote_address')} AS remote, remote_port",
        ),
        "Where connections took longest to stand. Bad: a p99 of a second: packets are lost on the way there.",
        link("Network", "network"),
        units={**UNITS, "remote_port": "none"},
        size=(12, 9),
    ),
    table(
        "Slow system calls",
        slowest("host, cgroup, syscall", "latencies", "syscall_latency", "arraySum(latencies)", OF_CGROUP),
        "Calls by their 99th percentile. Bad: a call that should not wait (open, stat) above 10 ms.",
        link("Profiles", "profiles"),
        units=UNITS,
        size=(12, 9),
    ),
]

DASHBOARD = dashboard(
    "latency",
    "Latency",
    "How long tasks, disks, connections and system calls took, and who was slow when.",
    PANELS,
    variables=[*WHERE, CGROUP, text("at", "Moment (ms since 1970)")],
    annotations=MARKS,
)
