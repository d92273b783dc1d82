"""Batches on the wire, judged by fastavro: equal, field by field, extremes included."""

import io
import json
from typing import Any

import fastavro
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas import declare, wire
from schemas.columns import Dictionary, InvalidBatch
from schemas.declare import INTEGERS, Stream

TIME = {"type": "long", "logicalType": "timestamp-micros"}
IP = {"type": "fixed", "name": "ip", "size": 16}


def wide_stream() -> Stream:
    """One field of every kind that a declaration can have."""
    fields: list[dict[str, Any]] = [{"name": "ts", "type": TIME, "c.type": "u64", "decode": "ktime"}]
    for base in INTEGERS:
        bound = {"c.bound": 2**63 - 1} if base == "u64" else {}
        fields.append({"name": f"f_{base}", "type": "long", "c.type": base, **bound})
    fields += [
        {"name": "addr", "type": IP, "c.type": "u8[16]", "decode": "ip"},
        {"name": "comm", "type": "string", "c.type": "char[16]", "decode": "text"},
        {"name": "flag", "type": "boolean", "c.type": "u8"},
        {"name": "hist", "type": {"type": "array", "items": "long"}, "c.type": "u32[27]"},
    ]
    return declare.parse(
        "wide", {"type": "record", "name": "wide", "c.from": "ring", "fields": fields}
    ).streams[0]


WIDE = wide_stream()


def column_of(name: str, rows: int, rng: np.random.Generator) -> Any:
    if name == "comm":
        values = ["", "a", "ein längerer Name", "\x00\U0001f41d"]
        return Dictionary(values, rng.integers(0, len(values), rows).astype(np.uint32))
    if name == "addr":
        return rng.integers(0, 256, (rows, 16)).astype(np.uint8)
    if name == "hist":
        return rng.integers(0, 2**32, (rows, 27)).astype(np.uint32)
    if name in ("flag",):
        return rng.integers(0, 2, rows).astype(np.uint8)
    if name == "ts":
        return rng.integers(-(2**63), 2**63 - 1, rows)
    base = name.removeprefix("f_")
    dtype = np.dtype(f"{'i' if base[0] == 's' else 'u'}{INTEGERS[base]}")
    info = np.iinfo(dtype)
    column = rng.integers(info.min, info.max, rows, dtype=dtype, endpoint=True)
    column[: min(2, rows)] = [info.min, info.max][: min(2, rows)]
    return column


def same(ours: Any, sent: Any, bound: int | None) -> bool:
    if isinstance(sent, Dictionary):
        return bool(ours.strings() == sent.strings())
    return bool(np.array_equal(ours, np.minimum(sent, bound) if bound else sent))


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 300),
    seed=st.integers(0, 2**32),
    host=st.text(max_size=40),
    seq=st.sampled_from([0, 1, 63, 64, 8191, 2**31, 2**62, 2**63 - 1]),
)
def test_what_is_written_reads_back_equal(rows: int, seed: int, host: str, seq: int) -> None:
    rng = np.random.default_rng(seed)
    columns = {each.name: column_of(each.name, rows, rng) for each in WIDE.fields}
    envelope = wire.Envelope(host.encode("utf-8", "replace").decode(), rng.bytes(16), seq, 1000)
    message = wire.encode(WIDE, envelope, columns)
    known = wire.Schemas()
    known.add(wire.batch_schema(WIDE))
    batch = known.decode(message)
    assert batch.envelope == envelope and batch.rows == rows and batch.stream == "wide"
    for field in WIDE.fields:
        assert same(batch.columns[field.name], columns[field.name], field.bound), field.name


def test_fastavro_agrees_on_form_and_fingerprint() -> None:
    for stream in [WIDE, *declare.streams().values()]:
        schema = wire.batch_schema(stream)
        assert fastavro.schema.to_parsing_canonical_form(json.loads(schema)) == schema
        ours = wire.fingerprint(schema).to_bytes(8, "little").hex()
        assert fastavro.schema.fingerprint(schema, "CRC-64-AVRO") == ours
        fastavro.parse_schema(wire.row_schema(stream))


def test_annotations_do_not_travel() -> None:
    for stream in [WIDE, *declare.streams().values()]:
        for text in (wire.batch_schema(stream), json.dumps(wire.row_schema(stream))):
            assert '"c.' not in text and '"ch.' not in text and '"decode"' not in text


def message_of(rows: int = 3) -> bytes:
    rng = np.random.default_rng(1)
    columns = {each.name: column_of(each.name, rows, rng) for each in WIDE.fields}
    return wire.encode(WIDE, wire.Envelope("h", bytes(16), 5), columns)


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_broken_messages_are_refused_or_read(data: st.DataObject) -> None:
    """Any damage ends in InvalidBatch or in a consistent batch; in nothing else."""
    known = wire.Schemas()
    known.add(wire.batch_schema(WIDE))
    message = bytearray(message_of())
    for _ in range(data.draw(st.integers(1, 4))):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(message)))
    try:
        batch = known.decode(bytes(message[:cut]) if data.draw(st.booleans()) else bytes(message))
    except InvalidBatch:
        return
    assert all(len(column) == batch.rows for column in batch.columns.values())


def test_truncation_and_trailing_bytes_are_refused() -> None:
    known = wire.Schemas()
    known.add(wire.batch_schema(WIDE))
    message = message_of()
    for cut in range(len(message)):
        with pytest.raises(InvalidBatch):
            known.decode(message[:cut])
    with pytest.raises(InvalidBatch, match="1 bytes follow"):
        known.decode(message + b"\0")


def test_unknown_schema_is_named() -> None:
    with pytest.raises(InvalidBatch, match="unknown schema"):
        wire.Schemas().decode(message_of())


def test_fastavro_reads_the_datum_by_itself() -> None:
    record: Any = fastavro.schemaless_reader(
        io.BytesIO(message_of()[10:]), fastavro.parse_schema(json.loads(wire.batch_schema(WIDE)))
    )
    assert record["host"] == "h" and record["seq"] == 5 and record["rows"] == 3
