"""From one ring to the next without breaking a flow: what each slot remembers of the time before.

The rules that the program follows are in bpf/xdp/balancer_track.h, the reasons in docs/decisions. In short:
in a steady slot every flow belongs to the current backend; in a changed one, flows that are not in the table
belong to the former backend, if there is one.
"""

import time

import numpy as np

from collector.balancer.layout import SLOT, TICK_SHIFT
from collector.balancer.maglev import Array


def ticks(seconds: float) -> int:
    """Seconds in the program's ticks, at least one."""
    return max(1, round(seconds * 1e9) >> TICK_SHIFT)


def now_ticks() -> int:
    """The program's clock."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC) >> TICK_SHIFT


def steady(wanted: Array) -> Array:
    """A ring that has no former time: the first of its VIP."""
    slots = np.zeros(len(wanted), SLOT)
    slots["current"] = wanted
    return slots


def transition(old: Array, wanted: Array, live: Array, now: int, keep: int) -> Array:
    """The slots that follow ``old`` when ``wanted`` (a backend number a slot) is the new ring.

    ``live`` tells of each backend number whether its flows go on (of 0: no); ``now`` is the tick, ``keep``
    how many ticks a changed slot stays so without being needed.
    """
    current, former, until = (np.ascontiguousarray(old[name]) for name in ("current", "former", "until"))
    tracked = until >= now
    former = np.where(tracked, former, 0)
    changed = current != wanted
    # Untracked flows of a changed slot belong to its former backend, of any other slot to the current one.
    former = np.where(changed & (former == 0), current, former)
    former = np.where(live[former], former, 0)
    needed = changed & (tracked | (former != 0))
    slots = np.empty_like(old)
    slots["current"], slots["former"] = wanted, former
    slots["until"] = np.where(needed, np.maximum(until, now + keep), np.where(tracked, until, 0))
    return slots
