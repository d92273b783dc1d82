"""Host: CPU, memory, disk and network on one time axis, with what changed and what was judged."""

from dashboards.source.board import dashboard
from dashboards.source.fleet import CODE, VERDICTS
from dashboards.source.panels import link, row, states, table, timeseries
from dashboards.source.parts import (
    BY_MINUTE,
    CGROUP,
    CGROUPS,
    HERE,
    HERE_BY_MINUTE,
    MARKS,
    TIME,
    WHERE,
    hosts,
    share,
)

TARGETS = hosts("target_host")
CPU_TIME = "(user + system + irq + steal + idle)"


def of_pressure(columns: str, sums: str) -> str:
    """Figures of ``pressure`` per host over time."""
    return f"""
SELECT time, host, {columns} FROM (
  SELECT {BY_MINUTE}, host, {sums}
  FROM pressure WHERE {HERE_BY_MINUTE} GROUP BY time, host)
ORDER BY time, host"""


def top_cgroups(figure: str, table_name: str, name: str, divisor: str = "sum(interval_us)") -> str:
    """The ten cgroups with most of a figure, over time."""
    where = f"{HERE_BY_MINUTE} AND {CGROUPS}"
    return f"""
SELECT {BY_MINUTE}, cgroup, {figure} / greatest({divisor}, 1) AS {name}
FROM {table_name}
WHERE {where} AND cgroup IN (
  SELECT cgroup FROM {table_name} WHERE {where} GROUP BY cgroup ORDER BY {figure} DESC LIMIT 10)
GROUP BY time, cgroup ORDER BY time, cgroup"""


