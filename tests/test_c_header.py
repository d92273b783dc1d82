"""From one declaration: C that a compiler proves and numpy that reads what C wrote, for any fields."""

from functools import partial

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from collector import bpf_sys, loader
from collector.bpf_map import Map, MapType
from collector.ring import Ring
from schemas import c_header, declare, dtype, layout

INTEGERS = [f"{sign}{bits}" for sign in "us" for bits in (8, 16, 32, 64)]
TS = {"name": "ts", "type": "long", "decode": "now"}
TINY = "XDP(pass) { return 2; }\n"


def field(name: str, c: str) -> dict:
    """A declared field of a C type; what it becomes in Avro does not matter here."""
    base, _, count = c.partition("[")
    if base == "char":
        return {"name": name, "type": "string", "c.type": c, "decode": "text"}
    if count:
        return {"name": name, "type": {"type": "array", "items": "long"}, "c.type": c}
    bound = {"c.bound": 2**62} if base == "u64" else {}
    return {"name": name, "type": "long", "c.type": c, **bound}


def probe_of(*streams: list[str], key: int = 0) -> declare.Probe:
    """Streams of the given C types; with ``key`` aggregates whose first so many fields are keys."""
    records = []
    for number, types in enumerate(streams):
        fields = [field(f"f{at}", c) for at, c in enumerate(types)]
        for each in fields[:key]:
            each["c.key"] = True
        source = "aggregate" if key else "ring"
        records.append(
            {"type": "record", "name": f"shape{number}", "c.from": source, "fields": [TS, *fields]}
        )
    return declare.parse("shapes", records)


def compiled(probe: declare.Probe, text: str = TINY) -> loader.Result:
    source = loader.Source(
        "shapes", text='#include "common/probe.h"\n' + text, header=c_header.generate(probe)
    )
    return loader.load([source])


scalars = st.sampled_from(INTEGERS)
arrays = st.builds("{}[{}]".format, st.sampled_from([*INTEGERS, "char"]), st.integers(1, 40))
shapes = st.lists(scalars | arrays, min_size=2, max_size=9)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(streams=st.lists(shapes, min_size=1, max_size=8), key=st.integers(0, 1))
def test_the_compiler_agrees_with_every_offset(streams, key):
    """The header carries its own proof: a wrong size or offset does not compile."""
    probe = probe_of(*streams, key=key)
    result = compiled(probe)
    result.close()
    assert result.failed == {}


@given(types=shapes)
def test_numpy_reads_where_c_has_it(types):
    stream = probe_of(types).streams[0]
    found, shape = dtype.event(stream), layout.event(stream.fields)
    assert found.itemsize == shape.size
    offsets = {name: entry[1] for name, entry in found.fields.items()}
    assert offsets == {each.name: each.offset for each in shape.members if not each.is_padding}
    sizes = {name: entry[0].itemsize for name, entry in found.fields.items()}
    assert sizes == {each.name: each.c.size for each in shape.members if not each.is_padding}
    position = 0
    for member in shape.members:
        assert member.offset == position
        position += member.c.size
    assert position == shape.size


def test_a_wrong_offset_does_not_compile():
    probe = probe_of(["u8", "u64", "u16"])
    header = c_header.generate(probe)
    wrong = header.replace(
        "__builtin_offsetof(struct shape0_event, f1) == 8", "__builtin_offsetof(struct shape0_event, f1) == 4"
    )
    assert wrong != header
    source = loader.Source("shapes", text='#include "common/probe.h"\n' + TINY, header=wrong)
    assert "offset of shape0_event.f1" in loader.load([source]).failed["shapes"]


def extreme(base: str, high: bool) -> int:
    bits = int(base[1:])
    if base[0] == "u":
        return 2**bits - 1 if high else 0
    return 2 ** (bits - 1) - 1 if high else -(2 ** (bits - 1))


