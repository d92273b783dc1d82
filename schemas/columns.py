"""A column on the wire: all values of one field, packed little-endian.

The packing is named by the column's Avro type, so that it is part of the schema's fingerprint:
``u16`` is 16-bit unsigned; ``u8x16`` 16 bytes a row; ``i64_delta`` differences, the first against zero;
``dictionary`` is distinct strings and an index a row, of 1, 2 or 4 bytes by how many strings there are.
Numbers of 32 and 64 bits, one a row, are transposed (all lowest bytes first, then the next): counters are
mostly zeros above, and zeros next to each other compress to nothing. All else lies as in memory.
Measured against standard Avro arrays, and column by column, in docs/decisions/0001-packed-columns.md.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.declare import Field
from schemas.errors import BpfleetError

PACKED = re.compile(r"([iuf])(8|16|32|64)(?:x(\d{1,5}))?(_delta)?")
LETTER = {"s": "i", "u": "u", "c": "u"}
HOST_MADE = {"int": "i32", "long": "i64", "float": "f32", "double": "f64", "boolean": "u8"}


class InvalidBatch(BpfleetError):
    """Bytes that are no batch of ours; the message says what is wrong with them."""


@dataclass(frozen=True)
class Dictionary:
    """Strings of few distinct values: row i reads ``values[index[i]]``."""

    values: list[str]
    index: NDArray[np.unsignedinteger[Any]]

    def __len__(self) -> int:
        return len(self.index)

    def strings(self) -> list[str]:
        """One string a row: for people, not for hot paths."""
        return [self.values[i] for i in self.index.tolist()]


Column = NDArray[Any] | Dictionary


@dataclass(frozen=True)
class Packing:
    """How one column's values lie in bytes."""

    name: str
    dtype: np.dtype[Any]
    width: int | None  # values a row; None: one value, a flat array
    delta: bool

    def shape(self, rows: int) -> tuple[int, ...]:
        """Shape of the array that holds ``rows`` rows."""
        return (rows,) if self.width is None else (rows, self.width)

    @property
    def transposed(self) -> bool:
        """Whether bytes of equal weight lie together."""
        return self.width is None and self.dtype.itemsize >= 4

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.dtype.itemsize * (1 if self.width is None else self.width)


@lru_cache(maxsize=1024)
def packing(name: str) -> Packing | None:
    """The packing of that name; None for ``dictionary``. Raises :class:`InvalidBatch`."""
    if name == "dictionary":
        return None
    match = PACKED.fullmatch(name)
    if match is None or (match[1] == "f" and match[2] in ("8", "16")) or match[3] == "0":
        raise InvalidBatch(f"unknown column packing `{name}`")
    dtype = np.dtype(f"<{match[1]}{int(match[2]) // 8}")
    return Packing(name, dtype, int(match[3]) if match[3] else None, bool(match[4]))


def packing_name(field: Field) -> str:
    """Which packing a declared field travels in."""
    if field.avro_kind == "string":
        return "dictionary"
    if field.is_time:
        return "i64_delta"
    if field.c is None:
        return HOST_MADE[field.avro_kind] if field.avro_kind != "fixed" else f"u8x{field.avro['size']}"
    base = f"{LETTER[field.c.base[0]]}{field.c.item_size * 8}"
    return base if field.c.count is None else f"{base}x{field.c.count}"


def pack(values: NDArray[Any], how: Packing) -> bytes:
    """Values (any shape that :meth:`Packing.shape` gives) to bytes."""
    array = np.ascontiguousarray(values, dtype=how.dtype)
    if how.delta and len(array) > 1:
        array = np.concatenate([array[:1], array[1:] - array[:-1]])
    if not how.transposed or len(array) == 1:
        return array.tobytes()
    return array.view(np.uint8).reshape(len(values), how.row_bytes).T.tobytes()


def unpack(data: bytes, how: Packing, rows: int) -> NDArray[Any]:
    """The inverse of :func:`pack`. Raises :class:`InvalidBatch` when the length does not fit."""
    if len(data) != rows * how.row_bytes:
        raise InvalidBatch(
            f"column of {len(data)} bytes where {rows} rows of {how.name} take {rows * how.row_bytes}"
        )
    planes = np.frombuffer(data, np.uint8)
    if how.transposed:
        planes = _interleave(planes.reshape(how.row_bytes, rows))
    array = planes.view(how.dtype).reshape(how.shape(rows))
    return np.cumsum(array, axis=0, dtype=how.dtype) if how.delta else array


def _interleave(planes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Bytes of equal weight back to where they belong; planes of zeros, which are most, cost nothing."""
    used = np.flatnonzero(planes.max(axis=1, initial=0)).tolist()
    if len(used) > 2:
        return np.ascontiguousarray(planes.T)
    rows = np.zeros(planes.shape[::-1], np.uint8)
    for weight in used:
        rows[:, weight] = planes[weight]
    return rows


def pack_index(index: NDArray[np.unsignedinteger[Any]], values: int) -> bytes:
    """A dictionary's index, as narrow as ``values`` distinct strings allow."""
    size = 1 if values <= 1 << 8 else 2 if values <= 1 << 16 else 4
    return index.astype(f"<u{size}").tobytes()


def unpack_index(data: bytes, values: int, rows: int) -> NDArray[np.unsignedinteger[Any]]:
    """The inverse of :func:`pack_index`; the length tells the width. Raises :class:`InvalidBatch`."""
    size = len(data) // rows
    if size not in (1, 2, 4) or len(data) != rows * size:
        raise InvalidBatch(f"dictionary index of {len(data)} bytes for {rows} rows")
    index: NDArray[np.unsignedinteger[Any]] = np.frombuffer(data, f"<u{size}")
    if int(index.max()) >= values:
        raise InvalidBatch("a dictionary index points past its values")
    return index
