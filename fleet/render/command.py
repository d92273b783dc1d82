"""``bpfleet render``: a dashboard as a page that can be looked at, mailed and attached to an incident."""

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from schemas.clickhouse import connect, explain
from schemas.config import Config
from schemas.errors import BpfleetError, UsageError

EXAMPLES = """\b
Examples:
  bpfleet render fleet -o fleet.html
  bpfleet render host --since 6h --var host=web-3 -o web-3.html
  bpfleet render attacks --since 1d --var attack=20261122-1 -o attack.html
  bpfleet render ./my-dashboard.json --since 1h -o mine.html
"""


@click.command(epilog=EXAMPLES)
@click.argument("dashboard", metavar="DASHBOARD")
@click.option("--since", "length", default="1h", show_default=True, help="How far back: 15m, 6h, 7d.")
@click.option("--until", type=float, help="End of the window, seconds since 1970; default: now.")
@click.option("--var", "variables", multiple=True, metavar="NAME=VALUE", help="A variable; may be repeated.")
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Default: DASHBOARD.html"
)
@click.pass_obj
def render(
    config: Config,
    dashboard: str,
    length: str,
    until: float | None,
    variables: tuple[str, ...],
    output: Path | None,
) -> None:
    """Draw DASHBOARD (fleet, host, latency, profiles, network, balancer, attacks, probes, pipeline, or a
    .json file) as one static page that needs no Grafana and no network.
    """
    from clickhouse_connect.driver.exceptions import ClickHouseError

    from fleet.render import page
    from fleet.render.dashboard import load
    from fleet.render.window import since

    page.library()
    board, window = load(dashboard), since(length, until)
    client = connect(config.clickhouse)
    try:
        text, faults = _render(client, board, window, _given(variables))
    except (ClickHouseError, OSError) as error:
        raise explain(error, config.clickhouse) from None
    finally:
        client.close()
    file = output or Path(f"{Path(dashboard).stem}.html")
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise BpfleetError(f"cannot write {file} ({error.strerror}); name another file with -o") from None
    click.echo(f"{file}: {board.title}, {len(board.panels)} panels, the last {length}")
    for each in faults:
        click.echo(f"  {each}", err=True)


def _given(pairs: tuple[str, ...]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator or not name:
            raise UsageError(f"--var takes NAME=VALUE, not `{pair}`")
        found.setdefault(name, []).append(value)
    return found


def _render(client: Any, board: Any, window: Any, given: Mapping[str, list[str]]) -> tuple[str, list[str]]:
    """The page, and what could not be drawn: one panel's fault is not its neighbours'."""
    from fleet.render import draw, frame, page
    from fleet.render.variables import expand

    choices = board.choices(given, lambda sql: frame.ask(client, sql).first(), window)
    drawn, faults = [], []
    for number, panel in enumerate(board.panels):
        if not panel.queries:
            drawn.append(page.Drawn(panel, ""))
            continue
        try:
            own = panel.window(window)
            frames = {ref: frame.ask(client, expand(sql, choices, own)) for ref, sql in panel.queries.items()}
            drawn.append(page.Drawn(panel, *draw.draw(panel, frames, number, window)))
        except Exception as error:
            if _lost(error):
                raise
            reason = " ".join(str(error).split())[:300]
            faults.append(f"{panel.title}: {reason}")
            drawn.append(page.Drawn(panel, f'<div class="fault">{html.escape(reason)}</div>'))
    marks = []
    for each in board.annotations:
        answer = frame.ask(client, expand(each["target"]["rawSql"], choices, window))
        rows = list(zip(*answer.columns, strict=True))[:200] if answer.rows else []
        marks += [(row[0], each["name"], row[1]) for row in rows]
    cells = [
        f"<td>{moment:%Y-%m-%d %H:%M:%S}</td><td>{html.escape(kind)}</td><td>{html.escape(str(text))}</td>"
        for moment, kind, text in sorted(marks, key=lambda mark: mark[0])
    ]
    return page.make(
        board, window, {name: ", ".join(values) for name, values in given.items()}, drawn, cells
    ), faults


def _lost(error: Exception) -> bool:
    """Whether the server is gone: then no panel can be drawn."""
    return isinstance(error, OSError) or "Max retries" in str(error)
