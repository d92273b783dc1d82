"""The ring: no event read twice or torn, every loss counted, fast enough for 200,000 events a second."""

import mmap
import threading
import time

import numpy as np
import pytest

from collector import bpf_sys, loader
from collector.bpf_map import Map, possible_cpus
from collector.ring import Ring
from schemas import c_header, declare, dtype
from schemas.errors import BpfleetError

DECLARATION = {
    "type": "record",
    "name": "ringtest",
    "c.from": "ring",
    "fields": [
        {"name": "ts", "type": "long", "c.type": "u64", "decode": "ktime"},
        {"name": "small", "type": "int", "c.type": "u8"},
        {"name": "number", "type": "long", "c.type": "u64", "c.bound": 2**62},
        {"name": "tail", "type": "int", "c.type": "u16"},
    ],
}
PROBE = declare.parse("ringtest", DECLARATION)
EVENT = dtype.event(PROBE.streams[0])
PROGRAMS = """#include "common/probe.h"
MAP(ARRAY, next_number, u32, u64, 1)
static __always_inline int make(u32 discard)
{
	u32 zero = 0;
	u64 *number = bpf_map_lookup_elem(map(next_number), &zero);
	if (!number)
		return 0;
	struct ringtest_event *event = ringtest_reserve();
	if (!event)
		return 0;
	event->ts = bpf_ktime_get_ns();
	event->number = __sync_fetch_and_add(number, 1);
	event->small = event->number;
	event->tail = 0xabcd;
	if (discard)
		bpf_ringbuf_discard(event, NO_WAKEUP);
	else
		ringtest_submit(event);
	return 1;
}
XDP(keep) { return make(0); }
XDP(alternate) { make(0); return make(1); }
"""
BYTES = 256 * 1024


class Made:
    """The programs, and a reader of what they make."""

    def __init__(self) -> None:
        source = loader.Source(
            "ringtest", text=PROGRAMS, header=c_header.generate(PROBE), sizes={"ringtest": BYTES}
        )
        result = loader.load([source])
        assert not result.failed, result.failed
        self.loaded = result.loaded["ringtest"]
        self.ring = Ring(self.loaded.maps["ringtest"], EVENT)

    def make(self, count: int, program: str = "keep") -> None:
        bpf_sys.prog_test_run(self.loaded.program(program).fd, bytes(64), repeat=count)

    def counts(self) -> tuple[int, int]:
        """(made, lost) by the kernel's side."""
        _, raw, count = self.loaded.maps["ringtest_counts"].read()
        made, lost, *_ = np.frombuffer(raw, np.uint64).reshape(count, possible_cpus()).sum(axis=1).tolist()
        return made, lost

    def close(self) -> None:
        self.ring.close()
        self.loaded.close()


@pytest.fixture
def made():
    each = Made()
    yield each
    each.close()


def test_events_come_out_as_they_went_in(made):
    made.make(1000)
    assert made.ring.waiting == 1000 * 40
    events = made.ring.read()
    assert events["number"].tolist() == list(range(1000))
    assert (events["small"] == np.arange(1000) % 256).all()
    assert (events["tail"] == 0xABCD).all()
    assert (np.diff(events["ts"].astype(np.int64)) >= 0).all()
    assert made.ring.waiting == 0
    assert len(made.ring.read()) == 0
    assert made.counts() == (1000, 0)


def test_reads_are_bounded_and_survive_the_wrap(made):
    """Many times around, in pieces that do not divide the ring; arrays read before stay as they were."""
    read = []
    for _ in range(200):
        made.make(700)
        first = made.ring.read(limit=333)
        assert len(first) == 333
        read += [first, made.ring.read()]
    numbers = np.concatenate([each["number"] for each in read])
    assert (numbers == np.arange(200 * 700)).all()
    assert made.counts() == (140_000, 0)


def test_discarded_records_are_left_out(made):
    made.make(500, "alternate")
    assert made.ring.read()["number"].tolist() == list(range(0, 1000, 2))
    assert made.ring.waiting == 0


