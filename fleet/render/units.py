"""Numbers as Grafana's units show them: ``1.5 ms``, ``12.3 kB/s``, ``4 %``; and names as figures can."""

import datetime
import html
from collections.abc import Iterable
from typing import Any

LONGEST = 40  # letters of a name in a figure
_TIME = {"ns": 1e-9, "µs": 1e-6, "ms": 1e-3, "s": 1.0}
_RATES = {"Bps": "B/s", "bps": "b/s", "pps": "p/s", "cps": "c/s", "ops": "/s", "short": "", "bytes": "B"}
_DECIMAL = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_SPANS = (
    (86_400.0, "d"),
    (3_600.0, "h"),
    (60.0, "min"),
    (1.0, "s"),
    (1e-3, "ms"),
    (1e-6, "µs"),
    (1e-9, "ns"),
)


def show(value: Any, unit: str) -> str:
    """``value`` with its unit, for a person."""
    if value is None:
        return "—"
    if isinstance(value, datetime.datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S.%f")[:-3].removesuffix(".000")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if unit in _TIME:
        return _span(float(value) * _TIME[unit])
    if unit in ("percent", "percentunit"):
        return f"{value * (100 if unit == 'percentunit' else 1):.3g} %"
    if unit in _RATES:
        return _scaled(float(value), _RATES[unit])
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def _span(seconds: float) -> str:
    for size, name in _SPANS:
        if abs(seconds) >= size:
            return f"{seconds / size:.3g} {name}"
    return "0 s"


def _scaled(value: float, name: str) -> str:
    for size, prefix in _DECIMAL:
        if abs(value) >= size:
            return f"{value / size:.3g} {prefix}{name}".strip()
    return f"{value:.4g} {name}".strip()


def axis(unit: str) -> dict[str, Any]:
    """What an axis of plotly's needs for that unit."""
    if unit in ("percentunit", "percent"):
        return {"tickformat": ".3~%"} if unit == "percentunit" else {"ticksuffix": " %"}
    if unit in _RATES:
        return {"tickformat": ".3~s", "ticksuffix": _RATES[unit]}
    if unit in _TIME:
        return {"tickformat": ".3~s", "ticksuffix": "s" if unit == "s" else ""}
    return {}


def in_base(values: list[Any], unit: str) -> list[Any]:
    """Times in seconds, so that an axis can say ms and µs itself; anything else as it is."""
    factor = _TIME.get(unit, 1.0)
    return values if factor == 1.0 else [None if each is None else each * factor for each in values]


def label(name: Any) -> str:
    """A name for a figure: of markup plotly would make links and bold type; what is long would cover all."""
    text, half = str(name), LONGEST // 2
    return escaped(text if len(text) <= LONGEST else f"{text[:half]}…{text[1 - half :]}")


def categories(names: Iterable[Any]) -> dict[str, Any]:
    """An axis of names. Those too long are cut on the axis only: two that begin alike stay two."""
    every = list(dict.fromkeys(map(str, names)))
    axis: dict[str, Any] = {"type": "category", "automargin": True}
    if any(len(each) > LONGEST for each in every):
        axis |= {"tickvals": [*map(escaped, every)], "ticktext": [*map(label, every)]}
    return axis


def escaped(name: Any) -> str:
    """A name in full, none of it markup."""
    return html.escape(str(name), quote=False)
