"""Panels as plotly figures (as in https://plotly.com/javascript/reference/) or, where text does, HTML."""

import datetime
import html
import json
from collections.abc import Callable, Mapping
from typing import Any

from fleet.render import flame, graph, units
from fleet.render.dashboard import Panel
from fleet.render.frame import Frame
from fleet.render.window import Window

Frames = Mapping[str, Frame]
Figure = dict[str, Any]
OVER_TIME = ("timeseries", "heatmap", "state-timeline")
FAINT = (
    0.4  # exponent of a heatmap's colours, as in the dashboards: what is rare is seen beside what is usual
)
ROWS = 500  # of a table; more would be a book
COLORS = ("#56a64b", "#3274d9", "#e02f44", "#ff9830", "#a352cc", "#8ab8ff", "#b877d9", "#96d98d", "#ffb357",
          "#37872d", "#1f60c4", "#c4162a")  # fmt: skip


def timeseries(panel: Panel, frames: Frames) -> Figure:
    """Lines, areas or bars over time."""
    custom = panel.tree["fieldConfig"]["defaults"].get("custom", {})
    stacked = custom.get("stacking", {}).get("mode") == "normal"
    bars = custom.get("drawStyle") == "bars"
    traces: list[dict[str, Any]] = []
    for frame in frames.values():
        for number, (name, (times, values)) in enumerate(frame.series().items()):
            trace: dict[str, Any] = {
                "x": [_moment(each) for each in times],
                "y": units.in_base(values, panel.unit),
                "name": units.label(name),
            }
            line = {"type": "scatter", "mode": "lines", "line": {"width": 1.2}}
            trace |= {"type": "bar"} if bars else line
            trace["marker"] = {"color": COLORS[number % len(COLORS)]}
            if stacked and not bars:
                trace |= {"stackgroup": "one", "fillcolor": COLORS[number % len(COLORS)] + "66"}
            traces.append(trace)
    layout = {"yaxis": {"rangemode": "tozero", **units.axis(panel.unit)}, "barmode": "stack",
              "hovermode": "x unified" if len(traces) <= 12 else "closest"}  # fmt: skip
    return {"data": traces, "layout": layout}


def heatmap(panel: Panel, frames: Frames) -> Figure:
    """A column a moment, a line a bucket, darkest where most are."""
    (frame,) = frames.values()
    most = max((each for column in frame.columns[1:] for each in column), default=0)
    ticks = [most / 10**each for each in range(4)]
    trace = {"type": "heatmap", "x": [_moment(each) for each in frame.columns[0]], "y": list(frame.names[1:]),
             "z": [[each**FAINT if each else None for each in column] for column in frame.columns[1:]],
             "text": [list(column) for column in frame.columns[1:]], "colorscale": "YlOrRd",
             "reversescale": True, "showscale": True, "zmin": 0, "zmax": most**FAINT,
             "colorbar": {"thickness": 8, "tickvals": [each**FAINT for each in ticks],
                          "ticktext": [units.show(round(each), "short") for each in ticks]},
             "hovertemplate": "%{x}<br>from %{y}: %{text}<extra></extra>"}  # fmt: skip
    return {"data": [trace], "layout": {"yaxis": {"type": "category"}}}


def bars(panel: Panel, frames: Frames) -> Figure:
    """A bar a row, the first on top."""
    (frame,) = frames.values()
    names, values = list(frame.column(frame.texts()[0])), list(frame.column(frame.numbers()[0]))
    shown = [units.show(each, panel.unit) for each in values]
    steps = panel.tree["fieldConfig"]["defaults"]["thresholds"]["steps"]
    colors = [COLORS[1] if len(steps) == 1 else _color(_step(steps, each)) for each in values[:20]]
    axis = units.categories(names[:20]) | {"autorange": "reversed"}
    trace = {"type": "bar", "orientation": "h", "y": [*map(units.escaped, names[:20])],
             "x": units.in_base(values[:20], panel.unit), "text": shown[:20], "marker": {"color": colors},
             "hoverinfo": "y+text", "textposition": "outside", "cliponaxis": False}  # fmt: skip
    layout = {"yaxis": axis, "xaxis": units.axis(panel.unit), "showlegend": False,
              "margin": {"l": 60, "r": 56, "t": 8, "b": 40}}  # fmt: skip
    return {"data": [trace], "layout": layout}


