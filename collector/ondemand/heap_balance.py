"""Which call sites' memory stays: what they left behind in windows against what others freed there.

What outlives a window of a few milliseconds may be freed a second later, in no window or in another. Then the
windows see it go, and its size, yet not who had allocated it. So sizes balance: over the windows, of chunks
of a size, as many came as went, unless some stay. The share of each site that stays is the one that explains
the balance of all sizes best (least squares, between 0 and 1). Sites that allocate the same sizes cannot be
told apart by it; the error says so.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

EXACT = 1024  # bytes: chunks up to here are classes by themselves, larger ones eight to each doubling
CLASSES = EXACT // 16 + 8 * 40
PRIOR = 10.0  # what is held for likely, that all sites keep alike, weighs as much as so many allocations
SITES = 256  # are solved for; of the others, which left least, the common share is taken
TRIES = 32
Numbers = NDArray[np.float64]


def classes(chunks: NDArray[np.float64]) -> NDArray[np.int64]:
    """The class of chunks by their bytes."""
    large = EXACT // 16 + 8 * np.log2(np.maximum(chunks, EXACT) / EXACT)
    found = np.where(chunks < EXACT, chunks // 16, large).astype(np.int64)
    return np.clip(found, 0, CLASSES - 1)


@dataclass(frozen=True)
class Kept:
    """Of each site: the share of what it left behind that stays, and its standard error."""

    share: Numbers
    error: Numbers


def kept(left: Numbers, alive: Numbers, gone: Numbers) -> Kept:
    """``left``: sites × classes, what outlives a window.

    ``alive``, ``gone``: of each class, what was there when windows closed, and what was freed in them that
    had been allocated before them.
    """
    balance, total = alive - gone, left.sum()
    common = float(np.clip(balance.sum() / total, 0, 1)) if total else 1.0
    share, error = np.full(len(left), common), np.full(len(left), min(common, 1 - common))
    chosen = np.argsort(-left.sum(axis=1))[:SITES]
    matrix = left[chosen]
    weight = 1 / (alive + gone + 1)
    rest = balance - common * (left.sum(axis=0) - matrix.sum(axis=0))
    normal = (matrix * weight) @ matrix.T + PRIOR * np.eye(len(matrix))
    target = (matrix * weight) @ rest + PRIOR * common
    share[chosen] = _within(normal, target)
    error[chosen] = np.sqrt(np.diag(np.linalg.inv(normal)))
    return Kept(share, np.minimum(error, 1.0))


def _within(normal: Numbers, target: Numbers) -> Numbers:
    """The solution with each number between 0 and 1."""
    found, free = np.zeros(len(target)), np.ones(len(target), bool)
    for _ in range(TRIES):
        if not free.any():
            break
        known = target[free] - normal[np.ix_(free, ~free)] @ found[~free]
        found[free] = np.linalg.solve(normal[np.ix_(free, free)], known)
        outside = free & ((found < 0) | (found > 1))
        if not outside.any():
            break
        found[outside] = np.clip(found[outside], 0, 1)
        free &= ~outside
    return np.clip(found, 0, 1)