PANELS = [
    states(
        "Verdicts",
        f"""
SELECT $__timeInterval(ts) AS time, target_host, argMax({CODE}, ts) AS verdict
FROM verdict WHERE {TIME} AND rank = 1 AND {TARGETS}
GROUP BY time, target_host ORDER BY time, target_host""",
        VERDICTS,
        "What the rules of diagnosis say of the host. Green is well. Bad: any other colour names the cause.",
        link("Fleet", "fleet"),
        size=(24, 5),
    ),
    row("CPU"),
    timeseries(
        "CPU use",
        of_pressure(
            f"{share('user + system + irq + steal', CPU_TIME)} AS busy, {share('steal', CPU_TIME)} AS stolen",
            "sum(user_us) AS user, sum(system_us) AS system, sum(irq_us) AS irq, sum(steal_us) AS steal, "
            "sum(idle_us) AS idle",
        ),
        "percentunit",
        "Share of all CPUs' time that was used, and that the hypervisor kept. "
        "Bad: busy near 100 % with waits beside it; any stolen time.",
        link("Profiles", "profiles"),
        least="1m",
    ),
    timeseries(
        "Waits for a CPU",
        f"""
SELECT {BY_MINUTE}, cgroup, sum(sum_ns) / greatest(sum(count), 1) / 1e9 AS wait
FROM runq_latency
WHERE {HERE_BY_MINUTE} AND {CGROUPS} AND cgroup IN (
  SELECT cgroup FROM runq_latency WHERE {HERE_BY_MINUTE} AND {CGROUPS}
  GROUP BY cgroup ORDER BY sum(sum_ns) DESC LIMIT 10)
GROUP BY time, cgroup ORDER BY time, cgroup""",
        "s",
        "Mean time a task waited for a CPU, of the ten cgroups that waited "
        "most. Bad: milliseconds; tens of microseconds are normal.",
        link("Latency", "latency"),
        least="1m",
    ),
    timeseries(
        "CPU by cgroup",
        top_cgroups("sum(usage_us)", "cpu_time", "cores"),
        "none",
        "Cores that each cgroup used, the ten largest. Bad: one that grew without reason.",
        link("Profiles", "profiles"),
        stack=True,
        least="1m",
    ),
    timeseries(
        "Stopped by their quota",
        top_cgroups("sum(throttled_us)", "cpu_time", "stopped"),
        "percentunit",
        "Share of time for which a cgroup's own CPU quota stopped it. Bad: above 5 %; raise the quota or "
        "find what burns it.",
        link("Profiles", "profiles"),
        least="1m",
    ),
    row("Memory"),
    timeseries(
        "Waits for memory",
        of_pressure(
            "some / took AS some, full / took AS all",
            "sum(memory_some_us) AS some, sum(memory_full_us) AS full, sum(interval_us) AS took",
        ),
        "percentunit",
        "Share of time in which a task, or all tasks, waited for memory. Bad: above 1 %.",
        link("Latency", "latency"),
        least="1m",
    ),
    timeseries(
        "Memory that is left",
        f"""
SELECT $__timeInterval(ts) AS time, host, min(memory_available_bytes) AS available
FROM pressure WHERE {HERE} GROUP BY time, host ORDER BY time, host""",
        "bytes",
        "What programs could still have. Bad: "
        "it falls steadily, or is below a twentieth of the host's memory.",
        link("Latency", "latency"),
    ),
    timeseries(
        "Page faults that waited for a disk",
        of_pressure(
            "faults / (took / 1e6) AS faults, refaults / (took / 1e6) AS refaults",
            "sum(major_faults) AS faults, sum(refaults) AS refaults, sum(interval_us) AS took",
        ),
        "ops",
        "Major faults, and pages that came back soon after they were freed. Bad: hundreds a second, and "
        "refaults at all: memory is too small for the work.",
        link("Latency", "latency"),
        least="1m",
    ),
    table(
        "Killed for want of memory",
        f"""
SELECT ts AS time, host, comm, pid, cgroup, cause, anonymous_bytes, trigger_comm
FROM oom_kill WHERE {HERE} AND {CGROUPS} ORDER BY ts DESC LIMIT 100""",
        "Each row is a process that the kernel killed. "
        "Bad: any row; cause cgroup: its limit is too low; host: the host is too small.",
        link("Fleet", "fleet"),
        units={"time": "dateTimeAsIso", "anonymous_bytes": "bytes"},
        size=(12, 8),
    ),
    row("Disk"),
    timeseries(
        "Disk latency",
        f"""
SELECT {BY_MINUTE}, concat(host, ' ', device, ' ', operation) AS disk,
  sum(latency_ns) / greatest(sum(count), 1) / 1e9 AS latency
FROM block_io WHERE {HERE_BY_MINUTE} GROUP BY time, host, device, operation ORDER BY time, disk""",
        "s",
        "Mean time of a request in the device. Bad: above 10 ms on SSDs, above 30 ms on spinning disks, "
        "or several times what it was.",
        link("Latency", "latency"),
        least="1m",
    ),
    timeseries(
        "Disk throughput",
        f"""
SELECT {BY_MINUTE}, concat(host, ' ', device, ' ', operation) AS disk,
  sum(bytes) / $__interval_s AS bytes
FROM block_io WHERE {HERE_BY_MINUTE} GROUP BY time, host, device, operation ORDER BY time, disk""",
        "Bps",
        "Bytes to and from each disk. Bad: flat at what the device can do.",
        link("Latency", "latency"),
        stack=True,
        least="1m",
    ),
    timeseries(
        "Waits for I/O",
        of_pressure(
            "some / took AS some, full / took AS all",
            "sum(io_some_us) AS some, sum(io_full_us) AS full, sum(interval_us) AS took",
        ),
        "percentunit",
        "Share of time in which a task, or all tasks, waited for a disk. Bad: above 10 %.",
        link("Latency", "latency"),
        least="1m",
    ),
    table(
        "Slow requests",
        f"""
SELECT ts AS time, host, device, operation, comm, cgroup, latency_ns, queued_ns, bytes
FROM block_io_slow WHERE {HERE} AND {CGROUPS} ORDER BY latency_ns DESC LIMIT 100""",
        "The slowest block requests, one by "
        "one. Bad: latency far above queued time: the device; the other way round: too many requests.",
        link("Latency", "latency"),
        units={"time": "dateTimeAsIso", "latency_ns": "ns", "queued_ns": "ns", "bytes": "bytes"},
        size=(12, 8),
    ),
    row("Network"),
    timeseries(
        "Segments sent again",
        of_pressure(
            f"{share('again', 'sent')} AS again", "sum(tcp_retransmits) AS again, sum(tcp_segments) AS sent"
        ),
        "percentunit",
        "Share of TCP segments that had to be sent again. Bad: above 1 %.",
        link("Network", "network"),
        least="1m",
    ),
    timeseries(
        "Packets dropped",
        f"""
SELECT {BY_MINUTE}, reason, sum(packets) / $__interval_s AS packets
FROM packet_drop_count WHERE {HERE_BY_MINUTE} GROUP BY time, reason ORDER BY time, reason""",
        "pps",
        "Packets the kernel dropped, by its reason. Bad: a reason that was not there before, or that grows.",
        link("Network", "network"),
        stack=True,
        least="1m",
    ),
    row("What changed"),
    table(
        "Changes on these hosts",
        f"""
SELECT ts AS time, host, kind, id, revision, state, reason, author
FROM applied WHERE {HERE} ORDER BY ts DESC LIMIT 100""",
        "What these hosts were told to do, by whom, and whether they "
        "did. Bad: refused or failed; a change just before trouble began.",
        link("Probes", "probes"),
        units={"time": "dateTimeAsIso"},
        size=(12, 8),
    ),
    table(
        "Programs that ended badly",
        f"""
SELECT comm, cgroup, exit_code, signal, count() AS times, max(ts) AS last
FROM process_exit WHERE {HERE} AND {CGROUPS} AND (exit_code != 0 OR signal != 0)
GROUP BY comm, cgroup, exit_code, signal ORDER BY times DESC LIMIT 100""",
        "Processes that ended with a code or by a "
        "signal. Bad: the same one over and over (a crash loop); signal 9 or 11.",
        link("Profiles", "profiles"),
        units={"last": "dateTimeAsIso", "times": "short"},
        size=(12, 8),
    ),
]

DASHBOARD = dashboard(
    "host",
    "Host",
    "CPU, memory, disk and network of the chosen hosts on one time axis, with deploys, rules and verdicts.",
    PANELS,
    variables=[*WHERE, CGROUP],
    annotations=MARKS,
)