def states(panel: Panel, frames: Frames, until: float) -> Figure:
    """A line a series; each stretch of one state is a bar in its colour."""
    (mapping,) = panel.tree["fieldConfig"]["defaults"]["mappings"]
    held = panel.tree["fieldConfig"]["defaults"]["custom"]["spanNulls"]
    longest = float("inf") if held is True else held / 1000
    stretches: dict[str, dict[str, list[Any]]] = {}
    for frame in frames.values():
        for name, (times, values) in frame.series().items():
            last = datetime.datetime.fromtimestamp(until, times[-1].tzinfo or datetime.UTC)
            last = last if times[-1].tzinfo else last.replace(tzinfo=None)
            ends = [*times[1:], last if held is True else times[-1] + datetime.timedelta(seconds=60)]
            for begin, end, value in zip(times, ends, values, strict=True):
                bar = stretches.setdefault(str(value), {"y": [], "base": [], "x": []})
                lasted = min((end - begin).total_seconds(), longest)
                bar["y"].append(units.escaped(name))
                bar["base"].append(_moment(begin))
                bar["x"].append(lasted * 1000)
    shown = mapping["options"]
    traces = [
        {"type": "bar", "orientation": "h", **bar, "name": shown[value]["text"], "width": 0.8,
         "marker": {"color": _color(shown[value]["color"]), "line": {"width": 0}},
         "hovertemplate": "%{y}: " + shown[value]["text"] + " from %{base}<extra></extra>"}
        for value, bar in sorted(stretches.items())
    ]  # fmt: skip
    axis = units.categories(name for frame in frames.values() for name in frame.series())
    return {"data": traces, "layout": {"barmode": "overlay", "xaxis": {"type": "date"}, "yaxis": axis}}


_NAMED = {"text": "#8e8e8e", "dark-red": "#9c0006", "light-blue": "#8ab8ff", "yellow": "#d9b400",
          "green": "#56a64b", "red": "#e02f44", "orange": "#ff9830", "blue": "#3274d9",
          "purple": "#a352cc"}  # fmt: skip


def _color(name: str) -> str:
    return _NAMED.get(name, name)


def _step(steps: list[dict[str, Any]], value: Any) -> str:
    """The colour of the last threshold that a value has reached."""
    reached = [each["color"] for each in steps if each["value"] is None]
    if isinstance(value, int | float):
        reached += [each["color"] for each in steps if each["value"] is not None and value >= each["value"]]
    return str(reached[-1]) if reached else "transparent"


def _moment(moment: Any) -> str:
    return str(moment.strftime("%Y-%m-%d %H:%M:%S.%f"))


FIGURES: dict[str, Callable[[Panel, Frames], Figure]] = {
    "timeseries": timeseries,
    "heatmap": heatmap,
    "bargauge": bars,
    "flamegraph": flame.figure,
    "nodeGraph": graph.figure,
}


def stat(panel: Panel, frames: Frames) -> str:
    """One number, in the colour of its threshold."""
    (frame,) = frames.values()
    value = frame.columns[0][0]
    color = _step(panel.tree["fieldConfig"]["defaults"]["thresholds"]["steps"], value)
    return f'<div class="stat {html.escape(color)}">{html.escape(units.show(value, panel.unit))}</div>'


def table(panel: Panel, frames: Frames) -> str:
    """Rows; each column in its unit."""
    (frame,) = frames.values()
    own = {
        each["matcher"]["options"]: next(
            (p["value"] for p in each["properties"] if p["id"] == "unit"), panel.unit
        )
        for each in panel.tree["fieldConfig"]["overrides"]
    }
    colored = {
        each["matcher"]["options"]: p["value"]
        for each in panel.tree["fieldConfig"]["overrides"]
        for p in each["properties"]
        if p["id"] in ("thresholds", "mappings")
    }
    numbers = set(frame.numbers())
    head = "".join(f"<th>{html.escape(name)}</th>" for name in frame.names)
    lines = []
    for values in list(zip(*frame.columns, strict=True))[:ROWS]:
        cells = "".join(
            f"<td{' class=number' if name in numbers else ''}{_background(colored.get(name), value)}>"
            f"{html.escape(units.show(value, own.get(name, panel.unit)))}</td>"
            for name, value in zip(frame.names, values, strict=True)
        )
        lines.append(f"<tr>{cells}</tr>")
    return (
        f"<div class=rows><table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _background(colored: Any, value: Any) -> str:
    """The style of a cell whose column has thresholds, or texts with a colour each."""
    color = "transparent"
    if isinstance(colored, list):
        color = colored[0]["options"].get(str(value), {}).get("color", color)
    elif colored:
        color = _step(colored["steps"], value)
    return "" if color == "transparent" else f' style="background:{_color(color)}80"'


TEXTS: dict[str, Callable[[Panel, Frames], str]] = {"stat": stat, "table": table}


def draw(panel: Panel, frames: Frames, number: int, window: Window) -> tuple[str, str]:
    """(HTML of the panel's body, the figure as JSON or nothing)."""
    if not all(frame.rows for frame in frames.values()):
        return '<div class="nothing">nothing in this window</div>', ""
    if panel.kind in TEXTS:
        return TEXTS[panel.kind](panel, frames), ""
    stated = panel.kind == "state-timeline"
    figure = states(panel, frames, window.end) if stated else FIGURES[panel.kind](panel, frames)
    if panel.kind in OVER_TIME:  # one and the same time axis on the whole page
        ends = (datetime.datetime.fromtimestamp(each, datetime.UTC) for each in (window.begin, window.end))
        figure["layout"]["xaxis"] = {"type": "date", "range": [_moment(each) for each in ends]}
    # `<` would let a text of the data end the script that it stands in.
    text = json.dumps(figure, default=str, ensure_ascii=False).replace("<", "\\u003c")
    return f'<div class="figure" id="figure{number}"></div>', text
