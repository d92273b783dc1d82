"""The spool: order, bound, and what survives a kill or a torn file, under any interleaving."""

import errno
import itertools
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from collector.losses import Loss, Losses, Reason, ranges
from collector.recovery import in_doubt, open_state
from collector.sequence import Sequences, boot_id, marks
from collector.spool import HEADER, Label, Record, Spool
from schemas.config import Config
from schemas.errors import BpfleetError

BOOT = bytes(range(16))


def record(seq: int, size: int = 50, stream: str = "s") -> Record:
    return Record(Label(stream, BOOT, seq, 3), "host", bytes([seq % 251]) * size)


class AnyInterleaving(RuleBasedStateMachine):
    """Append, take, crash, tear: what comes out is in order, once, and what is missing was shed or torn."""

    @initialize()
    def begin(self) -> None:
        self.place = tempfile.TemporaryDirectory()
        self.directory = Path(self.place.name)
        self.expected: list[int] = []  # in the spool, in order
        self.shed: list[int] = []
        self.next = 0
        self.open()

    def open(self) -> None:
        self.spool = Spool(self.directory, 4000, self.heard)

    def heard(self, labels: list[Label]) -> None:
        for label in labels:
            assert label.seq == self.expected.pop(0), "the oldest go first"
            self.shed.append(label.seq)

    @rule(size=st.integers(0, 600))
    def append(self, size: int) -> None:
        self.expected.append(self.next)
        self.spool.append(record(self.next, size))
        self.next += 1

    @rule(times=st.integers(1, 5))
    def take(self, times: int) -> None:
        for _ in range(times):
            found = self.spool.take()
            if not self.expected:
                assert found is None
                return
            assert found is not None and found.label.seq == self.expected.pop(0)
            assert set(found.message) <= {found.label.seq % 251}

    @rule()
    def crash(self) -> None:
        """SIGKILL: nothing is closed or flushed; a new process opens the files."""
        self.spool.close()
        self.open()

    @rule(cut=st.integers(1, 80), garbage=st.binary(max_size=60))
    def crash_with_a_torn_tail(self, cut: int, garbage: bytes) -> None:
        self.spool.close()
        files = sorted(self.directory.glob("*.spool"))
        if files and self.expected:
            size = files[-1].stat().st_size
            kept = max(size - cut, 0)
            os.truncate(files[-1], kept)
            with files[-1].open("ab") as handle:
                handle.write(garbage)
            before = len(self.expected)
            self.open()
            there = [label.seq for label in self.spool.labels()]
            assert there == self.expected[: len(there)]
            assert before - len(there) <= cut // HEADER.size + 1
            self.expected = there
        else:
            self.open()

    @invariant()
    def holds(self) -> None:
        if hasattr(self, "spool"):
            assert len(self.spool) == len(self.expected)
            assert [label.seq for label in self.spool.labels()] == self.expected
            assert self.spool.bytes <= 4000 + 700

    def teardown(self) -> None:
        if hasattr(self, "spool"):
            self.spool.close()
            self.place.cleanup()


TestAnyInterleaving = AnyInterleaving.TestCase
TestAnyInterleaving.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_a_full_disk_loses_one_batch_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(tmp_path, 1 << 20)
    spool.append(record(0))
    real = os.pwrite

    def full(fd: int, data: bytes, offset: int) -> int:
        real(fd, data[:20], offset)  # part of it fits
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space"):
        spool.append(record(1))
    monkeypatch.undo()
    spool.append(record(2))
    assert [spool.take().label.seq for _ in range(2)] == [0, 2]  # type: ignore[union-attr]


