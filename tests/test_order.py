"""Blocks in their table's order: Python's own sort is the judge, row by row, of every kind of key."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.columns import Column, Dictionary
from schemas.wire import Batch, Envelope
from sinks import native, order

KEYS = ["toStartOfFiveMinutes(ts)", "host", "name", "signed", "wide", "address", "ts"]
NAMES = ["", "b", "a", "é", "zz", "Z", "\U0001f600", "a\0"]


def batch(host: str, seed: int, rows: int, spread: int) -> Batch:
    """Rows whose keys tie as often as ``spread`` is small."""
    rng = np.random.default_rng(seed)
    address = np.zeros((rows, 16), np.uint8)
    address[:, [0, 9, 15]] = rng.integers(0, spread, (rows, 3))
    columns: dict[str, Column] = {
        "ts": rng.integers(0, spread * 400_000_000, rows).astype(np.int64),
        "name": Dictionary(NAMES[seed % 3 :], rng.integers(0, len(NAMES) - 2, rows).astype(np.uint8) % 6),
        "signed": rng.integers(-spread, spread, rows).astype(np.int32),
        "wide": rng.integers(0, 2**64, rows, np.uint64)
        if spread > 2
        else np.full(rows, 2**64 - 1, np.uint64),
        "address": address,
        "odd": rng.random(rows),
    }
    return Batch("made", Envelope(host, bytes(16), seed), rows, columns)


def key_of(batches: list[Batch], keys: list[str]) -> list[tuple[object, ...]]:
    """What Python compares, of each row."""
    rows = []
    for each in batches:
        columns = each.columns
        name, ts = columns["name"], columns["ts"]
        assert isinstance(name, Dictionary)
        of_key = {
            "toStartOfFiveMinutes(ts)": (ts // 300_000_000).tolist(),  # type: ignore[operator]
            "host": [each.envelope.host] * each.rows,
            "name": [text.encode() for text in name.strings()],
            "signed": columns["signed"].tolist(),  # type: ignore[union-attr]
            "wide": columns["wide"].tolist(),  # type: ignore[union-attr]
            "address": [row.tobytes() for row in columns["address"]],  # type: ignore[union-attr]
            "ts": ts.tolist(),  # type: ignore[union-attr]
        }
        rows += list(zip(*(of_key[key] for key in keys), strict=True))
    return rows


@settings(max_examples=60, deadline=None)
@given(
    keys=st.permutations(KEYS).flatmap(lambda all_: st.integers(1, len(all_)).map(lambda n: all_[:n])),
    hosts=st.lists(st.sampled_from(["b", "a", "host-1"]), min_size=1, max_size=4),
    spread=st.sampled_from([1, 2, 3, 200]), seed=st.integers(0, 1000),
)  # fmt: skip
def test_rows_come_as_a_stable_sort_has_them(
    keys: list[str], hosts: list[str], spread: int, seed: int
) -> None:
    batches = [batch(host, seed + number, 700, spread) for number, host in enumerate(hosts)]
    rows = key_of(batches, keys)
    wanted = sorted(range(len(rows)), key=rows.__getitem__)
    found = order.places(keys, batches)
    if len(rows) < order.MANY:
        assert found is None
    else:
        assert (list(range(len(rows))) if found is None else found.tolist()) == wanted


@pytest.mark.parametrize("unknown", ["odd", "absent", "cityHash64(name)", "boot"])
def test_a_key_that_is_not_understood_ends_the_order(unknown: str) -> None:
    batches = [batch("a", 1, 2_000, 50)]
    found, prefix = order.places(["name", unknown, "signed"], batches), order.places(["name"], batches)
    assert found is not None and prefix is not None and found.tolist() == prefix.tolist()


def test_a_sorted_block_holds_the_same_rows() -> None:
    batches = [batch(host, number, 600, 9) for number, host in enumerate(["b", "a"])]
    types = {
        "host": "LowCardinality(String)",
        "ts": "DateTime64(6, 'UTC')",
        "signed": "Int32",
        "seq": "UInt64",
    }
    place = order.places(["host", "ts"], batches)
    assert place is not None
    block, plain = (native.block(types, batches, keys) for keys in (("host", "ts"), ()))
    assert len(block) == len(plain) and block != plain

    def ends(data: bytes) -> tuple[list[int], list[int]]:
        """The last two columns: 1200 Int32 and, behind their name and type, 1200 UInt64."""
        seq = np.frombuffer(data[-9600:], "<u8")
        at = len(data) - 9600 - len(b"\x03seq\x06UInt64") - 4800
        return np.frombuffer(data[at : at + 4800], "<i4").tolist(), seq.tolist()

    signed, seq = ends(plain)
    assert ends(block) == ([signed[row] for row in place], [seq[row] for row in place])
