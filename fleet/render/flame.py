"""A flame graph as plotly's icicle: the root on top, callees below, as wide as their share."""

import zlib
from collections.abc import Mapping
from typing import Any

from fleet.render import units
from fleet.render.dashboard import Panel
from fleet.render.frame import Frame

GREY = "#c7d0d9"


def figure(panel: Panel, frames: Mapping[str, Frame]) -> dict[str, Any]:
    """Rows depth first → ids and parents; with ``valueRight`` red is what grew and green what shrank."""
    (frame,) = frames.values()
    levels, labels = list(frame.column("level")), [str(each) for each in frame.column("label")]
    left = list(frame.column("value"))
    compared = "valueRight" in frame.names
    right = list(frame.column("valueRight")) if compared else [0] * len(left)
    parents = parents_of(levels)
    total_left, total_right = max(left[0], 1), max(right[0], 1)
    shown = [units.show(a, panel.unit) + (f" → {units.show(b, panel.unit)}" if compared else "")
             for a, b in zip(left, right, strict=True)]  # fmt: skip
    colors = [
        _changed(a / total_left, b / total_right) if compared else _warm(level, label)
        for level, label, a, b in zip(levels, labels, left, right, strict=True)
    ]
    trace = {
        "type": "icicle",
        "ids": [str(each) for each in range(len(levels))],
        "labels": [*map(units.escaped, labels)],
        "parents": ["" if each < 0 else str(each) for each in parents],
        "values": [a + b for a, b in zip(left, right, strict=True)],
        "text": shown,
        "branchvalues": "total",
        "sort": False,
        "tiling": {"orientation": "v", "flip": ""},
        "pathbar": {"visible": True},
        "marker": {"colors": colors, "line": {"width": 0.5, "color": "#ffffff"}},
        "hovertemplate": "%{label}<br>%{text}<br>%{percentRoot:.2%} of all<extra></extra>",
        "textinfo": "label",
    }
    # A name that does not fit is left out, rather than drawn too small to read.
    layout = {"margin": {"l": 4, "r": 4, "t": 24, "b": 4}, "uniformtext": {"minsize": 9, "mode": "hide"}}
    return {"data": [trace], "layout": layout}


def _warm(level: int, label: str) -> str:
    """A colour between red and yellow, the same for one name wherever it is."""
    place = zlib.crc32(label.encode())
    return GREY if level == 0 else f"hsl({18 + place % 28},95%,{58 + place // 28 % 10}%)"


def parents_of(levels: list[int]) -> list[int]:
    """Index of each row's parent in a depth-first order; -1 for the root."""
    path: list[int] = []
    found = []
    for index, level in enumerate(levels):
        path = path[:level]
        found.append(path[-1] if path else -1)
        path.append(index)
    return found


def _changed(before: float, now: float) -> str:
    """Red for a share that grew, green for one that shrank, paler the less it did."""
    change = (now - before) / max(now, before, 1e-9)
    pale = int(235 - 150 * min(1.0, abs(change)))
    return f"rgb(235,{pale},{pale})" if change > 0 else f"rgb({pale},205,{pale})"
