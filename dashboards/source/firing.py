"""What the alert rules ask, and what Fleet says of it in one look: one question for both.

A question's rows are labels, a ``value`` that fires above a limit, and ``since``. It looks back from the end
of the window by itself, so it means the same in Grafana's server, on a dashboard and on a rendered page.
"""

from dataclasses import dataclass

from dashboards.source.parts import hosts

MINUTES, HOUR, DAY, LONG = 300, 3_600, 86_400, 90 * 86_400
WELL = "('nothing_wrong', 'no_data')"


@dataclass(frozen=True)
class Firing:
    """One question, and the line that a person reads when a row's ``value`` is above ``above``."""

    sql: str
    labels: tuple[str, ...]
    window: int  # seconds that it looks back
    above: float
    severity: str  # critical, warning or info
    line: str  # SQL of a text, out of the question's columns

    @property
    def alert(self) -> str:
        """Labels and one number, as Grafana's server takes them."""
        return f"SELECT {', '.join(self.labels)}, value FROM ({self.sql})"

    @property
    def lines(self) -> str:
        """``severity``, ``host``, ``what``, ``since`` of each row that fires, on the chosen hosts."""
        host, chosen = ("host", f" AND {hosts()}") if "host" in self.labels else ("''", "")
        return f"""
SELECT '{self.severity}' AS severity, {host} AS host, {self.line} AS what, since
FROM ({self.sql})
WHERE value > {self.above}{chosen}"""


def lately(seconds: int) -> str:
    """The condition that keeps the last so many seconds of the window."""
    return f"ts > $__toTime - {seconds} AND ts <= $__toTime"


def _events(
    table: str, labels: tuple[str, ...], line: str, *,
    why: str = "reason", count: str = "count()", where: str = "1",
) -> Firing:  # fmt: skip
    """Something that happened, for an hour: what had to wait while Kafka was away is told, too."""
    by = ", ".join(labels)
    return Firing(
        f"""
SELECT {by}, {count} AS value, min(ts) AS since, any({why}) AS why
FROM {table} WHERE {lately(HOUR)} AND {where} GROUP BY {by}""",
        labels, HOUR, 0, "warning", line,
    )  # fmt: skip


def _against_past(part: str, now: str, before: str, table: str, floor: float, line: str) -> Firing:
    """How far five minutes are above three times the hour before and above ``floor``: 1 is at it.

    ``now``, ``before``: what ``part`` is divided by; never next to nothing, or few events would be a rate.
    """
    recent = f"ts > $__toTime - {MINUTES}"
    return Firing(
        f"""
SELECT host, share / greatest({floor}, 3 * past) AS value,
  toDateTime64($__toTime - {MINUTES}, 6, 'UTC') AS since
FROM (
  SELECT host, sumIf({part}, {recent}) / {now.format(recent)} AS share,
    sumIf({part}, NOT {recent}) / {before.format(f"NOT {recent}")} AS past
  FROM {table} WHERE {lately(HOUR)} GROUP BY host)""",
        ("host",), HOUR, 1, "warning", line,
    )  # fmt: skip


# Two minutes without a good judgement. The cause may change meanwhile: the most frequent one names it.
VERDICT = Firing(
    f"""
SELECT target_host AS host, topKIf(1)(verdict, verdict NOT IN {WELL})[1] AS cause,
  argMax(score, ts) AS value, argMax(began, ts) AS since, argMax(summary, ts) AS why
FROM verdict WHERE {lately(MINUTES)} AND rank = 1 GROUP BY target_host
HAVING argMax(verdict, ts) NOT IN {WELL} AND min(ts) <= $__toTime - 120
  AND countIf(verdict IN {WELL} AND ts > $__toTime - 120) = 0""",
    ("host", "cause"), MINUTES, 0.5, "warning", "concat(cause, ': ', why)",
)  # fmt: skip
OOM = _events("oom_kill", ("host", "cgroup"), "concat('killed for want of memory: ', why, ' of ', cgroup)",
              why="comm")  # fmt: skip
# From thirty segments sent again on: of a handful, one says nothing.
SEGMENTS = "greatest(sumIf(tcp_segments, {}), 3000)"
RETRANSMITS = _against_past(
    "tcp_retransmits", SEGMENTS, SEGMENTS, "pressure", 0.01,
    "'TCP segments sent again, far above the hour before'",
)  # fmt: skip
# There are rows only of intervals in which something was dropped: the time is the clock's.
DROPS = _against_past(
    "packets", str(MINUTES), str(HOUR - MINUTES), "packet_drop_count", 100,
    "'packets dropped, far above the hour before'",
)  # fmt: skip

# Of each attack what holds, and the share that was dropped of what came in the last minute of its records, of
# which there is one every few seconds. What comes through now is not to hide behind hours of a good answer.
# When `bpfleet mitigate` is gone, its rules end with their time to live, and nobody sees it.
ATTACK = f"""
SELECT id AS attack, argMax(whom, revision) AS target, argMax(stands, revision) AS state,
  argMax(found, revision) AS detected, argMax(start, revision) AS since,
  argMax((seen, stopped), revision) AS last, argMaxIf((seen, stopped), revision, ts <= newest - 60) AS before,
  toInt64(last.1) - toInt64(before.1) AS came,
  max(ts) BETWEEN $__toTime - {HOUR} AND $__toTime - 120 AS forsaken,
  multiIf(forsaken, 0, came <= 0, 1, (toInt64(last.2) - toInt64(before.2)) / came) AS met
FROM (
  SELECT id, revision, ts, max(ts) OVER (PARTITION BY id) AS newest, target AS whom, state AS stands,
    detected AS found, began AS start, packets AS seen, dropped AS stopped
  FROM attack WHERE {lately(DAY)})
GROUP BY id HAVING state = 'active'"""


