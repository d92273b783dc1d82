"""Incidents of single hosts: CPU, disk, memory, network, and what bpfleet itself costs."""

from fleet.simulate.plan import Absence, Ask, Effect, Event, Fleet, Incident, Look
from fleet.simulate.values import mapped

HIGHER = "arrayMap(each -> if(each <= {n}, 0, {of}[each - {n}]), range(1, 28))"


def higher(histogram: str, buckets: int) -> str:
    """A histogram whose times are 2 to the power of ``buckets`` times longer."""
    return HIGHER.format(n=buckets, of=histogram)


def judged(
    host: str, begin: float, end: float, verdict: str, score: float, culprit: str, victim: str, summary: str,
    **more: str,
) -> Effect:  # fmt: skip
    """The verdicts of that time: from a minute after it began."""
    columns = {"verdict": verdict, "culprit": culprit, "victim": victim, "summary": summary, **more}
    texts = {name: f"'{text}'" for name, text in columns.items()}
    began = f"fromUnixTimestamp64Micro({int(begin * 1e6)})"
    return Effect("verdict", (host,), begin + 60, end, texts | {"score": str(score), "began": began})


def noisy_neighbour(fleet: Fleet) -> Incident:
    """A batch job takes the CPUs of a web server."""
    host, begin, end = fleet.host(1), fleet.ago(55), fleet.ago(25)
    batch, others = "cgroup = 'batch.service'", "cgroup != 'batch.service'"
    effects = (
        Effect("runq_latency", (host,), begin, end,
               {"sum_ns": "sum_ns * 60", "waits": higher("waits", 7)}, others),
        Effect("preemption", (host,), begin, end, {"by": "'other'", "by_cgroup": "'batch.service'",
               "waited_ns": "waited_ns * 80", "waits": "waits * 20"}, others),
        Effect("cpu_time", (host,), begin, end, {"usage_us": "usage_us * 20"}, batch),
        Effect("cpu_profile", (host,), begin, end,
               {"samples": "samples * 20", "cpu_ns": "cpu_ns * 20"}, batch),
        Effect("pressure", (host,), begin, end, {"cpu_some_us": "cpu_some_us * 15",
               "user_us": "user_us * 2.5", "idle_us": "toUInt64(idle_us / 20)"}),
        judged(host, begin, end, "noisy_neighbour", 0.83, "batch.service", "nginx.service",
               "nginx.service waits for CPUs that batch.service has", culprit_kind="cgroup"),
    )  # fmt: skip
    return Incident(
        "noisy-neighbour", f"batch.service takes the CPUs of nginx.service on {host}", begin, end, effects,
        looks=(
            Look("latency", "Who kept them from it", (host, "other", "batch.service"), {"host": host}),
            Look("fleet", "CPU: waits for a core", (host,)),
        ),
    )  # fmt: skip


def cpu_quota(fleet: Fleet) -> Incident:
    """A service that its own limit stops."""
    host, begin, end = fleet.host(3), fleet.ago(170), fleet.ago(140)
    effects = (
        Effect("cpu_time", (host,), begin, end, {"throttled_periods": "toUInt64(periods * 0.6)",
               "throttled_us": "toUInt64(periods * 45000)"}, "cgroup = 'app.service'"),
        Effect("preemption", (host,), begin, end,
               {"by": "'idle'", "by_cgroup": "''", "waited_ns": "waited_ns * 40"}, "cgroup = 'app.service'"),
        judged(host, begin, end, "cpu_quota", 0.75, "app.service", "",
               "app.service is stopped by its own CPU quota for 45 % of the time", culprit_kind="cgroup"),
    )  # fmt: skip
    return Incident(
        "cpu-quota", f"app.service on {host} is stopped by its quota", begin, end, effects,
        looks=(Look("host", "Stopped by their quota", ("app.service",), {"host": host}),
               Look("fleet", "Verdicts over time", (host, "3"))),
    )  # fmt: skip


