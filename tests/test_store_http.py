"""The HTTP interface itself: who may ask, and what answers say."""

import base64
import gzip
import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import lz4.frame
import pyarrow as pa
import pytest
import zstandard
from asking import code, into, send
from conftest import StoreProcess


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreProcess]:
    """A store with a user and a password."""
    directory: Path = tmp_path_factory.mktemp("guarded")
    secret = directory / "password"
    secret.write_text("s3cret: ü\n")
    server = StoreProcess(directory, user="ops", password_file=str(secret))
    server.start()
    yield server
    server.kill()


def basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


def test_pings(store: StoreProcess) -> None:
    for path in ("/ping", "/replicas_status", "/"):
        status, _, body = send(store, method="GET", path=path)
        assert (status, body) == (200, b"Ok.\n")
    status, _, body = send(store, method="HEAD")
    assert (status, body) == (200, b"")
    assert send(store, method="GET", path="/nowhere")[0] == 404
    assert send(store, method="DELETE")[0] == 405


def test_headers_of_an_answer(store: StoreProcess) -> None:
    status, headers, body = send(store, "SELECT number FROM numbers(3) FORMAT JSONEachRow", query_id="mine")
    assert status == 200
    assert headers["x-clickhouse-query-id"] == "mine"
    assert headers["x-clickhouse-format"] == "JSONEachRow"
    assert headers["x-clickhouse-timezone"]
    assert headers["x-clickhouse-server-display-name"]
    assert headers["content-type"].startswith("application/x-ndjson")
    summary = json.loads(headers["x-clickhouse-summary"])
    assert (summary["read_rows"], summary["result_rows"]) == ("3", "3")
    assert body.count(b"\n") == 3


def test_query_in_url_body_or_both(store: StoreProcess) -> None:
    assert send(store, method="GET", query="SELECT 1")[2] == b"1\n"
    assert send(store, "SELECT 1")[2] == b"1\n"
    assert send(store, "1 + 1", query="SELECT")[2] == b"2\n"
    assert send(store, "SELECT 1", default_format="JSONCompactEachRow")[2] == b"[1]\n"
    assert send(store, "SELECT 1", headers={"X-ClickHouse-Format": "CSVWithNames"})[2] == b'"1"\n1\n'
    assert send(store, "SELECT currentDatabase()", database="system")[2] == b"system\n"
    assert send(store, "SELECT {x:UInt8} + 1", param_x="4")[2] == b"5\n"


def test_get_only_reads(store: StoreProcess) -> None:
    for text in ("CREATE DATABASE got", "INSERT INTO t VALUES (1)", "INSERT INTO t SELECT 1", "DROP TABLE t"):
        assert code(send(store, method="GET", query=text)) == 164
        assert code(send(store, text, readonly="1")) == 164
    assert send(store, method="GET", query="SHOW DATABASES")[0] == 200


def test_insert_with_the_query_in_url_or_body(store: StoreProcess) -> None:
    send(store, "CREATE DATABASE http")
    send(store, "CREATE TABLE http.t (a UInt64, s String) ENGINE = MergeTree ORDER BY a")
    cases = [
        (b"1,x\n", into("CSV", "http.t")),
        (b"INSERT INTO http.t FORMAT CSV\n2,y\n", {}),
        (b'INSERT INTO http.t (a, s) FORMAT JSONEachRow {"a": 3, "s": "z"}', {}),
        (b"INSERT INTO http.t VALUES (4, 'it''s; \\'x')", {}),
        (b"(5, 'v'), (6, 'w')", {"query": "INSERT INTO http.t VALUES"}),
        (b"/* FORMAT CSV */ INSERT INTO http.t (s, a) -- VALUES\n FORMAT TSV\nf\t7\n", {}),
        (b"INSERT INTO TABLE http.t SETTINGS max_threads = 1 FORMAT TabSeparated\n8\th\n", {}),
        (b"INSERT INTO `http`.`t` SELECT 9, 'FORMAT CSV'", {}),
        (b"10,\xff\xfe\n", into("CSV", "http.t")),
    ]
    for body, url in cases:
        status, headers, said = send(store, body, **url)
        assert (status, said) == (200, b""), said
        assert int(json.loads(headers["x-clickhouse-summary"])["written_rows"]) >= 1
    assert (
        send(store, "SELECT groupArray(a) FROM (SELECT a FROM http.t ORDER BY a)")[2]
        == b"[1,2,3,4,5,6,7,8,9,10]\n"
    )
    send(store, "DROP DATABASE http")


