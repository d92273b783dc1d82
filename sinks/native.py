"""Wire batches to one block of ClickHouse's Native format, column by column.

The format (https://clickhouse.com/docs/interfaces/formats/Native): number of columns and rows, then for
each column its name, its type and all its values. ``LowCardinality`` is a dictionary and indexes, as it
travels on our wire; messages' dictionaries are merged, so that a value stands once in a block.
Nothing here runs once a row: numpy joins, C-implemented maps merge.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.columns import Column, Dictionary
from schemas.errors import UsageError
from schemas.wire import Batch, Envelope
from sinks import order

DAY = 86_400_000_000  # µs
LAST_DAY = 65_535  # ClickHouse's Date ends on 2149-06-06
NUMBERS = {f"{sign}Int{bits}": np.dtype(f"<{sign.lower() or 'i'}{bits // 8}")
           for sign in ("", "U") for bits in (8, 16, 32, 64)}  # fmt: skip
NUMBERS |= {"Float32": np.dtype("<f4"), "Float64": np.dtype("<f8"), "Bool": np.dtype("u1")}
NAMES = {dtype: name for name, dtype in NUMBERS.items() if name != "Bool"}
FIXED = re.compile(r"FixedString\((\d+)\)|IPv6")
TIME = re.compile(r"DateTime64\(6(?:, '[^']*')?\)")
ARRAY = re.compile(r"Array\((\w+)\)")
# LowCardinality: version of its keys; flags: it brings its dictionary, and in the low bits the index's width.
KEYS_VERSION = (1).to_bytes(8, "little")
OWN_DICTIONARY = 1 << 9
INDEX = ((1 << 8, 0, np.dtype("u1")), (1 << 16, 1, np.dtype("<u2")), (1 << 32, 2, np.dtype("<u4")))
ENVELOPE = ("host", "boot", "seq", "sample_rate")


Place = NDArray[np.intp] | None  # row i of a block is row place[i] of its messages
Piece = bytes | NDArray[Any]  # of a block: whatever has contiguous bytes, so that they are copied once


class TimeOutOfRange(ValueError):
    """A row's time is outside of what a partition by day can hold."""


# ── Days ─────────────────────────────────────────────────────────────────────────────────────────


def day_range(batch: Batch) -> tuple[int, int]:
    """First and last day of a batch. Raises :class:`TimeOutOfRange`."""
    times = batch.columns["ts"]
    assert not isinstance(times, Dictionary)
    first, last = int(times.min()) // DAY, int(times.max()) // DAY
    if first < 0 or last > LAST_DAY:
        raise TimeOutOfRange("a row's ts is before 1970 or after 2149-06-06")
    return first, last


def split(batch: Batch) -> Iterator[tuple[int, Batch]]:
    """A batch's rows of each day (days since 1970): one partition of a table each.

    Raises :class:`TimeOutOfRange` for rows before 1970 or after 2149-06-06.
    """
    first, last = day_range(batch)
    if first == last:
        yield first, batch
        return
    of_row = batch.columns["ts"] // DAY  # type: ignore[operator]
    for day in np.unique(of_row).tolist():
        rows = of_row == day
        columns = {name: _select(column, rows) for name, column in batch.columns.items()}
        yield day, Batch(batch.stream, batch.envelope, int(rows.sum()), columns)


def _select(column: Column, rows: NDArray[np.bool_]) -> Column:
    if isinstance(column, Dictionary):
        return Dictionary(column.values, column.index[rows])
    return column[rows]


# ── Block ────────────────────────────────────────────────────────────────────────────────────────


def block(types: Mapping[str, str], batches: Sequence[Batch], keys: Sequence[str] = ()) -> bytes:
    """All rows of ``batches``, which have the same columns, as one block.

    ``keys`` is the table's sort key: rows come in its order, as far as it is understood.
    ``types`` maps the table's columns to their ClickHouse types; those that no batch has are left out,
    so that the server fills in their defaults. Raises :class:`UsageError` for a type without a Native form.
    """
    rows = [batch.rows for batch in batches]
    place = order.places(keys, batches)
    body: list[Piece] = []
    count = 0
    for name, kind in types.items():
        if name in ENVELOPE:
            parts = _envelope(name, [batch.envelope for batch in batches], rows, place)
        elif name in batches[0].columns:
            parts = column(kind, [batch.columns[name] for batch in batches], place)
        else:
            continue
        count += 1
        body += [_text(name), *parts]
    return b"".join([_varint(count), _varint(sum(rows)), *body])  # type: ignore[list-item]


