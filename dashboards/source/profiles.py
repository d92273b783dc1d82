"""Profiles: where CPUs were busy and where threads waited, as flame graphs."""

from dashboards.source.board import dashboard, many
from dashboards.source.panels import flame, link, row, table, timeseries
from dashboards.source.parts import (
    BY_MINUTE,
    CGROUP,
    CGROUPS,
    HERE,
    HERE_BY_MINUTE,
    HOSTS,
    MARKS,
    TIME,
    WHERE,
)

COMMS = "$__conditionalAll(comm IN (${comm:singlequote}), $comm)"
MINE = f"{CGROUPS} AND {COMMS}"
LEAST = 0.002  # of the total: what is narrower is left out, whole subtrees at a time
COMM = many(
    "comm",
    "Process",
    f"""
SELECT comm FROM cpu_profile WHERE {HERE} AND {CGROUPS}
GROUP BY comm ORDER BY sum(cpu_ns) DESC LIMIT 200""",
)
SPAN = "$__toTime - $__fromTime"
BEFORE = f"(ts >= $__fromTime - ({SPAN}) AND ts < $__fromTime)"


def flattened(table_name: str, columns: str, sums: str, where: str) -> str:
    """Every prefix of every stack with its sums, depth first: a parent sorts right before its children.

    A stack of the kernel stands on the one of the program that called it; the process is the first level.
    """
    ids = (
        f"SELECT arrayJoin([user_stack, kernel_stack]) FROM {table_name} WHERE {where} AND {HOSTS} AND {MINE}"
    )
    return f"""
WITH names AS (
  SELECT stack, splitByChar(';', any(frames)) AS frames FROM stack WHERE stack IN ({ids}) GROUP BY stack),
totals AS (
  SELECT comm, user_stack, kernel_stack, {columns}
  FROM {table_name} WHERE {where} AND {HOSTS} AND {MINE} GROUP BY comm, user_stack, kernel_stack),
stacks AS (
  SELECT arrayConcat([comm], user.frames, kernel.frames) AS frames, {sums}
  FROM totals LEFT JOIN names AS user ON user.stack = user_stack
    LEFT JOIN names AS kernel ON kernel.stack = kernel_stack)"""


def graph(table_name: str, figure: str) -> str:
    """``level``, ``label``, ``value``, ``self`` of one window."""
    return f"""{flattened(table_name, f"sum({figure}) AS amount", "amount", TIME)}
SELECT depth AS level, if(depth = 0, 'all', path[-1]) AS label, sum(amount) AS value,
  sumIf(amount, depth = length(frames)) AS self
FROM stacks ARRAY JOIN range(length(frames) + 1) AS depth, arrayMap(each -> arraySlice(frames, 1, each),
  range(length(frames) + 1)) AS path
GROUP BY depth, path
HAVING value >= {LEAST} * (SELECT sum(amount) FROM totals)
ORDER BY path"""


def difference(table_name: str, figure: str) -> str:
    """The window before on the left, this one on the right: ``value`` and ``valueRight``."""
    both = f"(({TIME}) OR {BEFORE})"
    columns = f"sumIf({figure}, NOT ({TIME})) AS was, sumIf({figure}, {TIME}) AS amount"
    return f"""{flattened(table_name, columns, "was, amount", both)}
SELECT depth AS level, if(depth = 0, 'all', path[-1]) AS label, sum(was) AS value,
  sumIf(was, depth = length(frames)) AS self, sum(amount) AS valueRight,
  sumIf(amount, depth = length(frames)) AS selfRight
FROM stacks ARRAY JOIN range(length(frames) + 1) AS depth, arrayMap(each -> arraySlice(frames, 1, each),
  range(length(frames) + 1)) AS path
GROUP BY depth, path
HAVING value + valueRight >= {LEAST} * (SELECT sum(was + amount) FROM totals)
ORDER BY path"""


