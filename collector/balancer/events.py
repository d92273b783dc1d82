"""Rows of `lb_event` about rings: whose share changed, and because of what."""

from typing import Any

import numpy as np

from collector.balancer import ledger
from collector.balancer.maglev import Array
from schemas.lb import Real, Vip

Row = dict[str, Any]


def shares(slots: Array | None) -> dict[int, int]:
    """backend number → slots it has."""
    if slots is None:
        return {}
    counts = np.bincount(slots["current"])
    return {int(number): int(counts[number]) for number in np.flatnonzero(counts) if number}


def ring(
    vip: str, old: Array | None, new: Array | None, reals: tuple[Vip | None, Vip | None],
    names: dict[int, tuple[str, str]], down: tuple[set[str], set[str]],
) -> list[Row]:  # fmt: skip
    """One row for each real whose share of the ring changed; ``reals`` and ``down``: before and after."""
    had, has = shares(old), shares(new)
    rows = []
    for number in sorted({*had, *has}):
        if had.get(number, 0) != has.get(number, 0):
            real = names[number][1]
            state, reason = _cause(vip, real, reals, down)
            rows.append(
                {"event": "ring", "vip": vip, "real": real, "state": state, "reason": reason,
                 "slots_before": had.get(number, 0), "slots": has.get(number, 0)}
            )  # fmt: skip
    return rows


def _find(vip: Vip | None, address: str) -> Real | None:
    return next((each for each in vip.reals if each.address == address), None) if vip else None


def _cause(
    vip: str, address: str, reals: tuple[Vip | None, Vip | None], down: tuple[set[str], set[str]]
) -> tuple[str, str]:
    was, now = _find(reals[0], address), _find(reals[1], address)
    name = ledger.backend_name(vip, address)
    if was is None or now is None:
        return ("added", "new") if was is None else ("removed", "not wanted any more")
    if (name in down[0]) != (name in down[1]):
        return ("down", "its health checks fail") if name in down[1] else ("up", "its health checks succeed")
    if was.drain != now.drain:
        return ("drains", "drained") if now.drain else ("weight", "drained no more")
    if was.weight != now.weight:
        return "weight", f"weight {was.weight} -> {now.weight}"
    return "share", "others changed"
