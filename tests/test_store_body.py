"""A request's data as a file: whatever sizes come one after the other, each file holds its own bytes."""

import random
from pathlib import Path

import pytest

from sinks.store import body
from sinks.store.body import Body


def kept(pieces: list[bytes], directory: Path) -> bytes:
    with Body(directory) as made:
        for piece in pieces:
            made.write(piece)
        return Path(made.whole()).read_bytes()


def test_files_in_memory_are_used_again_and_hold_nothing_of_before(tmp_path: Path) -> None:
    luck = random.Random(5)
    for size in (0, 1, 0, 3 << 20, 5, 0, 4096, 4095, 20 << 20, 7, 33 << 20, 0, 1 << 20, (1 << 20) + 1, 2):
        data = luck.randbytes(size)
        cuts = sorted(luck.randrange(size + 1) for _ in range(luck.choice((0, 1, 9))))
        pieces = [data[at:end] for at, end in zip([0, *cuts], [*cuts, size], strict=True)]
        assert kept(pieces, tmp_path) == data
    assert not list(tmp_path.iterdir())


def test_two_at_once_do_not_share(tmp_path: Path) -> None:
    with Body(tmp_path) as one, Body(tmp_path) as two:
        one.write(b"a" * 9_000)
        two.write(b"b" * 5)
        one.write(b"c")
        assert Path(two.whole()).read_bytes() == b"b" * 5
        assert Path(one.whole()).read_bytes() == b"a" * 9_000 + b"c"


def test_large_ones_go_to_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "IN_MEMORY", 3 << 20)
    data = random.Random(6).randbytes(8 << 20)
    assert kept([data[at : at + 700_000] for at in range(0, len(data), 700_000)], tmp_path) == data
    assert kept([data], tmp_path) == data
    assert not list(tmp_path.iterdir())


def test_nothing_written_is_an_empty_file(tmp_path: Path) -> None:
    assert kept([], tmp_path) == b""
