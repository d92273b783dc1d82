"""Requests that are wrong in every way: each gets ClickHouse's error or a close, and the store lives on."""

import gzip
import socket
from collections.abc import Iterator

import lz4.frame
import pytest
import zstandard
from asking import code, into, send
from conftest import StoreProcess
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

NATIVE = b"\x01\x01\x01a\x06UInt64\x01\x00\x00\x00\x00\x00\x00\x00"


# `SELECT 1` as one of ClickHouse's own compressed blocks, not compressed.
BLOCK = bytes.fromhex("e6a16b4f4243468cf86313b48c093907") + b"\x02\x11\x00\x00\x00\x08\x00\x00\x00SELECT 1"

BAD: list[tuple[str, bytes, dict[str, str], dict[str, str], set[int]]] = [
    ("unknown encoding", b"SELECT 1", {"Content-Encoding": "snap"}, {}, {89}),
    ("not gzip", b"SELECT 1", {"Content-Encoding": "gzip"}, {}, {271}),
    ("cut gzip", gzip.compress(b"SELECT 1")[:-4], {"Content-Encoding": "gzip"}, {}, {271}),
    ("cut lz4", lz4.frame.compress(b"SELECT 1" * 99)[:-9], {"Content-Encoding": "lz4"}, {}, {271}),
    ("cut zstd", zstandard.compress(b"SELECT 1" * 99)[:-4], {"Content-Encoding": "zstd"}, {}, {271}),
    ("a cut block", BLOCK[:-1], {}, {"decompress": "1"}, {271}),
    ("no block", b"SELECT 1" * 9, {}, {"decompress": "1"}, {89}),
    ("a changed block", BLOCK[:-1] + b"2", {}, {"decompress": "1"}, {40}),
    ("a block of a huge claim", BLOCK[:21] + b"\xff\xff\xff\x7f" + BLOCK[25:], {}, {"decompress": "1"}, {76}),
    ("a block smaller than its head", BLOCK[:17] + b"\x01" + BLOCK[18:], {}, {"decompress": "1"}, {76}),
    ("no such format", b"x", {}, into("Nope"), {73}),
    ("no such table", NATIVE, {}, into("Native", "nope"), {60}),
    ("no such column", b"1", {}, into("CSV", "bad.t (z)"), {16}),
    ("garbage native", b"\xff" * 100, {}, into("Native"), set()),
    ("cut native", NATIVE[:-3], {}, into("Native"), {33}),
    ("native of a huge claim", b"\x01\xff\xff\xff\xff\x0f" + NATIVE[2:], {}, into("Native"), set()),
    ("native of another type", NATIVE.replace(b"UInt64", b"UInt65"), {}, into("Native"), set()),
    ("garbage avro", b"Obj\x01" + b"\x99" * 50, {}, into("Avro"), set()),
    ("garbage parquet", b"PAR1" + b"\x99" * 50, {}, into("Parquet"), set()),
    ("garbage arrow", b"\xff\xff\xff\xff" + b"\x99" * 50, {}, into("ArrowStream"), set()),
    ("a complaint about bytes", b"\xff\xfe\n", {}, into("CSV"), {117}),
    ("text for a number", b"x\n", {}, into("CSV"), {27, 72, 117}),
    ("a query too large", b"SELECT " + b"1," * 1_000_000 + b"1", {}, {}, {230}),
    ("nothing", b"", {}, {}, {62}),
    ("only a comment", b"-- x", {}, {}, {62}),
    ("bytes", bytes(range(256)), {}, {}, {62}),
    ("a zero byte", b"SELECT 1\x00, file('/etc/passwd')", {}, {}, {62, 497}),
    ("unknown setting", b"SELECT 1", {}, {"nonsense": "1"}, {115}),
    ("a setting's odd name", b"SELECT 1", {}, {"a = 1, b": "1"}, {115}),
    ("a setting's odd value", b"SELECT 1", {}, {"max_threads": "1, readonly = 1"}, {27, 6, 72, 53}),
    ("no such database", b"SELECT 1", {}, {"database": "no'`\\"}, {81}),
    ("session timeout", b"SELECT 1", {}, {"session_id": "s", "session_timeout": "1e9"}, {374}),
    ("no such session", b"SELECT 1", {}, {"session_id": "unknown", "session_check": "1"}, {372}),
    ("odd readonly", b"SELECT 1", {}, {"readonly": "x"}, {36}),
    ("deep nesting", b"SELECT " + b"(" * 5000 + b"1" + b")" * 5000, {}, {}, {62, 167, 306}),
    ("deep arrays", b"SELECT " + b"[" * 3000 + b"1" + b"]" * 3000, {}, {}, {62, 167, 306}),
    ("deep functions", b"SELECT " + b"abs(" * 3000 + b"1" + b")" * 3000, {}, {}, {62, 167, 306}),
]  # fmt: skip


