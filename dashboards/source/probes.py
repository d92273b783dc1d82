"""Probes on demand: what running and past ``probe run`` measured, and what they cost."""

from dashboards.source.board import dashboard, many
from dashboards.source.panels import ANY_IS_BAD, bars, heatmap, link, row, row_link, stat, table, timeseries
from dashboards.source.parts import EVER, HERE, HOSTS, MARKS, WHERE

PROBES = "$__conditionalAll(probe IN (${probe:singlequote}), $probe)"
PROBE = many(
    "probe",
    "Probe",
    f"SELECT probe FROM probe_event WHERE {HERE} GROUP BY probe ORDER BY max(ts) DESC LIMIT 500",
)
MINE = f"{HERE} AND {PROBES}"
KEYS = "arrayStringConcat(arrayFilter(each -> each != '', [key1, key2, key3, key4]), ' ')"
LAST = f"""
SELECT probe, host, argMax(event, ts) AS last, argMax(cpu_share, ts) AS cost, argMax(budget, ts) AS allowed,
  argMax(runs_per_s, ts) AS rate, argMax(sample, ts) AS one_in, argMax(reason, ts) AS why, max(ts) AS at,
  max(probe_event.lost) AS lost_events
FROM probe_event WHERE {EVER} AND {HOSTS} AND {PROBES} GROUP BY probe, host"""


def log2_column(number: int) -> str:
    """One line of the heatmap: the histogram's bucket from 2^number."""
    least = 0 if number < 0 else 2**number
    return f"sumIf(count, bucket_from >= {least} AND bucket_from < {max(1, 2 * least)}) AS `{least}`"


HEATMAP = ",\n  ".join(log2_column(number) for number in range(-1, 36))

PANELS = [
    row("Which probes, where, at what cost"),
    stat(
        "Probes attached",
        f"SELECT uniqIf(probe, last IN ('attached', 'throttled')) AS probes FROM ({LAST})",
        "short",
        "Different on-demand probes that run somewhere. Bad: one that nobody remembers.",
        link("Pipeline", "pipeline"),
    ),
    stat(
        "Hosts that refused or failed",
        f"SELECT countIf(last IN ('refused', 'failed')) AS hosts FROM ({LAST})",
        "short",
        "Hosts that could not run a probe; the reason is below. Bad: any.",
        link("Fleet", "fleet"),
        steps=ANY_IS_BAD,
    ),
    stat(
        "Taken off for their cost",
        f"SELECT countIf(last = 'detached') AS hosts FROM ({LAST})",
        "short",
        "Probes taken off a host since they went over their budget. Bad: any: sample, or choose a quieter "
        "hook.",
        link("Pipeline", "pipeline"),
        steps=ANY_IS_BAD,
    ),
    stat(
        "Events lost",
        f"SELECT sum(lost_events) AS events FROM ({LAST})",
        "short",
        "Events and keys that found no room in the kernel. Bad: any: sums are too low by so much.",
        link("Pipeline", "pipeline"),
        steps=ANY_IS_BAD,
    ),
    stat(
        "What was measured",
        f"SELECT sum(count) AS times FROM probe_result WHERE {MINE}",
        "short",
        "How often all chosen probes' events happened, sampling included. Bad: 0 for a probe that should "
        "see something: it hooks the wrong place.",
        link("Host", "host"),
        size=(8, 4),
    ),
    table(
        "Life of probes",
        f"""
SELECT probe, host, last, cost, allowed, rate, one_in, lost_events, at, why FROM ({LAST})
ORDER BY at DESC LIMIT 200""",
        "The last thing that happened to each probe on each host. Bad: refused, failed, detached; a cost "
        "near what is allowed.",
        link("Fleet", "fleet"),
        units={"cost": "percentunit", "allowed": "percentunit", "rate": "ops", "at": "dateTimeAsIso"},
        links={"host": row_link("Host", "host", "host")},
        size=(24, 7),
    ),
    row("Results"),
    timeseries(
        "How often",
        f"""
SELECT $__timeInterval(ts) AS time, probe, sum(count) / $__interval_s AS times
FROM probe_result WHERE {MINE} AND value != 'outstanding' GROUP BY time, probe ORDER BY time, probe""",
        "ops",
        "Events a second of each probe. Bad: what you look for leaps.",
        link("Host", "host"),
    ),
    timeseries(
        "Sum of the value, by key",
        f"""
SELECT $__timeInterval(ts) AS time, {KEYS} AS keys, sum(sum) / $__interval_s AS total
FROM probe_result WHERE {MINE} AND value IN ('count', 'sum') AND {KEYS} IN (
  SELECT {KEYS} FROM probe_result WHERE {MINE} AND value IN ('count', 'sum')
  GROUP BY {KEYS} ORDER BY sum(sum) DESC LIMIT 10)
GROUP BY time, keys ORDER BY time, keys""",
        "short",
        "The ten keys with the largest sums, a second. Bad: depends on what the probe "
        "adds up: bytes, nanoseconds.",
        link("Host", "host"),
    ),
    heatmap(
        "Histogram over time",
        f"""
SELECT $__timeInterval(ts) AS time,
  {HEATMAP}
FROM probe_result WHERE {MINE} AND value IN ('log2', 'linear') GROUP BY time ORDER BY time""",
        "Values of histograms: each line "
        "twice as large as the one below. Bad: a second cloud far above the first.",
        link("Latency", "latency"),
    ),
    bars(
        "Top keys",
        f"""
SELECT concat(comm, ' ', {KEYS}) AS keys, sum(count) AS times
FROM probe_result WHERE {MINE} GROUP BY keys ORDER BY times DESC LIMIT 15""",
        "short",
        "Keys by how often they occurred. Bad: one far ahead that should be rare.",
        link("Host", "host"),
        size=(12, 9),
    ),
    table(
        "Rows",
        f"""
SELECT ts AS time, host, probe, value, comm, pid, cgroup, names, key1, key2, key3, key4, count, sum,
  bucket_from, bucket_to
FROM probe_result WHERE {MINE} ORDER BY ts DESC LIMIT 500""",
        "The latest results as they came. Bad: an error of the estimate near the sum: take more samples.",
        link("Host", "host"),
        units={"time": "dateTimeAsIso", "count": "short", "sum": "short"},
        size=(24, 9),
    ),
    table(
        "Stacks",
        f"""
WITH names AS (
  SELECT stack, replaceAll(any(frames), ';', ' → ') AS called FROM stack
  WHERE stack IN (SELECT arrayJoin([user_stack, kernel_stack]) FROM probe_result WHERE {MINE}) GROUP BY stack)
SELECT probe, comm, user.called AS program, kernel.called AS kernel_functions, sum(count) AS times,
  sum(sum) AS total
FROM probe_result LEFT JOIN names AS user ON user.stack = user_stack
  LEFT JOIN names AS kernel ON kernel.stack = kernel_stack
WHERE {MINE} AND (user_stack != 0 OR kernel_stack != 0)
GROUP BY probe, comm, program, kernel_functions ORDER BY times DESC LIMIT 100""",
        "Where in programs and kernel it happened. Bad: a way there that nobody expects.",
        link("Profiles", "profiles"),
        units={"times": "short", "total": "short"},
        size=(24, 9),
    ),
]

DASHBOARD = dashboard(
    "probes",
    "Probes on demand",
    "Results of running and past `bpfleet probe run`.",
    PANELS,
    variables=[*WHERE, PROBE],
    annotations=MARKS,
)
