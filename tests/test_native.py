"""Native blocks judged by the engine itself: what fastavro reads in a message is what SQL answers."""

import io
import ipaddress
import json
import uuid
from collections.abc import Iterator
from typing import Any

import fastavro
import numpy as np
import pytest
from conftest import StoreProcess
from hypothesis import given, settings
from hypothesis import strategies as st
from sinking import TIME
from test_wire import WIDE, column_of

from schemas import ddl, declare, wire
from schemas.columns import Dictionary, packing, unpack, unpack_index
from schemas.config import Clickhouse
from schemas.declare import Stream
from schemas.errors import UsageError
from sinks import native, order
from sinks.writer import Table, Writer

DAY = 86_400_000_000
HOST = declare.parse("made", {
    "type": "record", "name": "made", "fields": [
        {"name": "ts", "type": TIME, "decode": "now"},
        {"name": "i", "type": "int"}, {"name": "l", "type": "long"}, {"name": "f", "type": "float"},
        {"name": "d", "type": "double"}, {"name": "b", "type": "boolean"}, {"name": "s", "type": "string"},
        {"name": "raw", "type": {"type": "fixed", "name": "raw", "size": 5}},
        {"name": "id", "type": {"type": "fixed", "name": "id", "size": 16}, "ch.type": "UUID"},
        {"name": "plain", "type": "string", "ch.type": "String"},
        {"name": "narrow", "type": "long", "ch.type": "UInt16"},
    ],
}).streams[0]  # fmt: skip


@pytest.fixture(scope="module")
def writer(store: StoreProcess) -> Iterator[Writer]:
    config = Clickhouse(url=store.url, database="native")
    made = Writer(config)
    made.execute(ddl.database(config))
    for stream in (WIDE, HOST):
        columns = ", ".join(f"{ddl.quote(name)} {kind}" for name, (kind, _) in ddl.columns(stream).items())
        made.execute(f"CREATE OR REPLACE TABLE native.{stream.name} ({columns}) ENGINE = Memory")
    try:
        yield made
    finally:
        made.execute("DROP DATABASE native")
        made.close()


def host_column(name: str, rows: int, rng: np.random.Generator) -> Any:
    if name in ("s", "plain"):
        values = ["", "x" * 127, "y" * 128, "z" * 20_000, "naïve \U0001f41d", "a\x00b"]
        return Dictionary(values, rng.integers(0, len(values), rows).astype(np.uint32))
    if name in ("raw", "id"):
        return rng.integers(0, 256, (rows, 5 if name == "raw" else 16)).astype(np.uint8)
    if name in ("f", "d"):
        special = np.array([0.0, -0.0, np.inf, -np.inf, 1e-38, 1e38])
        return special[rng.integers(0, len(special), rows)].astype("f4" if name == "f" else "f8")
    if name == "b":
        return rng.integers(0, 2, rows).astype(np.uint8)
    if name == "narrow":
        return rng.integers(0, 2**16, rows)
    info = np.iinfo(np.int32 if name == "i" else np.int64)
    column = rng.integers(info.min, info.max, rows, dtype=info.dtype, endpoint=True)
    column[: min(2, rows)] = [info.min, info.max][: min(2, rows)]
    return column