def column(kind: str, parts: Sequence[Column], place: Place = None) -> list[Piece]:
    """One column of ClickHouse type ``kind`` from the arrays of each message: type name, then data.

    ``place``: which of their rows comes when; None: as they are.
    """
    if isinstance(parts[0], Dictionary):
        return _low_cardinality(parts, place)  # type: ignore[arg-type]
    arrays = _in_place(parts, place)  # type: ignore[arg-type]
    sent = arrays[0].dtype
    if match := ARRAY.fullmatch(kind):
        return _array(match[1], arrays)
    if FIXED.fullmatch(kind):
        return [_text(kind), *arrays]
    if kind == "UUID":
        return [_text(kind), *(_uuid_order(each) for each in arrays)]
    if TIME.fullmatch(kind):
        return [_text(kind), *(each.astype("<i8", copy=False) for each in arrays)]
    if kind == "Bool":
        return [_text(kind), *(each != 0 for each in arrays)]
    if kind not in NUMBERS:
        raise UsageError(f"no way to insert into a column of type {kind}; use another ch.type")
    if np.can_cast(sent, NUMBERS[kind], "safe"):
        return [_text(kind), *(each.astype(NUMBERS[kind], copy=False) for each in arrays)]
    return [_text(NAMES[sent]), *arrays]  # narrower by ch.type: the server converts


def _in_place(arrays: Sequence[NDArray[Any]], place: Place) -> Sequence[NDArray[Any]]:
    if place is None:
        return arrays
    whole = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    if whole.ndim == 1:
        return [whole.take(place)]
    # A row is moved as one value: numpy is many times slower at rows.
    width = whole.dtype.itemsize * whole.shape[1]
    rows = np.ascontiguousarray(whole).view(f"V{width}").ravel().take(place)
    return [rows.view(whole.dtype).reshape(whole.shape)]


def _array(item: str, arrays: Sequence[NDArray[Any]]) -> list[Piece]:
    if item not in NUMBERS:
        raise UsageError(f"no way to insert into a column of type Array({item}); use another ch.type")
    width = arrays[0].shape[1]
    rows = sum(len(each) for each in arrays)
    offsets = np.arange(width, width * (rows + 1), width, dtype="<u8")
    return [_text(f"Array({NAMES[arrays[0].dtype]})"), offsets, *arrays]


def _uuid_order(values: NDArray[Any]) -> NDArray[Any]:
    """ClickHouse keeps a UUID as two little-endian halves."""
    return np.ascontiguousarray(values.reshape(-1, 2, 8)[:, :, ::-1])


def _envelope(name: str, envelopes: Sequence[Envelope], rows: Sequence[int], place: Place) -> list[Piece]:
    """A value of each message as often as it has rows."""
    values = [getattr(each, name) for each in envelopes]
    if name == "host":
        parts = [
            Dictionary([host], np.zeros(count, np.uint8)) for host, count in zip(values, rows, strict=True)
        ]
        return _low_cardinality(parts, place)
    if name == "boot":
        kind = "UUID"
        values = [boot[7::-1] + boot[:7:-1] for boot in values]
    else:
        kind = "UInt64" if name == "seq" else "UInt32"
        values = [value.to_bytes(NUMBERS[kind].itemsize, "little") for value in values]
    if place is None or len(set(values)) == 1:
        return [_text(kind), *(value * count for value, count in zip(values, rows, strict=True))]
    each = np.frombuffer(b"".join(values), f"V{len(values[0])}")
    return [_text(kind), np.repeat(each, rows).take(place)]


def _low_cardinality(parts: Sequence[Dictionary], place: Place = None) -> list[Piece]:
    values, indexes = order.merge(parts)
    flags, width = next((flag, dtype) for limit, flag, dtype in INDEX if len(values) <= limit)
    index = [new.astype(width).take(each.index) for new, each in zip(indexes, parts, strict=True)]
    return [
        _text("LowCardinality(String)"), KEYS_VERSION, (OWN_DICTIONARY | flags).to_bytes(8, "little"),
        len(values).to_bytes(8, "little"), *map(_text, values),
        sum(len(each) for each in parts).to_bytes(8, "little"),
        *_in_place(index, place),
    ]  # fmt: skip


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


SHORT = [bytes([size]) for size in range(128)]


def _text(value: str) -> bytes:
    data = value.encode()
    return (SHORT[len(data)] if len(data) < 128 else _varint(len(data))) + data


def insertable(kind: str) -> bool:
    """Whether :func:`column` has a form for that ClickHouse type."""
    array = ARRAY.fullmatch(kind)
    text = kind in ("String", "LowCardinality(String)")
    return (
        text
        or kind in NUMBERS
        or kind == "UUID"
        or any((FIXED.fullmatch(kind), TIME.fullmatch(kind), array and array[1] in NUMBERS))
    )
