"""Numbers to strings, a batch at a time: each distinct value is looked up once in the life of the cache.

A direct-mapped table in numpy answers what was seen before (about 10 ns a value, no sorting); only misses
reach Python, once per distinct value. Values that collide in the table stay right and merely miss.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.columns import Dictionary

SLOT_BITS = 12
WHOLE = (1 << 64) - 1
MIX = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: neighbours land far apart
SHIFT = np.uint64(64 - SLOT_BITS)
FEW = 16  # values that Python looks up faster than numpy
LIMIT = 16_384  # strings kept; past it the cache starts anew
Lookup = Callable[[int], str]


class Interner:
    """A bounded cache from 64-bit keys to strings."""

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit = limit
        self.generation = 0  # rises when every id becomes invalid
        self._clear()

    def _clear(self) -> None:
        self._keys = np.zeros(1 << SLOT_BITS, np.uint64)
        self._keys[0] = 1  # key 0 belongs to slot 0 and 1 does not: no empty slot looks taken
        self._slot_ids = np.zeros(1 << SLOT_BITS, np.uint32)
        self._known: dict[int, int] = {}
        self._texts: list[str] = []
        self._forgotten: list[int] = []
        self.generation += 1

    def __len__(self) -> int:
        return len(self._texts)

    def ids(self, keys: NDArray[np.uint64], lookup: Lookup) -> NDArray[np.uint32]:
        """An id for each key, the same for the same key within a generation."""
        if len(self._texts) > self.limit:
            self._clear()
        self._forgotten = []
        slots = _slots(keys)
        found = self._slot_ids[slots]
        missing = np.flatnonzero(self._keys[slots] != keys)
        if len(missing):
            distinct, inverse = np.unique(keys[missing], return_inverse=True)
            learned = np.array([self._learn(key, lookup) for key in distinct.tolist()], np.uint32)
            found[missing] = learned[inverse]
            self._install(distinct, learned)
        return found

    def few(self, keys: list[int], lookup: Lookup) -> Dictionary:
        """The strings of a few keys, one by one."""
        if len(self._texts) > self.limit:
            self._clear()
        return _dictionary([self._texts[self._learn(key, lookup)] for key in keys])

    def _learn(self, key: int, lookup: Lookup) -> int:
        known = self._known.get(key)
        if known is None:
            text = lookup(key)
            known = self._known[key] = len(self._texts)
            self._texts.append(text)
        return known

    def _install(self, keys: NDArray[np.uint64], ids: NDArray[np.uint32]) -> None:
        """Put keys into their slots; of two that collide, one stays out and misses next time."""
        slots = _slots(keys)
        self._keys[slots] = keys
        owner = self._keys[slots] == keys
        self._slot_ids[slots[owner]] = ids[owner]
        for key in self._forgotten:  # by a lookup of this very batch
            self._drop(key)

    def forget(self, key: int) -> None:
        """Look ``key`` up again when it comes next."""
        if self._known.pop(key, None) is not None:
            self._forgotten.append(key)
            self._drop(key)

    def _drop(self, key: int) -> None:
        self._keys[_slots(np.array([key], np.uint64))] = 0
        self._keys[0] = 1

    def dictionary(self, ids: NDArray[np.uint32]) -> Dictionary:
        """The strings of ``ids``, each once, and their indexes."""
        used = np.flatnonzero(np.bincount(ids, minlength=1))
        place: dict[str, int] = {}
        table = np.zeros(len(self._texts) + 1, np.uint32)
        table[used] = [place.setdefault(self._texts[i], len(place)) for i in used.tolist()] if len(ids) else 0
        return Dictionary(list(place), table[ids])


def _dictionary(texts: list[str]) -> Dictionary:
    place: dict[str, int] = {}
    index = [place.setdefault(text, len(place)) for text in texts]
    return Dictionary(list(place), np.array(index, np.uint32))


def _slots(keys: NDArray[np.uint64]) -> NDArray[np.intp]:
    return ((keys * MIX) >> SHIFT).astype(np.intp)


class Numbers:
    """Integers of one column to strings by ``lookup`` (called with the value as the column's type has it)."""

    def __init__(self, lookup: Lookup) -> None:
        self._lookup = lookup
        self.cache = Interner()

    def __call__(self, values: NDArray[Any]) -> Dictionary:
        """A string for each value."""
        signed = values.dtype.kind == "i"
        if len(values) <= FEW:
            keys64 = [value & WHOLE for value in values.tolist()]
            return self.cache.few(keys64, self._signed if signed else self._lookup)
        if signed:
            keys = values.astype(np.int64).view(np.uint64)
            return self.cache.dictionary(self.cache.ids(keys, self._signed))
        keys = np.ascontiguousarray(values, np.uint64)
        return self.cache.dictionary(self.cache.ids(keys, self._lookup))

    def _signed(self, key: int) -> str:
        return self._lookup(key - (1 << 64) if key >> 63 else key)


class Texts:
    """``char[N]`` columns to strings: bytes up to the first NUL, read as UTF-8.

    Rows are hashed as 64-bit words; every answer is compared with the words it stands for, so that a
    collision of hashes costs time and never truth.
    """

    def __init__(self) -> None:
        self._cache = Interner()
        self._words = np.zeros((0, 0), np.uint64)
        self._generation = 0

    def __call__(self, values: NDArray[Any]) -> Dictionary:
        """A string for each row."""
        if len(values) <= FEW:
            return _few_texts(values)
        words = _words(values)
        hashes = _hash(words)
        first: dict[int, int] = {}

        def lookup(key: int) -> str:
            if not first:
                distinct, at = np.unique(hashes, return_index=True)
                first.update(zip(distinct.tolist(), at.tolist(), strict=True))
            row = words[first[key]]
            self._remember(len(self._cache), row)
            return _text(row.tobytes())

        ids = self._cache.ids(hashes, lookup)
        if len(ids) and not np.array_equal(self._words[ids], words):
            return _exact(words)
        return self._cache.dictionary(ids)

    def _remember(self, position: int, row: NDArray[np.uint64]) -> None:
        if self._generation != self._cache.generation or self._words.shape[1] != len(row):
            self._generation = self._cache.generation
            self._words = np.zeros((64, len(row)), np.uint64)
        if position >= len(self._words):
            self._words = np.concatenate([self._words, np.zeros_like(self._words)])
        self._words[position] = row


def _few_texts(values: NDArray[Any]) -> Dictionary:
    raw = np.ascontiguousarray(values).tobytes()
    width = len(raw) // max(len(values), 1)
    return _dictionary([_text(raw[at * width : (at + 1) * width]) for at in range(len(values))])


def _words(values: NDArray[Any]) -> NDArray[np.uint64]:
    """Rows of bytes as rows of words, whatever follows the first NUL cleared."""
    rows = len(values)
    width = values.dtype.itemsize if values.ndim == 1 else values.shape[1]
    raw = np.zeros((rows, -(-width // 8) * 8), np.uint8)
    raw[:, :width] = np.ascontiguousarray(values).view(np.uint8).reshape(rows, width)
    raw *= np.minimum.accumulate(raw != 0, axis=1)
    return raw.view(np.uint64)


def _hash(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    total = np.zeros(len(words), np.uint64)
    for column in range(words.shape[1]):
        total = (total ^ words[:, column]) * MIX
        total ^= total >> np.uint64(29)
    return total


def _exact(words: NDArray[np.uint64]) -> Dictionary:
    rows = np.ascontiguousarray(words).view(np.dtype((np.void, words.itemsize * words.shape[1]))).ravel()
    distinct, inverse = np.unique(rows, return_inverse=True)
    texts: dict[str, int] = {}
    place = np.array([texts.setdefault(_text(each.tobytes()), len(texts)) for each in distinct], np.uint32)
    return Dictionary(list(texts), place[inverse])


def _text(raw: bytes) -> str:
    return raw.partition(b"\0")[0].decode("utf-8", "replace")
