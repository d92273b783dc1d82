"""A dashboard's JSON as Grafana reads it: its panels, what they ask, and what its variables can be."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from fleet.render.variables import ALL, Choice, expand
from fleet.render.window import Window
from schemas.errors import BpfleetError, UsageError

Ask = Callable[[str], Sequence[str]]  # a query of one column → its values


@dataclass(frozen=True)
class Panel:
    """One panel; ``queries`` are its targets by their refId, as they stand in the file."""

    title: str
    kind: str
    description: str
    unit: str
    queries: dict[str, str]
    formats: dict[str, int]
    least: str  # shortest interval, like 1m; "" for none
    place: tuple[int, int, int, int]  # x, y, width, height on Grafana's grid of 24
    tree: Mapping[str, Any]  # all of it

    def window(self, window: Window) -> Window:
        """The window with the interval that this panel asks in."""
        return window.at_least(self.least) if self.least else window


class Dashboard:
    """One dashboard."""

    def __init__(self, tree: Mapping[str, Any]) -> None:
        self.tree = tree
        self.title, self.uid = str(tree["title"]), str(tree["uid"])
        self.panels = [_panel(each) for each in tree["panels"]]
        self.variables: list[dict[str, Any]] = list(tree["templating"]["list"])
        self.annotations: list[dict[str, Any]] = list(tree["annotations"]["list"])

    def choices(self, given: Mapping[str, Sequence[str]], ask: Ask, window: Window) -> dict[str, Choice]:
        """What stands for each variable: what was given, else what Grafana chooses at first.

        A query is asked only for what it is needed for: all values, or the first. Raises :class:`UsageError`
        when a variable is given that the dashboard does not have.
        """
        names = [each["name"] for each in self.variables]
        if unknown := set(given) - set(names):
            raise UsageError(f"{self.title} has no variable {sorted(unknown)[0]}; it has {', '.join(names)}")
        made: dict[str, Choice] = {}
        for each in self.variables:
            made[each["name"]] = _choice(each, list(given.get(each["name"], [])), made, ask, window)
        return made


def _choice(
    variable: Mapping[str, Any], given: list[str], before: Mapping[str, Choice], ask: Ask, window: Window
) -> Choice:
    multi = bool(variable.get("multi"))
    if given:
        return Choice(tuple(given), multi=multi)
    if variable["type"] != "query":
        return Choice((str(variable["current"]["value"]),))
    options = tuple(ask(expand(variable["query"]["rawSql"], before, window)))
    chosen = variable["current"]["value"]
    if chosen in (ALL, [ALL]):
        return Choice(options, every=True, multi=multi)
    return Choice(options[:1], multi=multi)


def _panel(tree: Mapping[str, Any]) -> Panel:
    grid = tree["gridPos"]
    targets = tree.get("targets", [])
    return Panel(
        title=str(tree["title"]),
        kind=str(tree["type"]),
        description=str(tree.get("description", "")),
        unit=str(tree.get("fieldConfig", {}).get("defaults", {}).get("unit", "")),
        queries={each["refId"]: each["rawSql"] for each in targets},
        formats={each["refId"]: each["format"] for each in targets},
        least=str(tree.get("interval", "")),
        place=(grid["x"], grid["y"], grid["w"], grid["h"]),
        tree=tree,
    )


def _files() -> Iterator[Any]:
    return (each for each in resources.files("dashboards").iterdir() if each.name.endswith(".json"))


def names() -> list[str]:
    """Every dashboard that bpfleet ships."""
    return sorted(each.name.removesuffix(".json") for each in _files())


def load(name: str) -> Dashboard:
    """A shipped dashboard by its name, or one of a file. Raises :class:`UsageError`,
    :class:`BpfleetError`."""
    from pathlib import Path

    file = Path(name) if name.endswith(".json") else resources.files("dashboards") / f"{name}.json"
    if not file.is_file():
        raise UsageError(f"there is no dashboard `{name}`; try one of {', '.join(names())}, or a .json file")
    try:
        return Dashboard(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise BpfleetError(f"{name} is no Grafana dashboard of ours ({error!r}); export it as JSON") from None
