"""The kinds of panel, each a function that returns Grafana's JSON without place and number.

``bad`` is the panel's description: what it shows, and what a bad value looks like. ``link`` leads deeper; it
keeps time and variables. Queries are ClickHouse with the data source's macros.
"""

from typing import Any

Panel = dict[str, Any]
Sql = str | dict[str, str]  # one query, or several by their refId

SOURCE = {"type": "grafana-clickhouse-datasource", "uid": "${datasource}"}
KEPT = "${__url_time_range}&${__all_variables}"
SERIES, TABLE = 0, 1  # `format` of a query


def link(title: str, dashboard: str, more: str = "") -> dict[str, str]:
    """To another dashboard, with this one's time and variables."""
    return {"title": title, "url": f"/d/bpfleet-{dashboard}?{KEPT}{more}"}


def row_link(title: str, dashboard: str, variable: str, field: str = "") -> dict[str, str]:
    """From a value to another dashboard with that value chosen; time and the wider variables are kept."""
    value = "${__data.fields." + field + ":percentencode}" if field else "${__value.text:percentencode}"
    kept = "${__url_time_range}&${datasource:queryparam}&${region:queryparam}&${role:queryparam}"
    return {"title": title, "url": f"/d/bpfleet-{dashboard}?{kept}&var-{variable}={value}"}


def target(sql: str, form: int, name: str = "A") -> dict[str, Any]:
    """One query as the data source stores it."""
    return {
        "datasource": SOURCE,
        "editorType": "sql",
        "format": form,
        "pluginVersion": "4.0.0",
        "queryType": "timeseries" if form == SERIES else "table",
        "rawSql": "\n".join(line.rstrip() for line in sql.strip().splitlines()),
        "refId": name,
    }


def _panel(
    kind: str, title: str, sql: Sql, form: int, unit: str, bad: str, link: dict[str, str], **more: Any
) -> Panel:
    queries = sql if isinstance(sql, dict) else {"A": sql}
    defaults: dict[str, Any] = {"unit": unit, **more.pop("defaults", {})}
    return {
        "type": kind,
        "title": title,
        "description": " ".join(bad.split()),
        "datasource": SOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": more.pop("overrides", [])},
        "links": [link],
        "targets": [target(text, form, name) for name, text in queries.items()],
        "size": more.pop("size", (12, 8)),
        **more,
    }


def thresholds(*steps: tuple[float | None, str]) -> dict[str, Any]:
    """Colours from values: ``(None, "green"), (0.8, "red")``."""
    return {"mode": "absolute", "steps": [{"color": color, "value": value} for value, color in steps]}


WELL = thresholds((None, "green"))
ANY_IS_BAD = thresholds((None, "green"), (1, "red"))


def timeseries(
    title: str, sql: Sql, unit: str, bad: str, link: dict[str, str], *,
    stack: bool = False, least: str = "", size: tuple[int, int] = (12, 8), steps: Any = None,
      bars: bool = False,
) -> Panel:  # fmt: skip
    """Lines over time: ``time``, text columns that name the line, numbers."""
    custom = {
        "drawStyle": "bars" if bars else "line",
        "fillOpacity": 60 if bars else 25 if stack else 8,
        "lineWidth": 1,
        "showPoints": "never",
        "spanNulls": False,
        "stacking": {"group": "A", "mode": "normal" if stack else "none"},
        "thresholdsStyle": {"mode": "line" if steps else "off"},
    }
    defaults = {"custom": custom, "min": 0, **({"thresholds": steps} if steps else {})}
    legend = {
        "calcs": ["max", "lastNotNull"],
        "displayMode": "table",
        "placement": "right",
        "showLegend": True,
    }
    options = {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}
    more = {"interval": least} if least else {}
    return _panel("timeseries", title, sql, SERIES, unit, bad, link, defaults=defaults, options=options,
                  size=size, **more)  # fmt: skip


def stat(
    title: str, sql: str, unit: str, bad: str, link: dict[str, str], *,
    steps: Any = WELL, size: tuple[int, int] = (4, 4), decimals: int | None = None,
) -> Panel:  # fmt: skip
    """One number, from a query of one row and one column."""
    reduce = {"calcs": ["lastNotNull"], "fields": "", "values": False}
    options = {"colorMode": "background", "graphMode": "none", "reduceOptions": reduce, "textMode": "auto"}
    defaults = {"thresholds": steps, "color": {"mode": "thresholds"}, "noValue": "0"}
    if decimals is not None:
        defaults["decimals"] = decimals
    return _panel("stat", title, sql, TABLE, unit, bad, link, defaults=defaults, options=options, size=size)


def bars(
    title: str, sql: str, unit: str, bad: str, link: dict[str, str], *,
    size: tuple[int, int] = (8, 8), steps: Any = WELL, deeper: dict[str, str] | None = None,
) -> Panel:  # fmt: skip
    """A bar a row: one text column, one number, the longest first."""
    options = {
        "displayMode": "gradient",
        "orientation": "horizontal",
        "reduceOptions": {"calcs": [], "fields": "", "limit": 20, "values": True},
        "showUnfilled": True,
    }
    defaults = {"thresholds": steps, "min": 0, "links": [deeper] if deeper else []}
    return _panel(
        "bargauge", title, sql, TABLE, unit, bad, link, defaults=defaults, options=options, size=size
    )


