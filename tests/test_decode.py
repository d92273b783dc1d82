"""Each host-side decoder: kernel values in, column out."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector import ksym
from collector.cgroup import Cgroups
from collector.clock import Clock, now_us
from collector.decode import Decoders, device_name, named, short_names
from collector.intern import Interner, Numbers, Texts
from schemas import declare, dtype, wire
from schemas.columns import Dictionary
from schemas.errors import BpfleetError


def strings(column: object) -> list[str]:
    assert isinstance(column, Dictionary)
    assert len(set(column.values)) == len(column.values)
    return column.strings()


@given(st.lists(st.lists(st.integers(0, 2**64 - 1), max_size=50), max_size=6), st.integers(1, 40))
def test_numbers_become_their_strings(batches: list[list[int]], limit: int) -> None:
    numbers = Numbers(hex)
    numbers.cache.limit = limit
    for batch in batches:
        assert strings(numbers(np.array(batch, np.uint64))) == [hex(each) for each in batch]


def test_signed_numbers_keep_their_sign() -> None:
    assert strings(Numbers(str)(np.array([-1, 5, -(2**31)], np.int32))) == ["-1", "5", str(-(2**31))]


def test_every_distinct_value_is_looked_up_once() -> None:
    asked: list[int] = []
    numbers = Numbers(lambda value: asked.append(value) or str(value))  # type: ignore[func-returns-value]
    values = np.random.default_rng(1).integers(0, 3000, 20_000).astype(np.uint64)
    for _ in range(3):
        assert strings(numbers(values)) == [str(each) for each in values.tolist()]
    assert len(asked) == len(set(asked)) == len(np.unique(values))


def test_a_forgotten_value_is_asked_again() -> None:
    names = {7: "before"}
    numbers = Numbers(lambda value: names[value])
    values = np.array([7], np.uint64)
    assert strings(numbers(values)) == ["before"]
    names[7] = "after"
    assert strings(numbers(values)) == ["before"]
    numbers.cache.forget(7)
    assert strings(numbers(values)) == ["after"]


def test_a_lookup_that_forgets_a_neighbour() -> None:
    cache = Interner()
    texts = {1: "old", 2: "two"}

    def lookup(key: int) -> str:
        if key == 2:
            texts[1] = "new"
            cache.forget(1)
        return texts[key]

    both = np.array([1, 2], np.uint64)
    cache.ids(both, lookup)
    assert cache.dictionary(cache.ids(both, lookup)).strings() == ["new", "two"]


@given(st.lists(st.lists(st.binary(max_size=16), min_size=1, max_size=30), max_size=5))
def test_text_ends_at_the_first_nul(batches: list[list[bytes]]) -> None:
    texts = Texts()
    for batch in batches:
        wanted = [each.partition(b"\0")[0].decode("utf-8", "replace") for each in batch]
        assert strings(texts(np.array(batch, "S16"))) == wanted


def test_what_follows_the_nul_does_not_matter() -> None:
    raw = np.frombuffer(b"sh\0garbagebytes\1" + b"sh\0otherbytes...", "S16")
    assert strings(Texts()(raw)) == ["sh", "sh"]


def test_text_whose_hashes_collide_stays_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("collector.intern._hash", lambda words: np.zeros(len(words), np.uint64))
    texts = Texts()
    batch = [b"one", b"two", b"three", b"two"]
    for _ in range(2):
        assert strings(texts(np.array(batch, "S16"))) == [each.decode() for each in batch]


def test_text_of_odd_and_long_widths() -> None:
    for width in (1, 3, 11, 256):
        batch = np.array([bytes([97 + i % 26]) * (i % width + 1) for i in range(200)], f"S{width}")
        assert strings(Texts()(batch)) == [each.decode() for each in batch.tolist()]


def test_more_texts_than_the_cache_keeps() -> None:
    texts = Texts()
    for start in range(0, 60_000, 10_000):
        batch = np.array([b"%d" % i for i in range(start, start + 10_000)], "S16")
        assert strings(texts(batch)) == [str(i) for i in range(start, start + 10_000)]


def test_kernel_time_is_wall_time() -> None:
    now = np.array([time.monotonic_ns()], np.uint64)
    assert abs(int(Clock().wall_us(now)[0]) - now_us()) < 50_000


def test_a_clock_step_reaches_later_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    ktime = np.array([time.monotonic_ns()], np.uint64)
    before = int(clock.wall_us(ktime)[0])
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() + 3_600_000_000_000)
    assert int(clock.wall_us(ktime)[0]) - before < 1_000_000  # at most a second old
    monkeypatch.setattr("collector.clock.REREAD_NS", 0)
    assert abs(int(clock.wall_us(ktime)[0]) - before - 3_600_000_000) < 50_000


def test_symbols_of_this_kernel() -> None:
    symbols = ksym.Symbols()
    if not symbols.read():
        pytest.fail("kallsyms shows no addresses; run as root with kptr_restrict below 2")
    lines = ksym.KALLSYMS.read_text().splitlines()
    wanted = {name: int(address, 16) for address, kind, name, *_ in map(str.split, lines) if kind in "tT"}
    for name in ("schedule", "tcp_v4_rcv", "vfs_read"):
        assert symbols.name(wanted[name]) == name
        assert symbols.name(wanted[name] + 9) == name


def test_symbols_from_a_listing(tmp_path: Path) -> None:
    file = tmp_path / "kallsyms"
    file.write_text(
        "0000000000000010 D data\nffffffff81000200 t later\nffffffff81000100 T first\n"
        "ffffffffc0000000 t send\t[veth]\n"
    )
    symbols = ksym.Symbols(file)
    assert [symbols.name(0xFFFFFFFF81000100 + at) for at in (0, 0xFF, 0x100)] == ["first", "first", "later"]
    assert symbols.name(0xFFFFFFFFC0000004) == "send [veth]"
    assert symbols.name(0xFFFFFFFF80FFFFFF) == "0xffffffff80ffffff"
    assert symbols.name(0) == ""


def test_hidden_symbols_stay_numbers(tmp_path: Path) -> None:
    file = tmp_path / "kallsyms"
    file.write_text("0000000000000000 T first\n0000000000000000 t later\n")
    assert ksym.Symbols(file).name(0xFFFFFFFF81000100) == "0xffffffff81000100"
    assert ksym.Symbols(tmp_path / "absent").name(16) == "0x10"


def test_devices_have_the_names_of_sys() -> None:
    known = next(Path("/sys/dev/block").iterdir())
    major, minor = map(int, known.name.split(":"))
    assert device_name(major << 20 | minor) == os.path.basename(known.readlink())  # noqa: PTH119
    assert device_name((4000 << 20) | 77) == "4000:77"
    assert device_name(0) == ""


def test_enum_names_lose_their_prefix() -> None:
    reasons = {"SKB_NOT_DROPPED_YET": 0, "SKB_CONSUMED": 1, "SKB_DROP_REASON_NO_SOCKET": 3,
               "SKB_DROP_REASON_TCP_CSUM": 5, "SKB_DROP_REASON_PKT_TOO_SMALL": 4}  # fmt: skip
    names = short_names(reasons)
    assert names[3] == "NO_SOCKET" and names[5] == "TCP_CSUM" and names[1] == "SKB_CONSUMED"
    assert named(names)(99) == "99"
    assert short_names({"TCP_ESTABLISHED": 1, "TCP_SYN_SENT": 2, "TCP_MAX_STATES": 3})[1] == "ESTABLISHED"


ALL = {
    "type": "record", "name": "all", "c.from": "ring",
    "fields": [
        {"name": "ts", "type": {"type": "long", "logicalType": "timestamp-micros"}, "c.type": "u64",
         "decode": "ktime"},
        {"name": "who", "type": "string", "c.type": "char[16]", "decode": "text"},
        {"name": "address", "type": {"type": "fixed", "name": "ip", "size": 16}, "c.type": "u8[16]",
         "decode": "ip"},
        {"name": "cgroup", "type": "string", "c.type": "u64", "decode": "cgroup"},
        {"name": "place", "type": "string", "c.type": "u64", "decode": "ksym"},
        {"name": "disk", "type": "string", "c.type": "u32", "decode": "device"},
        {"name": "op", "type": "string", "c.type": "u8", "decode": "names:read,write"},
        {"name": "reason", "type": "string", "c.type": "u32", "decode": "enum:some"},
        {"name": "size", "type": "long", "c.type": "u32"},
        {"name": "histogram", "type": {"type": "array", "items": "long"}, "c.type": "u32[27]"},
    ],
}  # fmt: skip


def test_a_whole_event_reaches_the_wire_and_back() -> None:
    stream = declare.parse("all", ALL).streams[0]
    events = np.zeros(3, dtype.event(stream))
    events["ts"] = time.monotonic_ns()
    events["who"] = [b"a", b"b", b"a"]
    events["address"][:, 15] = 1
    events["cgroup"] = 1
    events["op"] = [0, 1, 9]
    events["reason"] = [4, 4, 5]
    events["histogram"][1] = np.arange(27)
    decoders = Decoders(Clock(), Cgroups(), ksym.Symbols(), {"some": {4: "FOUR"}})
    schemas = wire.Schemas()
    schemas.add(wire.batch_schema(stream))
    message = wire.encode(stream, wire.Envelope("h", bytes(16), 0), decoders.columns(stream, events))
    batch = schemas.decode(message)
    assert strings(batch.columns["who"]) == ["a", "b", "a"]
    assert strings(batch.columns["cgroup"]) == ["/"] * 3
    assert strings(batch.columns["op"]) == ["read", "write", "9"]
    assert strings(batch.columns["reason"]) == ["FOUR", "FOUR", "5"]
    assert abs(int(batch.columns["ts"][2]) - now_us()) < 5_000_000  # type: ignore[index]


def test_an_enum_the_kernel_lacks_is_named() -> None:
    stream = declare.parse("all", ALL).streams[0]
    decoders = Decoders(Clock(), Cgroups(), ksym.Symbols())
    with pytest.raises(BpfleetError, match=r"all.reason: this kernel has no enum some"):
        decoders.columns(stream, np.zeros(1, dtype.event(stream)))