def oracle(stream: Stream, message: bytes) -> list[dict[str, Any]]:
    """The rows of a message as fastavro reads it, with the packing undone: times in µs, bytes as they are."""
    schema = fastavro.parse_schema(json.loads(wire.batch_schema(stream)))
    record: Any = fastavro.schemaless_reader(io.BytesIO(message[10:]), schema)
    rows = record["rows"]
    columns: dict[str, list[Any]] = {}
    for field in json.loads(wire.batch_schema(stream))["fields"][wire.ENVELOPE_FIELDS :]:
        kind = field["type"] if isinstance(field["type"], str) else field["type"]["name"]
        how, sent = packing(kind.removeprefix("bpfleet.column.")), record[field["name"]]
        if how is None:
            index = unpack_index(sent["data"], len(sent["values"]), rows)
            columns[field["name"]] = [sent["values"][each] for each in index]
        else:
            array = unpack(sent["data"], how, rows)
            fixed = how.name.startswith("u8x")
            columns[field["name"]] = [each.tobytes() for each in array] if fixed else array.tolist()
    shared = {name: record[name] for name in ("host", "seq", "sample_rate")}
    shared["boot"] = uuid.UUID(bytes=record["boot"])
    return [shared | dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def as_stored(row: dict[str, Any], stream: Stream) -> dict[str, Any]:
    """An oracle's row in the form in which SQL answers it."""
    shown = dict(row)
    for field in stream.fields:
        kind = ddl.column_type(field)
        if kind == "IPv6":
            shown[field.name] = ipaddress.IPv6Address(row[field.name])
        elif kind == "UUID":
            shown[field.name] = uuid.UUID(bytes=row[field.name])
        elif kind == "Bool":
            shown[field.name] = bool(row[field.name])
    return shown


def stored(writer: Writer, stream: Stream) -> list[dict[str, Any]]:
    """All rows in the order of insertion; times as µs, fixed strings as bytes."""
    types = {name: kind for name, (kind, _) in ddl.columns(stream).items()}
    shown = [
        f"toUnixTimestamp64Micro({name})" if kind.startswith("DateTime") else name
        for name, kind in types.items()
    ]
    answer = writer._client.query(
        f"SELECT {', '.join(shown)} FROM native.{stream.name}", query_formats={"FixedString": "bytes"}
    )
    return [dict(zip(types, row, strict=True)) for row in answer.result_rows]


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 200), min_size=1, max_size=5),
    seed=st.integers(0, 2**32),
    host=st.text(max_size=30),
    stream=st.sampled_from([WIDE, HOST]),
)
def test_the_engine_stores_what_fastavro_reads(
    writer: Writer, sizes: list[int], seed: int, host: str, stream: Stream
) -> None:
    rng = np.random.default_rng(seed)
    make = column_of if stream is WIDE else host_column
    known = wire.Schemas()
    known.add(wire.batch_schema(stream))
    messages = [
        wire.encode(
            stream,
            wire.Envelope(
                host.encode("utf-8", "replace").decode(), rng.bytes(16), int(rng.integers(2**63)), number + 1
            ),
            {each.name: make(each.name, rows, rng) for each in stream.fields},
        )
        for number, rows in enumerate(sizes)
    ]
    table = Table(stream.name, {name: kind for name, (kind, _) in ddl.columns(stream).items()})
    writer.execute(f"TRUNCATE TABLE native.{stream.name}")
    writer.insert(table, [known.decode(each) for each in messages], "")
    wanted = [as_stored(row, stream) for message in messages for row in oracle(stream, message)]
    assert stored(writer, stream) == wanted


def decoded(stream: Stream, rows: int, **columns: Any) -> wire.Batch:
    rng = np.random.default_rng(1)
    body = {each.name: host_column(each.name, rows, rng) for each in stream.fields}
    known = wire.Schemas()
    known.add(wire.batch_schema(stream))
    return known.decode(wire.encode(stream, wire.Envelope("h", bytes(16), 0), body | columns))


def test_a_batch_is_split_at_midnight() -> None:
    times = np.array([DAY - 1, DAY, 3 * DAY, DAY + 1, 0])
    parts = dict(native.split(decoded(HOST, 5, ts=times)))
    assert {day: part.columns["ts"].tolist() for day, part in parts.items()} == {  # type: ignore[union-attr]
        0: [DAY - 1, 0], 1: [DAY, DAY + 1], 3: [3 * DAY],
    }  # fmt: skip
    assert all(len(column) == part.rows for part in parts.values() for column in part.columns.values())


@pytest.mark.parametrize("ts", [-1, (native.LAST_DAY + 1) * DAY, 2**63 - 1, -(2**63)])
def test_times_that_no_partition_holds_are_refused(ts: int) -> None:
    with pytest.raises(native.TimeOutOfRange):
        native.day_range(decoded(HOST, 3, ts=np.array([0, ts, 0])))


@pytest.mark.parametrize("count", [1, 255, 256, 257, 65_536, 65_537])
def test_dictionaries_of_every_index_width(writer: Writer, count: int) -> None:
    values = [f"v{number}" for number in range(count)]
    half = count // 2
    parts = [
        decoded(HOST, len(some), s=Dictionary(some, np.arange(len(some), dtype=np.uint32)[::-1].copy()))
        for some in (values[:half], values[half:], values[:1])
        if some
    ]
    writer.execute("TRUNCATE TABLE native.made")
    table = Table("made", {name: kind for name, (kind, _) in ddl.columns(HOST).items()})
    writer.insert(table, parts, "")
    wanted = [*values[:half][::-1], *values[half:][::-1], values[0]]
    assert [row[0] for row in writer.rows("SELECT s FROM native.made")] == wanted


def test_values_stand_once_in_a_block() -> None:
    parts = [
        Dictionary(["a", "b", "a"], np.array([0, 1, 2], np.uint32)),
        Dictionary(["b"], np.zeros(2, np.uint32)),
    ]
    values, indexes = order.merge(parts)
    assert values == ["a", "b"] and [each.tolist() for each in indexes] == [[0, 1, 0], [1]]


def test_a_type_without_native_form_is_named() -> None:
    assert not native.insertable("Map(String, String)") and native.insertable("Array(UInt32)")
    with pytest.raises(UsageError, match="Map"):
        native.column("Map(String, String)", [np.arange(3)])
