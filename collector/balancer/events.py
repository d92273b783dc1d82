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
    """One row for each real whose share of the ring changed, and for each that is no real of it any more.

    ``reals`` and ``down``: before and after. One that was down had no share to lose: it is told of all the
    same, or whoever reads would take it for down for ever.
    """
    had, has = shares(old), shares(new)
    left = {each.address for each in reals[0].reals} if reals[0] else set()
    left -= {each.address for each in reals[1].reals} if reals[1] else set()
    gone = {number for number, (whose, real) in names.items() if whose == vip and real in left}
    rows = []
    for number in sorted({*had, *has, *gone}):
        if number in gone or had.get(number, 0) != has.get(number, 0):
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
