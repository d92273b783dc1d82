"""A batch on the wire: Avro single-object encoding of one record whose fields are columns.

The layout of a message (https://avro.apache.org/docs/1.12.0/specification/#single-object-encoding):
2 marker bytes, the 8-byte little-endian CRC-64-AVRO fingerprint of the batch's schema, the datum.
Encoding is ours (a collector carries no Avro library); decoding, and the judge in tests, is fastavro.
"""

import io
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from schemas.columns import (
    Column,
    Dictionary,
    InvalidBatch,
    Packing,
    pack,
    pack_index,
    packing,
    packing_name,
    unpack,
    unpack_index,
)
from schemas.declare import Field, Stream

MARKER = b"\xc3\x01"
EMPTY = 0xC15D213AA4D7A795  # CRC-64-AVRO of nothing, and its polynomial
ENVELOPE_FIELDS = 5  # host, boot, seq, sample_rate, rows: then come the columns
MAX_ROWS = 4_000_000  # no batch of ours is near; a larger claim is a broken message


@dataclass(frozen=True)
class Envelope:
    """What every batch says of itself."""

    host: str
    boot: bytes  # the kernel's boot id, 16 bytes
    seq: int  # of this host and stream, from 0, without gaps
    sample_rate: int = 1  # one event in so many was kept


@dataclass(frozen=True)
class Batch:
    """A decoded message: equally long columns of one stream from one host."""

    stream: str
    envelope: Envelope
    rows: int
    columns: dict[str, Column]


# ── Schemas ──────────────────────────────────────────────────────────────────────────────────────


def _column_type(name: str, seen: set[str]) -> Any:
    full = f"bpfleet.column.{name}"
    if name in seen:
        return full
    seen.add(name)
    values = (
        [{"name": "values", "type": {"type": "array", "items": "string"}}] if name == "dictionary" else []
    )
    return {"name": full, "type": "record", "fields": [*values, {"name": "data", "type": "bytes"}]}


@lru_cache(maxsize=256)
def batch_schema(stream: Stream) -> str:
    """The Avro schema of a stream's batches, already in Parsing Canonical Form."""
    seen: set[str] = set()
    fields: list[dict[str, Any]] = [
        {"name": "host", "type": "string"},
        {"name": "boot", "type": {"name": "bpfleet.uuid", "type": "fixed", "size": 16}},
        {"name": "seq", "type": "long"},
        {"name": "sample_rate", "type": "long"},
        {"name": "rows", "type": "long"},
    ]
    fields += [{"name": each.name, "type": _column_type(packing_name(each), seen)} for each in stream.fields]
    record = {"name": f"bpfleet.{stream.name}", "type": "record", "fields": fields}
    return json.dumps(record, separators=(",", ":"))


def row_schema(stream: Stream) -> dict[str, Any]:
    """The ordinary, row-wise Avro schema: the declaration without annotations, and the envelope."""
    envelope: list[dict[str, Any]] = [
        {"name": "host", "type": "string"},
        {"name": "boot", "type": {"name": "bpfleet.uuid", "type": "fixed", "size": 16}},
        {"name": "seq", "type": "long"},
        {"name": "sample_rate", "type": "long"},
    ]
    time = {"type": "long", "logicalType": "timestamp-micros"}
    fields = [
        {"name": each.name, "type": time if each.is_time else each.avro, "doc": each.doc}
        for each in stream.fields
    ]
    return {
        "name": f"bpfleet.{stream.name}",
        "type": "record",
        "doc": stream.doc,
        "fields": envelope + fields,
    }


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = (crc >> 1) ^ (EMPTY if crc & 1 else 0)
        table.append(crc)
    return table


CRC_TABLE = _crc_table()


def fingerprint(schema: str) -> int:
    """CRC-64-AVRO of a schema in Parsing Canonical Form."""
    crc = EMPTY
    for byte in schema.encode():
        crc = (crc >> 8) ^ CRC_TABLE[(crc ^ byte) & 0xFF]
    return crc


# ── Encoding ─────────────────────────────────────────────────────────────────────────────────────


def _long(value: int) -> bytes:
    """An Avro long: zig-zag, seven bits a byte."""
    if 0 <= value < len(_SMALL):
        return _SMALL[value]
    return _any_long(value)


def _any_long(value: int) -> bytes:
    rest = (value << 1) ^ (value >> 63)
    out = bytearray()
    while rest > 0x7F:
        out.append(rest & 0x7F | 0x80)
        rest >>= 7
    out.append(rest)
    return bytes(out)


_SMALL = [_any_long(value) for value in range(256)]  # most are lengths of small columns


def _bytes(value: bytes) -> bytes:
    size = len(value)
    return (_SMALL[size] if size < len(_SMALL) else _any_long(size)) + value


@lru_cache(maxsize=4096)
def _text(value: str) -> bytes:
    return _bytes(value.encode("utf-8", "replace"))


