"""The rows of a stream as a statement of SQL, made from row numbers: any range of them, always the same."""

from collections.abc import Iterable, Sequence

from fleet.simulate.edge_streams import EDGE_STREAMS, ON_EDGES
from fleet.simulate.host_streams import HOST_STREAMS, Made
from fleet.simulate.plan import Absence, Effect, Fleet
from fleet.simulate.values import EDGE, HOST
from schemas import ddl
from schemas.ddl import quote
from schemas.declare import Stream

STREAMS: Made = HOST_STREAMS | EDGE_STREAMS
HOUR, DAY_HEIGHT, HIGHEST_AT = 3_600, 0.35, 14  # o'clock, UTC


def hosts_of(name: str, fleet: Fleet) -> int:
    """How many hosts have that stream."""
    return len(fleet.edges()) if name in ON_EDGES else fleet.hosts


def rows_of(name: str, fleet: Fleet, scale: float = 1.0) -> int:
    """How many rows a fleet makes of a stream."""
    a_minute = STREAMS[name][0] * hosts_of(name, fleet) * scale
    return max(int((fleet.end - fleet.begin) / 60 * a_minute), 1)


def statement(
    stream: Stream, own: dict[str, str], fleet: Fleet, rows: int, *, seconds: float, first: int = 0,
    many: int | None = None, effects: Sequence[Effect] = (), absences: Iterable[Absence] = (),
) -> str:  # fmt: skip
    """SELECT of ``ts``, ``host`` and the columns ``own``: ``many`` of ``rows`` rows, from number ``first``.

    Rows are evenly from the fleet's begin to its end, hosts in turn; ``seconds``: what one of them stands for
    where the stream is an aggregate.
    """
    unknown = set(own) - set(ddl.columns(stream))
    assert not unknown, f"{stream.name} has no column {unknown}"
    own = complete(stream, own, effects)
    names = [each for each in ddl.columns(stream) if each in own]
    made = [f"{own[each]} AS {quote(each)}" for each in names]
    if "host" not in own:
        made.append(f"{HOST} AS host")
        names.append("host")
    inner = (
        f"WITH {', '.join(_names(stream.name, fleet, rows, seconds))} "
        f"SELECT ts, {', '.join(made)} FROM numbers_mt({first}, {rows if many is None else many})"
    )
    wanted = ", ".join(_changed(each, stream.name, effects) for each in names)
    told_by_others = "host" in own  # of a host that is silent somebody else still speaks
    silent = "".join(f" AND NOT ({_of(stream.name, (each.host,), each.begin, each.end)})" for each in absences
                     if not each.stream and not told_by_others)  # fmt: skip
    return f"SELECT ts, {wanted} FROM ({inner}) WHERE 1{silent} SETTINGS prefer_column_name_to_alias = 1"


def complete(stream: Stream, own: dict[str, str], effects: Iterable[Effect]) -> dict[str, str]:
    """The columns, with what only an incident changes: at all other times it has its type's default."""
    changed = {name: None for each in effects if each.stream == stream.name for name in each.columns}
    return {name: f"defaultValueOfTypeName('{_type(stream, name)}')" for name in changed} | own


def _type(stream: Stream, column: str) -> str:
    return ddl.columns(stream)[column][0].replace("'", "\\'")


def _names(name: str, fleet: Fleet, rows: int, seconds: float) -> list[str]:
    """What the expressions of :mod:`fleet.simulate.values` refer to."""
    begin, span, hosts = int(fleet.begin * 1e6), int((fleet.end - fleet.begin) * 1e6), hosts_of(name, fleet)
    step = EDGE if name in ON_EDGES else 1
    day = f"cos((toHour(ts) + toMinute(ts) / 60 - {HIGHEST_AT}) / 24 * 2 * pi())"
    return [
        f"fromUnixTimestamp64Micro({begin} + toInt64(number * {span / rows:.9g})) AS ts",
        f"fromUnixTimestamp64Micro({begin}) AS begin",
        f"(number % {hosts}) * {step} AS place",
        f"intDiv(number, {hosts}) AS part",
        "intDiv(number, 2) AS half",
        f"{fleet.seed} AS seed",
        f"'{fleet.prefix}' AS prefix",
        f"{seconds} AS seconds",
        f"(1 + {DAY_HEIGHT} * {day}) * (0.8 + cityHash64(place, seed) % 40 / 100) AS wave",
    ]


def _of(stream: str, hosts: tuple[str, ...], begin: float, end: float) -> str:
    listed = ", ".join(f"'{each}'" for each in hosts)
    column = "target_host" if stream == "verdict" else "host"
    first, last = (f"fromUnixTimestamp64Micro({int(at * 1e6)})" for at in (begin, end))
    return f"{column} IN ({listed}) AND ts >= {first} AND ts < {last}"


def _changed(name: str, stream: str, effects: Sequence[Effect]) -> str:
    """A column as the effects leave it; of several at once the last one counts."""
    own = [each for each in effects if each.stream == stream and name in each.columns]
    if not own:
        return quote(name)
    cases = "".join(
        f"{_of(stream, each.hosts, each.begin, each.end)} AND {each.where}, {each.columns[name]}, "
        for each in reversed(own)
    )
    return f"multiIf({cases}{quote(name)}) AS {quote(name)}"