def slow_disk(fleet: Fleet) -> Incident:
    """A database's disk that begins to fail, and still does."""
    host, begin, end = fleet.host(2), fleet.ago(30), fleet.end
    device = "device = 'nvme0n1'"
    effects = (
        Effect("block_io", (host,), begin, end,
               {"latency_ns": "latency_ns * 60", "latencies": higher("latencies", 6)}, device),
        Effect("block_io_slow", (host,), begin, end, {"latency_ns": "latency_ns * 12",
               "comm": "'postgres'", "cgroup": "'postgres.service'"}, device),
        Effect("file_io", (host,), begin, end, {"latency_ns": "latency_ns * 12", "operation": "'fsync'",
               "comm": "'postgres'", "cgroup": "'postgres.service'", "file": "'wal'"}),
        Effect("pressure", (host,), begin, end, {"io_some_us": "io_some_us * 40",
               "io_full_us": "io_full_us * 60"}),
        judged(host, begin, end, "slow_disk", 0.9, "nvme0n1", "postgres.service",
               "requests to nvme0n1 take 6 ms, 60 times the usual", culprit_kind="device"),
    )  # fmt: skip
    return Incident(
        "slow-disk", f"nvme0n1 of {host} is slow", begin, end, effects,
        looks=(
            Look("fleet", "Verdict of each host", (host, "slow_disk", "nvme0n1")),
            Look("fleet", "Disk: waits for I/O", (host,), since="30m"),
            Look("latency", "Slow block requests", (host, "postgres"), {"host": host}),
        ),
    )  # fmt: skip


REMOTE = "198.51.100.77"


def packet_loss(fleet: Fleet) -> Incident:
    """The way to one remote loses packets."""
    host, begin, end = fleet.host(6), fleet.ago(100), fleet.ago(70)
    there = {"remote_address": mapped(REMOTE)}
    effects = (
        Effect("tcp_retransmit", (host,), begin, end,
               there | {"count": "count * 400", "bytes": "bytes * 400"}),
        Effect("tcp_flow", (host,), begin, end, there | {"retransmits": "30 + bytes_sent % 40",
               "srtt_us": "srtt_us * 4", "ended": "if(bytes_sent % 3 = 0, 'timeout', 'fin')"},
               "direction = 'accepted'"),
        Effect("tcp_connect", (host,), begin, end, there | {"failed": "count"}, "cgroup = 'app.service'"),
        Effect("pressure", (host,), begin, end, {"tcp_retransmits": "tcp_retransmits * 60"}),
        judged(host, begin, end, "network", 0.8, REMOTE, "",
               f"6 % of the segments to {REMOTE} are sent again", culprit_kind="remote"),
    )  # fmt: skip
    return Incident(
        "packet-loss", f"packets from {host} to {REMOTE} get lost", begin, end, effects,
        looks=(Look("network", "Sent again, by remote", (REMOTE,)),),
        asks=(Ask(("contacts", REMOTE), (host, "connection")),),
    )  # fmt: skip


def oom(fleet: Fleet) -> Incident:
    """A service that reaches its memory limit is killed, and another that the host has no room for."""
    host, at = fleet.host(5), fleet.ago(65)
    killed = {"pid": 4021, "comm": "batch", "cgroup": "batch.service", "cause": "cgroup",
              "trigger_pid": 4021, "trigger_comm": "batch", "total_bytes": 6 << 30,
              "anonymous_bytes": 4 << 30}  # fmt: skip
    effects = (
        Effect("pressure", (host,), at - 300, at, {"memory_some_us": "memory_some_us * 300",
               "memory_full_us": "memory_full_us * 500", "refaults": "refaults * 200",
               "memory_available_bytes": "toUInt64(memory_available_bytes / 12)"}),
        judged(host, at - 300, at + 60, "memory_pressure", 0.85, "batch.service", "",
               "tasks wait for memory 15 % of the time", culprit_kind="cgroup"),
    )  # fmt: skip
    ended = {"pid": 4021, "comm": "batch", "cgroup": "batch.service", "signal": 9, "duration_us": 60_000_000}
    events = (Event("oom_kill", host, at, killed), Event("process_exit", host, at + 0.2, ended))
    return Incident(
        "oom", f"the kernel killed batch of batch.service on {host}", at - 300, at, effects, events,
        looks=(Look("host", "Killed for want of memory", (host, "batch.service", "cgroup"), {"host": host}),),
        asks=(Ask(("changes", "--host", host, "--since", "3h"), ("out of memory", "batch")),),
    )  # fmt: skip