@lru_cache(maxsize=256)
def _plan(stream: Stream) -> tuple[bytes, list[tuple[Field, Packing | None]]]:
    header = MARKER + struct.pack("<Q", fingerprint(batch_schema(stream)))
    return header, [(each, packing(packing_name(each))) for each in stream.fields]


def encode(stream: Stream, envelope: Envelope, columns: Mapping[str, Column]) -> bytes:
    """One message from equally long columns, one for each field of the stream.

    Unsigned values above a field's bound are clamped to it. Raises ValueError when a column is missing
    or of another length: a fault of the caller.
    """
    header, plan = _plan(stream)
    rows = len(columns[stream.fields[0].name])
    parts = [header, _bytes(envelope.host.encode()), envelope.boot, _long(envelope.seq),
             _long(envelope.sample_rate), _long(rows)]  # fmt: skip
    for field, how in plan:
        column = columns[field.name]
        if len(column) != rows:
            raise ValueError(f"{stream.name}.{field.name}: {len(column)} rows, not {rows}")
        if isinstance(column, Dictionary):
            parts += _dictionary(column)
        elif how is None:
            raise ValueError(f"{stream.name}.{field.name} is a dictionary column")
        else:
            clamped = np.minimum(column, field.bound) if field.bound is not None else column
            parts.append(_bytes(pack(clamped, how)))
    return b"".join(parts)


def _dictionary(column: Dictionary) -> list[bytes]:
    values = list(map(_text, column.values))
    blocks = [_long(len(values)), *values] if values else []
    return [*blocks, b"\0", _bytes(pack_index(column.index, len(values)))]


# ── Decoding ─────────────────────────────────────────────────────────────────────────────────────


class Schemas:
    """What a reader knows: fingerprint → parsed batch schema."""

    def __init__(self) -> None:
        self._parsed: dict[int, Any] = {}

    def add(self, schema: str) -> int:
        """Learn a schema (Avro JSON of a batch); returns its fingerprint. Raises :class:`InvalidBatch`."""
        import fastavro

        try:
            canonical = fastavro.schema.to_parsing_canonical_form(json.loads(schema))
            key = fingerprint(canonical)
            if key not in self._parsed:
                self._parsed[key] = fastavro.parse_schema(json.loads(schema))
        except Exception as error:
            raise InvalidBatch(f"not an Avro schema: {error}") from None
        return key

    def __contains__(self, key: int) -> bool:
        return key in self._parsed

    def decode(self, message: bytes) -> Batch:
        """Raises :class:`InvalidBatch` for anything that is not a whole, consistent batch."""
        import fastavro

        schema = self._parsed.get(schema_of(message))
        if schema is None:
            raise InvalidBatch(f"unknown schema {schema_of(message):016x}")
        stream = io.BytesIO(message)
        stream.seek(10)
        try:
            record: Any = fastavro.schemaless_reader(stream, schema)
        except Exception as error:
            raise InvalidBatch(f"not an Avro datum of its schema: {type(error).__name__}: {error}") from None
        if stream.tell() != len(message):
            raise InvalidBatch(f"{len(message) - stream.tell()} bytes follow the datum")
        return _batch(schema, record)


def peek(message: bytes) -> Envelope:
    """The envelope alone, which needs no schema: it comes first in each. Raises :class:`InvalidBatch`."""
    schema_of(message)
    try:
        size, at = _read_long(message, 10)
        host, boot = message[at : at + size].decode(), message[at + size : at + size + 16]
        seq, at = _read_long(message, at + size + 16)
        sample_rate, _ = _read_long(message, at)
    except (IndexError, ValueError):
        raise InvalidBatch("ends within its envelope") from None
    return Envelope(host, boot, seq, sample_rate)


def _read_long(data: bytes, at: int) -> tuple[int, int]:
    """An Avro long and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return (value >> 1) ^ -(value & 1), at


def schema_of(message: bytes) -> int:
    """The fingerprint that a message names. Raises :class:`InvalidBatch` when it is not framed as ours."""
    if len(message) < 10 or message[:2] != MARKER:
        raise InvalidBatch("not Avro single-object encoding")
    return int(struct.unpack_from("<Q", message, 2)[0])


def _batch(schema: Any, record: dict[str, Any]) -> Batch:
    rows = record["rows"]
    if not 0 < rows <= MAX_ROWS:
        raise InvalidBatch(f"claims {rows} rows")
    envelope = Envelope(record["host"], record["boot"], record["seq"], record["sample_rate"])
    columns: dict[str, Column] = {}
    for field in schema["fields"][ENVELOPE_FIELDS:]:
        kind = field["type"] if isinstance(field["type"], str) else field["type"]["name"]
        columns[field["name"]] = _column(kind.removeprefix("bpfleet.column."), record[field["name"]], rows)
    return Batch(schema["name"].removeprefix("bpfleet."), envelope, rows, columns)


def _column(kind: str, value: Any, rows: int) -> Column:
    how = packing(kind)
    if how is not None:
        return unpack(value["data"], how, rows)
    index = unpack_index(value["data"], len(value["values"]), rows)
    return Dictionary(value["values"], index)
