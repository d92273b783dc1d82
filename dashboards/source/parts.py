"""What several dashboards share: the common variables, conditions and marks, and SQL that is long."""

from dashboards.source.board import annotation, many


def _label(name: str) -> str:
    return f"JSONExtractString(labels, '{name}')"


def _by_label(column: str, name: str) -> str:
    """Only hosts with the chosen label; nothing is looked up while all are chosen."""
    chosen = f"{_label(name)} IN (${{{name}:singlequote}})"
    hosts = f"SELECT host FROM host WHERE $__timeFilter(ts) AND {chosen}"
    return f"$__conditionalAll({column} IN ({hosts}), ${name})"


def hosts(column: str = "host") -> str:
    """The condition that keeps the chosen regions, roles and hosts."""
    own = f"$__conditionalAll({column} IN (${{host:singlequote}}), $host)"
    return f"{own} AND {_by_label(column, 'region')} AND {_by_label(column, 'role')}"


HOSTS = hosts()
CGROUPS = "$__conditionalAll(cgroup IN (${cgroup:singlequote}), $cgroup)"
TIME = "$__timeFilter(ts)"
HERE = f"{TIME} AND {HOSTS}"
# A long window reads sums by the minute (projections of the tables), which need the minute in the condition.
MINUTE = "$__timeFilter(toStartOfMinute(ts))"
# What holds at the end of the window may have begun long before it: for small tables of changes.
EVER = "ts <= $__toTime AND ts > $__toTime - INTERVAL 30 DAY"
# Changes, and at the beginning of the window the state that held by then.
FROM_BEFORE = "greatest($__timeInterval(ts), $__fromTime) AS time"
HERE_BY_MINUTE = f"{MINUTE} AND {HOSTS}"
BY_MINUTE = "$__timeInterval(toStartOfMinute(ts)) AS time"
BY_TIME = "$__timeInterval(ts) AS time"

_REGION = (
    f"SELECT DISTINCT {_label('region')} AS region FROM host WHERE {TIME} AND region != '' ORDER BY region"
)
_ROLE = f"SELECT DISTINCT {_label('role')} AS role FROM host WHERE {TIME} AND role != '' ORDER BY role"
_HOST = f"""
SELECT DISTINCT host FROM host
WHERE {TIME}
  AND $__conditionalAll({_label("region")} IN (${{region:singlequote}}), $region)
  AND $__conditionalAll({_label("role")} IN (${{role:singlequote}}), $role)
ORDER BY host"""
_CGROUP = f"""
SELECT cgroup FROM runq_latency
WHERE {HERE_BY_MINUTE}
GROUP BY cgroup ORDER BY sum(count) DESC LIMIT 500"""

REGION, ROLE = many("region", "Region", _REGION), many("role", "Role", _ROLE)
HOST, CGROUP = many("host", "Host", _HOST), many("cgroup", "Cgroup", _CGROUP)
WHERE = [REGION, ROLE, HOST]  # the variables that every dashboard has

VERDICTS = annotation(
    "Verdicts",
    "red",
    f"""
SELECT ts AS time, summary AS text, concat(target_host, ',', verdict) AS tags FROM (
  SELECT ts, target_host, verdict, summary,
    lagInFrame(verdict) OVER (PARTITION BY target_host ORDER BY ts ROWS BETWEEN 1 PRECEDING
      AND CURRENT ROW) AS was
  FROM verdict
  WHERE {TIME} AND rank = 1 AND {hosts("target_host")})
WHERE verdict != was AND verdict NOT IN ('nothing_wrong', 'no_data')
ORDER BY time""",
)
RULES = annotation(
    "Rules",
    "orange",
    f"""
SELECT ts AS time, concat(rule, ' ', event, ' on ', host, if(reason = '', '', ': '), reason) AS text,
  concat('rule,', event) AS tags
FROM filter_event
WHERE {HERE}
ORDER BY time""",
)
DEPLOYS = annotation(
    "Deploys",
    "blue",
    f"""
SELECT ts AS time, concat(kind, ' ', id, ' revision ', toString(revision), ' ', state, ' by ',
  author) AS text,
  concat('deploy,', kind) AS tags
FROM applied
WHERE {HERE}
UNION ALL
SELECT started AS time, concat('collector ', version, ' started on ', host) AS text,
  'deploy,collector' AS tags
FROM host
WHERE {HERE} AND $__timeFilter(started)
GROUP BY host, started, version
ORDER BY time""",
)
MARKS = [DEPLOYS, RULES, VERDICTS]


def address(column: str) -> str:
    """An IPv6 column as people write it: IPv4 without its prefix."""
    return f"replaceOne(toString({column}), '::ffff:', '')"


def share(part: str, whole: str) -> str:
    """``part / whole``, 0 where there is nothing."""
    return f"if(({whole}) = 0, 0, ({part}) / ({whole}))"


def buckets(values: str, count: int = 27) -> str:
    """The columns of a heatmap out of an array of log₂ buckets in µs."""
    return ",\n  ".join(f"{values}[{number + 1}] AS `{bucket_name(number)}`" for number in range(count))


def bucket_name(number: int) -> str:
    """How long the waits of bucket ``number`` are at least, as people say it: ``4 µs``, ``65 ms``."""
    least = 0 if number == 0 else 2 ** (number - 1)
    for size, unit in ((1_000_000, "s"), (1_000, "ms")):
        if least >= size:
            return f"{least / size:.3g} {unit}"
    return f"{least} µs"


def quantile(values: str, share: float) -> str:
    """A quantile in µs out of an array of log₂ buckets: the upper end of the bucket that holds it."""
    passed = f"arrayFirstIndex(each -> each >= {share} * arraySum({values}), arrayCumSum({values}))"
    return f"if(arraySum({values}) = 0, 0, exp2({passed} - 1))"
