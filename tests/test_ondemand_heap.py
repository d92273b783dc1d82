"""Outstanding bytes by call site: exact where a program allows it, estimated where it allocates too often."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ondemand import alone
from ondemand_heap import SITES, program, watched

from collector.ondemand.heap_estimate import AGE, ALLOCATION, PLACE, SUM, Windows
from collector.ondemand.instruction import cheap


def test_a_program_that_allocates_moderately_is_counted_exactly(tmp_path: Path) -> None:
    with alone(probe_max_cpu=0.2) as host:
        outcome = watched(host, program(tmp_path), 2, keep=50, pause_us=400_000)
    assert not outcome.windowed
    for site in SITES:
        assert outcome.estimated[site] == outcome.kept[site]
        assert outcome.errors[site] == 0


def test_one_that_allocates_all_the_time_is_estimated(tmp_path: Path) -> None:
    with alone(probe_max_cpu=0.05) as host:
        outcome = watched(host, program(tmp_path), 12, keep=20)
        assert host.heard("heap")[-1]["event"] == "stopped", "it kept to its budget"
    assert outcome.windowed
    assert outcome.off < 0.1, outcome
    assert outcome.off_at("keep_much") < 0.2, outcome
    assert outcome.errors["keep_much"] > 0


def test_a_process_that_is_not_there(tmp_path: Path) -> None:
    with alone() as host:
        outcome = host.run(
            "heap", {"at": "heap:libc", "value": "outstanding", "by": ["ustack"], "pid": 1 << 22}
        )
    assert outcome.state == "failed"
    assert "there is no" in outcome.reason


@given(st.integers(1, 10**6), st.floats(0.05, 0.95), st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_life_tables_tell_what_stays_from_what_goes(lifetime: int, stays: float, seed: int) -> None:
    """Two call sites: one keeps a share of what it allocates, the other nothing that lives long."""
    random = np.random.default_rng(seed)
    window, count = 64_000_000, 3000
    lifetime = min(lifetime, window // 20)
    table = Windows()
    for _ in range(4):
        born = random.integers(0, window, 2 * count)
        site = np.repeat([1, 2], count).astype(np.uint64)
        age = random.exponential(lifetime, 2 * count).astype(np.int64)
        keeps = (site == 1) & (random.random(2 * count) < stays)
        ended = ~keeps & (born + age < window)
        alive = np.zeros((~ended).sum(), ALLOCATION)
        alive["size"], alive["chunk"], alive["stack"], alive["at"] = 100, 112, site[~ended], born[~ended]
        places = np.zeros(len(alive), PLACE)
        places["pid"] = 7
        ages, sums = np.zeros(ended.sum(), AGE), np.zeros(ended.sum(), SUM)
        ages["pid"], ages["stack"], ages["step"] = 7, site[ended], age[ended] // 1_000_000
        sums["count"], sums["bytes"], sums["chunks"] = 1, 100, 112
        table.add(places, alive, ages, sums, window, 1_000_000)
    estimate = table.estimate(7, 11_200_000)
    found = dict(zip(estimate.stack.tolist(), estimate.bytes.tolist(), strict=True))
    assert abs(found[1] - 10_000_000) < 600_000
    assert abs(found.get(2, 0)) < 600_000


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("55 4889e5", (0, True)),  # push %rbp
        ("4154 55", (0, True)),  # push %r12
        ("f30f1efa 55", (4, True)),  # endbr64
        ("4885ff 0f84bf000000", (3, True)),  # test %rdi,%rdi; je: glibc's free
        ("4883ff10 7405", (4, True)),  # cmp $16,%rdi; je
        ("4889fe 55", (0, False)),  # mov %rdi,%rsi would change an argument
        ("4883ec18 55", (0, False)),  # sub $24,%rsp would move the stack
        ("", (0, False)),
    ],
)
def test_where_a_trap_is_cheap(code: str, expected: tuple[int, bool]) -> None:
    assert os.uname().machine != "x86_64" or cheap(bytes.fromhex(code)) == expected
