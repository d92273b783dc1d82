"""Rows in the order of their table, so that the engine need not sort them.

The engine sorts each inserted block by comparing rows, and permutes every column; a block that is in order
already only gets looked through. Here it is a radix sort: each key becomes 16-bit digits, digits that are
equal in all rows (most are) are left out, and numpy sorts 16-bit numbers without comparing.
Nothing depends on it: a key that is not understood ends the order there, and the engine does the rest.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.columns import Column, Dictionary
from schemas.wire import Batch

MANY = 1_000  # rows below which the engine is as quick
INTERVALS_US = {
    "toStartOfMinute": 60_000_000,
    "toStartOfFiveMinutes": 300_000_000,
    "toStartOfHour": 3_600_000_000,
}
INTERVAL = re.compile(rf"({'|'.join(INTERVALS_US)})\((\w+)\)")

Digits = list[NDArray[np.uint16]]  # of one key, the most significant first, without those that say nothing


def merge(parts: Sequence[Dictionary]) -> tuple[list[str], list[NDArray[np.uint32]]]:
    """The values of several dictionaries, each once; and for each of them, old index → new index."""
    place: dict[str, int] = {}
    for each in parts:
        for value in each.values:
            place.setdefault(value, len(place))
    get = place.__getitem__
    return list(place), [np.fromiter(map(get, each.values), np.uint32, len(each.values)) for each in parts]


def places(keys: Sequence[str], batches: Sequence[Batch]) -> NDArray[np.intp] | None:
    """Where the rows of ``batches``, one after the other, come from when sorted by ``keys``.

    ``keys`` are columns and start-of-interval functions of ``ts``, as in ``ch.order``. None when they
    lie well as they are.
    """
    if sum(batch.rows for batch in batches) < MANY:
        return None
    digits: Digits = []
    for number, key in enumerate(keys):
        found = _digits(key, batches, last=number == len(keys) - 1)
        if found is None:
            break
        digits += found
    return np.lexsort(digits[::-1]) if digits else None


def _digits(key: str, batches: Sequence[Batch], last: bool) -> Digits | None:
    if key == "host":
        hosts = [Dictionary([each.envelope.host], np.zeros(each.rows, np.uint8)) for each in batches]
        return _of_strings(hosts) if len({each.envelope.host for each in batches}) > 1 else []
    interval = INTERVAL.fullmatch(key)
    name = interval[2] if interval else key
    if name not in batches[0].columns:
        return None
    parts: list[Column] = [each.columns[name] for each in batches]
    if isinstance(parts[0], Dictionary):
        return _of_strings(parts)  # type: ignore[arg-type]
    values: NDArray[Any] = np.concatenate(parts)  # type: ignore[arg-type]
    if values.ndim == 2:
        return _of_bytes(values)
    if values.dtype.kind not in "iu":
        return None
    if last and bool((values[1:] >= values[:-1]).all()):
        return []  # the sort is a stable one
    return _of_numbers(values, INTERVALS_US[interval[1]] if interval else 1)


def _of_numbers(values: NDArray[Any], unit: int) -> Digits:
    least, most = int(values.min()) // unit, int(values.max()) // unit
    if least == most:
        return []
    if unit > 1:
        values = values // unit
    # Distances from the least: never negative, and of as few digits as the rows really differ in.
    above = values.astype(np.uint64, copy=False) - np.uint64(least & (1 << 64) - 1)
    count = ((most - least).bit_length() + 15) // 16
    return [(above >> np.uint64(16 * place)).astype(np.uint16) for place in reversed(range(count))]


def _of_bytes(values: NDArray[Any]) -> Digits | None:
    """Addresses: compared byte by byte from the left, which is as big-endian numbers."""
    if values.dtype.itemsize > 1 or values.shape[1] % 8:
        return None
    words = np.ascontiguousarray(values).view(">u8")
    return [
        digit for place in range(words.shape[1]) for digit in _of_numbers(words[:, place].astype("<u8"), 1)
    ]


def _of_strings(parts: Sequence[Dictionary]) -> Digits | None:
    """Strings: by the rank of each distinct one."""
    values, indexes = merge(parts)
    if len(values) > 1 << 16:
        return None
    if len(values) == 1:
        return []
    rank = np.empty(len(values), np.uint16)
    rank[sorted(range(len(values)), key=lambda each: values[each].encode())] = np.arange(len(values))
    return [np.concatenate([rank[new][part.index] for new, part in zip(indexes, parts, strict=True)])]