def probe_over_budget(fleet: Fleet) -> Incident:
    """A probe that somebody sent costs too much: it is slowed, then taken off."""
    host, at = fleet.host(2), fleet.ago(60)
    figures = {"probe": "slow-open", "kind": "on_demand", "budget_percent": 1.0, "total_percent": 2.4,
               "probe_percent": 1.7, "events_per_second": 410_000.0, "ns_per_event": 330.0,
               "window_us": 10_000_000}  # fmt: skip
    steps = ((0.0, "slowed", 1), (10.0, "slowed", 2), (20.0, "detached", 3))
    events = [
        Event("overhead_event", host, at + after, figures | {"action": action, "level": level,
              "reason": "2.4 % of the CPUs for 10 s, 1 % is allowed"})
        for after, action, level in steps
    ]  # fmt: skip
    told = {"probe": "slow-open", "revision": 1, "event": "attached", "programs": 2, "reason": "as asked"}
    events += [
        Event("desired", f"{fleet.prefix}ops", at - 61, {"kind": "probe", "id": "slow-open", "revision": 1,
              "author": "ann@ops", "comment": "who opens so slowly?"}),
        Event("applied", host, at - 60, {"kind": "probe", "id": "slow-open", "revision": 1,
              "state": "applied", "author": "ann@ops"}),
        Event("probe_event", host, at - 60, told),
        Event("probe_event", host, at + 20, told | {"event": "detached", "reason": "over the budget"}),
    ]  # fmt: skip
    return Incident(
        "probe-over-budget", f"probe slow-open cost too much on {host} and was taken off", at - 60, at + 20,
        events=tuple(events),
        looks=(Look("pipeline", "What the overhead budget did", (host, "slow-open", "detached")),),
        asks=(Ask(("changes", "--host", host, "--since", "3h"), ("overhead", "slow-open", "detached")),),
    )  # fmt: skip


def silent_collector(fleet: Fleet) -> Incident:
    """A host of which nothing is heard any more."""
    host, begin = fleet.host(7), fleet.ago(12)
    judgement = judged(host, begin + 60, fleet.end, "no_data", 1.0, "", "", "the host is silent")
    return Incident(
        "silent-collector", f"nothing is heard of {host} any more", begin, fleet.end, (judgement,),
        absences=(Absence(host, begin, fleet.end),),
        looks=(Look("fleet", "Seconds since the last sign of life", (host,)),
               Look("fleet", "Verdict of each host", (host, "no_data"))),
    )  # fmt: skip


def lost_batches(fleet: Fleet) -> Incident:
    """A full spool: batches of one stream never come."""
    host, begin, end = fleet.host(3), fleet.ago(95), fleet.ago(85)
    shed = {"kind": "stream", "probe": "tcp_flow", "stream": "tcp_flow", "shed": 4_711,
            "interval_us": 1_000_000}  # fmt: skip
    declared = {"kind": "loss", "stream": "tcp_flow", "reason": "shed", "interval_us": 1_000_000}
    return Incident(
        "lost-batches", f"the spool of {host} overflowed: batches of tcp_flow are lost", begin, end,
        events=(Event("collector_health", host, end, shed), Event("collector_health", host, end, declared)),
        absences=(Absence(host, begin, end, "tcp_flow"),),
        looks=(Look("pipeline", "Declared losses and restarts", (host, "tcp_flow", "shed")),
               Look("pipeline", "Batches that are missing", (host, "tcp_flow"))),
    )  # fmt: skip


ALL = (noisy_neighbour, cpu_quota, slow_disk, packet_loss, oom, probe_over_budget, silent_collector,
       lost_batches)  # fmt: skip
