"""A dashboard out of its panels: places, numbers, variables, annotations."""

from typing import Any

from dashboards.source.panels import SOURCE, Panel, target

WIDTH = 24


def dashboard(
    name: str, title: str, about: str, panels: list[Panel], *,
    since: str = "now-1h", refresh: str = "30s", variables: list[dict[str, Any]],
      annotations: list[dict[str, Any]],
) -> dict[str, Any]:  # fmt: skip
    """Grafana's JSON of a dashboard; ``name`` makes its uid."""
    return {
        "id": None,
        "uid": f"bpfleet-{name}",
        "title": title,
        "description": " ".join(about.split()),
        "tags": ["bpfleet"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "fiscalYearStartMonth": 0,
        "timezone": "utc",
        "time": {"from": since, "to": "now"},
        "timepicker": {},
        "refresh": refresh,
        "links": [_others()],
        "templating": {"list": [SOURCE_VARIABLE, *variables]},
        "annotations": {"list": annotations},
        "panels": _placed(panels),
    }


def _others() -> dict[str, Any]:
    return {"asDropdown": True, "icon": "external link", "includeVars": True, "keepTime": True,
            "tags": ["bpfleet"], "targetBlank": False, "title": "bpfleet", "type": "dashboards"}  # fmt: skip


def _placed(panels: list[Panel]) -> list[Panel]:
    """Left to right, then down; a heading begins a line. Numbers follow the order."""
    placed, x, y, tall = [], 0, 0, 0
    for number, each in enumerate(panels, 1):
        panel = dict(each)
        width, height = panel.pop("size")
        if x + width > WIDTH or panel["type"] == "row":
            x, y, tall = 0, y + tall, 0
        panel |= {"id": number, "gridPos": {"h": height, "w": width, "x": x, "y": y}}
        placed.append(panel)
        x, tall = x + width, max(tall, height)
    return placed


SOURCE_VARIABLE = {
    "type": "datasource",
    "name": "datasource",
    "label": "Data source",
    "query": "grafana-clickhouse-datasource",
    "current": {"selected": True, "text": "bpfleet", "value": "bpfleet"},
    "hide": 0,
    "includeAll": False,
    "multi": False,
    "options": [],
    "refresh": 1,
    "regex": "",
}


def many(name: str, label: str, sql: str) -> dict[str, Any]:
    """A variable of which several, or all, values may be chosen."""
    return {
        "type": "query",
        "name": name,
        "label": label,
        "datasource": SOURCE,
        "query": {**target(sql, 1), "refId": name},
        "definition": " ".join(sql.split()),
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "hide": 0,
        "includeAll": True,
        "multi": True,
        "options": [],
        "refresh": 2,
        "regex": "",
        "sort": 1,
    }


def one(name: str, label: str, sql: str) -> dict[str, Any]:
    """A variable of which exactly one value is chosen: the first, to begin with."""
    current: dict[str, Any] = {"selected": False, "text": "", "value": ""}
    return many(name, label, sql) | {"includeAll": False, "multi": False, "current": current}


def text(name: str, label: str, value: str = "") -> dict[str, Any]:
    """A variable that a person, or a link, writes."""
    chosen = {"selected": True, "text": value, "value": value}
    return {"type": "textbox", "name": name, "label": label, "query": value, "current": chosen, "hide": 0,
            "options": [chosen]}  # fmt: skip


def choice(name: str, label: str, values: list[str]) -> dict[str, Any]:
    """A variable with a fixed list of values; the first one, to begin with."""
    options = [{"selected": each == values[0], "text": each, "value": each} for each in values]
    return {"type": "custom", "name": name, "label": label, "query": ",".join(values), "current": options[0],
            "hide": 0, "includeAll": False, "multi": False, "options": options}  # fmt: skip


def annotation(name: str, color: str, sql: str) -> dict[str, Any]:
    """Marks on the time axis: ``time``, ``text`` and ``tags``."""
    return {"name": name, "datasource": SOURCE, "enable": True, "hide": False, "iconColor": color,
            "target": {**target(sql, 1, "Anno")}}  # fmt: skip