def test_a_paused_reader_loses_what_is_counted(made):
    made.make(50_000)
    events = made.ring.read()
    number, lost = made.counts()
    assert number == 50_000
    assert len(events) + lost == 50_000
    assert len(events) == pytest.approx(made.ring.capacity, abs=2)
    assert events["number"].tolist() == list(range(len(events)))  # those lost never got a number


def test_200_000_events_a_second_with_pauses_all_accounted_for():
    """A writer at full speed, a reader that sleeps now and then: made = read + lost, nothing twice."""
    made, numbers, done = Made(), [], threading.Event()

    def write():
        for _ in range(60):
            made.make(10_000)
        done.set()

    writer = threading.Thread(target=write)
    started = time.monotonic()
    writer.start()
    reads = 0
    while not done.is_set():
        numbers.append(made.ring.read()["number"])
        reads += 1
        if reads % 100 == 0:
            time.sleep(0.02)
    writer.join()
    seconds = time.monotonic() - started
    numbers.append(made.ring.read()["number"])
    total, lost = made.counts()
    read = np.concatenate(numbers)
    made.close()
    assert total == 600_000
    assert total / seconds > 200_000
    assert len(read) + lost == total
    assert (read == np.arange(len(read))).all()
    assert lost > 0


def test_a_read_costs_no_python_per_event(made):
    """A hundred times the events do not take nearly a hundred times as long."""

    def seconds(count: int) -> float:
        best = 1.0
        for _ in range(20):
            made.make(count)
            start = time.perf_counter()
            assert len(made.ring.read()) == count
            best = min(best, time.perf_counter() - start)
        return best

    few, many = seconds(60), seconds(6000)
    assert many < 25 * few
    assert many / 6000 < 200e-9


def test_records_of_another_size_are_refused(made):
    wrong = np.dtype([("ts", "<u8"), ("rest", "u1", (8,))])
    made.make(10)
    ring = Ring(made.loaded.maps["ringtest"], wrong)
    with pytest.raises(
        BpfleetError, match="ring ringtest has a record of 32 bytes, not 16; restart the collector"
    ):
        ring.read()
    ring.close()


def test_what_is_no_ring_is_refused(made):
    with pytest.raises(BpfleetError, match="cannot map ring ringtest_counts"):
        Ring(made.loaded.maps["ringtest_counts"], EVENT)


class Frozen:
    """A file laid out like a ring, so that the kernel's momentary states hold still."""

    def __init__(self, path) -> None:
        self.size, self.stride = mmap.PAGESIZE, 40
        path.write_bytes(bytes(2 * mmap.PAGESIZE + 2 * self.size))
        self.file = path.open("r+b")
        self.memory = mmap.mmap(self.file.fileno(), 0)
        self.ring = Ring(Map(self.file.fileno(), "frozen", 27, 0, 0, self.size, 0), EVENT)

    def put(self, at: int, length: int, number: int) -> None:
        place = 2 * mmap.PAGESIZE + at * self.stride
        self.memory[place : place + 4] = length.to_bytes(4, "little")
        self.memory[place + 24 : place + 32] = number.to_bytes(8, "little")
        produced = (at + 1) * self.stride
        self.memory[mmap.PAGESIZE : mmap.PAGESIZE + 8] = produced.to_bytes(8, "little")


def test_a_record_still_being_written_ends_the_read(tmp_path):
    frozen = Frozen(tmp_path / "ring")
    for at, length in enumerate((32, 32 | 1 << 30, 32 | 1 << 31, 32)):
        frozen.put(at, length, at)
    assert frozen.ring.read()["number"].tolist() == [0]
    assert frozen.ring.read()["number"].tolist() == []
    frozen.put(2, 32, 2)
    frozen.put(3, 32, 3)
    assert frozen.ring.read()["number"].tolist() == [2, 3]
    assert frozen.ring.waiting == 0
    frozen.ring.close()
    frozen.memory.close()
    frozen.file.close()
