"""The live view: it fits the terminal, and what matters is never what is cut."""

import pytest
from rich.console import Console

from fleet import live_view
from fleet.live import QUESTIONS, Snapshot, StreamLine


class Answer:
    column_names = ("device", "operation", "requests", "mean_ms")
    result_rows = tuple((f"sd{number}", "read", 10, 0.5) for number in range(5))


@pytest.fixture
def seen() -> Snapshot:
    streams = [StreamLine(f"stream_{number}", float(number), number, 0.5) for number in range(50)]
    return Snapshot(streams, 3, (0.25, 0.5), QUESTIONS[1], Answer(), 0.012)


COSTS = dict.fromkeys(("kafka", "store", "sink", "collect"), (0.1, 70.0))


@pytest.mark.parametrize(("width", "height"), [(80, 24), (100, 40), (200, 60), (40, 30), (120, 200)])
def test_it_fits(seen: Snapshot, width: int, height: int) -> None:
    console = Console(width=width, height=height, record=True, file=None, force_terminal=True, quiet=True)
    drawn = live_view.draw(seen, COSTS, "Ctrl-C stops", console)
    lines = ["".join(part.text for part in line).rstrip() for line in console.render_lines(drawn)]
    text = "\n".join(lines)
    assert width < 60 or len(lines) <= height
    for word in ("lost or shed since the beginning: 3", "collect", "Which disks are slow?", "Ctrl-C stops"):
        assert word in text
    assert "stream_49" in text and "stream_0 " not in text
    shown = sum(line.startswith(" stream_") for line in lines)
    assert shown == 49 or f"and {49 - shown} quieter streams" in text
    assert shown > (0 if height < 40 else 10)


def test_a_view_of_nothing_yet() -> None:
    console = Console(width=80, height=24, quiet=True)
    drawn = live_view.draw(Snapshot(), {}, "footer", console)
    assert "lost or shed" in "".join(part.text for line in console.render_lines(drawn) for part in line)