def table(
    title: str, sql: str, bad: str, link: dict[str, str], *,
    units: dict[str, str] | None = None, links: dict[str, dict[str, str]] | None = None,
    unit: str = "none", size: tuple[int, int] = (24, 8), colors: dict[str, Any] | None = None,
    words: dict[str, dict[str, str]] | None = None,
) -> Panel:  # fmt: skip
    """Rows; ``units``, ``links``, ``colors``, ``words`` (text → its colour) are of columns by their names."""
    properties: dict[str, list[dict[str, Any]]] = {}
    for name, each in (units or {}).items():
        properties.setdefault(name, []).append({"id": "unit", "value": each})
    for name, leads in (links or {}).items():
        properties.setdefault(name, []).append({"id": "links", "value": [leads]})
    for name, steps in (colors or {}).items():
        background = {"id": "custom.cellOptions", "value": {"type": "color-background", "mode": "basic"}}
        properties.setdefault(name, []).extend([background, {"id": "thresholds", "value": steps}])
    for name, shades in (words or {}).items():
        shown = {text: {"color": color, "index": n} for n, (text, color) in enumerate(shades.items())}
        cell: dict[str, Any] = {
            "id": "custom.cellOptions",
            "value": {"type": "color-background", "mode": "basic"},
        }
        mapped = {"id": "mappings", "value": [{"type": "value", "options": shown}]}
        properties.setdefault(name, []).extend([cell, mapped])
    overrides = [
        {"matcher": {"id": "byName", "options": name}, "properties": found}
        for name, found in properties.items()
    ]
    defaults = {"custom": {"align": "auto", "filterable": True, "inspect": True}}
    options = {"cellHeight": "sm", "footer": {"show": False}, "showHeader": True}
    return _panel("table", title, sql, TABLE, unit, bad, link, defaults=defaults, overrides=overrides,
                  options=options, size=size)  # fmt: skip


def heatmap(
    title: str, sql: str, bad: str, link: dict[str, str], *,
    size: tuple[int, int] = (12, 9), least: str = "", click: dict[str, str] | None = None,
      unit: str = "short",
) -> Panel:  # fmt: skip
    """``time``, then a number a bucket, the least first; the buckets' names are the axis."""
    options = {
        "calculate": False,
        "cellGap": 0,
        "color": {"exponent": 0.4, "fill": "dark-orange", "mode": "scheme", "reverse": False,
                  "scale": "exponential", "scheme": "Turbo", "steps": 64},
        "cellValues": {"unit": unit},
        "filterValues": {"le": 0.5},
        "legend": {"show": True},
        "rowsFrame": {"layout": "auto"},
        "tooltip": {"mode": "single", "showColorScale": True, "yHistogram": True},
        "yAxis": {"axisPlacement": "left", "reverse": False},
    }  # fmt: skip
    defaults = {"custom": {"scaleDistribution": {"type": "linear"}}, "links": [click] if click else []}
    more = {"interval": least} if least else {}
    return _panel("heatmap", title, sql, TABLE, unit, bad, link, defaults=defaults, options=options,
      size=size,
                  **more)  # fmt: skip


def flame(
    title: str, sql: str, unit: str, bad: str, link: dict[str, str], *, size: tuple[int, int] = (24, 16)
) -> Panel:
    """``level``, ``label``, ``value``, ``self``, depth first, one root; with ``valueRight``, a difference."""
    return _panel("flamegraph", title, sql, TABLE, unit, bad, link, options={}, size=size)


def states(
    title: str, sql: str, meanings: dict[int, tuple[str, str]], bad: str, link: dict[str, str], *,
    size: tuple[int, int] = (24, 8), least: str = "1m", held: bool = False,
) -> Panel:  # fmt: skip
    """A line a series that changes colour: ``time``, a name, a number whose meaning is (text, colour).

    ``held``: rows are changes, and a state holds until the next one.
    """
    shown = {
        str(value): {"color": color, "index": value, "text": text}
        for value, (text, color) in meanings.items()
    }
    defaults = {
        "custom": {"fillOpacity": 80, "lineWidth": 0, "spanNulls": held or 180_000},
        "mappings": [{"options": shown, "type": "value"}],
        "color": {"mode": "thresholds"},
        "thresholds": thresholds((None, "text")),
    }
    options = {
        "alignValue": "left",
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "mergeValues": True,
        "rowHeight": 0.85,
        "showValue": "auto",
        "tooltip": {"mode": "single"},
    }
    return _panel("state-timeline", title, sql, SERIES, "none", bad, link, defaults=defaults, options=options,
                  size=size, interval=least)  # fmt: skip


def graph(
    title: str, nodes: str, edges: str, unit: str, bad: str, link: dict[str, str], *,
    size: tuple[int, int] = (24, 14),
) -> Panel:  # fmt: skip
    """Nodes (``id``, ``title``, ``mainstat`` …) and edges (``id``, ``source``, ``target``, ``mainstat``)."""
    options = {"edges": {"mainStatUnit": unit}, "nodes": {"mainStatUnit": unit}}
    sql = {"nodes": nodes, "edges": edges}
    return _panel("nodeGraph", title, sql, TABLE, unit, bad, link, options=options, size=size)


def row(title: str) -> Panel:
    """A heading; the panels after it stand under it."""
    return {"type": "row", "title": title, "collapsed": False, "panels": [], "size": (24, 1)}
