"""The figures that a diagnosis looks at: each is a sum over rows of one stream, by host, second and thing.

A value over some seconds is ``sum(amount) / sum(per)``, or ``sum(amount)`` a second where ``per`` is empty:
rows that come a little early or late shift nothing.
"""

from collections.abc import Iterable
from dataclasses import dataclass

SLOW_BUCKET = 18  # of a histogram of µs, from 1: this one and those above it are ≥ 65 ms
LONG_BUCKET = 20  # ≥ 262 ms


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


SMALL_READ = "(operation = 'READ' AND size IN ('4K', '16K', '64K'))"


# The kernel's reasons for a drop on a packet's way out or in, before anything looks for whom it is.
ON_THE_WAY = (
    "reason IN ('QDISC_DROP', 'QDISC_OVERLIMIT', 'QDISC_CONGESTED', 'TC_EGRESS', 'TC_INGRESS', 'XDP',"
    " 'NETFILTER_DROP', 'CPU_BACKLOG', 'FULL_RING', 'DEV_READY', 'NEIGH_FAILED', 'NEIGH_QUEUEFULL')"
)


SEGMENTS = "ceil(greatest(length, 1) / 1448)"  # of a packet that the device would have cut up
DROPPED = (  # the other side of a packet that this host dropped itself
    "replaceOne(toString(if(reason = 'TC_INGRESS', source_address, destination_address)), '::ffff:', '')"
)


def _slower(bucket: int) -> str:
    """Answers in that bucket or above it, and those given up that had waited as long; in %."""
    least_us = 1 << (bucket - 2)
    return (
        f"100 * sum(arraySum(arraySlice(times, {bucket}))"
        f" + unanswered * (unanswered_us >= {least_us} * unanswered))"
    )


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
        _cgroup("waited", "%", "sum(waited_us) / 1e4"),
        _cgroup("cpu_some", "%", "sum(cpu_some_us) / 1e4"),
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
        Metric("kept.waiting", "%", "preemption", "sum(waited_ns) / 1e7", "",
               "concat(cgroup, '\\n', by_cgroup)", "by = 'other'"),
        Metric("block.await", "ms", "block_io", "sum(latency_ns + queued_ns) / 1e6", "sum(count)", "device"),
        Metric("block.requests", "1/s", "block_io", "sum(count)", "", "device"),
        Metric("block.bytes", "B/s", "block_io", "sum(bytes)", "", "device"),
        Metric("block.read_await", "ms", "block_io",
               f"sum((latency_ns + queued_ns) * {SMALL_READ}) / 1e6", f"sum(count * {SMALL_READ})", "device"),
        Metric("tcp.rtt", "ms", "tcp_rtt", "sum(sum_us) / 1e3", "sum(samples)", REMOTE, least_history=3),
        Metric("tcp.segments", "1/s", "tcp_rtt", "sum(count)", "", REMOTE),
        Metric("tcp.delivered", "1/s", "tcp_rtt", "sum(delivered)", "", REMOTE),
        Metric("tcp.retransmits", "1/s", "tcp_retransmit", "sum(count)", "", REMOTE),
        Metric("tcp.openings", "1/s", "tcp_retransmit", "sum(count)", "", REMOTE, "state = 'SYN_SENT'"),
        Metric("server.answer", "ms", "tcp_response",
               "sum(greatest(toInt64(sum_us) - toInt64(rtt_us), 0) + unanswered_us) / 1e3",
               "sum(count + unanswered)", SERVER, least_history=1),
        Metric("server.slow", "%", "tcp_response", _slower(SLOW_BUCKET), "sum(count + unanswered)", SERVER),
        Metric("server.long", "%", "tcp_response", _slower(LONG_BUCKET), "sum(count + unanswered)", SERVER,
               least_history=1),
        Metric("server.answers", "1/s", "tcp_response", "sum(count)", "", SERVER),
        Metric("server.unanswered", "1/s", "tcp_response", "sum(unanswered)", "", SERVER),
        Metric("server.opened", "1/s", "tcp_response",
               "sum(toInt64(questions) - toInt64(count) - toInt64(unanswered))", "", SERVER),
        Metric("tcp.dropped", "1/s", "packet_drop", f"sum(weight * {SEGMENTS})", "", DROPPED,
               f"protocol = 6 AND {ON_THE_WAY}"),
        Metric("udp.dropped", "datagrams/s", "packet_drop", "sum(weight)", "", DROPPED,
               f"protocol = 17 AND {ON_THE_WAY}"),
        Metric("drops", "packets/s", "packet_drop_count", "sum(packets)", "", "reason", ON_THE_WAY),
    )
}  # fmt: skip
HOST_SECONDS = "pressure.cpu_busy"  # has a row each second of each host that is alive


def together(metrics: Iterable[Metric]) -> list[list[Metric]]:
    """Metrics of the same rows and the same things: one question reads them all."""
    found: dict[tuple[str, str, str], list[Metric]] = {}
    for each in metrics:
        found.setdefault((each.stream, each.thing, each.where), []).append(each)
    return list(found.values())


