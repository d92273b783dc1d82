"""Every query of every dashboard: expanded as the data source does, run, its frame held against its panel."""

import datetime
import itertools
import re
from typing import Any

import pytest
from boards import BOARDS, IDS, PANELS, Filled

from fleet.render.frame import Frame
from fleet.render.variables import Choice, expand
from fleet.render.window import Window
from schemas import declare
from schemas.errors import UsageError

STREAMS = declare.streams()


def check_shares(frames: dict[str, Frame], panel: Any) -> None:
    """Of one, or of the CPUs of a host: a sum that lost its parentheses is thousands of times that."""
    if panel.unit == "percentunit":
        for frame in frames.values():
            for name in frame.numbers():
                assert all(each is None or each <= 64 for each in frame.column(name)), (panel.title, name)


def timeseries(frames: dict[str, Frame], panel: Any) -> None:
    for frame in frames.values():
        assert frame.types[0].startswith("DateTime") and frame.names[0] == "time"
        assert frame.numbers(), "no number to draw"
        assert len(frame.times()) == 1
        times = list(frame.column("time"))
        assert times == sorted(times), "Grafana makes no lines of rows that are out of order"
        marks = list(zip(times, *(frame.column(each) for each in frame.texts()), strict=True))
        assert len(set(marks)) == len(marks), "two values of one line at one time"


def stat(frames: dict[str, Frame], panel: Any) -> None:
    (frame,) = frames.values()
    assert frame.rows == 1 and len(frame.names) == 1 and frame.numbers(), "one number, please"


def bargauge(frames: dict[str, Frame], panel: Any) -> None:
    (frame,) = frames.values()
    assert len(frame.texts()) == 1 and len(frame.numbers()) == 1
    assert len(set(frame.column(frame.texts()[0]))) == frame.rows, "two bars of one name"


def table(frames: dict[str, Frame], panel: Any) -> None:
    (frame,) = frames.values()
    assert len(set(frame.names)) == len(frame.names)
    for override in panel.tree["fieldConfig"]["overrides"]:
        assert override["matcher"]["options"] in frame.names, "an override of a column that is not there"
    for name, kind in zip(frame.names, frame.types, strict=True):
        if kind.startswith("Date"):
            units = [
                each["value"]
                for override in panel.tree["fieldConfig"]["overrides"]
                if override["matcher"]["options"] == name
                for each in override["properties"]
                if each["id"] == "unit"
            ]
            assert units and units[0].startswith("dateTime"), (
                f"column {name} is a time without a unit of time"
            )


def heatmap(frames: dict[str, Frame], panel: Any) -> None:
    (frame,) = frames.values()
    assert frame.types[0].startswith("DateTime") and frame.names[0] == "time"
    assert list(frame.names[1:]) == frame.numbers() and len(frame.names) > 10
    assert list(frame.column("time")) == sorted(set(frame.column("time")))
    least = [_least(name) for name in frame.names[1:]]
    assert least == sorted(set(least)), "buckets are not in order"
    assert sum(sum(column) for column in frame.columns[1:]) > 0


def _least(name: str) -> float:
    number, _, unit = name.partition(" ")
    return float(number) * {"": 1, "µs": 1, "ms": 1_000, "s": 1_000_000}[unit]


def flamegraph(frames: dict[str, Frame], panel: Any) -> None:
    (frame,) = frames.values()
    assert set(frame.names) >= {"level", "label", "value", "self"}
    check_tree(frame, "value", "self")
    if "valueRight" in frame.names:
        check_tree(frame, "valueRight", "selfRight")
    total = frame.column("value")[0] + (frame.column("valueRight")[0] if "valueRight" in frame.names else 0)
    assert total > 0


def check_tree(frame: Frame, value: str, own: str) -> None:
    """Depth first with one root; nobody is wider than its parent leaves room for."""
    levels, values = list(frame.column("level")), list(frame.column(value))
    assert levels[0] == 0 and 0 not in levels[1:], "one root, and it comes first"
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels)), "not depth first"
    children = [0] * len(levels)
    ancestors: list[int] = []
    for index, level in enumerate(levels):
        ancestors = ancestors[:level]
        if ancestors:
            children[ancestors[-1]] += values[index]
        ancestors.append(index)
    selves = list(frame.column(own))
    for index, inner in enumerate(children):
        assert inner + selves[index] <= values[index], "children and self are more than the whole"
    assert max(levels) > 3


def state_timeline(frames: dict[str, Frame], panel: Any) -> None:
    timeseries(frames, panel)
    (mapping,) = panel.tree["fieldConfig"]["defaults"]["mappings"]
    for frame in frames.values():
        (number,) = frame.numbers()
        assert {str(each) for each in frame.column(number)} <= set(mapping["options"])


def node_graph(frames: dict[str, Frame], panel: Any) -> None:
    nodes, edges = frames["nodes"], frames["edges"]
    names = list(nodes.column("id"))
    assert len(set(names)) == len(names) and nodes.column("title") and edges.rows
    assert len(set(edges.column("id"))) == edges.rows
    assert {*edges.column("source"), *edges.column("target")} <= set(names), "an edge into nowhere"
    arcs = [each for each in nodes.names if each.startswith("arc__")]
    for parts in zip(*(nodes.column(each) for each in arcs), strict=True):
        assert abs(sum(parts) - 1) < 1e-9, "the parts of a ring are not one"


