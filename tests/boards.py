"""What the tests of dashboards and alerts share: a store with plausible rows, and questions to it."""

import time
from collections.abc import Iterator
from typing import Any

from bench import fill
from fleet.render import frame
from fleet.render.dashboard import Dashboard, load, names
from fleet.render.variables import Choice, expand
from fleet.render.window import Window
from fleet.simulate.incidents import planned
from schemas.clickhouse import connect
from schemas.config import Clickhouse

SPAN = 10_800  # seconds of rows
# Streams with few rows by nature; of the others as many as make every minute and host busy.
ROWS = {"stack": 200, "host": 2_000, "attack": 60, "attack_event": 200, "oom_kill": 30, "overhead_event": 40}
USUAL = 8_000


class Filled:
    """A database of its own with three hours of every stream that dashboards show."""

    def __init__(self, url: str) -> None:
        self.database = f"boards{time.monotonic_ns()}"
        self.config = Clickhouse(url=url, database=self.database)
        self.end = float(int(time.time()))
        client = connect(self.config, database="")
        fill.make(client, self.database)
        planted = planned(fill.fleet(self.end - SPAN, self.end))
        effects = [effect for each in planted for effect in each.effects]
        for name in fill.COLUMNS:
            rows = ROWS.get(name, USUAL)
            fill.insert(client, self.database, name, rows, self.end - SPAN, self.end, effects)
        client.close()
        self.client = connect(self.config)
        self.window = Window.of(self.end - SPAN, self.end)

    def ask(self, sql: str) -> frame.Frame:
        return frame.ask(self.client, sql)

    def values(self, sql: str) -> list[str]:
        return self.ask(sql).first()

    def choices(self, board: Dashboard, **given: list[str]) -> dict[str, Choice]:
        return board.choices(given, self.values, self.window)

    def frames(self, panel: Any, choices: dict[str, Choice]) -> dict[str, frame.Frame]:
        """What each query of a panel answers, by its refId."""
        window = panel.window(self.window)
        return {ref: self.ask(expand(sql, choices, window)) for ref, sql in panel.queries.items()}

    def close(self) -> None:
        self.client.command(f"DROP DATABASE {self.database}")
        self.client.close()


def filled(url: str) -> Iterator[Filled]:
    """A fixture's body."""
    made = Filled(url)
    try:
        yield made
    finally:
        made.close()


BOARDS = {name: load(name) for name in names()}
PANELS = [(name, panel) for name, board in BOARDS.items() for panel in board.panels if panel.queries]
IDS = [f"{name}: {panel.title}" for name, panel in PANELS]
