"""A batch as rows: for people (JSON), for other tools (an ordinary Avro container file); rows as columns.

Not for hot paths: this is the one place where Python runs once a row.
"""

import ipaddress
import uuid
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from schemas.columns import Column, Dictionary
from schemas.declare import Field, Stream
from schemas.wire import Batch

Row = dict[str, Any]


def avro_rows(stream: Stream, batch: Batch) -> Iterator[Row]:
    """Rows of :func:`schemas.wire.row_schema`; times as µs since 1970, fixed as bytes.

    A field that an older collector did not send yet reads its default.
    """
    envelope = batch.envelope
    shared = {"host": envelope.host, "boot": envelope.boot, "seq": envelope.seq}
    shared["sample_rate"] = envelope.sample_rate
    names = [each.name for each in stream.fields]
    for values in zip(*(_values(each, batch) for each in stream.fields), strict=True):
        yield shared | dict(zip(names, values, strict=True))


def _values(field: Field, batch: Batch) -> list[Any]:
    column = batch.columns.get(field.name)
    if column is None:
        return [field.default] * batch.rows
    if isinstance(column, Dictionary):
        return column.strings()
    if field.avro_kind == "fixed":
        return [row.tobytes() for row in column]
    if field.avro_kind == "boolean":
        return [bool(each) for each in column.tolist()]
    values: list[Any] = column.tolist()
    return values


def json_rows(stream: Stream, batch: Batch) -> Iterator[Row]:
    """Rows that read well: addresses and times as text, raw bytes as hexadecimal."""
    show = {each.name: _reader(each) for each in stream.fields}
    for row in avro_rows(stream, batch):
        row["boot"] = str(uuid.UUID(bytes=row["boot"]))
        for name, reader in show.items():
            if reader is not None and row[name] is not None:
                row[name] = reader(row[name])
        yield row


def _reader(field: Field) -> Any:
    if field.is_time:
        return time_text
    if field.decode == "ip":
        return address_text
    return bytes.hex if field.avro_kind == "fixed" else None


def time_text(micros: int) -> str:
    """µs since 1970 as ISO 8601 in UTC; a time no calendar has stays a number."""
    try:
        return datetime.fromtimestamp(micros // 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%S.") + (
            f"{micros % 1_000_000:06d}Z"
        )
    except (OverflowError, ValueError, OSError):
        return str(micros)


def address_text(packed: bytes) -> str:
    """A 16-byte address; IPv4-mapped ones as IPv4."""
    address = ipaddress.IPv6Address(packed)
    return str(address.ipv4_mapped or address)


def columns(stream: Stream, rows: Sequence[Mapping[str, Any]]) -> dict[str, Column]:
    """The columns of a stream whose rows are made in Python; what a row leaves out is 0 or empty."""
    return {each.name: column(each, [row.get(each.name) for row in rows]) for each in stream.fields}


def column(field: Field, values: Sequence[Any]) -> Column:
    """One column from plain values: text, numbers, µs, bytes, lists of numbers; None is 0 or empty."""
    if field.avro_kind == "string":
        return _dictionary(["" if each is None else str(each) for each in values])
    if field.avro_kind == "fixed":
        size = int(field.avro["size"])
        joined = b"".join(bytes(size) if each is None else each for each in values)
        return np.frombuffer(joined, np.uint8).reshape(len(values), size)
    if field.avro_kind == "array":
        none = [0] * (field.c.count if field.c and field.c.count else 1)
        return np.array([none if each is None else each for each in values], np.int64)
    kind = np.float64 if field.avro_kind in ("float", "double") else np.int64
    return np.array([0 if each is None else each for each in values], kind)


def _dictionary(texts: list[str]) -> Dictionary:
    place: dict[str, int] = {}
    index = [place.setdefault(text, len(place)) for text in texts]
    return Dictionary(list(place), np.array(index, np.uint32))