NEEDS = {"timeseries": timeseries, "stat": stat, "bargauge": bargauge, "table": table, "heatmap": heatmap,
         "flamegraph": flamegraph, "state-timeline": state_timeline, "nodeGraph": node_graph}  # fmt: skip


@pytest.mark.parametrize(("name", "panel"), PANELS, ids=IDS)
def test_a_panel_gets_the_frame_that_it_needs(rows: Filled, name: str, panel: Any) -> None:
    frames = rows.frames(panel, rows.choices(BOARDS[name]))
    assert all(frame.rows for frame in frames.values()), "the panel is empty"
    NEEDS[panel.kind](frames, panel)
    check_shares(frames, panel)


@pytest.mark.parametrize("name", BOARDS)
def test_variables_offer_values_and_narrow_what_is_shown(rows: Filled, name: str) -> None:
    board = BOARDS[name]
    every = rows.choices(board)
    for variable in board.variables:
        if variable["type"] == "query":
            answer = rows.ask(expand(variable["query"]["rawSql"], every, rows.window))
            assert len(answer.names) == 1 and answer.texts() and answer.rows, variable["name"]
            assert "" not in answer.column(answer.names[0]), variable["name"]
    european = rows.choices(board, region=["eu"])
    assert 0 < len(european["host"].values) < len(every["host"].values)
    one = {each["name"]: every[each["name"]].values[:2] for each in board.variables if each.get("multi")}
    narrow = rows.choices(board, **{key: list(values) for key, values in one.items()})
    for panel in board.panels:
        for frame in rows.frames(panel, narrow).values():
            if "host" in frame.names and panel.kind != "stat":
                some = set(frame.column("host")) - {""}  # an attack, a sink: of no host
                assert some <= set(one["host"]), panel.title
            if "cgroup" in frame.names and "cgroup" in one:
                assert set(frame.column("cgroup")) <= set(one["cgroup"]), panel.title


@pytest.mark.parametrize("name", BOARDS)
def test_annotations_are_times_and_texts(rows: Filled, name: str) -> None:
    board = BOARDS[name]
    choices = rows.choices(board)
    assert {each["name"] for each in board.annotations} == {"Deploys", "Rules", "Verdicts"}
    for each in board.annotations:
        answer = rows.ask(expand(each["target"]["rawSql"], choices, rows.window))
        assert answer.names == ("time", "text", "tags") and answer.rows, each["name"]
        assert answer.times() == ["time"] and "text" in answer.texts()
        assert all(isinstance(each, datetime.datetime) for each in answer.column("time"))


def test_a_click_on_a_heatmap_shows_what_was_slow_then(rows: Filled) -> None:
    board = BOARDS["latency"]
    panel = next(each for each in board.panels if each.title == "Slow block requests")
    moment = rows.end - 3_600
    choices = {**rows.choices(board), "at": Choice((str(int(moment * 1000)),))}
    (frame,) = rows.frames(panel, choices).values()
    assert frame.rows
    for each in frame.column("time"):
        assert moment <= each.replace(tzinfo=datetime.UTC).timestamp() < moment + 60


def test_hostile_values_of_variables_stay_values(rows: Filled) -> None:
    board = BOARDS["host"]
    choices = rows.choices(board, host=["x') OR 1=1 --", "o'hara"])
    for panel in board.panels:
        for frame in rows.frames(panel, choices).values():
            assert frame.rows == 0, panel.title


def test_an_unknown_variable_is_named(rows: Filled) -> None:
    with pytest.raises(UsageError, match="Host has no variable colour"):
        rows.choices(BOARDS["host"], colour=["red"])


BY_MINUTE = [
    (name, panel, sql)
    for name, panel in PANELS
    for sql in panel.queries.values()
    for table in re.findall(r"FROM (\w+)", sql)
    if "toStartOfMinute(ts)" in sql and table in STREAMS and STREAMS[table].storage.rollups
]


@pytest.mark.parametrize(
    ("name", "panel", "sql"), BY_MINUTE, ids=[f"{n}: {p.title}" for n, p, _ in BY_MINUTE]
)
def test_a_long_window_reads_sums_by_the_minute(rows: Filled, name: str, panel: Any, sql: str) -> None:
    text = expand(sql, rows.choices(BOARDS[name]), panel.window(rows.window))
    plan = "\n".join(str(row) for row in rows.ask(f"EXPLAIN {text}").columns[0])
    assert "rollup_" in plan, plan


def test_what_began_before_the_window_still_holds(rows: Filled) -> None:
    """A real that went down yesterday is down, whatever the last hour shows."""
    board = BOARDS["balancer"]
    panel = next(each for each in board.panels if each.title == "Reals down")
    day = Window.of(rows.end + 80_000, rows.end + 83_600)
    (sql,) = panel.queries.values()
    (count,) = rows.ask(expand(sql, rows.choices(board), day)).columns[0]
    assert count > 0
    month = Window.of(rows.end + 31 * 86_400, rows.end + 31 * 86_400 + 3_600)
    assert list(rows.ask(expand(sql, rows.choices(board), month)).columns[0]) == [0]
