"""The figures that a diagnosis looks at: each is a sum over rows of one stream, by host, second and thing.

A value over some seconds is ``sum(amount) / sum(per)``, or ``sum(amount)`` a second where ``per`` is empty:
rows that come a little early or late shift nothing.
"""

from dataclasses import dataclass

SLOW_BUCKET = 18  # of a histogram of µs, from 1: this one and those above it are ≥ 65 ms


@dataclass(frozen=True)
class Metric:
    """One figure: ``amount``, ``per`` and ``thing`` are SQL over ``stream``."""

    name: str
    unit: str
    stream: str
    amount: str
    per: str = ""
    thing: str = "''"  # what it is of, within the host: a cgroup, a device, a remote
    where: str = "1"
    least_history: int = 6  # buckets of history without which there is no baseline


REMOTE = "replaceOne(toString(remote_address), '::ffff:', '')"
SERVER = f"concat({REMOTE}, ':', toString(remote_port))"


def _host(name: str, unit: str, amount: str, per: str = "") -> Metric:
    return Metric(f"pressure.{name}", unit, "pressure", amount, per)


def _cgroup(name: str, unit: str, amount: str, per: str = "") -> Metric:
    return Metric(f"cgroup.{name}", unit, "cgroup_pressure", amount, per, "cgroup")


ALL_CPUS = "sum(user_us + system_us + irq_us + steal_us + idle_us)"
METRICS = {
    each.name: each
    for each in (
        _host("cpu_some", "%", "sum(cpu_some_us) / 1e4"),
        _host("cpu_busy", "%", f"100 * ({ALL_CPUS} - sum(idle_us))", ALL_CPUS),
        _host("cpu_used", "CPUs", "sum(user_us + system_us + irq_us) / 1e6"),
        _host("steal", "%", "100 * sum(steal_us)", ALL_CPUS),
        _host("memory_some", "%", "sum(memory_some_us) / 1e4"),
        _host("io_some", "%", "sum(io_some_us) / 1e4"),
        _host("refaults", "pages/s", "sum(refaults)"),
        _host("oom_kills", "kills/s", "sum(oom_kills)"),
        _cgroup("cpu", "CPUs", "sum(cpu_us) / 1e6"),
        _cgroup("throttled", "%", "100 * sum(throttled_periods)", "sum(periods)"),
        _cgroup("throttled_time", "s/s", "sum(throttled_us) / 1e6"),
        _cgroup("quota", "CPUs", "sum(quota_us) / 1e6"),
        _cgroup("memory_some", "%", "sum(memory_some_us) / 1e4"),
        _cgroup("io_some", "%", "sum(io_some_us) / 1e4"),
        _cgroup("refaults", "pages/s", "sum(refaults)"),
        _cgroup("limit_hits", "1/s", "sum(limit_hits)"),
        _cgroup("memory_share", "%", "100 * sum(memory_bytes * (memory_limit_bytes > 0))",
                "sum(memory_limit_bytes)"),
        _cgroup("oom_kills", "kills/s", "sum(oom_kills)"),
        Metric("io_limit.used", "%", "cgroup_pressure",
               "100 * sum(greatest(requests / greatest(io_limit_requests, 1) * (io_limit_requests > 0),"
               " (read_bytes + written_bytes) / greatest(io_limit_bytes, 1) * (io_limit_bytes > 0)))",
               "", "concat(cgroup, '\\n', io_device)", "io_device != ''"),
        Metric("runq.waiting", "tasks", "runq_latency", "sum(sum_ns) / 1e9"),
        Metric("runq.wait", "%", "runq_latency", "sum(sum_ns) / 1e7", "", "cgroup"),
        Metric("block.await", "ms", "block_io", "sum(latency_ns + queued_ns) / 1e6", "sum(count)", "device"),
        Metric("block.requests", "1/s", "block_io", "sum(count)", "", "device"),
        Metric("tcp.rtt", "ms", "tcp_rtt", "sum(sum_us) / 1e3", "sum(samples)", REMOTE, least_history=1),
        Metric("tcp.segments", "1/s", "tcp_rtt", "sum(count)", "", REMOTE),
        Metric("tcp.retransmits", "1/s", "tcp_retransmit", "sum(count)", "", REMOTE),
        Metric("server.answer", "ms", "tcp_response",
               "sum(greatest(toInt64(sum_us) - toInt64(rtt_us), 0)) / 1e3", "sum(count)", SERVER,
               least_history=1),
        Metric("server.slow", "%", "tcp_response",
               f"100 * sum(arraySum(arraySlice(times, {SLOW_BUCKET})))", "sum(count)", SERVER),
        Metric("server.answers", "1/s", "tcp_response", "sum(count)", "", SERVER),
        Metric("drops", "packets/s", "packet_drop_count", "sum(packets)", "", "reason"),
    )
}  # fmt: skip
HOST_SECONDS = "pressure.cpu_busy"  # has a row each second of each host that is alive


def window_sql(metric: Metric, hosts: str) -> str:
    """Per host, thing and second of ``{from:Int64} … {to:Int64}`` (µs): amount and per."""
    return (
        f"SELECT host, {metric.thing} AS thing, intDiv(toUnixTimestamp64Micro(ts), 1000000) AS second,"
        f" toFloat64({metric.amount}) AS amount, toFloat64({metric.per or 1}) AS per FROM {metric.stream}"
        f" WHERE {_between('from', 'to')} AND {hosts} AND {metric.where} GROUP BY host, thing, second"
    )


def history_sql(metric: Metric, hosts: str, bucket_s: int) -> str:
    """Per host and thing: the values of all buckets of ``{since:Int64} … {from:Int64}`` (µs)."""
    per = metric.per or str(bucket_s)
    return (
        "SELECT host, thing, groupArray(value) FROM ("
        f"SELECT host, {metric.thing} AS thing, intDiv(toUnixTimestamp64Micro(ts), {bucket_s}000000) AS"
        f" bucket, toFloat64({metric.amount}) / {per} AS value FROM {metric.stream}"
        f" WHERE {_between('since', 'from')} AND {hosts} AND {metric.where} GROUP BY host, thing, bucket"
        ") WHERE isFinite(value) GROUP BY host, thing"
    )


def _between(first: str, last: str) -> str:
    at = "fromUnixTimestamp64Micro({{{}:Int64}})"
    return f"ts >= {at.format(first)} AND ts < {at.format(last)}"
