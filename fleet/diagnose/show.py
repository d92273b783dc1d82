"""Verdicts for people, worst host first, and as JSON."""

import json
import re
from typing import Any

from fleet.flamegraph_question import Window
from schemas.rows import time_text

GOOD = "nothing_wrong"
FEW = 3  # hosts in order that are shown one by one
NOW_S = 3.0  # figures come so late: what lasted until then goes on
Row = dict[str, Any]


def tree(row: Row) -> Row:
    """A row as JSON has it: times as text, evidence as a list."""
    times = ("ts", "window_from", "window_to", "began", "ended")
    shown: Row = {name: time_text(row[name]) for name in times if name in row}
    return {**row, **shown, "evidence": json.loads(row["evidence"])}


def show(rows: list[Row], asked: Window) -> None:
    """Print every host with a trouble in full, and those in order shortly."""
    from rich.markup import escape

    from fleet.sql import console

    out = console()
    hosts: dict[str, list[Row]] = {}
    for row in rows:
        hosts.setdefault(row["target_host"], []).append(row)
    ill = [each for each in hosts.values() if each[0]["verdict"] != GOOD]
    well = [each[0] for each in hosts.values() if each[0]["verdict"] == GOOD]
    for found in sorted(ill, key=lambda each: -each[0].get("score", 0)):
        for row in found:
            _trouble(out, row)
    for row in well[:FEW] if len(well) <= FEW or not ill else ():
        out.print(f"[bold]{escape(row['target_host'])}[/]  [green]{GOOD}[/]  {escape(row['summary'])}",
                  soft_wrap=True)  # fmt: skip
        if len(hosts) == 1:
            _figures(out, row)
    if len(well) > FEW:
        out.print(f"{len(well)} of {len(hosts)} hosts: [green]{GOOD}[/]")
    out.print(f"[dim]judged: {asked.text()}[/]")


def _trouble(out: Any, row: Row) -> None:
    from rich.markup import escape

    silent = row["verdict"] == "no_data"
    style = "yellow" if silent else "red"
    score = "" if silent else f"  score {row['score']:.2f}"
    out.print(f"[bold]{escape(row['target_host'])}[/]  [{style}]{row['verdict']}[/]{score}  {_when(row)}")
    out.print(f"  {escape(row['summary'])}", soft_wrap=True)
    _figures(out, row)
    if not silent:
        out.print(f"  [dim]bpfleet sql {escape(in_shell(row['question']))}[/]\n", soft_wrap=True)


def in_shell(text: str) -> str:
    """As one word of a shell: names in it may be anybody's, and hold what a shell would run."""
    return '"' + re.sub(r'([\\"$`])', r"\\\1", text) + '"'


def _when(row: Row) -> str:
    """Since when, and whether it is over."""
    if "began" not in row:
        return ""
    since = f"since {time_text(row['began'])[11:19]} UTC"
    if row["window_to"] - row["ended"] <= NOW_S * 1e6:
        return f"{since}, and still"
    return f"{since}, over at {time_text(row['ended'])[11:19]}; {row['lasted_s']:.0f} s in all"


def _figures(out: Any, row: Row) -> None:
    from fleet.sql import table

    figures = json.loads(row["evidence"])
    if figures:
        shown = [
            (each["metric"], each["thing"], f"{each['value']:.4g} {each['unit']}", _number(each["threshold"]),
             f"{each['baseline']:.4g} ± {each['spread']:.2g}", _number(each["peers"]))
            for each in figures
        ]  # fmt: skip
        out.print(table(("figure", "of", "value", "threshold", "last hour", "peers"), shown))


def _number(value: float) -> str:
    return f"{value:.4g}" if value > 0 else "—"
