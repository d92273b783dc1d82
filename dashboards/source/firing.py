"""What the alert rules fire for at the end of a window, as one table: they ask about the same things.

Rules are in Grafana and know nothing of a window; this lets Fleet say it in one look, and a page that is
rendered without Grafana, too.
"""

from dashboards.source.parts import EVER, HOSTS, TIME, hosts, share

RECENT = "ts > $__toTime - 300"  # of a longer window: what is compared with its past
HOUR = "ts > $__toTime - 3600 AND ts <= $__toTime"
MINUTES = "ts > $__toTime - {} AND ts <= $__toTime"
WELL = "('nothing_wrong', 'no_data')"
LOST = "sum(lost) + sum(shed) + sum(refused) + sum(invalid)"


def against_past(part: str, per: str, table: str, floor: float, time: str = TIME) -> str:
    """How far the last five minutes are above three times the hour before and above ``floor``: 1 is at it."""
    return f"""
SELECT host, share / greatest({floor}, 3 * before) AS value FROM (
  SELECT host, sumIf({part}, {RECENT}) / greatest(sumIf({per}, {RECENT}), 1) AS share,
    sumIf({part}, NOT {RECENT}) / greatest(sumIf({per}, NOT {RECENT}), 1) AS before
  FROM {table} WHERE {time} GROUP BY host)"""


def drops(time: str = TIME) -> str:
    """Packets dropped by the kernel, all reasons together, as a table."""
    return f"""(
  SELECT host, ts, interval_us, sum(packets) AS packets
  FROM packet_drop_count WHERE {time} GROUP BY host, ts, interval_us)"""


def _lately(severity: str, table: str, condition: str, text: str) -> str:
    """Each event of the last ten minutes."""
    return f"""
SELECT '{severity}' AS severity, host, {text} AS what, min(ts) AS since
FROM {table} WHERE {MINUTES.format(600)} AND {condition} AND {HOSTS} GROUP BY host, what"""


PARTS = (
    f"""
SELECT 'warning' AS severity, target_host AS host, argMax(concat(verdict, ': ', summary), ts) AS what,
  argMax(began, ts) AS since
FROM verdict WHERE {MINUTES.format(300)} AND rank = 1 AND {hosts("target_host")}
GROUP BY target_host HAVING argMax(verdict, ts) NOT IN {WELL}""",
    f"""
SELECT 'critical' AS severity, host, concat('silent for ', toString(age), ' s') AS what, last AS since FROM (
  SELECT host, max(ts) AS last, dateDiff('second', max(ts), $__toTime) AS age
  FROM host WHERE {TIME} AND {HOSTS} GROUP BY host)
WHERE age > 120""",
    f"""
SELECT if(detected < $__toTime - 60 AND met < 0.95, 'critical', 'warning') AS severity, '' AS host,
  concat('attack ', id, ' on ', target, ', ', toString(round(100 * met)), ' % of it dropped') AS what,
  began AS since
FROM (
  SELECT id, argMax(target, revision) AS target, argMax(state, revision) AS last,
    argMax(detected, revision) AS detected, argMax(began, revision) AS began,
    {share("argMax(after_dropped, revision)", "argMax(after, revision)")} AS met
  FROM attack WHERE {EVER} GROUP BY id)
WHERE last = 'active'""",
    f"""
SELECT 'warning' AS severity, any(host) AS host,
  concat(real, ' of ', vip, ' is down, say ', toString(count()), ' balancers') AS what, min(at) AS since
FROM (
  SELECT host, vip, real, argMax(state, ts) AS last, max(ts) AS at
  FROM lb_event WHERE {EVER} AND event = 'health' AND {HOSTS} GROUP BY host, vip, real)
WHERE last = 'down' GROUP BY vip, real""",
    f"""
SELECT 'critical' AS severity, host, concat(vip, ' has no real: nobody answers there') AS what,
  max(at) AS since
FROM (
  SELECT host, vip, real, argMax(slots, ts) AS left, max(ts) AS at
  FROM lb_event WHERE {EVER} AND event = 'ring' AND {HOSTS} GROUP BY host, vip, real)
GROUP BY host, vip HAVING sum(left) = 0""",
    _lately("warning", "filter_event", "event = 'rolled_back'",
            "concat('rule ', rule, ' rolled back: ', reason)"),
    _lately("warning", "oom_kill", "1", "concat('killed for want of memory: ', comm, ' of ', cgroup)"),
    _lately("warning", "overhead_event", "action IN ('slowed', 'detached', 'over_budget', 'failed')",
            "concat('probe ', probe, ' ', action, ': ', reason)"),
    f"""
SELECT 'warning' AS severity, host, concat(toString({LOST}), ' events of ', stream, ' lost') AS what,
  min(ts) AS since
FROM collector_health WHERE {MINUTES.format(300)} AND {HOSTS}
GROUP BY host, stream HAVING {LOST} > 0""",
    f"""
SELECT 'warning' AS severity, host, 'TCP segments sent again, far above the hour before' AS what,
  toDateTime64($__toTime - 300, 6, 'UTC') AS since
FROM ({against_past("tcp_retransmits", "tcp_segments", "pressure", 0.01, HOUR)})
WHERE value > 1 AND {HOSTS}""",
    f"""
SELECT 'warning' AS severity, host, 'packets dropped, far above the hour before' AS what,
  toDateTime64($__toTime - 300, 6, 'UTC') AS since
FROM ({against_past("packets", "interval_us / 1e6", drops(HOUR), 100, HOUR)}) WHERE value > 1 AND {HOSTS}""",
    f"""
SELECT if(argMax(lag, ts) > 10000, 'critical', 'warning') AS severity, '' AS host,
  concat(sink, if(argMax(lag, ts) > 10000, ' is behind', ' met dead letters')) AS what, min(ts) AS since
FROM sink_health WHERE {MINUTES.format(300)} GROUP BY sink HAVING argMax(lag, ts) > 10000 OR sum(dead) > 0""",
)  # fmt: skip
FIRING = "\nUNION ALL".join(PARTS)
