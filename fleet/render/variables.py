"""What the browser makes of a query's variables before the data source sees it.

``$name``, ``${name}`` and ``${name:format}``, ``$__conditionalAll(condition, $name)``, and the variables that
Grafana itself sets (https://grafana.com/docs/grafana/latest/visualizations/dashboards/variables/). Without a
format, the data source joins many values as ``'a','b'`` and leaves a single one bare.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fleet.render import macros
from fleet.render.window import Window
from schemas.errors import BpfleetError

ALL = "$__all"
BRACED = re.compile(r"\$\{(\w+)(?::(\w+))?\}|\$(?!__)(\w+)")
CONDITIONAL = "$__conditionalAll("


@dataclass(frozen=True)
class Choice:
    """What is chosen for one variable."""

    values: tuple[str, ...]  # what stands for it; every option when all are chosen
    every: bool = False  # «All» is chosen
    multi: bool = False


Choices = Mapping[str, Choice]


def _quoted(value: str) -> str:
    return "'" + value.replace("'", "\\'") + "'"


def _regex(values: tuple[str, ...]) -> str:
    escaped = [re.escape(each) for each in values]
    return escaped[0] if len(escaped) == 1 else f"({'|'.join(escaped)})"


FORMATS: dict[str, Callable[[tuple[str, ...]], str]] = {
    "singlequote": lambda values: ",".join(_quoted(each) for each in values),
    "raw": ",".join,
    "csv": ",".join,
    "pipe": "|".join,
    "regex": _regex,
}


def interpolate(sql: str, choices: Choices, window: Window) -> str:
    """The query as it leaves the browser. Raises :class:`BpfleetError` on an unknown variable or format."""
    sql = _conditional(sql, choices)
    known = {**choices, **_built_in(window)}

    def value(found: re.Match[str]) -> str:
        name, form = found[1] or found[3], found[2] or ""
        if name not in known:
            raise BpfleetError(f"the query uses ${{{name}}}, which the dashboard does not have; mend it")
        chosen = known[name]
        if form:
            if form not in FORMATS:
                raise BpfleetError(f"${{{name}:{form}}}: unknown format; use one of {', '.join(FORMATS)}")
            return FORMATS[form](chosen.values or ("",))  # no option: Grafana's value is an empty text
        return "'" + "','".join(chosen.values) + "'" if chosen.multi else "".join(chosen.values[:1])

    return BRACED.sub(value, sql)


def expand(sql: str, choices: Choices, window: Window) -> str:
    """Both steps: what the browser does, then what the data source does."""
    return macros.expand(interpolate(sql, choices, window), window)


def used(sql: str) -> set[str]:
    """Names of the variables of a query."""
    return {found[1] or found[3] for found in BRACED.finditer(sql)}


def _built_in(window: Window) -> dict[str, Choice]:
    numbers = {
        "__from": str(int(window.begin * 1000)),
        "__to": str(int(window.end * 1000)),
        "__interval_ms": str(window.interval * 1000),
        "__range_s": str(int(window.end - window.begin)),
    }
    return {name: Choice((text,)) for name, text in numbers.items()}


def _conditional(sql: str, choices: Choices) -> str:
    """``$__conditionalAll(condition, $name)``: the condition, or 1=1 when all, or nothing, is chosen."""
    while (at := sql.rfind(CONDITIONAL)) >= 0:
        arguments, end = macros.parenthesised(sql, at + len(CONDITIONAL) - 1)
        if len(arguments) != 2:
            raise BpfleetError(
                f"$__conditionalAll takes a condition and a variable: `{sql[at:end]}`; mend it"
            )
        name = re.fullmatch(r"\$\{?(\w+)\}?", arguments[1].strip())
        if not name or name[1] not in choices:
            raise BpfleetError(
                f"$__conditionalAll needs a plain variable, not `{arguments[1].strip()}`; mend it"
            )
        chosen = choices[name[1]]
        empty = chosen.every or not any(chosen.values)
        sql = sql[:at] + ("1=1" if empty else arguments[0]) + sql[end:]
    return sql
