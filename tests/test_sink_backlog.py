"""What a sink holds at most, and whom it makes wait."""

from sinks.backlog import LEAST, PATIENCE, Backlog
from sinks.intent import Intent
from sinks.partition import Message, Partition

MB = 1 << 20


def holding(number: int, megabytes: float) -> Partition:
    made = Partition("bpfleet.numbers.v1", number, "label", 0, None, 1, 1.0)
    fill(made, megabytes)
    return made


def fill(partition: Partition, megabytes: float) -> None:
    partition.collect(Message(partition.collected, None, bytes(int(megabytes * MB))), 0.0)


def test_a_busy_partition_waits_for_its_insert_without_a_pause() -> None:
    backlog, busy, idle = Backlog(8 * MB), holding(0, 5), holding(1, 0)
    assert backlog.settle([busy, idle], 0.0) == ([], []) and not backlog.reading
    busy.size -= 2 * MB  # its batch landed
    assert backlog.settle([busy, idle], PATIENCE / 2) == ([], []) and backlog.reading


def test_what_stands_is_paused_and_others_go_on() -> None:
    backlog, stuck, other = Backlog(8 * MB), holding(0, 5), holding(1, 1)
    backlog.settle([stuck, other], 0.0)
    assert backlog.settle([stuck, other], PATIENCE) == ([stuck], []) and stuck.paused
    assert backlog.settle([stuck, other], PATIENCE + 0.1) == ([], []) and backlog.reading
    stuck.size = 2 * MB
    assert backlog.settle([stuck, other], PATIENCE + 0.2) == ([], [stuck]) and not stuck.paused


def test_together_they_hold_the_budget_and_a_little_for_each() -> None:
    backlog, partitions = Backlog(8 * MB), [holding(number, 0) for number in range(20)]
    now = 0.0
    for _ in range(400):  # a store that is away, messages of 0.5 MB for whoever may read
        now += PATIENCE / 4
        for each in partitions:
            if backlog.reading and not each.paused:
                fill(each, 0.5)
        backlog.settle(partitions, now)
    assert all(each.paused for each in partitions)
    assert sum(each.size for each in partitions) <= 8 * MB + len(partitions) * (LEAST + MB)


def test_a_batch_that_is_formed_again_may_read_on() -> None:
    backlog = Backlog(8 * MB)
    again = Partition("bpfleet.numbers.v1", 0, "label", 0, Intent(9), 1, 1.0)
    fill(again, 20)
    assert backlog.settle([again], 0.0) == ([], []) and backlog.reading