def test_equal_inserts_without_a_token_are_two(store: StoreProcess) -> None:
    send(store, "CREATE DATABASE twice")
    send(store, "CREATE TABLE twice.t (a UInt64) ENGINE = MergeTree ORDER BY a")
    for url in ({}, {}, {"insert_deduplication_token": "x"}, {"insert_deduplication_token": "x"}, {}):
        assert send(store, "INSERT INTO twice.t VALUES (1)", **url)[0] == 200
        assert send(store, "INSERT INTO twice.t SELECT 2", **url)[0] == 200
    assert send(store, "SELECT a, count() FROM twice.t GROUP BY a ORDER BY a")[2] == b"1\t4\n2\t3\n"
    send(store, "DROP DATABASE twice")


def test_who_may_ask(guarded: StoreProcess) -> None:
    right = "s3cret: ü"
    for good in (
        basic("ops", right),
        {"X-ClickHouse-User": "ops", "X-ClickHouse-Key": right.encode().decode("latin-1")},
    ):
        assert send(guarded, "SELECT 1", headers=good)[2] == b"1\n"
    assert send(guarded, "SELECT 1", user="ops", password=right)[2] == b"1\n"
    key = {"X-ClickHouse-Key": right.encode().decode("latin-1")}
    schemes = [{"Authorization": "Basic %%%"}, {"Authorization": "Bearer x"}]
    wrong = [basic("ops", "no"), basic("default", right), basic("", ""), {"X-ClickHouse-User": "ops"}, key]
    for bad in [{}, *schemes, *wrong]:
        answer = send(guarded, "SELECT 1", headers=bad)
        assert code(answer) == 516
        assert answer[0] in (401, 403)
        assert right not in answer[2].decode()
    assert send(guarded, method="GET", path="/ping")[0] == 200


def test_a_connection_is_kept_and_quick(store: StoreProcess) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", store.port, timeout=30)
    for _ in range(200):
        connection.request("POST", "/", b"SELECT 1")
        assert connection.getresponse().read() == b"1\n"
    local = connection.sock.getsockname()
    connection.request("POST", "/", b"SELECT nope")
    assert connection.getresponse().read().startswith(b"Code: 47")
    assert connection.sock.getsockname() == local


def test_greeting_of_clickhouse_go(store: StoreProcess) -> None:
    query = "SELECT displayName(), version(), revision(), timezone()"
    _, _, body = send(store, query, default_format="Native", client_protocol_version="54460")
    assert body.startswith(b"\x01\x00\x02\xff\xff\xff\xff\x00\x04\x01\x0ddisplayName()\x06String\x00")
    assert b"revision()\x06UInt32\x00\x00\x00\x00\x00" in body


def test_compressed_answers(store: StoreProcess) -> None:
    query = "SELECT number FROM numbers(200000)"
    plain = send(store, query)[2]
    undo = {"gzip": gzip.decompress, "lz4": lz4.frame.decompress}
    undo["zstd"] = lambda data: zstandard.ZstdDecompressor().decompressobj().decompress(data)
    for encoding, decompress in undo.items():
        headers = {"Accept-Encoding": encoding}
        _, said, body = send(store, query, headers=headers, enable_http_compression="1")
        assert said["content-encoding"] == encoding
        assert decompress(body) == plain
        assert len(body) < len(plain)
        assert send(store, query, headers=headers)[1]["content-encoding"] == encoding
        assert send(store, query, headers=headers, enable_http_compression="0")[2] == plain
        assert send(store, query)[2] == plain