def test_damage_in_the_middle_ends_its_segment_only(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 16 * 300)
    for number in range(9):  # three a segment
        spool.append(record(number))
    middle = sorted(tmp_path.glob("*.spool"))[1]
    raw = bytearray(middle.read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    middle.write_bytes(raw)
    taken: list[int] = []
    while (found := spool.take()) is not None:
        taken.append(found.label.seq)
    assert taken == [0, 1, 2, 3, 6, 7, 8]
    assert spool.damaged == 1


def state(tmp_path: Path, boot: bytes = BOOT) -> Any:
    config = Config()
    config.state_dir, config.collector.spool_mb = str(tmp_path), 1
    return open_state(config, boot)


def numbered(opened: Any, count: int, stream: str = "s") -> list[int]:
    return [opened.sequences.take(stream, 1) for _ in range(count)]


def test_numbers_go_on_after_a_kill_and_begin_anew_after_a_boot(tmp_path: Path) -> None:
    first = state(tmp_path)
    assert numbered(first, 3) == [0, 1, 2]
    first.lock.close()
    second = state(tmp_path)
    assert numbered(second, 2) == [3, 4]
    second.lock.close()
    third = state(tmp_path, bytes(16))
    assert numbered(third, 1) == [0]
    boots = {(each.boot, each.first, each.last) for each in third.losses.all}
    assert boots == {(BOOT.hex(), 0, 4)}
    third.lock.close()


def test_what_a_kill_leaves_in_doubt(tmp_path: Path) -> None:
    first = state(tmp_path)
    numbered(first, 10)
    for number in range(4):
        first.sequences.delivered("s", number, 2, 100 + number)
    for number in (7, 8):
        first.spool.append(record(number))
    first.sequences.declared("s", 5, 5)
    first.losses.add(Loss(Reason.SHED, "s", BOOT.hex(), 5, 5, 3, 0))
    first.lock.close()
    second = state(tmp_path)
    found = [(each.first, each.last, each.partition, each.offset) for each in second.losses.open()]
    assert found == [(4, 4, 2, 103), (6, 6, 2, 103), (9, 9, 2, 103)]
    assert second.killed_since_us == 0  # it never said it was alive
    second.lock.close()
    third = state(tmp_path)
    assert [(each.first, each.last) for each in third.losses.open()] == [(4, 4), (6, 6), (9, 9)]


def test_a_clean_end_leaves_nothing_in_doubt(tmp_path: Path) -> None:
    first = state(tmp_path)
    numbered(first, 2)
    first.sequences.delivered("s", 1, 0, 7)
    first.sequences.alive(99)
    first.sequences.close()
    first.lock.close()
    second = state(tmp_path)
    assert not second.losses.all and not second.killed_since_us
    second.sequences.alive(123)
    second.lock.close()
    third = state(tmp_path)
    assert third.killed_since_us == 123


def test_a_second_collector_is_refused(tmp_path: Path) -> None:
    first = state(tmp_path)
    with pytest.raises(BpfleetError, match=rf"already runs .*process {os.getpid()}"):
        state(tmp_path)
    first.lock.close()


def test_a_directory_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "collector").write_text("a file")
    with pytest.raises(BpfleetError, match="cannot use state directory"):
        state(tmp_path)


def test_numbers_that_settle_out_of_order(tmp_path: Path) -> None:
    sequences = Sequences(tmp_path / "sequence", BOOT)
    for _ in range(6):
        sequences.take("s", 1)
    sequences.declared("s", 1, 2)
    assert marks(tmp_path / "sequence")[1][0].settled == 0
    sequences.delivered("s", 0, 0, 0)
    assert marks(tmp_path / "sequence")[1][0].settled == 3
    sequences.declared("s", 3, 4)
    assert marks(tmp_path / "sequence")[1][0].settled == 5
    assert not list(in_doubt(BOOT, [], set(), []))
    assert len(boot_id()) == 16


def test_losses_join_and_end_when_their_declaration_arrives(tmp_path: Path) -> None:
    file = tmp_path / "losses.json"
    losses = Losses(file)
    for number in (4, 5, 6, 9):
        losses.add(Loss(Reason.SHED, "s", "00", number, number, 2, 0))
    assert [(each.first, each.last, each.events) for each in losses.pending()] == [(4, 6, 6), (9, 9, 2)]
    losses.declare(losses.pending(), 17)
    assert not losses.pending()
    losses.add(Loss(Reason.SHED, "s", "00", 10, 10, 2, 0))
    assert [(each.first, each.last) for each in losses.pending()] == [(10, 10)]
    losses.settle(17, delivered=False)
    assert len(losses.pending()) == 3
    losses.declare(losses.pending(), 18)
    assert len(Losses(file).pending()) == 3  # a kill now: they are declared again
    losses.settle(18, delivered=True)
    assert not Losses(file).all


@given(st.sets(st.integers(0, 60)))
def test_ranges_are_the_runs_of_numbers(numbers: set[int]) -> None:
    found = list(ranges(sorted(numbers)))
    assert {n for first, last in found for n in range(first, last + 1)} == numbers
    assert all(later[0] > earlier[1] + 1 for earlier, later in itertools.pairwise(found))


def test_a_journal_on_a_full_disk_is_written_later(tmp_path: Path) -> None:
    losses = Losses(tmp_path / "absent" / "losses.json")
    losses.add(Loss(Reason.SHED, "s", "00", 1, 1, 2, 0))
    (tmp_path / "absent").mkdir()
    losses.retry()
    assert Losses(tmp_path / "absent" / "losses.json").all == losses.all
