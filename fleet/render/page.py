"""One page that needs nothing but itself: the library is in it, no request leaves it."""

import html
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from fleet.render.dashboard import Dashboard, Panel
from fleet.render.window import Window

CELL = 38  # pixels of one line of Grafana's grid
STYLE = """
body{margin:0;background:#f4f5f5;color:#24292e;font:13px/1.4 system-ui,sans-serif}
header{padding:12px 16px;background:#fff;border-bottom:1px solid #d8d9da}
h1{margin:0;font-size:20px}
header p{margin:2px 0;color:#5a6069}
main{display:grid;grid-template-columns:repeat(24,1fr);gap:8px;padding:8px}
h2{grid-column:1/-1;margin:10px 4px 0;font-size:15px}
section{background:#fff;border:1px solid #d8d9da;border-radius:3px;min-width:0;overflow:hidden}
section{display:flex;flex-direction:column}
section.marks{grid-column:1/-1;max-height:400px}
h3{margin:0;padding:6px 10px 0;font-size:13px}
section>p{margin:0;padding:0 10px;color:#5a6069;font-size:11px}
.figure{flex:1;min-height:0}
.stat{flex:1;display:flex;align-items:center;justify-content:center;margin:6px}
.stat{font-size:26px;color:#fff;background:#37872d}
.stat.red{background:#c4162a}
.stat.orange{background:#e0752d}
.stat.text{background:#6e7781}
.rows{overflow:auto;flex:1;margin-top:4px}
table{border-collapse:collapse;width:100%;font-size:12px}
th,td{text-align:left;padding:2px 8px;border-bottom:1px solid #eee;white-space:nowrap}
td{max-width:420px;overflow:hidden;text-overflow:ellipsis}
th{position:sticky;top:0;background:#fff}
.number{text-align:right}
.nothing,.fault{padding:16px;color:#5a6069}
.fault{color:#c4162a}
@media print{section{break-inside:avoid}}
"""
SCRIPT = """
const common = {margin: {l: 60, r: 8, t: 8, b: 40}, font: {size: 11}, legend: {font: {size: 10}},
                paper_bgcolor: "white", plot_bgcolor: "white"};
for (const [id, figure] of figures) {
  const layout = {...common, ...figure.layout};
  Plotly.newPlot(id, figure.data, layout, {responsive: true, displayModeBar: false});
}
"""


@dataclass(frozen=True)
class Drawn:
    """A panel that is ready: its body, and its figure as JSON, if it is one."""

    panel: Panel
    body: str
    figure: str = ""


def _section(number: int, drawn: Drawn) -> str:
    panel = drawn.panel
    x, _, width, height = panel.place
    place = f"grid-column:{x + 1}/span {width};height:{height * CELL}px"
    return (
        f'<section style="{place}" data-kind="{html.escape(panel.kind)}" id="panel{number}">'
        f"<h3>{html.escape(panel.title)}</h3><p>{html.escape(panel.description)}</p>{drawn.body}</section>"
    )


def library() -> str:
    """plotly.js, as the Python package has it. Raises ModuleNotFoundError without the extra `fleet`."""
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


def make(
    board: Dashboard, window: Window, chosen: dict[str, Any], panels: list[Drawn], marks: list[str]
) -> str:
    """The page as text."""
    span = " – ".join(
        f"{datetime.fromtimestamp(each, UTC):%Y-%m-%d %H:%M:%S}" for each in (window.begin, window.end)
    )
    shown = ", ".join(f"{name}: {text}" for name, text in chosen.items())
    parts = [
        "<!doctype html><html lang=en><head><meta charset=utf-8>",
        f"<title>{html.escape(board.title)} · bpfleet</title><style>{STYLE}</style></head><body>",
        f"<header><h1>{html.escape(board.title)}</h1><p>{html.escape(str(board.tree['description']))}</p>",
        f"<p>{span} UTC{html.escape(' · ' + shown if shown else '')}</p></header><main>",
    ]
    for number, each in enumerate(panels):
        row = f"<h2>{html.escape(each.panel.title)}</h2>"
        parts.append(row if each.panel.kind == "row" else _section(number, each))
    if marks:
        lines = "".join(f"<tr>{each}</tr>" for each in marks)
        parts.append("<h2>Deploys, rules and verdicts</h2><section class=marks>")
        parts.append(f"<div class=rows><table>{lines}</table></div></section>")
    figures = ",".join(f'["figure{n}",{each.figure}]' for n, each in enumerate(panels) if each.figure)
    parts.append(f"</main><script>{library()}</script>")
    parts.append(f"<script>const figures=[{figures}];{SCRIPT}</script></body></html>")
    return "\n".join(parts)
