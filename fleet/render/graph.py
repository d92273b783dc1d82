"""A node graph: who is connected to whom; callers on the left, what is only called on the right."""

from collections.abc import Mapping
from typing import Any

from fleet.render import units
from fleet.render.dashboard import Panel
from fleet.render.frame import Frame

SERVICE, PEER = "#3274d9", "#ff9830"
ROUNDS = 8  # of sorting a column by where its neighbours stand


def place(count: int, pairs: list[tuple[int, int]]) -> list[tuple[float, float]]:
    """A place in the unit square for each node, so that few edges cross: each column is sorted by the mean
    place of its neighbours, over and over (the barycentre heuristic of Sugiyama, Tagawa and Toda, 1981).
    """
    sources, targets = {a for a, _ in pairs}, {b for _, b in pairs}
    column = [0.5 if n in sources and n in targets else 0.0 if n in sources else 1.0 for n in range(count)]
    near: list[list[int]] = [[] for _ in range(count)]
    for a, b in pairs:
        near[a].append(b)
        near[b].append(a)
    height = [0.0] * count
    for _ in range(ROUNDS):
        for x in sorted(set(column)):
            members = [n for n in range(count) if column[n] == x]
            wanted = {n: sum(height[each] for each in near[n]) / max(len(near[n]), 1) for n in members}
            members.sort(key=lambda n: (wanted[n], n))
            for rank, n in enumerate(members):
                height[n] = (rank + 0.5) / len(members)
    return list(zip(column, height, strict=True))


def figure(panel: Panel, frames: Mapping[str, Frame]) -> dict[str, Any]:
    """Circles with their names and sums; lines as wide as what flows."""
    nodes, edges = frames["nodes"], frames["edges"]
    number = {name: index for index, name in enumerate(nodes.column("id"))}
    pairs = [
        (number[a], number[b]) for a, b in zip(edges.column("source"), edges.column("target"), strict=True)
    ]
    at = place(len(number), pairs)
    flows = [float(each) for each in edges.column("mainstat")]
    most = max(flows, default=1) or 1
    lines = [
        {"type": "scatter", "mode": "lines", "x": [at[a][0], at[b][0]], "y": [at[a][1], at[b][1]],
         "line": {"width": 1 + 5 * flow / most, "color": "#b8bfca"}, "hoverinfo": "skip"}
        for (a, b), flow in zip(pairs, flows, strict=True)
    ]  # fmt: skip
    shape = {
        "xaxis": {"visible": False, "range": [-0.35, 1.35]},
        "yaxis": {"visible": False},
        "showlegend": False,
    }
    return {"data": [*lines, _dots(panel, nodes, at)], "layout": shape}


def _dots(panel: Panel, nodes: Frame, at: list[tuple[float, float]]) -> dict[str, Any]:
    sums = [float(each) for each in nodes.column("mainstat")]
    largest = max(sums, default=1) or 1
    names = [str(each) for each in nodes.column("title")]
    shown = [units.show(each, panel.unit) for each in sums]
    return {
        "type": "scatter",
        "mode": "markers+text",
        "x": [x for x, _ in at],
        "y": [y for _, y in at],
        "text": [f"{units.label(name)} · {text}" for name, text in zip(names, shown, strict=True)],
        "textposition": ["middle left" if x == 0 else "middle right" for x, _ in at],
        "textfont": {"size": 9},
        "marker": {
            "size": [8 + 20 * each / largest for each in sums],
            "color": [SERVICE if x < 1 else PEER for x, _ in at],
        },
        "hovertemplate": "%{text}<extra></extra>",
    }
