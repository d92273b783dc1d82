"""Aggregates: what each key gained, summed over CPUs, with nothing lost when keys are reclaimed."""

import numpy as np
import pytest

from collector.aggregate import Aggregate
from collector.bpf_map import Map, MapType, possible_cpus
from schemas import declare, dtype

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
STREAM = declare.parse("gains", DECLARATION).streams[0]
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
    for group in range(1000):
        put(table, group, group, 1)
    assert rows(reader.read()) == {group: (group + 1, group + 1) for group in range(1000)}
    assert rows(reader.read()) == {}
    put(table, 5, 10, 10)
    put(table, 5000, 1)
    assert rows(reader.read()) == {5: (14, 14), 5000: (1, 1)}


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


def test_keys_marked_gone_are_reclaimed(table):
    reader = Aggregate(table, STREAM)
    for group in (1, 2, 3):
        put(table, group, 1)
    reader.read()
    assert reader.reclaim(100, gone=reader.known["group"] == 2) == 1
    assert sorted(int(each["group"]) for each in reader.known) == [1, 3]
    assert table.lookup(key(2)) is None
    assert rows(reader.read()) == {}
