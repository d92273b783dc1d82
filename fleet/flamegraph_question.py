"""What a flame graph asks: which rows, of when, in one SQL statement."""

import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from schemas.desired import seconds
from schemas.errors import UsageError

TABLES = {False: ("cpu_profile", "cpu_ns"), True: ("off_cpu", "off_ns")}
NOT_TOLD = "[stack not told]"
# `rows` is what is asked for, `names` the stacks it needs; frames of the kernel are marked as is usual.
STATEMENT = """\
WITH rows AS (
  SELECT comm, user_stack, kernel_stack,
         sumIf({value}, {before}) AS before_ns, sumIf({value}, {after}) AS after_ns
  FROM {table} WHERE (({before}) OR ({after})){where}
  GROUP BY comm, user_stack, kernel_stack
), names AS (
  SELECT stack, any(frames) AS frames FROM stack
  WHERE stack IN (SELECT user_stack FROM rows UNION DISTINCT SELECT kernel_stack FROM rows) GROUP BY stack
)
SELECT concat(replaceAll(comm, ';', ','),
              multiIf(user_stack = 0, '', u.frames = '', ';{not_told}', concat(';', u.frames)),
              multiIf(kernel_stack = 0, '', k.frames = '', ';{not_told}_[k]',
                      arrayStringConcat(arrayMap(f -> concat(';', f, '_[k]'), splitByChar(';', k.frames))))
             ) AS folded, sum(before_ns) AS before, sum(after_ns) AS after
FROM rows
LEFT JOIN names AS u ON u.stack = rows.user_stack
LEFT JOIN names AS k ON k.stack = rows.kernel_stack
GROUP BY folded ORDER BY folded"""


@dataclass(frozen=True)
class Window:
    """A span of time, seconds since 1970."""

    begin: float
    end: float

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.end - self.begin

    def text(self) -> str:
        """For people: ``20:10:05–20:15:05 UTC``, with the day where it is not one."""
        begin, end = (datetime.fromtimestamp(each, UTC) for each in (self.begin, self.end))
        same = begin.date() == end.date()
        return f"{begin:%Y-%m-%d %H:%M:%S}–{end:%H:%M:%S}{'' if same else f' ({end:%Y-%m-%d})'} UTC"


def moment(text: str, now: float) -> float:
    """``5m`` (ago), ``now``, or ISO 8601 (UTC unless it says otherwise). Raises :class:`UsageError`."""
    if text == "now":
        return now
    if re.fullmatch(r"\d+[a-z]+", text):
        return now - seconds(text)
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"`{text}` is no time; write 5m (ago), now, or 2026-01-31T12:30") from None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def window(since: str, until: str, now: float | None = None) -> Window:
    """From ``since`` to ``until``. Raises :class:`UsageError`."""
    at = time.time() if now is None else now
    found = Window(moment(since, at), moment(until, at))
    if found.seconds <= 0:
        raise UsageError(f"nothing lies between `{since}` and `{until}`; --since comes before --until")
    return found


def earlier(text: str, than: Window, now: float | None = None) -> Window:
    """The window to compare with: ``1h`` the same length, so much earlier; ``2h..1h`` from, to."""
    since, dots, until = text.partition("..")
    if dots:
        return window(since, until, now)
    shift = seconds(since)
    return Window(than.begin - shift, than.end - shift)


@dataclass(frozen=True)
class Question:
    """What is asked; empty lists ask for all."""

    after: Window
    before: Window | None = None
    off_cpu: bool = False
    hosts: tuple[str, ...] = ()
    cgroups: tuple[str, ...] = ()  # with everything below
    processes: tuple[str, ...] = ()  # names of threads, or pids
    states: tuple[str, ...] = ()

    @property
    def scale(self) -> float:
        """What makes the times before comparable with those after."""
        return self.after.seconds / self.before.seconds if self.before else 1.0

    def text(self) -> str:
        """The statement as one pastes it."""
        statement, given = self.sql()
        return re.sub(r"\{(\w+):[\w()]+\}", lambda match: literal(given[match[1]]), statement)

    def sql(self) -> tuple[str, dict[str, Any]]:
        """The statement and its parameters."""
        given: dict[str, Any] = {}
        table, value = TABLES[self.off_cpu]
        after = _between("after", self.after, given)
        before = _between("before", self.before, given) if self.before else "0"
        where = self._where(given)
        statement = STATEMENT.format(
            value=value, table=table, before=before, after=after, where=where, not_told=NOT_TOLD
        )
        return statement, given

    def _where(self, given: dict[str, Any]) -> str:
        parts = []
        if self.hosts:
            given["hosts"] = list(self.hosts)
            parts.append("has({hosts:Array(String)}, host)")
        if self.cgroups:
            given["cgroups"] = [each.rstrip("/") for each in self.cgroups]
            inside = "cgroup = each OR startsWith(cgroup, concat(each, '/'))"
            parts.append(f"arrayExists(each -> {inside}, {{cgroups:Array(String)}})")
        if self.processes:
            given["comms"] = [each for each in self.processes if not each.isdigit()]
            given["pids"] = [int(each) for each in self.processes if each.isdigit() and int(each) < 1 << 32]
            parts.append("(has({comms:Array(String)}, comm) OR has({pids:Array(UInt32)}, pid))")
        if self.states and self.off_cpu:
            given["states"] = list(self.states)
            parts.append("has({states:Array(String)}, state)")
        return "".join(f" AND {each}" for each in parts)


def literal(value: Any) -> str:
    """A value as SQL has it."""
    if isinstance(value, list):
        return f"[{', '.join(literal(each) for each in value)}]"
    return (
        str(value) if isinstance(value, int) else "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    )


def _between(name: str, span: Window, given: dict[str, Any]) -> str:
    given[f"{name}_begin"], given[f"{name}_end"] = int(span.begin * 1e6), int(span.end * 1e6)
    bounds = (f"fromUnixTimestamp64Micro({{{name}_{each}:Int64}})" for each in ("begin", "end"))
    return "ts > {} AND ts <= {}".format(*bounds)
