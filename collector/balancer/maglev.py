"""Weighted Maglev rings: which real owns each of 65,537 slots. Vectorised: milliseconds for 500 reals.

Each real has its own permutation of the slots, from its name alone, and a quota of slots, from the weights.
In Maglev's algorithm reals take turns and each claims the next free slot of its permutation. Here all claim
at once: a slot goes to the real that wanted it earliest (rank in its permutation divided by its quota, its
"time"), losers go on to their next slots. The last few slots are claimed in turns as in the original.
Quotas are exact to one slot; a change of one real moves little more than the slots it must.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from collector.balancer.layout import RING_SLOTS

Array = np.ndarray[Any, np.dtype[Any]]
_TURNS_LEFT = 1 / 128  # share of the slots that is left to the last, sequential part
_RECOUNT = 32  # claims of more than this part of the slots: counting all owners is faster than what changed
_TIME_SHIFT = 16  # a claim is its time and, in the low bits, who claims
_TIME_UNIT = 1 << 20
_WHO = np.uint64((1 << _TIME_SHIFT) - 1)
_FREE = np.uint64((1 << 64) - 1)


def quotas(weights: Sequence[int], slots: int = RING_SLOTS) -> Array:
    """How many slots each weight deserves: proportional, largest remainders first, all slots given out."""
    share = np.asarray(weights, np.float64) * (slots / sum(weights))
    floor = np.floor(share).astype(np.int64)
    floor[np.argsort(floor - share, kind="stable")[: slots - int(floor.sum())]] += 1
    return floor


def _permutation(name: str, slots: int) -> tuple[int, int]:
    digest = hashlib.blake2b(name.encode(), digest_size=16).digest()
    high, low = int.from_bytes(digest[8:], "little"), int.from_bytes(digest[:8], "little")
    return low % slots, high % (slots - 1) + 1


class _Claims:
    """The state of a ring in the making; reals are known by their position."""

    def __init__(self, names: Sequence[str], quota: Array, slots: int) -> None:
        self.slots = slots
        self.quota = quota
        pairs = [_permutation(name, slots) for name in names]
        self.offset = np.array([each[0] for each in pairs], np.int64)
        self.skip = np.array([each[1] for each in pairs], np.int64)
        self.next = np.zeros(len(names), np.int64)  # rank of each real's next claim
        self.lacking = quota.copy()
        self.best = np.full(slots, _FREE, np.uint64)

    def claim(self) -> None:
        """Every real claims as many further slots as it lacks."""
        who = np.repeat(np.arange(len(self.lacking)), self.lacking)
        first = np.cumsum(self.lacking) - self.lacking
        rank = self.next[who] + np.arange(len(who)) - first[who]
        self.next += self.lacking
        claims = (rank * _TIME_UNIT // self.quota[who] << _TIME_SHIFT | who).astype(np.uint64)
        wanted = (self.offset[who] + rank * self.skip[who]) % self.slots
        if len(who) > self.slots // _RECOUNT:
            np.minimum.at(self.best, wanted, claims)
            self.lacking = self.quota - self._count(self.best[self.best != _FREE])
            return
        touched = np.unique(wanted)
        before = self.best[touched]
        np.minimum.at(self.best, wanted, claims)
        won = self.best[touched] != before
        self.lacking -= self._count(self.best[touched[won]])
        self.lacking += self._count(before[won & (before != _FREE)])

    def _count(self, claims: Array) -> Array:
        return np.bincount((claims & _WHO).astype(np.int64), minlength=len(self.lacking))

    def take_turns(self) -> None:
        """Reals that lack slots take, in turns, the free one that comes first in their permutation."""
        free = np.flatnonzero(self.best == _FREE)
        late = np.flatnonzero(self.lacking)
        turns = [(turn / self.quota[who], who) for who in late for turn in range(self.lacking[who])]
        inverse = {who: pow(int(self.skip[who]), -1, self.slots) for who in late}
        for _, who in sorted(turns):
            rank = (free - self.offset[who]) % self.slots * inverse[who] % self.slots
            at = int(np.argmin(rank))
            self.best[free[at]] = who
            free[at] = free[-1]
            free = free[:-1]

    def owners(self) -> Array:
        """Who owns each slot."""
        return (self.best & _WHO).astype(np.int64)


def ring(names: Sequence[str], weights: Sequence[int], slots: int = RING_SLOTS) -> Array:
    """The position in ``names`` that owns each slot, as int64[slots].

    Names must be distinct, weights at least 0 and not all 0, ``slots`` a prime; the order of the reals does
    not matter. Raises ValueError otherwise.
    """
    if len(set(names)) != len(names) or len(names) != len(weights) or len(names) >= 1 << _TIME_SHIFT:
        raise ValueError("reals must be distinct, as many as weights, fewer than 65,536")
    if min(weights, default=0) < 0 or not any(weights):
        raise ValueError("weights must be at least 0, and one of them more")
    # By digest, so that neither order nor alphabet favours a real where claims tie.
    by_digest = sorted(range(len(names)), key=lambda at: hashlib.blake2b(names[at].encode()).digest())
    order = np.array([at for at in by_digest if weights[at]], np.int64)
    quota = quotas([weights[at] for at in order], slots)
    order, quota = order[quota > 0], quota[quota > 0]
    claims = _Claims([names[at] for at in order], quota, slots)
    while claims.lacking.sum() > slots * _TURNS_LEFT:
        claims.claim()
    claims.take_turns()
    owners: Array = order[claims.owners()]
    return owners
