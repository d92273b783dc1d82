"""Columns on the wire: packed bytes against standard Avro arrays, in total CPU from events to the table.

The same batches of 25 columns in three ways: packed (ours); arrays through fastavro; arrays whose varints
numpy writes and reads. Each is encoded, compressed and decompressed as librdkafka does it (zstd, level 3),
decoded, made into a Native block and inserted into the engine, all in this process.
"""

import io
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import fastavro
import numpy as np
import zstandard
from numpy.typing import NDArray

from bench import packets
from bench.common import Row, Times, in_turns, ratio_text
from schemas import ddl, wire
from schemas.columns import Column, Dictionary
from schemas.config import Clickhouse
from schemas.declare import Field
from sinks import native

BATCHES, ROWS = 10, 5_000
EVENTS = BATCHES * ROWS
ROUNDS = 5
WORTH = 1.5  # standard arrays win unless packing saves so much
FIELDS = packets.STREAM.fields
TYPES = {name: kind for name, (kind, _) in ddl.columns(packets.STREAM).items()}
ENVELOPE = wire.Envelope("host-1", bytes(range(16)), 0)


# ── Arrays through fastavro ──────────────────────────────────────────────────────────────────────


def _items(field: Field) -> Any:
    if field.avro_kind == "string":
        fields = [("values", "string"), ("index", "int")]
        inner = [{"name": name, "type": {"type": "array", "items": item}} for name, item in fields]
        return {"type": "record", "name": f"dictionary_{field.name}", "fields": inner}
    item = {"type": "fixed", "name": f"fixed_{field.name}", "size": 16} if field.decode == "ip" else "long"
    return {"type": "array", "items": item}


SCHEMA = fastavro.parse_schema({
    "type": "record", "name": "arrays",
    "fields": [{"name": each.name, "type": _items(each)} for each in FIELDS],
})  # fmt: skip


def fastavro_encode(columns: dict[str, Column]) -> bytes:
    record: dict[str, Any] = {}
    for field in FIELDS:
        column = columns[field.name]
        if isinstance(column, Dictionary):
            record[field.name] = {"values": column.values, "index": column.index.tolist()}
        elif field.decode == "ip":
            data = column.tobytes()
            record[field.name] = [data[at : at + 16] for at in range(0, len(data), 16)]
        else:
            record[field.name] = column.tolist()
    out = io.BytesIO()
    fastavro.schemaless_writer(out, SCHEMA, record)
    return out.getvalue()


def fastavro_decode(message: bytes) -> dict[str, Column]:
    record: Any = fastavro.schemaless_reader(io.BytesIO(message), SCHEMA)
    columns: dict[str, Column] = {}
    for field in FIELDS:
        sent = record[field.name]
        if isinstance(sent, dict):
            columns[field.name] = Dictionary(sent["values"], np.array(sent["index"], np.uint32))
        elif field.decode == "ip":
            columns[field.name] = np.frombuffer(b"".join(sent), np.uint8).reshape(-1, 16)
        else:
            columns[field.name] = np.array(sent, _dtype(field))
    return columns


def _dtype(field: Field) -> "np.dtype[Any]":
    kind = TYPES[field.name]
    return np.dtype("<i8") if kind.startswith("DateTime") else native.NUMBERS[kind]


# ── The same arrays, their varints by numpy ──────────────────────────────────────────────────────