def window_sql(name: str, metrics: list[Metric], hosts: str) -> str:
    """Per host and thing of ``{from:Int64} … {to:Int64}`` (µs): seconds, and for each of them all amounts and
    then the pers of those metrics that have one.

    Every question has the columns question (``name``), host, thing, seconds, lists: together they are one
    statement. Of seconds, ClickHouse thinks longer about a statement than it reads: keep them plain.
    """
    one = metrics[0]
    values = [each.amount for each in metrics] + [each.per for each in metrics if each.per]
    return (
        f"SELECT '{name}' AS question, host, thing, groupArray(second) AS seconds,"
        f" groupArray(values) AS lists FROM (SELECT host, {one.thing} AS thing,"
        " intDiv(toUnixTimestamp64Micro(ts), 1000000) AS second,"
        f" [{', '.join(f'toFloat64({each})' for each in values)}] AS values"
        f" FROM {one.stream} WHERE {between('from', 'to')} AND {hosts} AND {one.where}"
        " GROUP BY host, thing, second) GROUP BY host, thing"
    )


def cores_sql(name: str, hosts: str) -> str:
    """Per host of ``{from:Int64} … {to:Int64}``: how many CPUs."""
    return (
        f"SELECT '{name}' AS question, host, '' AS thing, emptyArrayInt64() AS seconds,"
        f" [[toFloat64(max(cores))]] AS lists FROM pressure WHERE {between('from', 'to')} AND {hosts}"
        " GROUP BY host"
    )


def asked_sql(name: str, hosts: str) -> str:
    """Each server's answers in ``{asked:Int64} … {from:Int64}``, and the questions that are still open."""
    answers, opened = METRICS["server.answers"], METRICS["server.opened"]
    return (
        f"SELECT '{name}' AS question, host, {answers.thing} AS thing, emptyArrayInt64() AS seconds,"
        f" [[toFloat64({answers.amount}), toFloat64({opened.amount})]] AS lists"
        f" FROM {answers.stream} WHERE {between('asked', 'from')} AND {hosts} GROUP BY host, thing"
    )


def best_sql(name: str, metric: Metric, hosts: str) -> str:
    """Per host and thing: the least value of a second in ``{lately:Int64} … {to:Int64}``."""
    return (
        f"SELECT '{name}' AS question, host, thing, emptyArrayInt64() AS seconds, [[min(value)]] AS lists"
        f" FROM (SELECT host, {metric.thing} AS thing,"
        f" toFloat64({metric.amount}) / {metric.per} AS value FROM {metric.stream}"
        f" WHERE {between('lately', 'to')} AND {hosts} AND {metric.where}"
        " GROUP BY host, thing, toUnixTimestamp(ts)) WHERE isFinite(value) GROUP BY host, thing"
    )


def history_sql(name: str, metrics: list[Metric], hosts: str, bucket_s: int) -> str:
    """Per host and thing, over buckets of ``{since:Int64} … {from:Int64}`` (µs): of each metric how many
    buckets, their median, and the median deviation from it. Where a row is a count, a bucket without one was
    nought: ``{hosts:Array(String)}`` had ``{lived:Array(Int64)}``.
    """
    one = metrics[0]
    places = range(len(metrics))
    values = "".join(
        f", toFloat64({each.amount}) / {each.per or bucket_s} AS value_{at}"
        for at, each in zip(places, metrics, strict=True)
    )
    lists = "".join(
        f", {_padded(f'groupArrayIf(value_{at}, isFinite(value_{at}))', each)} AS all_{at}"
        for at, each in zip(places, metrics, strict=True)
    )
    answers = ", ".join(
        f"[toFloat64(length(all_{at})), arrayReduce('median', all_{at}) AS usual_{at},"
        f" arrayReduce('median', arrayMap(each -> abs(each - usual_{at}), all_{at}))]"
        for at in places
    )
    least = min(each.least_history for each in metrics)
    enough = f" HAVING count() >= {least}" if all(each.per for each in metrics) else ""
    buckets = (
        f"SELECT host, {one.thing} AS thing, intDiv(toUnixTimestamp64Micro(ts), {bucket_s}000000) AS bucket"
        f"{values} FROM {one.stream} WHERE {between('since', 'from')} AND {hosts} AND {one.where}"
        " GROUP BY host, thing, bucket"
    )
    series = f"SELECT host, thing{lists} FROM ({buckets}) GROUP BY host, thing{enough}"
    return (
        f"SELECT '{name}' AS question, host, thing, emptyArrayInt64() AS seconds, [{answers}] AS lists"
        f" FROM ({series})"
    )


def _padded(values: str, metric: Metric) -> str:
    if metric.per:
        return values
    lived = "transform(host, {hosts:Array(String)}, {lived:Array(Int64)}, toInt64(0))"
    return f"arrayResize({values}, greatest(toInt64(length({values})), {lived}))"


def between(first: str, last: str) -> str:
    """Rows of ``{first:Int64} … {last:Int64}`` (µs)."""
    at = "fromUnixTimestamp64Micro({{{}:Int64}})"
    return f"ts >= {at.format(first)} AND ts < {at.format(last)}"
