"""What Grafana's ClickHouse data source makes of the ``$__…`` macros of a query, on its server side.

Meaning as documented at https://grafana.com/docs/plugins/grafana-clickhouse-datasource/latest/query-editor/
(plugin 4). Alert rules get these and nothing else; see :mod:`fleet.render.variables` for what the browser
expands before.
"""

import math
import re
from collections.abc import Callable

from fleet.render.window import Window
from schemas.errors import BpfleetError

NAME = re.compile(r"\$__([A-Za-z_]+)")
FRONT_END = {"conditionalAll", "adHocFilters"}  # the browser's; the server knows nothing of them


def _second(moment: float) -> str:
    return f"toDateTime({math.floor(moment)})"


def _millisecond(moment: float) -> str:
    return f"fromUnixTimestamp64Milli({math.floor(moment * 1000)})"


def _filter(column: str, window: Window) -> str:
    return f"{column} >= {_second(window.begin)} AND {column} <= {_second(window.end)}"


def _filter_ms(column: str, window: Window) -> str:
    return f"{column} >= {_millisecond(window.begin)} AND {column} <= {_millisecond(window.end)}"


def _interval(column: str, window: Window) -> str:
    return f"toStartOfInterval(toDateTime({column}), INTERVAL {window.interval} second)"


def _interval_ms(column: str, window: Window) -> str:
    return f"toStartOfInterval(toDateTime64({column}, 3), INTERVAL {window.interval * 1000} millisecond)"


# name → what becomes of it; those of a column take exactly one argument
OF_COLUMN: dict[str, Callable[[str, Window], str]] = {
    "timeFilter": _filter,
    "timeFilter_ms": _filter_ms,
    "timeInterval": _interval,
    "timeInterval_ms": _interval_ms,
}
PLAIN: dict[str, Callable[[Window], str]] = {
    "fromTime": lambda window: _second(window.begin),
    "toTime": lambda window: _second(window.end),
    "fromTime_ms": lambda window: _millisecond(window.begin),
    "toTime_ms": lambda window: _millisecond(window.end),
    "interval_s": lambda window: str(window.interval),
}


def names(sql: str) -> set[str]:
    """Every macro that a query uses."""
    return set(NAME.findall(sql))


def expand(sql: str, window: Window) -> str:
    """The query as ClickHouse gets it. Raises :class:`BpfleetError` on a macro nobody would expand."""
    done, at = [], 0
    while found := NAME.search(sql, at):
        name, end = found[1], found.end()
        done.append(sql[at : found.start()])
        if name in PLAIN:
            done.append(PLAIN[name](window))
        elif name in OF_COLUMN:
            arguments, end = parenthesised(sql, end)
            if len(arguments) != 1 or not arguments[0].strip():
                raise BpfleetError(f"$__{name} takes one column, not {len(arguments)}; mend the query")
            done.append(OF_COLUMN[name](expand(arguments[0].strip(), window), window))
        else:
            where = (
                "only the browser expands it" if name in FRONT_END else "the data source has no such macro"
            )
            raise BpfleetError(f"$__{name}: {where}; mend the query")
        at = end
    return "".join([*done, sql[at:]])


def parenthesised(sql: str, at: int) -> tuple[list[str], int]:
    """The arguments in the parentheses that open at ``at``, and where they end.

    Raises :class:`BpfleetError` when none open there, or none close.
    """
    if sql[at : at + 1] != "(":
        raise BpfleetError(f"a macro lacks its parenthesis near `{sql[max(0, at - 30) : at + 10]}`; mend it")
    depth, begin, arguments = 0, at + 1, []
    for place in range(at, len(sql)):
        letter = sql[place]
        depth += (letter == "(") - (letter == ")")
        if depth == 0 or (letter == "," and depth == 1):
            arguments.append(sql[begin:place])
            begin = place + 1
        if depth == 0:
            return arguments, place + 1
    raise BpfleetError(f"a macro's parenthesis never closes near `{sql[at : at + 40]}`; mend it")
