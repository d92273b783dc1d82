"""Aggregates: what each key gained, summed over CPUs, with nothing lost when keys are reclaimed."""

import numpy as np
import pytest

from collector import bpf_sys, keys, loader
from collector.aggregate import Aggregate
from collector.bpf_map import Map, MapType, possible_cpus
from schemas import c_header, declare, dtype

DECLARATION = {
    "type": "record",
    "name": "gains",
    "c.from": "aggregate",
    "fields": [
        {"name": "ts", "type": "long", "decode": "now"},
        {"name": "kind", "type": "int", "c.type": "u8", "c.key": True},
        {"name": "group", "type": "string", "c.type": "u64", "c.key": True, "decode": "cgroup"},
        {"name": "count", "type": "long", "c.type": "u32"},
        {"name": "sizes", "type": {"type": "array", "items": "long"}, "c.type": "u64[3]"},
    ],
}
PROBE = declare.parse("gains", DECLARATION)
STREAM = PROBE.streams[0]
KEY, VALUE = dtype.key(STREAM), dtype.value(STREAM)


@pytest.fixture
def table():
    made = Map.create(MapType.PERCPU_HASH, KEY.itemsize, VALUE.itemsize, 2000, "test_gains")
    yield made
    made.close()


def key(group: int) -> bytes:
    one = np.zeros(1, KEY)  # padding is zero, as the kernel's side leaves it
    one["kind"], one["group"] = group % 7, group
    return one.tobytes()


def put(table: Map, group: int, *per_cpu: int) -> None:
    """Set each CPU's count and sizes."""
    values = np.zeros(possible_cpus(), dtype.value(STREAM, table.stride))
    values["count"][: len(per_cpu)] = per_cpu
    values["sizes"][: len(per_cpu), 1] = per_cpu
    table.update(key(group), values.tobytes())


def rows(read) -> dict[int, tuple[int, int]]:
    keys, values = read
    return {int(k["group"]): (int(v["count"]), int(v["sizes"][1])) for k, v in zip(keys, values, strict=True)}


def test_only_what_changed_and_by_how_much(table):
    reader = Aggregate(table, STREAM)
    assert rows(reader.read()) == {}
    for group in range(400):
        put(table, group, group, 1)
    assert rows(reader.read()) == {group: (group + 1, group + 1) for group in range(400)}
    assert rows(reader.read()) == {}
    put(table, 5, 10, 10)
    put(table, 5000, 1)
    assert rows(reader.read()) == {5: (14, 14), 5000: (1, 1)}


def test_a_map_is_read_once_more_after_it_was_used_and_then_no_longer(table):
    """A program moves the number first and counts then: it may be read in between."""
    reader = Aggregate(table, STREAM)
    assert rows(reader.read(used=0)) == {}
    assert rows(reader.read(used=1)) == {}, "the number has moved, nothing is counted yet"
    put(table, 1, 10)
    assert rows(reader.read(used=1)) == {1: (10, 10)}
    put(table, 1, 11)
    assert rows(reader.read(used=1)) == {}, "it stood still"
    assert rows(reader.read(used=2)) == {1: (1, 1)}
    assert rows(reader.read()) == {}
    for _ in range(3):
        reader.read(used=2)
    put(table, 1, 15)
    assert reader.reclaim(idle_reads=4) == 1, "reads that were spared count as well"
    assert rows(reader.read(used=2)) == {1: (4, 4)}, "what it gained before it went"


def test_reclaimed_keys_lose_nothing(table):
    reader = Aggregate(table, STREAM)
    put(table, 1, 10)
    put(table, 2, 20)
    reader.read()
    put(table, 2, 21)
    reader.read()
    put(table, 1, 13)  # after the last read, before it is reclaimed
    assert reader.reclaim(idle_reads=1) == 1
    assert table.lookup(key(1)) is None
    assert rows(reader.read()) == {1: (3, 3)}
    put(table, 1, 4)  # comes back from zero
    assert rows(reader.read()) == {1: (4, 4)}


