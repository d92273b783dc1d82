"""The balancer as it is in the kernel, for people and for programs."""

from typing import Any

import numpy as np

from collector.balancer import ring
from collector.balancer.layout import REASONS
from collector.balancer.state import State


def collect(state: State) -> dict[str, Any]:
    """Everything `bpfleet lb show --json` prints; counters are totals since the maps were made."""
    counters = state.plane.read_counters()
    reasons = state.plane.read_reasons()
    vips = {}
    for name, vip in sorted(state.applied.vips.items()):
        number = state.ledger.vips.taken[name]
        share, former = _shares(state, number)
        vips[name] = {
            "address": vip.address,
            "port": vip.port,
            "protocol": vip.protocol,
            "number": number,
            "reals": [
                {
                    "address": real.address,
                    "weight": real.weight,
                    "drain": real.drain,
                    "up": not state.is_down(name, real.address),
                    "backend": (backend := state.ledger.backend(name, real.address)),
                    "slots": share.get(backend, 0),
                    "former_slots": former.get(backend, 0),
                    **{each: int(counters[backend][each]) for each in ("packets", "bytes", "flows")},
                }
                for real in vip.reals
            ],
            "reasons": _named(reasons[number]),
        }
    return {"interfaces": state.plane.interfaces(), "vips": vips, "no_vip": _named(reasons[0])}


def _shares(state: State, number: int) -> tuple[dict[int, int], dict[int, int]]:
    """backend → slots it has, and → changed slots that still go to it."""
    slots = state.plane.read_ring(number)
    if slots is None:
        return {}, {}
    changed = slots[slots["until"] >= ring.now_ticks()]
    return _count(slots["current"]), _count(changed["former"])


def _count(column: Any) -> dict[int, int]:
    numbers, counts = np.unique(column, return_counts=True)
    return {int(number): int(count) for number, count in zip(numbers, counts, strict=True) if number}


def _named(counts: Any) -> dict[str, int]:
    return {each.name: int(counts[each.number]) for each in REASONS if counts[each.number]}


def lines(found: dict[str, Any]) -> list[str]:
    """The same for people."""
    text = [f"interfaces: {', '.join(found['interfaces']) or 'none'}"]
    for name, vip in found["vips"].items():
        text.append(f"{name}  {vip['protocol']} {vip['address']} port {vip['port'] or 'any'}")
        for real in vip["reals"]:
            state = "drains" if real["drain"] else f"weight {real['weight']}" if real["up"] else "down"
            text.append(
                f"  {real['address']:<40}{state:<14}{real['slots']:>6} slots"
                f"{real['former_slots']:>7} former{real['packets']:>12} packets{real['flows']:>10} flows"
            )
        text += [f"  {reason}: {count}" for reason, count in vip["reasons"].items()]
    return text + [f"no VIP: {reason}: {count}" for reason, count in found["no_vip"].items()]
