"""Rings: exact shares, little movement, the same whatever the order; and what slots remember of a change."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collector.balancer import maglev, ring
from collector.balancer.layout import RING_SLOTS, SLOT

WEIGHTS = st.lists(st.integers(0, 1000), min_size=1, max_size=40).filter(any)


def names(count: int) -> list[str]:
    return [f"10.1.{at // 256}.{at % 256}" for at in range(count)]


@settings(max_examples=25, deadline=None)
@given(WEIGHTS)
def test_shares_are_exact(weights: list[int]) -> None:
    owners = maglev.ring(names(len(weights)), weights)
    counts = np.bincount(owners, minlength=len(weights))
    assert len(owners) == RING_SLOTS
    assert np.abs(counts - np.array(weights) * RING_SLOTS / sum(weights)).max() < 1
    assert all(counts[at] == 0 for at, weight in enumerate(weights) if weight == 0)


@settings(max_examples=15, deadline=None)
@given(WEIGHTS, st.randoms(use_true_random=False))
def test_order_does_not_matter(weights: list[int], random: object) -> None:
    reals = names(len(weights))
    pairs = list(zip(reals, weights, strict=True))
    random.shuffle(pairs)  # type: ignore[attr-defined]
    mixed = [each[0] for each in pairs]
    one = [reals[at] for at in maglev.ring(reals, weights)]
    assert one == [mixed[at] for at in maglev.ring(mixed, [each[1] for each in pairs])]


@pytest.mark.parametrize(("count", "most"), [(2, 1.05), (3, 1.05), (10, 1.2), (100, 2.0)])
def test_a_removal_moves_little_more_than_it_must(count: int, most: float) -> None:
    reals = names(count)
    before = maglev.ring(reals, [1] * count)
    after = maglev.ring(reals[:-1], [1] * (count - 1))
    kept = before != count - 1
    assert (before != after).mean() <= most / count
    assert (before[kept] == after[kept]).mean() >= 1 - (most - 1) / count - 1e-9


def test_weights_scale() -> None:
    assert np.array_equal(maglev.ring(names(5), [1, 2, 3, 4, 5]), maglev.ring(names(5), [10, 20, 30, 40, 50]))


def test_five_hundred_reals_take_milliseconds() -> None:
    times = []
    for _ in range(5):
        start = time.process_time()
        maglev.ring(names(500), list(range(1, 501)))
        times.append(time.process_time() - start)
    assert min(times) < 0.15


@pytest.mark.parametrize(
    ("reals", "weights"),
    [(["a", "a"], [1, 1]), (["a"], [0]), ([], []), (["a", "b"], [1, -1]), (["a"], [1, 2])],
)
def test_nonsense_is_refused(reals: list[str], weights: list[int]) -> None:
    with pytest.raises(ValueError, match="must"):
        maglev.ring(reals, weights)


NOW, KEEP = 1000, 100
LIVE = np.array([False, True, True, True])


def slot(current: int, former: int = 0, until: int = 0) -> np.ndarray:
    return np.array([(current, former, until)], SLOT)


@pytest.mark.parametrize(
    ("what", "old", "wanted", "live", "new"),
    [
        ("nothing changes", slot(1), 1, LIVE, slot(1)),
        ("steady, changed", slot(1), 2, LIVE, slot(2, 1, NOW + KEEP)),
        ("the one before is dead", slot(1), 2, [0, 0, 1, 1], slot(2)),
        ("long ago changed is steady", slot(2, 1, NOW - 1), 3, LIVE, slot(3, 2, NOW + KEEP)),
        (
            "changed twice: untracked flows are the first one's",
            slot(2, 1, NOW + 9),
            3,
            LIVE,
            slot(3, 1, NOW + KEEP),
        ),
        (
            "changed back: the second one's flows are in the table",
            slot(2, 1, NOW + 9),
            1,
            LIVE,
            slot(1, 1, NOW + KEEP),
        ),
        ("the first died meanwhile", slot(2, 1, NOW + 9), 3, [0, 0, 1, 1], slot(3, 0, NOW + KEEP)),
        ("the first dies, no change", slot(2, 1, NOW + 9), 2, [0, 0, 1, 1], slot(2, 0, NOW + 9)),
        ("changed, with no first", slot(2, 0, NOW + 9), 3, LIVE, slot(3, 2, NOW + KEEP)),
        ("needed for longer already", slot(2, 1, NOW + 999), 3, LIVE, slot(3, 1, NOW + 999)),
        ("from nothing", slot(0), 1, LIVE, slot(1)),
    ],
)
def test_what_a_slot_remembers(
    what: str, old: np.ndarray, wanted: int, live: list[bool], new: np.ndarray
) -> None:
    done = ring.transition(old, np.array([wanted], np.uint16), np.array(live, bool), NOW, KEEP)
    assert done.tolist() == new.tolist()
