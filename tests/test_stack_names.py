"""Naming stacks costs little: what differs by instruction alone is one stack, and samples follow the cost."""

import ctypes
import os

import numpy as np
import pytest

from collector.stacks import LEAST_RATE, NAMING_SHARE, RECORD, Names, Stacks
from collector.symbols import Symbols, space


def test_mappings_that_are_read_again_keep_what_was_named_if_they_still_stand() -> None:
    lines = ["7000-8000 r-xp 0 08:01 5 /lib/a", "9000-a000 r-xp 1000 08:01 6 /lib/b"]

    def read(*some: str, started: str = "1") -> space.Space:
        return space.parse("\n".join(some).encode(), (started, "/bin/x"))

    first = read(*lines)
    first.named[0x7010] = "frame"
    more = "b000-c000 r-xp 0 08:01 7 /lib/c"
    assert read(*lines, more).following(first).named is first.named, "a library was loaded"
    assert not read(lines[0]).following(first).named, "one was unloaded"
    assert not read(lines[0], lines[1].replace("/lib/b", "/lib/d")).following(first).named
    assert not read(*lines, started="2").following(first).named, "another process"


def test_stacks_that_differ_by_instruction_alone_have_one_name_and_are_told_once() -> None:
    libc = ctypes.CDLL(None)
    place = ctypes.cast(libc.qsort, ctypes.c_void_p).value
    assert place
    records = np.zeros(40, RECORD)
    records["number"], records["pid"], records["frames"] = range(1, 41), os.getpid(), 2
    records["addresses"][:, 0] = place + np.arange(40) % 8
    records["addresses"][:, 1] = ctypes.cast(libc.strtol, ctypes.c_void_p).value + 1
    names = Names(Symbols())
    assert len(names.learn(records[:20])) == 1
    assert names.learn(records[20:]) == []
    assert len(set(names.of(records["number"])[0].tolist())) == 1
    names.symbols.close()


class Busy(Stacks):
    """Whose thread took so much since it was asked last."""

    def __init__(self) -> None:
        self.paces: list[float] = []
        super().__init__([], Names(Symbols()), 5.0, self.paces.append)


def test_the_rate_of_samples_follows_what_naming_them_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    stacks, spent = Busy(), [0.0]
    monkeypatch.setattr("collector.stacks.time.thread_time", lambda: spent[0])

    def take(share: float, times: int) -> float:
        for _ in range(times):
            spent[0] += share * 5.0
            stacks._follow_budget(5.0)
        return stacks.rate

    assert take(0.001, 5) == 1.0 and stacks.paces == [], "never more than what is configured"
    assert take(0.02, 1) == 0.5
    assert take(0.003, 1) == pytest.approx(0.5 * NAMING_SHARE / 0.003)
    assert take(0.5, 20) == LEAST_RATE
    assert take(0.001, 20) == 1.0 and stacks.paces[-1] == 1.0
    stacks.names.symbols.close()