PROGRAM = """#include "common/near.h"
NEAR(gains)
SETTING(first, 0)
SETTING(groups, 1)
MAP(ARRAY, turns, u32, u64, 1)
XDP(count)
{
	u32 zero = 0;
	u64 *turn = bpf_map_lookup_elem(map(turns), &zero);
	if (!turn)
		return 1;
	u64 group = setting(first) + (*turn)++ % setting(groups);
	struct gains_key key = {.group = group, .kind = group % 7};
	struct gains_value *value = gains_near_slot(&key);
	if (!value)
		return 1;
	value->count++;
	value->sizes[1] += group;
	return 2;
}
"""


@pytest.fixture
def near():
    """A program that counts in an array in front of the hash, and the reader of both."""
    source = loader.Source("gains", text=PROGRAM, header=c_header.generate(PROBE))
    result = loader.load([source])
    assert not result.failed, result.failed
    loaded = result.loaded["gains"]

    def count(first: int, times: int, groups: int = 1) -> None:
        """Count ``times`` in all, for so many groups in turn."""
        loaded.set("first", first)
        loaded.set("groups", groups)
        loaded.maps["turns"].update(bytes(4), bytes(8))
        assert bpf_sys.prog_test_run(loaded.programs[0].fd, bytes(64), repeat=times).retval == 2

    yield count, Aggregate(loaded.maps["gains"], STREAM, loaded.maps["gains_near"]), loaded.maps
    loaded.close()


def test_keys_in_the_near_array_and_in_the_hash_are_one(near):
    """More keys than the array has places: the rest is in the hash, and no count is missing or double."""
    count, reader, maps = near
    count(0, times=1500, groups=400)
    times = {group: 4 if group < 300 else 3 for group in range(400)}
    assert rows(reader.read()) == {group: (n, group * n) for group, n in times.items()}
    assert 100 < maps["gains"].read()[2] < 390
    assert rows(reader.read()) == {}
    count(3, times=10)
    count(399, times=20)
    assert rows(reader.read()) == {3: (10, 30), 399: (20, 399 * 20)}


def test_places_of_idle_keys_are_free_again(near):
    count, reader, maps = near
    count(0, times=100, groups=100)
    reader.read()
    reader.read()
    count(5, times=3)  # after the last read, before its place is freed
    reader.reclaim(idle_reads=1)
    assert not maps["gains_near"].read()[1].strip(b"\0")
    assert rows(reader.read()) == {5: (3, 15)}
    count(5, times=1)
    assert rows(reader.read()) == {5: (1, 5)}


def test_a_map_that_fills_is_emptied_as_it_is_read_and_loses_nothing(table):
    """Programs come and go, each with keys of its own: many times what the map holds passes through it."""
    reader, total, most = Aggregate(table, STREAM), 0, 0
    put(table, 1, 1)
    for turn in range(12):
        for group in range(600):
            put(table, 10_000 + turn * 600 + group, group + 1)
        found = rows(reader.read())
        total += sum(count for group, (count, _) in found.items() if group >= 10_000)
        most = max(most, table.read()[2])
        put(table, 1, turn + 2)
    assert total == 12 * sum(range(1, 601))
    assert most < 2000
    assert reader.crowded
    reader.read()
    put(table, 1, 5)  # one that was emptied begins at zero
    assert rows(reader.read()) == {1: (5, 5)}
    assert not reader.crowded


@pytest.mark.parametrize("mix", [0x9E3779B97F4A7C15, 0])
@pytest.mark.parametrize("size", [1, 4, 8, 12, 32])
def test_keys_are_told_apart_whatever_their_hashes(monkeypatch, mix, size):
    monkeypatch.setattr(keys, "MIX", np.uint64(mix))
    chance = np.random.default_rng(size)
    array = chance.integers(0, 3, (300, size), np.uint8).view(f"V{size}").ravel()
    first, which = keys.distinct(array)
    assert (array[first][which] == array).all()
    assert len({each.tobytes() for each in array}) == len(first)
