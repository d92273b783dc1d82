"""The SQL behind a verdict, ready to paste: no parameter is left open."""

from datetime import UTC, datetime

from fleet.diagnose.finding import Finding
from fleet.diagnose.metrics import SERVER

CGROUP = """
SELECT toStartOfSecond(ts) AS second, cgroup, round(sum(cpu_us) / 1e6, 3) AS cpus,
  sum(throttled_periods) AS throttled, round(sum(cpu_some_us) / 1e4, 1) AS waits_for_cpu,
  round(sum(memory_some_us) / 1e4, 1) AS waits_for_memory, round(sum(io_some_us) / 1e4, 1) AS waits_for_io,
  sum(refaults) AS refaults, sum(limit_hits) AS limit_hits
FROM cgroup_pressure WHERE {where} AND cgroup IN ({cgroups})
GROUP BY second, cgroup ORDER BY second, cgroup"""
HOST = """
SELECT toStartOfSecond(ts) AS second, round(sum(cpu_some_us) / 1e4, 1) AS waits_for_cpu,
  round(100 - 100 * sum(idle_us) / sum(user_us + system_us + irq_us + steal_us + idle_us), 1) AS busy,
  round(sum(memory_some_us) / 1e4, 1) AS waits_for_memory, round(sum(io_some_us) / 1e4, 1) AS waits_for_io
FROM pressure WHERE {where} GROUP BY second ORDER BY second"""
WHO_WAITS = """
SELECT cgroup, round(sum(sum_ns) / 1e9, 2) AS waited_s, round(sum(sum_ns) / sum(count) / 1e6, 3) AS wait_ms
FROM runq_latency WHERE {where} GROUP BY cgroup ORDER BY waited_s DESC LIMIT 20"""
DEVICE = """
SELECT toStartOfSecond(ts) AS second, operation, sum(count) AS requests,
  round(sum(latency_ns) / sum(count) / 1e6, 2) AS device_ms,
  round(sum(queued_ns) / sum(count) / 1e6, 2) AS queued_ms
FROM block_io WHERE {where} AND device = {culprit} GROUP BY second, operation ORDER BY second, operation"""
LIMITED = """
SELECT toStartOfSecond(ts) AS second, io_device, sum(requests) AS requests,
  sum(io_limit_requests) AS granted_requests, sum(read_bytes + written_bytes) AS bytes,
  sum(io_limit_bytes) AS granted_bytes, round(sum(io_some_us) / 1e4, 1) AS waits_for_io
FROM cgroup_pressure WHERE {where} AND cgroup = {culprit} GROUP BY second, io_device ORDER BY second"""
REMOTE = """
SELECT second, sum(rtt) AS rtt_ms, sum(arrived) AS segments_arrived, sum(again) AS sent_again FROM (
  SELECT toStartOfSecond(ts) AS second, round(sum(sum_us) / sum(samples) / 1e3, 2) AS rtt,
    toInt64(sum(delivered)) AS arrived, toInt64(0) AS again
  FROM tcp_rtt WHERE {where} AND remote_address = toIPv6({culprit}) GROUP BY second
  UNION ALL SELECT toStartOfSecond(ts), 0., toInt64(0), toInt64(sum(count))
  FROM tcp_retransmit WHERE {where} AND remote_address = toIPv6({culprit}) GROUP BY toStartOfSecond(ts))
GROUP BY second ORDER BY second"""
DATAGRAMS = """
SELECT toStartOfSecond(ts) AS second, reason, location, interface, sum(weight) AS datagrams
FROM packet_drop WHERE {where} AND protocol = 17 AND destination_address = toIPv6({culprit})
GROUP BY second, reason, location, interface ORDER BY second"""
SERVERS = f"""
SELECT toStartOfSecond(ts) AS second, sum(count) AS answers,
  round(sum(sum_us) / sum(count) / 1e3, 2) AS answer_ms,
  round(sum(rtt_us) / sum(count) / 1e3, 2) AS round_trip_ms, sum(questions) AS questions,
  sum(unanswered) AS given_up
FROM tcp_response WHERE {{where}} AND {SERVER} = {{culprit}} GROUP BY second ORDER BY second"""
BEFORE_US = 120_000_000
QUESTIONS = {
    "cpu_saturation": WHO_WAITS,
    "cpu_quota": CGROUP,
    "noisy_neighbour": CGROUP,
    "memory_pressure": CGROUP,
    "slow_disk": LIMITED,
    "network": REMOTE,
    "remote_slowness": SERVERS,
}


def question(finding: Finding | None, host: str, first_us: int, last_us: int) -> str:
    """One statement; of a host in order: its pressure."""
    text, named = HOST, [""]
    if finding is not None:
        named = [each for each in (finding.culprit, finding.victim) if each] or [""]
        text = QUESTIONS.get(finding.verdict, HOST)
        if finding.culprit_kind == "device":
            text = DEVICE
        elif finding.deciding.metric == "tcp.openings":
            text = REMOTE
        elif finding.deciding.metric == "udp.dropped":
            text = DATAGRAMS
        elif named == [""] and finding.verdict in ("memory_pressure", "slow_disk"):
            text = HOST
    if finding is not None and finding.deciding.metric == "server.silence":
        first_us -= BEFORE_US  # of the silence itself there are no rows
    where = f"host = {quoted(host)} AND ts >= '{_time(first_us)}' AND ts < '{_time(last_us)}'"
    cgroups = ", ".join(quoted(each) for each in named)
    return " ".join(text.format(where=where, cgroups=cgroups, culprit=quoted(named[0])).split())


def quoted(text: str) -> str:
    """A string of SQL."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"


def _time(at_us: int) -> str:
    return datetime.fromtimestamp(at_us / 1e6, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")
