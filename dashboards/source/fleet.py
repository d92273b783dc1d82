"""Fleet: what is wrong now, who stands out, and is the pipeline itself well?"""

from dashboards.source.board import dashboard
from dashboards.source.firing import FIRING, reals
from dashboards.source.panels import ANY_IS_BAD, bars, link, row, row_link, stat, states, table, thresholds
from dashboards.source.parts import EVER, HERE_BY_MINUTE, HOSTS, MARKS, TIME, WHERE, hosts, share

# Codes of the state timeline; the words are the table verdict's.
VERDICTS = {
    0: ("nothing_wrong", "green"),
    1: ("no_data", "text"),
    2: ("cpu_saturation", "red"),
    3: ("cpu_quota", "orange"),
    4: ("noisy_neighbour", "yellow"),
    5: ("memory_pressure", "purple"),
    6: ("slow_disk", "blue"),
    7: ("network", "dark-red"),
    8: ("remote_slowness", "light-blue"),
}
WORDS = ", ".join(f"'{word}'" for word, _ in VERDICTS.values())
CODES = ", ".join(str(code) for code in VERDICTS)
CODE = f"transform(verdict, [{WORDS}], [{CODES}], 1)"
TO_HOST = row_link("This host", "host", "host")
TARGETS = hosts("target_host")

NOW = f"""
SELECT target_host AS host, argMax(verdict, ts) AS verdict, round(argMax(score, ts), 2) AS score,
  argMax(culprit, ts) AS culprit, argMax(victim, ts) AS victim, argMax(summary, ts) AS why,
  argMax(began, ts) AS since, max(ts) AS judged
FROM verdict
WHERE {TIME} AND rank = 1 AND {TARGETS}
GROUP BY target_host
ORDER BY verdict = 'nothing_wrong', score DESC, host LIMIT 200"""

ILL = f"""
SELECT countIf(last NOT IN ('nothing_wrong', 'no_data')) AS hosts
FROM (SELECT argMax(verdict, ts) AS last FROM verdict WHERE {TIME} AND rank = 1 AND {TARGETS}
  GROUP BY target_host)"""

SILENT = f"""
SELECT countIf(age > 120) AS hosts
FROM (SELECT dateDiff('second', max(ts), $__toTime) AS age FROM host WHERE {TIME} AND {HOSTS}
  GROUP BY host)"""

LAST_STATE = f"SELECT argMax(state, revision) AS state FROM attack WHERE {EVER} GROUP BY id"
ATTACKS_NOW = f"SELECT countIf(state = 'active') AS attacks FROM ({LAST_STATE})"

REALS_DOWN = f"SELECT countIf(health = 'down') AS reals FROM ({reals(HOSTS)})"

LOST = f"""
SELECT sum(lost) + sum(shed) + sum(refused) + sum(invalid) AS events
FROM collector_health WHERE {HERE_BY_MINUTE}"""

TIMELINE = f"""
SELECT $__timeInterval(ts) AS time, target_host, argMax({CODE}, ts) AS verdict
FROM verdict
WHERE {TIME} AND rank = 1 AND {TARGETS}
  AND target_host IN (
    SELECT target_host FROM verdict WHERE {TIME} AND rank = 1 AND {TARGETS}
    GROUP BY target_host ORDER BY sumIf(score, verdict NOT IN ('nothing_wrong', 'no_data')) DESC LIMIT 30)
GROUP BY time, target_host ORDER BY time, target_host"""

ATTACKS = f"""
SELECT id, argMax(target, revision) AS target, argMax(vectors, revision) AS vectors,
  argMax(state, revision) AS state, argMax(began, revision) AS began, argMax(peak_pps, revision) AS peak,
  {share("argMax(after_dropped, revision)", "argMax(after, revision)")} AS mitigated,
  argMax(rules, revision) AS rules
FROM attack WHERE {TIME} GROUP BY id ORDER BY state, began DESC LIMIT 50"""


def against_past(now: str, guard: str = "1") -> str:
    """Hosts by a figure of ``pressure`` in this window beside the window of the same length before it."""
    span = "$__toTime - $__fromTime"
    return f"""
SELECT host, now, before, {share("now", "before")} AS times FROM (
  SELECT host, {now.format(part="recent")} AS now, {now.format(part="NOT recent")} AS before
  FROM (
    SELECT host, toStartOfMinute(ts) >= $__fromTime AS recent, sum(interval_us) AS took,
      sum(cores * interval_us)
      AS cpu_took, sum(cpu_some_us) AS cpu, sum(io_some_us) AS io, sum(memory_some_us) AS memory,
      sum(tcp_segments) AS segments, sum(tcp_retransmits) AS again
    FROM pressure
    WHERE toStartOfMinute(ts) >= $__fromTime - ({span}) AND toStartOfMinute(ts) <= $__toTime AND {HOSTS}
    GROUP BY host, recent)
  GROUP BY host)
WHERE {guard}
ORDER BY now - before DESC LIMIT 20"""


def top(title: str, part: str, whole: str, bad: str, leads: dict[str, str]) -> dict[str, object]:
    """A table of the hosts whose figure grew most over their own past."""
    figure = share(f"sumIf({part}, {{part}})", f"sumIf({whole}, {{part}})")
    colors = {"times": thresholds((None, "transparent"), (1.5, "orange"), (3, "red"))}
    return table(
        title,
        against_past(figure),
        bad,
        leads,
        units={"now": "percentunit", "before": "percentunit", "times": "none"},
        links={"host": TO_HOST},
        colors=colors,
        size=(12, 8),
    )