@pytest.mark.parametrize("high", [False, True])
def test_extremes_travel_from_c_to_numpy(high):
    """Each integer type, alone and in an array, and text, through a real ring."""
    types = [*INTEGERS, *(f"{each}[3]" for each in INTEGERS), "char[16]"]
    probe = probe_of(types)
    fill = []
    for at, c in enumerate(types[:-1]):
        base, _, count = c.partition("[")
        value = f"({base}){extreme(base, high) % 2**64}ULL"
        places = [f"[{n}]" for n in range(3)] if count else [""]
        fill += [f"event->f{at}{place} = {value};" for place in places]
    text = (
        "XDP(fill) { struct shape0_event *event = shape0_reserve(); if (!event) return 1; "
        + " ".join(fill)
        + f' __builtin_memcpy(event->f{len(types) - 1}, "a name", 7); shape0_submit(event); return 2; }}\n'
    )
    result = compiled(probe, text)
    assert result.failed == {}
    loaded = result.loaded["shapes"]
    ring = Ring(loaded.maps["shape0"], dtype.event(probe.streams[0]))
    assert bpf_sys.prog_test_run(loaded.programs[0].fd, bytes(64)).retval == 2
    (event,) = ring.read()
    for at, c in enumerate(types[:-1]):
        base, _, count = c.partition("[")
        assert np.all(event[f"f{at}"] == extreme(base, high)), c
        assert event[f"f{at}"].shape == ((3,) if count else ())
    assert bytes(event[f"f{len(types) - 1}"]).partition(b"\0")[0] == b"a name"
    ring.close()
    result.close()


def test_padding_of_an_event_is_cleared():
    """No byte of kernel memory leaves in a hole of the struct."""
    probe = probe_of(["u8", "u64", "u16", "u32", "u8"])
    text = """XDP(fill) {
        struct shape0_event *event = shape0_reserve();
        if (!event) return 1;
        __builtin_memset(&event->f0, 1, 1); event->f1 = ~0ULL; event->f2 = ~0; event->f3 = ~0; event->f4 = ~0;
        shape0_submit(event);
        return 2;
    }\n"""
    result = compiled(probe, text)
    loaded = result.loaded["shapes"]
    shape = layout.event(probe.streams[0].fields)
    raw = np.dtype([("all", "u1", (shape.size,))])
    ring = Ring(loaded.maps["shape0"], raw)
    bpf_sys.prog_test_run(loaded.programs[0].fd, bytes(64))
    event = bytes(ring.read()[0]["all"])
    assert sum(each.c.size for each in shape.padding) == 16
    for hole in shape.padding:
        assert event[hole.offset : hole.offset + hole.c.size] == bytes(hole.c.size)
    ring.close()
    result.close()


def test_an_aggregates_slot_is_made_once_and_a_full_map_is_counted():
    probe = probe_of(["u8", "u32", "u64"], key=2)
    text = """SETTING(which, 0)
    XDP(count) {
        struct shape0_key key = {.f0 = 1, .f1 = setting(which)};
        struct shape0_value *value = shape0_slot(&key);
        if (!value) return 1;
        value->f2++;
        return 2;
    }\n"""
    source = loader.Source(
        "shapes",
        text='#include "common/probe.h"\n' + text,
        header=c_header.generate(probe),
        sizes={"shape0": 3},
    )
    loaded = loader.load([source]).loaded["shapes"]
    run = partial(bpf_sys.prog_test_run, loaded.programs[0].fd, bytes(64))
    verdicts = []
    for which in range(5):
        loaded.set("which", which)
        verdicts += [run().retval, run().retval]
    assert verdicts == [2, 2, 2, 2, 2, 2, 1, 1, 1, 1]
    table: Map = loaded.maps["shape0"]
    assert table.type == MapType.PERCPU_HASH
    keys, raw, count = table.read()
    values = (
        np.frombuffer(raw, dtype.value(probe.streams[0], table.stride)).reshape(count, -1)["f2"].sum(axis=1)
    )
    numbers = np.frombuffer(keys, dtype.key(probe.streams[0]))["f1"]
    assert dict(zip(numbers.tolist(), values.tolist(), strict=True)) == {0: 2, 1: 2, 2: 2}
    counts = np.frombuffer(loaded.maps["shapes_counts"].read()[1], "<u8").reshape(4, -1).sum(axis=1)
    assert counts.tolist() == [0, 4, 0, 10], "four found no room; it moved with each"
    loaded.close()


def test_structs_of_all_declared_probes_have_no_byte_without_a_name():
    for stream in declare.streams().values():
        for shape in (layout.event(stream.fields), layout.key(stream.fields), layout.value(stream.fields)):
            assert sum(each.c.size for each in shape.members) == shape.size