def test_clients_that_close_at_once_disturb_nobody(store: StoreProcess) -> None:
    for _ in range(150):
        assert send(store, "SELECT number FROM numbers(100000)")[2].endswith(b"\n99999\n")


@pytest.mark.parametrize(
    "form", ["CSVWithNames", "TSVWithNames", "TabSeparatedWithNamesAndTypes", "ArrowStream"]
)
def test_pieces_make_one_document(store: StoreProcess, form: str) -> None:
    select = 'SELECT number AS "odd "" name,\n\t", toString(number) AS s FROM numbers({count}) FORMAT {form}'
    for count in (0, 5, 500_000):
        data = send(store, select.format(count=count, form=form))[2]
        if form != "ArrowStream":
            lines = data.count(b"\n")
            assert lines - send(store, select.format(count=0, form=form))[2].count(b"\n") == count
            assert data.endswith(f"{count - 1}\n".encode() if "CSV" not in form else b'"\n') or not count
            continue
        with pa.ipc.open_stream(data) as reader:
            table = reader.read_all()
        assert table.column_names[1] == "s"
        assert table.column(0).to_pylist() == list(range(count))


def test_a_database_holds_for_its_query_only(store: StoreProcess) -> None:
    where = "SELECT currentDatabase()"
    for session in ({}, {"session_id": "where"}):
        assert send(store, where, database="system", **session)[2] == b"system\n"
        assert send(store, where, **session)[2] == b"default\n"
    send(store, "USE system", session_id="where")
    assert send(store, where, database="default", session_id="where")[2] == b"default\n"
    assert send(store, where, session_id="where")[2] == b"system\n"
    assert send(store, "USE system", database="default")[0] == 200
    assert send(store, where)[2] == b"default\n"


def test_a_failed_query_leaves_nothing_for_the_next(store: StoreProcess) -> None:
    for form in ("JSON", "Pretty", "XML", "TSV", "Parquet"):
        failing = f"SELECT number, throwIf(number = 200000) FROM numbers(300000) FORMAT {form}"
        send(store, failing)
        send(store, failing, session_id="leftover")
        for _ in range(3):
            assert send(store, "SELECT 1")[2] == b"1\n"
            assert send(store, "SELECT 1", session_id="leftover")[2] == b"1\n"


def test_errors_speak_of_the_data_not_of_us(store: StoreProcess) -> None:
    _, _, body = send(store, "INSERT INTO FUNCTION null('a UInt8') FORMAT JSONEachRow {\"a\": []}")
    assert b"at row 1" in body
    assert b"/proc" not in body


def test_a_slip_is_told_with_its_place(store: StoreProcess) -> None:
    """The parser's own words; of two statements behind a slip neither is run."""
    assert send(store, "CREATE TABLE kept (x UInt8) ENGINE = Memory")[0] == 200
    for text, told in (
        ("SELECT\n a,\n b c d\nFROM t", "line 3, col 6"), ("SELEC 1", "Maybe you meant: SELECT"),
        ("SELECT 'it\\'s' WHERE x = ORDER BY 1", "ORDER"), ("-- nothing", "Empty query"),
        ("x'; DROP TABLE kept; --", "position"), ("x; DROP TABLE kept", "position 1"),
    ):  # fmt: skip
        answer = send(store, text)
        assert (answer[0], code(answer)) == (400, 62) and told in answer[2].decode(), answer
        assert "formatQuery" not in answer[2].decode()
    assert send(store, "DROP TABLE kept")[0] == 200


def test_quote_in_names(store: StoreProcess) -> None:
    send(store, "CREATE DATABASE `it's ``odd`")
    assert send(store, "SELECT currentDatabase() = 'it\\'s `odd'", database="it's `odd")[2] == b"1\n"
    assert send(store, method="GET", query="SELECT 1", **{"max_threads": "2"}, path="/" + quote(""))[0] == 200
    send(store, "DROP DATABASE `it's ``odd`")
