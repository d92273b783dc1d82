"""ClickHouse's own compressed blocks over HTTP: `compress=1` and `decompress=1`."""

import struct
from pathlib import Path

import pytest
import zstandard
from asking import code, send
from conftest import StoreProcess

from sinks.store import blocks
from sinks.store.blocks import Decoder, Encoder

TEXT = b"".join(b"%d\n" % number for number in range(300_000))


def block(method: int, packed: bytes, size: int) -> bytes:
    inside = struct.pack("<BII", method, 9 + len(packed), size) + packed
    return blocks._checksum(inside) + inside


def plain(data: bytes) -> bytes:
    decoder = Decoder()
    whole = b"".join(decoder.decompress(data[at : at + 10_007]) for at in range(0, len(data), 10_007))
    assert decoder.eof
    return whole


def test_what_the_engine_itself_wrote_is_read(store: StoreProcess) -> None:
    send(
        store,
        "CREATE TABLE blocks (a UInt64) ENGINE = MergeTree ORDER BY a SETTINGS min_bytes_for_wide_part = 0",
    )
    send(store, "INSERT INTO blocks SELECT number FROM numbers(50000)")
    (path,) = send(store, "SELECT path FROM system.parts WHERE table = 'blocks' AND active")[2].split()
    file = Path(path.decode()) / "a.bin"
    if not file.is_absolute():
        file = next((store.state_dir / "store" / "data").rglob("a.bin"))
    assert plain(file.read_bytes()) == struct.pack("<50000Q", *range(50_000))
    send(store, "DROP TABLE blocks")


@pytest.mark.parametrize("size", [0, 1, blocks.PLAIN - 1, blocks.PLAIN, blocks.PLAIN + 1])
def test_what_goes_in_comes_out(size: int) -> None:
    encoder = Encoder()
    data = TEXT[:size]
    coded = (
        b"".join(encoder.compress(data[at : at + 333_333]) for at in range(0, size, 333_333))
        + encoder.flush()
    )
    assert plain(coded) == data
    assert size < blocks.PLAIN or len(coded) < len(data)


def test_answers(store: StoreProcess) -> None:
    few = send(store, "SELECT number FROM numbers(5)", compress="1")
    assert plain(few[2]) == b"0\n1\n2\n3\n4\n"
    many = send(store, "SELECT number FROM numbers(300000)", compress="1")
    assert plain(many[2]) == TEXT and len(many[2]) < len(TEXT)
    assert send(store, "SELECT 1 FORMAT Null", compress="1")[2] == b""


def test_answers_in_blocks_below_an_http_encoding(store: StoreProcess) -> None:
    headers = {"Accept-Encoding": "zstd"}
    _, said, body = send(store, "SELECT number FROM numbers(300000)", headers=headers, compress="1")
    assert said["content-encoding"] == "zstd"
    assert plain(zstandard.ZstdDecompressor().decompressobj().decompress(body)) == TEXT


def test_errors(store: StoreProcess) -> None:
    status, headers, body = send(store, "SELECT nonsense", compress="1")
    assert code((status, headers, plain(body))) == 47
    late = send(store, "SELECT throwIf(number = 900000) FROM numbers(1000000)", compress="1")
    assert late[0] == 200 and b"__exception__" in plain(late[2])


def test_requests(store: StoreProcess) -> None:
    send(store, "CREATE TABLE blocks_in (a UInt64) ENGINE = Memory")
    bodies = [
        block(0x02, b"1\n", 2),
        block(0x90, zstandard.compress(b"2\n3\n"), 4) + block(0x02, b"4\n", 2),
    ]
    encoder = Encoder()
    bodies.append(encoder.compress(b"5\n" * 1_000_000) + encoder.flush())
    for body in bodies:
        assert send(store, body, query="INSERT INTO blocks_in FORMAT CSV", decompress="1")[0] == 200
    assert send(store, "SELECT count(), sum(a) FROM blocks_in")[2] == b"1000004\t5000010\n"
    assert send(store, block(0x02, b"SELECT 7", 8), decompress="1")[2] == b"7\n"
    send(store, "DROP TABLE blocks_in")