def _attack(value: str, above: float, severity: str, line: str = "", where: str = "1") -> Firing:
    sql = f"SELECT *, {value} AS value FROM ({ATTACK}) WHERE {where}"
    line = f"concat('attack ', attack, ' on ', target{line})"
    return Firing(sql, ("attack", "target"), DAY, above, severity, line)


ATTACK_STARTED = _attack("1", 0, "warning")
ATTACK_MITIGATED = _attack("if(came > 0, met, 0)", 0.99, "info", ", ', met'")
NOT_MITIGATED = _attack(
    "round(1 - met, 6)", 0.05, "critical",
    ", if(forsaken, ': nobody answers it', concat(', ', toString(round(100 * value)), ' % comes through'))",
    "detected <= $__toTime - 90",
)  # fmt: skip
ROLLED_BACK = _events("filter_event", ("host", "rule"), "concat('rule ', rule, ' rolled back: ', why)",
                      where="event = 'rolled_back'")  # fmt: skip


def reals(where: str = "1") -> str:
    """Each real as each balancer has it at the end of the window: ``slots``, ``health``, ``since``, ``why``.

    ``health`` is up, down, added (no check has failed since) or removed. What a balancer said before it was
    taken down no longer holds, nor what one said that was not heard of for a day.
    """
    return f"""
SELECT host, vip, real, argMaxIf(owned, ts, event = 'ring') AS slots, countIf(event = 'ring') AS rings,
  argMaxIf(state, ts, judged) AS health, maxIf(ts, event = 'health') AS since,
  argMaxIf(reason, ts, event = 'health') AS why
FROM (
  SELECT host, vip, real, ts, event, state, reason, slots AS owned,
    event = 'health' OR state IN ('added', 'removed') AS judged
  FROM lb_event WHERE {lately(LONG)} AND event IN ('ring', 'health') AND {where}
    AND host IN (SELECT host FROM host WHERE {lately(DAY)})) AS said
LEFT JOIN (
  SELECT host, max(ts) AS gone FROM lb_event WHERE {lately(LONG)} AND event = 'removed' GROUP BY host
) AS taken USING (host)
WHERE ts > gone GROUP BY host, vip, real"""


def vips(where: str = "1") -> str:
    """Each VIP of each balancer: ``serving`` reals are up and get flows, ``down`` ones are not up.

    When all are down, the balancer sends to all: it cannot know that nobody answers.
    """
    return f"""
SELECT host, vip, countIf(health NOT IN ('down', 'removed') AND (slots > 0 OR rings = 0)) AS serving,
  countIf(health = 'down') AS down, max(since) AS since
FROM ({reals(where)}) GROUP BY host, vip"""


REAL_DOWN = Firing(
    f"SELECT *, toUInt8(health = 'down') AS value FROM ({reals()})",
    ("host", "vip", "real"), LONG, 0, "warning", "concat(real, ' of ', vip, ' is down: ', why)",
)  # fmt: skip
NO_REALS = Firing(
    f"SELECT *, toUInt8(down > 0 AND serving = 0) AS value FROM ({vips()})",
    ("host", "vip"), LONG, 0, "critical", "concat(vip, ' has no real that is up: nobody answers there')",
)  # fmt: skip

SILENT = Firing(
    f"""
SELECT host, dateDiff('second', max(ts), $__toTime) AS value, max(ts) AS since
FROM host WHERE {lately(DAY)} GROUP BY host""",
    ("host",), DAY, 120, "critical", "concat('silent for ', toString(value), ' s')",
)  # fmt: skip
LOSSES = _events(
    "collector_health", ("host", "stream"), "concat(toString(value), ' events of ', stream, ' lost')",
    count="sum(lost) + sum(shed) + sum(refused) + sum(invalid)",
)  # fmt: skip
# A sink that has ended, while others go on, is behind with nothing: others have its partitions.
SINK_LAG = Firing(
    f"""
SELECT sink, argMax(lag, ts) AS value, min(ts) AS since FROM sink_health WHERE {lately(MINUTES)} GROUP BY sink
HAVING max(ts) > (SELECT max(ts) FROM sink_health WHERE {lately(MINUTES)}) - 120""",
    ("sink",), MINUTES, 10_000, "critical", "concat(sink, ' is ', toString(value), ' messages behind')",
)  # fmt: skip
DEAD_LETTERS = _events(
    "sink_health", ("sink",), "concat(sink, ' met ', toString(value), ' dead letters')",
    why="sink", count="sum(dead)",
)  # fmt: skip
OVERHEAD = _events(
    "overhead_event", ("host", "probe", "action"), "concat('probe ', probe, ' ', action, ': ', why)",
    where="action IN ('slowed', 'detached', 'over_budget', 'failed')",
)  # fmt: skip

ALL = (VERDICT, OOM, RETRANSMITS, DROPS, ATTACK_STARTED, ATTACK_MITIGATED, NOT_MITIGATED, ROLLED_BACK,
       REAL_DOWN, NO_REALS, SILENT, LOSSES, SINK_LAG, DEAD_LETTERS, OVERHEAD)  # fmt: skip
FIRING = "\nUNION ALL".join(each.lines for each in ALL if each.severity != "info")
