"""Panels as plotly figures (as in https://plotly.com/javascript/reference/) or, where text does, HTML."""

import datetime
import html
import json
from collections.abc import Callable, Mapping
from typing import Any

from fleet.render import flame, graph, units
from fleet.render.dashboard import Panel
from fleet.render.frame import Frame

Frames = Mapping[str, Frame]
Figure = dict[str, Any]
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
                "name": name,
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
    lines = [[each or None for each in column] for column in frame.columns[1:]]
    trace = {"type": "heatmap", "x": [_moment(each) for each in frame.columns[0]], "y": list(frame.names[1:]),
             "z": lines, "colorscale": "Turbo", "showscale": True, "colorbar": {"thickness": 8},
             "hovertemplate": "%{x}<br>from %{y}: %{z}<extra></extra>"}  # fmt: skip
    return {"data": [trace], "layout": {"yaxis": {"type": "category"}}}


def bars(panel: Panel, frames: Frames) -> Figure:
    """A bar a row, the first on top."""
    (frame,) = frames.values()
    names, values = list(frame.column(frame.texts()[0])), list(frame.column(frame.numbers()[0]))
    shown = [units.show(each, panel.unit) for each in values]
    trace = {"type": "bar", "orientation": "h", "y": names[:20], "x": units.in_base(values[:20], panel.unit),
             "text": shown[:20], "marker": {"color": COLORS[1]}, "hoverinfo": "y+text"}  # fmt: skip
    axis = {"autorange": "reversed", "type": "category", "automargin": True}
    return {"data": [trace], "layout": {"yaxis": axis, "xaxis": units.axis(panel.unit), "showlegend": False}}


def states(panel: Panel, frames: Frames) -> Figure:
    """A line a series; each stretch of one state is a bar in its colour."""
    (mapping,) = panel.tree["fieldConfig"]["defaults"]["mappings"]
    held = panel.tree["fieldConfig"]["defaults"]["custom"]["spanNulls"]
    longest = float("inf") if held is True else held / 1000
    stretches: dict[str, dict[str, list[Any]]] = {}
    for frame in frames.values():
        for name, (times, values) in frame.series().items():
            ends = [*times[1:], times[-1] + datetime.timedelta(seconds=60)]
            for begin, end, value in zip(times, ends, values, strict=True):
                bar = stretches.setdefault(str(value), {"y": [], "base": [], "x": []})
                lasted = min((end - begin).total_seconds(), longest)
                bar["y"].append(name)
                bar["base"].append(_moment(begin))
                bar["x"].append(lasted * 1000)
    shown = mapping["options"]
    traces = [
        {"type": "bar", "orientation": "h", **bar, "name": shown[value]["text"], "width": 0.8,
         "marker": {"color": _color(shown[value]["color"]), "line": {"width": 0}},
         "hovertemplate": "%{y}: " + shown[value]["text"] + " from %{base}<extra></extra>"}
        for value, bar in sorted(stretches.items())
    ]  # fmt: skip
    axis = {"type": "category", "automargin": True}
    return {"data": traces, "layout": {"barmode": "overlay", "xaxis": {"type": "date"}, "yaxis": axis}}


_NAMED = {"text": "#8e8e8e", "dark-red": "#9c0006", "light-blue": "#8ab8ff", "yellow": "#d9b400"}


def _color(name: str) -> str:
    return _NAMED.get(name, name)


def _moment(moment: Any) -> str:
    return str(moment.strftime("%Y-%m-%d %H:%M:%S.%f"))


FIGURES: dict[str, Callable[[Panel, Frames], Figure]] = {
    "timeseries": timeseries,
    "heatmap": heatmap,
    "bargauge": bars,
    "state-timeline": states,
    "flamegraph": flame.figure,
    "nodeGraph": graph.figure,
}


def stat(panel: Panel, frames: Frames) -> str:
    """One number, in the colour of its threshold."""
    (frame,) = frames.values()
    value = frame.columns[0][0]
    steps = panel.tree["fieldConfig"]["defaults"]["thresholds"]["steps"]
    color = "green"
    for step in steps:
        if step["value"] is None or (value is not None and value >= step["value"]):
            color = step["color"]
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
    numbers = set(frame.numbers())
    head = "".join(f"<th>{html.escape(name)}</th>" for name in frame.names)
    lines = []
    for values in list(zip(*frame.columns, strict=True))[:ROWS]:
        cells = "".join(
            f"<td{' class=number' if name in numbers else ''}>"
            f"{html.escape(units.show(value, own.get(name, panel.unit)))}</td>"
            for name, value in zip(frame.names, values, strict=True)
        )
        lines.append(f"<tr>{cells}</tr>")
    return (
        f"<div class=rows><table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


TEXTS: dict[str, Callable[[Panel, Frames], str]] = {"stat": stat, "table": table}


def draw(panel: Panel, frames: Frames, number: int) -> tuple[str, str]:
    """(HTML of the panel's body, the figure as JSON or nothing)."""
    if not all(frame.rows for frame in frames.values()):
        return '<div class="nothing">nothing in this window</div>', ""
    if panel.kind in TEXTS:
        return TEXTS[panel.kind](panel, frames), ""
    figure = FIGURES[panel.kind](panel, frames)
    # `<` would let a text of the data end the script that it stands in.
    text = json.dumps(figure, default=str, ensure_ascii=False).replace("<", "\\u003c")
    return f'<div class="figure" id="figure{number}"></div>', text