LAG = f"""
SELECT host, dateDiff('second', max(ts), $__toTime) AS seconds
FROM host WHERE {TIME} AND {HOSTS} GROUP BY host ORDER BY seconds DESC LIMIT 20"""

PANELS = [
    row("What is wrong now"),
    stat(
        "Hosts in trouble",
        ILL,
        "short",
        "Hosts whose last verdict names a cause. Bad: above 0: the table below says which and why.",
        link("Verdicts by host", "host"),
        steps=ANY_IS_BAD,
    ),
    stat(
        "Silent hosts",
        SILENT,
        "short",
        "Hosts that gave no sign of life for two minutes. Bad: above 0: the host, its "
        "collector or its way to Kafka is down.",
        link("Pipeline", "pipeline"),
        steps=ANY_IS_BAD,
    ),
    stat(
        "Attacks under way",
        ATTACKS_NOW,
        "short",
        "Attacks that are not over. Bad: above 0: see whether they are mitigated.",
        link("Attacks", "attacks"),
        steps=ANY_IS_BAD,
    ),
    stat(
        "Reals down",
        REALS_DOWN,
        "short",
        "Servers behind a VIP that fail their check, once per balancer. Bad: above 0: "
        "less capacity; all of a VIP: an outage.",
        link("Load balancer", "balancer"),
        steps=ANY_IS_BAD,
    ),
    stat(
        "Events lost",
        LOST,
        "short",
        "Events lost, shed, refused or invalid on their way. Bad: above 0: figures of this "
        "window are short by so many.",
        link("Pipeline", "pipeline"),
        steps=ANY_IS_BAD,
    ),
    stat(
        "Alerts that fire",
        f"SELECT count() AS alerts FROM ({FIRING})",
        "short",
        "What the alert rules fire for at the end of this window, line by line in the table below. Bad: "
        "above 0: somebody should be on it.",
        link("Attacks", "attacks"),
        steps=ANY_IS_BAD,
    ),
    table(
        "What fires now",
        f"""
SELECT severity, what, host, since FROM ({FIRING})
ORDER BY severity, since DESC LIMIT 200""",
        "Everything that is wrong at the end of this window, critical first, the newest on top. Bad: any "
        "line; its host leads to where it shows. Each has an alert rule that says what to do.",
        link("Load balancer", "balancer"),
        units={"since": "dateTimeFromNow"},
        links={"host": TO_HOST},
        words={"severity": {"critical": "red", "warning": "orange"}},
        size=(24, 7),
    ),
    table(
        "Verdict of each host",
        NOW,
        "The last verdict of each host, the worst first. Bad: a score above 0.5, which is past its "
        "threshold; near 1 is many times beyond.",
        link("Host", "host"),
        units={"score": "percentunit", "since": "dateTimeFromNow", "judged": "dateTimeFromNow"},
        links={"host": TO_HOST},
        size=(24, 9),
        colors={"score": thresholds((None, "transparent"), (0.5, "orange"), (0.75, "red"))},
    ),
    states(
        "Verdicts over time",
        TIMELINE,
        VERDICTS,
        "The 30 hosts with most trouble in this window. Green is well. Bad: a "
        "colour that stays names a cause that lasts, the same colour on many hosts a cause they share.",
        link("Host", "host"),
    ),
    table(
        "Attacks",
        ATTACKS,
        "Attacks of this window, those under way first. Bad: active, and a mitigated share below 99 %.",
        link("Attacks", "attacks"),
        units={"began": "dateTimeFromNow", "peak": "pps", "mitigated": "percentunit"},
        links={"id": row_link("This attack", "attacks", "attack")},
        size=(24, 6),
    ),
    row("Who stands out against its own past"),
    top(
        "CPU: waits for a core",
        "cpu",
        "took",
        "Share of time in which a task waited for a CPU, now and in the window "
        "before. Bad: above 20 %, or several times the past.",
        link("Latency", "latency"),
    ),
    top(
        "Disk: waits for I/O",
        "io",
        "took",
        "Share of time in which a task waited for a disk, now and in the window "
        "before. Bad: above 10 %, or several times the past.",
        link("Latency", "latency"),
    ),
    top(
        "Memory: waits for pages",
        "memory",
        "took",
        "Share of time in which a task waited for memory. Bad: above 1 %, "
        "or any where there was none before.",
        link("Host", "host"),
    ),
    top(
        "Network: sent again",
        "again",
        "segments",
        "Share of TCP segments that were sent again. Bad: above 1 %, or several times the past.",
        link("Network", "network"),
    ),
    row("Is what we see complete?"),
    bars(
        "Seconds since the last sign of life",
        LAG,
        "s",
        "Heartbeats come every 30 seconds. Bad: above 120: the host, its collector or Kafka is down.",
        link("Pipeline", "pipeline"),
        size=(12, 8),
        deeper=TO_HOST,
        steps=thresholds((None, "green"), (60, "orange"), (120, "red")),
    ),
    table(
        "Probes that do not run",
        f"""
SELECT host, argMax(failed, ts) AS failed, argMax(kernel, ts) AS kernel, argMax(version, ts) AS version
FROM host WHERE {TIME} AND {HOSTS} GROUP BY host ORDER BY failed = '{{}}', host LIMIT 200""",
        "Each host's probes that failed to load, with the reason. Bad: anything but {} in the column failed.",
        link("Pipeline", "pipeline"),
        links={"host": TO_HOST},
        size=(12, 8),
    ),
]

DASHBOARD = dashboard(
    "fleet",
    "Fleet",
    "What is wrong now, on which hosts and why; start here.",
    PANELS,
    variables=WHERE,
    annotations=MARKS,
)