@pytest.fixture(scope="module")
def target(store: StoreProcess) -> Iterator[None]:
    send(store, "CREATE DATABASE bad")
    send(store, "CREATE TABLE bad.t (a UInt64) ENGINE = MergeTree ORDER BY a")
    yield
    assert send(store, "SELECT count() FROM bad.t")[2] == b"0\n"
    send(store, "DROP DATABASE bad")


@pytest.mark.usefixtures("target")
@pytest.mark.parametrize(
    ("body", "headers", "url", "codes"), [case[1:] for case in BAD], ids=[case[0] for case in BAD]
)
def test_bad_requests(
    store: StoreProcess, body: bytes, headers: dict[str, str], url: dict[str, str], codes: set[int]
) -> None:
    found = code(send(store, body, headers=headers, **url))
    assert not codes or found in codes
    assert send(store, "SELECT 1")[2] == b"1\n"


RAW = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",  # somebody speaks TLS
    b"GET / HTTP/9.9\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nSELECT",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nSELECT 1\r\n0\r\n\r\n",
    b"GET /?" + b"a" * 200_000 + b" HTTP/1.1\r\n\r\n",
    b"GET /?query=%ff%fe%zz HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"X: " + b"y" * 200_000 + b"\r\n\r\n",
    b"\r\n\r\n\r\n",
    b"BREW / HTTP/1.1\r\nHost: a\r\n\r\n",
]


@pytest.mark.parametrize("data", RAW, ids=range(len(RAW)))
def test_raw_garbage_gets_an_error_or_a_close(store: StoreProcess, data: bytes) -> None:
    with socket.create_connection(("127.0.0.1", store.port), timeout=10) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        try:
            while piece := connection.recv(65_536):
                answer += piece
        except ConnectionResetError:
            pass
    assert not answer or answer.startswith(b"HTTP/1.1 ")
    assert send(store, "SELECT 1")[2] == b"1\n"


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    words=st.lists(
        st.sampled_from(
            [
                "SELECT",
                "INSERT INTO",
                "FORMAT",
                "VALUES",
                "(",
                ")",
                "'",
                '"',
                "`",
                "\\",
                "--",
                "/*",
                "*/",
                "$x$",
                "1",
                "numbers(3)",
                "FROM",
                "JSON",
                "Native",
                "CSV",
                ",",
                ";",
                "{a:UInt8}",
                "SETTINGS",
                "max_threads = 1",
                "WITH",
                "x",
                "AS",
                "\x00",
                "é",
                "#!",
                "EXPLAIN",
                "SHOW TABLES",
                "fuzz",
                "UNION ALL",
                "\n",
            ]
        ),
        max_size=12,
    ),
    cut=st.integers(0, 100),
    form=st.sampled_from(["Native", "JSON", "TSV", "Nope", ""]),
)
def test_fuzzed_queries_are_answered(store: StoreProcess, words: list[str], cut: int, form: str) -> None:
    text = " ".join(words)
    status, headers, _ = send(
        store, text[cut:], query=text[:cut], default_format=form, max_execution_time="5"
    )
    assert status == 200 or "x-clickhouse-exception-code" in headers


BINARY_FORMATS = [
    "Native",
    "RowBinary",
    "Avro",
    "Arrow",
    "ArrowStream",
    "Parquet",
    "ORC",
    "MsgPack",
    "BSONEachRow",
]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200), form=st.sampled_from(BINARY_FORMATS))
def test_fuzzed_data_is_answered(store: StoreProcess, data: bytes, form: str) -> None:
    query = f"INSERT INTO FUNCTION null('a UInt64, s String, l Array(LowCardinality(String))') FORMAT {form}"
    status, headers, _ = send(store, data, query=query)
    assert status == 200 or "x-clickhouse-exception-code" in headers