def varints(values: NDArray[Any]) -> bytes:
    """Avro longs, all at once: zig-zag, seven bits a byte."""
    signed = values.astype(np.int64)
    rest = ((signed << 1) ^ (signed >> 63)).view(np.uint64)
    width = max(1, (int(rest.max()).bit_length() + 6) // 7)
    groups = (rest[:, None] >> (7 * np.arange(width, dtype=np.uint64))) & np.uint64(0x7F)
    above = rest[:, None] >> (7 * np.arange(1, width + 1, dtype=np.uint64)) != 0
    used = np.concatenate([np.ones((len(rest), 1), bool), above[:, :-1]], axis=1)
    written: bytes = (groups.astype(np.uint8) | above.astype(np.uint8) << 7)[used].tobytes()
    return written


def read_varints(data: NDArray[np.uint8], count: int) -> tuple[NDArray[np.int64], int]:
    """``count`` longs from the start of ``data``, and how many bytes they took."""
    ends = np.flatnonzero(data < 0x80)[:count] + 1
    starts = np.concatenate([[0], ends[:-1]])
    size = int(ends[-1])
    place = np.arange(size) - np.repeat(starts, ends - starts)
    parts = (data[:size] & 0x7F).astype(np.uint64) << (7 * place).astype(np.uint64)
    raw = np.add.reduceat(parts, starts)
    return (raw >> np.uint64(1)).view(np.int64) ^ -(raw & np.uint64(1)).view(np.int64), size


def numpy_encode(columns: dict[str, Column]) -> bytes:
    """Byte for byte what fastavro writes."""
    parts: list[bytes] = []
    for field in FIELDS:
        column = columns[field.name]
        if isinstance(column, Dictionary):
            values = [wire._bytes(each.encode()) for each in column.values]
            parts += [wire._long(len(values)), *values, b"\0"]
            body, rows = varints(column.index), len(column.index)
        else:
            body, rows = (column.tobytes() if field.decode == "ip" else varints(column)), len(column)
        parts += [wire._long(rows), body, b"\0"]
    return b"".join(parts)


def numpy_decode(message: bytes) -> dict[str, Column]:
    data, at = np.frombuffer(message, np.uint8), 0
    columns: dict[str, Column] = {}

    def long() -> int:
        nonlocal at
        value, size = read_varints(data[at : at + 10], 1)
        at += size
        return int(value[0])

    for field in FIELDS:
        words: list[str] = []
        if field.avro_kind == "string":
            for _ in range(long()):
                size = long()
                words.append(message[at : at + size].decode())
                at += size
            at += 1
        rows = long()
        if field.decode == "ip":
            columns[field.name] = data[at : at + 16 * rows].reshape(rows, 16)
            at += 16 * rows
        else:
            values, size = read_varints(data[at:], rows)
            at += size
            index = Dictionary(words, values.astype(np.uint32))
            columns[field.name] = index if words else values.astype(_dtype(field))
        at += 1
    return columns


# ── All the way ──────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Way:
    """One representation: how it is written and read."""

    encode: Callable[[dict[str, Column]], bytes]
    decode: Callable[[bytes], dict[str, Column]]


def _packed() -> Way:
    known = wire.Schemas()
    known.add(wire.batch_schema(packets.STREAM))
    return Way(
        lambda columns: wire.encode(packets.STREAM, ENVELOPE, columns),
        lambda data: known.decode(data).columns,
    )


WAYS = {"packed": _packed(), "arrays, fastavro": Way(fastavro_encode, fastavro_decode),
        "arrays, numpy varints": Way(numpy_encode, numpy_decode)}  # fmt: skip


class Table:
    """The engine in this process, with the table of the events."""

    def __init__(self, directory: str) -> None:
        from chdb import _chdb

        engine: Any = _chdb
        self.file = f"{directory}/block"
        self.connection = engine.connect(f"{directory}/engine")
        config = Clickhouse(database="wire")
        for statement in (ddl.database(config), *ddl.create(packets.STREAM, config)):
            self.connection.query(statement, "Null")

    def insert(self, columns: list[dict[str, Column]]) -> None:
        batches = [wire.Batch("bench_packet", ENVELOPE, ROWS, each) for each in columns]
        with open(self.file, "wb") as file:  # noqa: PTH123
            file.write(native.block(TYPES, batches))
        name = f"wire.{packets.STREAM.name}"
        into = f"INSERT INTO {name} FROM INFILE '{self.file}' COMPRESSION 'none' FORMAT Native"
        self.connection.query("SYSTEM STOP MERGES", "Null")
        self.connection.query(into, "Null")
        self.connection.query(f"TRUNCATE TABLE {name}", "Null")


def check(columns: dict[str, Column]) -> None:
    """All three ways give the same columns; the two kinds of arrays the same bytes."""
    assert fastavro_encode(columns) == numpy_encode(columns)
    for way in WAYS.values():
        got = way.decode(way.encode(columns))
        for name, sent in columns.items():
            column = got[name]
            if isinstance(sent, Dictionary):
                assert isinstance(column, Dictionary) and column.strings() == sent.strings()
            else:
                assert not isinstance(column, Dictionary) and np.array_equal(column, sent), name


def run() -> list[Row]:
    """Total CPU an event, its parts, and bytes at the broker."""
    today = time.time_ns() // 1000 // 86_400_000_000 * 86_400_000_000
    sent = [packets.columns(ROWS, seed, today) for seed in range(BATCHES)]
    check(sent[0])
    with tempfile.TemporaryDirectory() as directory:
        table = Table(directory)
        parts: dict[str, list[tuple[float, ...]]] = {name: [] for name in WAYS}
        sizes: dict[str, float] = {}

        def job(name: str, way: Way) -> Callable[[], float]:
            def work() -> float:
                marks = [time.process_time()]

                def mark() -> None:
                    marks.append(time.process_time())

                messages = [way.encode(each) for each in sent]
                mark()
                small = [zstandard.ZstdCompressor(level=3).compress(each) for each in messages]
                mark()
                sizes[name] = sum(map(len, small)) / EVENTS
                messages = [zstandard.ZstdDecompressor().decompress(each) for each in small]
                mark()
                columns = [way.decode(each) for each in messages]
                mark()
                table.insert(columns)
                mark()
                parts[name].append(tuple(b - a for a, b in pairwise(marks)))
                return (marks[-1] - marks[0]) / EVENTS

            return work

        measured = in_turns({name: job(name, way) for name, way in WAYS.items()}, ROUNDS)
        table.connection.close()
    return [_total(name, measured, parts[name], sizes[name]) for name in WAYS] + [
        Row("packed, bytes an event at the broker (zstd)", f"{sizes['packed']:.1f} B", "", "", "≤ 35 B",
            sizes["packed"] <= 35),
    ]  # fmt: skip


def _total(name: str, measured: dict[str, Times], parts: list[tuple[float, ...]], size: float) -> Row:
    medians = np.median(np.array(parts[1:]), axis=0) / EVENTS * 1e6
    steps = zip(("encode", "zstd", "unzstd", "decode", "insert"), medians, strict=True)
    detail = ", ".join(f"{step} {each:.2f}" for step, each in steps)
    ours, packed = measured[name], measured["packed"]
    return Row(
        f"{name}: {detail} µs", ours.text("µs an event", 1e6), f"{size:.1f} B at the broker",
        "" if name == "packed" else ratio_text(ours, packed),
        "" if name == "packed" else f"> {WORTH} keeps packing",
        None if name == "packed" else ours.median / packed.median > WORTH,
    )  # fmt: skip
