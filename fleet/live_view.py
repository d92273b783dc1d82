"""How the live view looks: what fits a terminal, or one line for a log."""

from collections.abc import Iterator, Mapping
from typing import Any

from fleet.live import Snapshot, StreamLine
from fleet.sql import table

LEAST_STREAMS = 5  # shown before the question's SQL is, and before all rows of its answer
MARGIN = 5  # lines of the streams' table besides its rows


def draw(seen: Snapshot, costs: Mapping[str, tuple[float, float]], footer: str, console: Any) -> Any:
    """The view as a rich renderable; ``costs``: part → (share of a core, resident MB).

    What it costs, what is lost and the answer are always there; of the streams, the busiest that
    ``console`` (rich's) has room for.
    """
    from rich.console import Group

    for sql, answers in ((True, 10), (False, 10), (False, 1)):
        below = list(_below(seen, costs, footer, sql=sql, answers=answers))
        room = console.height - _lines(below, console) - MARGIN
        if room >= LEAST_STREAMS:
            break
    return Group(*_streams(seen.streams, max(1, room)), *below)


def _streams(streams: list[StreamLine], room: int) -> Iterator[Any]:
    from rich.text import Text

    filled = [each for each in streams if each.rows]
    busiest = sorted(filled, key=lambda each: (-each.per_second, -each.rows))[:room]
    rows = [
        (each.name, f"{each.per_second:,.1f}", f"{each.rows:,}", _age(each.age_s))
        for each in filled
        if each in busiest
    ]
    yield table(("stream", "rows/s", "rows", "newest row"), rows)
    if len(filled) > len(rows):
        yield Text(f" and {len(filled) - len(rows)} quieter streams: bpfleet status", style="dim")


def _below(
    seen: Snapshot, costs: Mapping[str, tuple[float, float]], footer: str, *, sql: bool, answers: int
) -> Iterator[Any]:
    from rich.text import Text

    style = "bold red" if seen.lost else "green"
    late = (
        seen.delay
        and f" · event to row: half within {_most(seen.delay[0])}, 99 % within {_most(seen.delay[1])}"
    )
    yield Text.assemble((f"lost or shed since the beginning: {seen.lost}", style), late or "")
    parts = [(name, f"{share:.1%}", f"{memory:.0f} MB") for name, (share, memory) in costs.items()]
    yield table(("part", "CPU of a core", "memory"), parts)
    if seen.question is not None and seen.answer is not None:
        yield Text(f"{seen.question.text}  ({seen.seconds * 1000:.0f} ms)", style="bold")
        if sql:
            yield Text(seen.question.sql, style="dim")
        yield table(seen.answer.column_names, seen.answer.result_rows[:answers])
    yield Text(footer, style="dim")


def _lines(blocks: list[Any], console: Any) -> int:
    return sum(len(console.render_lines(each, pad=False)) for each in blocks)


def plain(seen: Snapshot, costs: dict[str, tuple[float, float]]) -> str:
    """The same in one line, for logs."""
    rates = " ".join(f"{each.name}={each.per_second:.1f}/s" for each in seen.streams if each.per_second)
    delay = f" delay_p99={seen.delay[1]:g}s" if seen.delay else ""
    used = " ".join(f"{name}={share:.1%},{memory:.0f}MB" for name, (share, memory) in costs.items())
    return f"{rates}{delay} lost={seen.lost} {used}"


def _most(seconds: float) -> str:
    """An upper bound of the sink's histogram, whose last one is open."""
    return f"{seconds:g} s" if seconds < float("inf") else "minutes"


def _age(seconds: float | None) -> str:
    return "—" if seconds is None else f"{seconds:.1f} s ago"