PANELS = [
    row("On the CPU"),
    timeseries(
        "CPU by process",
        f"""
SELECT {BY_MINUTE}, comm, sum(cpu_ns) / 1e9 / $__interval_s AS cores
FROM cpu_profile
WHERE {HERE_BY_MINUTE} AND {MINE} AND comm IN (
  SELECT comm FROM cpu_profile WHERE {HERE_BY_MINUTE} AND {MINE} GROUP BY comm
    ORDER BY sum(cpu_ns) DESC LIMIT 10)
GROUP BY time, comm ORDER BY time, comm""",
        "none",
        "Cores that the ten busiest programs used, by samples. Bad: one that "
        "grew; mark its time to see its flame graph.",
        link("Host", "host"),
        stack=True,
        size=(24, 7),
        least="1m",
    ),
    flame(
        "On-CPU flame graph",
        graph("cpu_profile", "cpu_ns"),
        "ns",
        "Where CPU time went: width is time, upwards is who "
        "called whom. Bad: one wide tower nobody expects. Parts below 0.2 % of the total are left out.",
        link("Latency", "latency"),
    ),
    flame(
        "On-CPU, against the window before",
        difference("cpu_profile", "cpu_ns"),
        "ns",
        "Red grew, green shrank, "
        "against the window of the same length before. Bad: a red tower that appeared with a deploy.",
        link("Host", "host"),
    ),
    row("Off the CPU"),
    timeseries(
        "Waiting by process",
        f"""
SELECT {BY_MINUTE}, comm, sum(off_ns) / 1e9 / $__interval_s AS threads
FROM off_cpu
WHERE {HERE_BY_MINUTE} AND {MINE} AND comm IN (
  SELECT comm FROM off_cpu WHERE {HERE_BY_MINUTE} AND {MINE} GROUP BY comm ORDER BY sum(off_ns) DESC LIMIT 10)
GROUP BY time, comm ORDER BY time, comm""",
        "none",
        "How many threads of a program waited at any time. Bad: it grows while the load does not.",
        link("Latency", "latency"),
        size=(24, 7),
        least="1m",
    ),
    flame(
        "Off-CPU flame graph",
        graph("off_cpu", "off_ns"),
        "ns",
        "Where threads waited, by time. Idle workers wait by "
        "nature; bad: locks, disks and the network in the path of a request.",
        link("Latency", "latency"),
    ),
    table(
        "Kinds of waiting",
        f"""
SELECT comm, cgroup, state, sum(weight) AS waits, sum(off_ns) AS time, sum(off_ns) / sum(weight) AS mean
FROM off_cpu WHERE {HERE} AND {MINE} GROUP BY comm, cgroup, state ORDER BY time DESC LIMIT 100""",
        "Sums of waits by what "
        "may end them. Bad: blocked (a disk) or runnable (a CPU) high on a service that should be quick.",
        link("Latency", "latency"),
        units={"waits": "short", "time": "ns", "mean": "ns"},
        size=(12, 9),
    ),
    table(
        "Busiest functions",
        f"""{flattened("cpu_profile", "sum(cpu_ns) AS amount", "amount", TIME)}
SELECT function, sum(amount) AS self, sum(amount) / (SELECT sum(amount) FROM totals) AS share
FROM (SELECT frames[-1] AS function, amount FROM stacks)
GROUP BY function ORDER BY self DESC LIMIT 50""",
        "Functions by the CPU time spent in themselves. Bad: one above 20 % that "
        "is not the work itself: copying, locking, allocating.",
        link("Host", "host"),
        units={"self": "ns", "share": "percentunit"},
        size=(12, 9),
    ),
]
DASHBOARD = dashboard(
    "profiles",
    "Profiles",
    "On- and off-CPU flame graphs of any hosts, process and cgroup, and what changed.",
    PANELS,
    variables=[*WHERE, CGROUP, COMM],
    annotations=MARKS,
)
