"""What clickhouse-connect expects of a server: parameters, settings, sessions, errors, large results."""

import threading
import time
from collections.abc import Iterator

import clickhouse_connect
import psutil
import pytest
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError
from clickhouse_connect.driver.external import ExternalData
from conftest import StoreProcess


@pytest.fixture(scope="module")
def database(store: StoreProcess) -> Iterator[str]:
    client = clickhouse_connect.get_client(dsn=store.url)
    client.command("CREATE DATABASE client")
    yield "client"
    client.command("DROP DATABASE client")


@pytest.fixture
def client(store: StoreProcess, database: str) -> Iterator[Client]:
    with clickhouse_connect.get_client(dsn=store.url, database=database) as client:
        yield client


def test_parameters(client: Client) -> None:
    odd = "it's a \\ tab\t\n new line {x} %s é"
    answer = client.query(
        "SELECT {a:UInt64}, {s:String}, {l:Array(String)}, {d:DateTime64(6)}, {n:Nullable(String)}",
        parameters={"a": 2**64 - 1, "s": odd, "l": ["x", "y'z"], "d": "2026-01-01 00:00:00.5", "n": None},
    )
    assert answer.result_rows[0][:3] == (2**64 - 1, odd, ["x", "y'z"])
    assert answer.result_rows[0][4] is None


def test_a_missing_parameter(client: Client) -> None:
    with pytest.raises(DatabaseError) as caught:
        client.query("SELECT {a:UInt64}")
    assert caught.value.code == 456


def test_a_setting_holds_for_its_query_only(client: Client) -> None:
    text = "SELECT getSetting('max_threads'), getSetting('max_block_size')"
    before = client.query(text).result_rows
    assert client.query(text, settings={"max_threads": 1, "max_block_size": 77}).result_rows == [(1, 77)]
    assert client.query(text, settings={"max_block_size": 78}).result_rows == [(before[0][0], 78)]
    assert client.query(text).result_rows == before


def test_set_lasts_as_long_as_the_session(store: StoreProcess, client: Client) -> None:
    text = "SELECT getSetting('max_block_size')"
    before = client.command(text)
    client.command("SET max_block_size = 123")
    assert client.command(text) == 123
    assert client.query(text, settings={"max_block_size": 5}).result_rows == [(5,)]
    assert client.command(text) == 123
    client.query("SELECT 1", settings={"max_block_size": 9})
    client.command("SET max_block_size = 124")
    assert client.command(text) == 124
    with clickhouse_connect.get_client(dsn=store.url) as other:
        assert other.command(text) == before


def test_temporary_tables_belong_to_the_session(store: StoreProcess, client: Client) -> None:
    client.command("CREATE TEMPORARY TABLE mine (a UInt8)")
    client.insert("mine", [[1], [2]], column_names=["a"], column_type_names=["UInt8"])
    assert client.command("SELECT sum(a) FROM mine") == 3
    with clickhouse_connect.get_client(dsn=store.url) as other, pytest.raises(DatabaseError) as caught:
        other.query("SELECT * FROM mine")
    assert caught.value.code == 60


def test_nobody_inherits_a_closed_sessions_state(store: StoreProcess) -> None:
    url = {"dsn": store.url, "session_id": "short"}
    with clickhouse_connect.get_client(**url, settings={"session_timeout": 0}) as first:
        first.command("SET max_block_size = 321")
        first.command("CREATE TEMPORARY TABLE gone (a UInt8)")
    time.sleep(0.1)
    with clickhouse_connect.get_client(**url) as second:
        assert second.command("SELECT getSetting('max_block_size')") != 321
        with pytest.raises(DatabaseError):
            second.query("SELECT * FROM gone")


def test_a_busy_session_is_locked(store: StoreProcess) -> None:
    slow = clickhouse_connect.get_client(dsn=store.url, session_id="busy")
    other = clickhouse_connect.get_client(dsn=store.url, session_id="busy")
    thread = threading.Thread(target=slow.query, args=("SELECT sleep(2)",))
    thread.start()
    time.sleep(0.3)
    with pytest.raises(DatabaseError) as caught:
        other.command("SELECT 2")
    thread.join()
    assert caught.value.code == 373
    assert slow.command("SELECT 1") == 1


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("SELECT * FROM nothing_here", 60),
        ("SELECT nothing_here", 47),
        ("SELEC 1", 62),
        ("SELECT nofunction(1)", 46),
        ("SELECT 1 FROM nodb.t", 81),
        ("SELECT throwIf(1)", 395),
        ("SELECT toUInt8('x')", 6),
        ("SELECT 1 SETTINGS nonsense = 1", 115),
        ("CREATE TABLE t", 80),
        ("DROP TABLE nothing_here", 60),
        ("SELECT 1; SELECT 2", 62),
        ("", 62),
    ],
)
def test_errors_carry_clickhouses_codes(client: Client, query: str, code: int) -> None:
    with pytest.raises(DatabaseError) as caught:
        client.raw_query(query)
    assert caught.value.code == code


def test_an_error_in_the_middle_of_a_stream_reaches_the_reader(client: Client) -> None:
    query = "SELECT number, throwIf(number = 3000000) FROM numbers(5000000)"
    rows = 0
    with (
        pytest.raises(Exception, match="throwIf"),
        client.query_row_block_stream(query, settings={"max_block_size": 65_536}) as stream,
    ):
        for block in stream:
            rows += len(block)
    assert client.command("SELECT 1") == 1


def test_a_large_result_streams_in_flat_memory(store: StoreProcess, client: Client) -> None:
    assert store.process
    process = psutil.Process(store.process.pid)
    query = "SELECT number, toString(number) AS s, number * 2 AS d FROM numbers(5000000)"
    rows, most = 0, 0
    before = process.memory_info().rss
    with client.query_row_block_stream(query) as stream:
        for block in stream:
            rows += len(block)
            most = max(most, process.memory_info().rss)
    assert rows == 5_000_000
    assert most - before < 150 << 20  # the result is 180 MB


def test_max_execution_time(client: Client) -> None:
    start = time.monotonic()
    with pytest.raises(DatabaseError) as caught:
        client.query(
            "SELECT sum(sipHash64(number)) FROM numbers(100000000000)", settings={"max_execution_time": 1}
        )
    assert caught.value.code == 159
    assert time.monotonic() - start < 5


def test_a_query_past_the_memory_limit_fails_alone(client: Client) -> None:
    with pytest.raises(DatabaseError) as caught:
        client.query(
            "SELECT groupArray(number) FROM numbers(2000000000)", settings={"max_memory_usage": 50_000_000}
        )
    assert caught.value.code == 241
    assert client.command("SELECT 1") == 1


def test_summaries(client: Client) -> None:
    client.command("CREATE TABLE counted (a UInt64) ENGINE = MergeTree ORDER BY a")
    summary = client.insert("counted", [[at] for at in range(100)], column_names=["a"])
    assert summary.written_rows == 100
    assert client.query("SELECT * FROM counted").summary["read_rows"] == "100"


def test_readers_while_inserting(store: StoreProcess, client: Client) -> None:
    client.command("CREATE TABLE busy (a UInt64) ENGINE = MergeTree ORDER BY a")
    stop = threading.Event()
    seen: list[int] = []
    failed: list[Exception] = []

    def read() -> None:
        with clickhouse_connect.get_client(dsn=store.url, database="client") as reader:
            while not stop.is_set():
                try:
                    seen.append(int(reader.command("SELECT count() FROM busy")))
                except Exception as error:
                    failed.append(error)

    readers = [threading.Thread(target=read) for _ in range(4)]
    for each in readers:
        each.start()
    for at in range(50):
        client.insert("busy", [[at * 1000 + row] for row in range(1000)], column_names=["a"])
    stop.set()
    for each in readers:
        each.join()
    assert not failed
    assert client.command("SELECT count(), uniqExact(a) FROM busy") == ["50000", "50000"]
    assert all(each % 1000 == 0 for each in seen)


def test_external_tables(client: Client) -> None:
    data = ExternalData(file_name="ext.csv", data=b"1,a\n2,b\n", fmt="CSV", structure=["a UInt8", "s String"])
    query = "SELECT a, s FROM ext WHERE a > {least:UInt8}"
    assert client.query(query, parameters={"least": 1}, external_data=data).result_rows == [(2, "b")]
    with pytest.raises(DatabaseError) as caught:
        client.query("SELECT * FROM ext")
    assert caught.value.code == 60


def test_parameters_in_a_form(store: StoreProcess) -> None:
    odd = "é\r\n--x\r\n\r\n"
    with clickhouse_connect.get_client(dsn=store.url, form_encode_query_params=True) as client:
        answer = client.query("SELECT {a:UInt8}, {s:String}", parameters={"a": 3, "s": odd})
    assert answer.result_rows == [(3, odd)]


def test_input(client: Client) -> None:
    client.command("CREATE TABLE put (a UInt64, s String) ENGINE = MergeTree ORDER BY a")
    select = "SELECT a * 2, upper(s) FROM input('a UInt64, s String') WHERE a > 1"
    for _ in range(2):
        client.command(f"INSERT INTO put (a, s) {select} FORMAT CSV", data="1,x\n2,y\n3,z\n")
    assert client.query("SELECT a, s, count() FROM put GROUP BY a, s ORDER BY a").result_rows == [
        (4, "Y", 2),
        (6, "Z", 2),
    ]


def test_a_violated_constraint_is_no_success(client: Client) -> None:
    client.command("CREATE TABLE few (a UInt8, CONSTRAINT few CHECK a < 5) ENGINE = MergeTree ORDER BY a")
    with pytest.raises(DatabaseError) as caught:
        client.insert("few", [[1], [9]], column_names=["a"])
    assert caught.value.code == 469
    assert client.command("SELECT count() FROM few") == 0


def test_a_large_insert_spills_and_is_whole(store: StoreProcess, client: Client) -> None:
    assert store.process
    process = psutil.Process(store.process.pid)
    client.command("CREATE TABLE large (a UInt64, s String) ENGINE = MergeTree ORDER BY a")
    line = b"%d," + b"x" * 90 + b"\n"
    before = process.memory_info().rss
    pieces = (b"".join(line % (at + row) for row in range(10_000)) for at in range(0, 1_500_000, 10_000))
    client.raw_insert("large", ["a", "s"], pieces, fmt="CSV")
    assert process.memory_info().rss - before < 400 << 20
    assert client.command("SELECT count(), uniqExact(a) FROM large") == ["1500000", "1500000"]
    assert not list((store.state_dir / "store" / "tmp").iterdir())


def test_a_session_is_free_when_its_answer_is_read(client: Client) -> None:
    for number in range(30):
        streamed = client.raw_stream("SELECT number FROM numbers(100000)", fmt="RowBinary")
        assert len(streamed.read()) == 800_000
        assert client.command(f"SELECT {number}") == number


def test_a_session_goes_on_after_an_answer_was_left(client: Client) -> None:
    for number in range(5):
        with client.query_row_block_stream("SELECT number FROM numbers(100000000)") as blocks:
            assert next(iter(blocks))
        assert client.command(f"SELECT {number}") == number


def test_kill_query_by_the_id_that_its_client_chose(store: StoreProcess, client: Client) -> None:
    failed: list[DatabaseError] = []

    def run() -> None:
        victim = clickhouse_connect.get_client(dsn=store.url)
        try:
            settings = {"query_id": "it's mine", "log_comment": "of the client's own"}
            victim.query(
                "SELECT count() FROM numbers(1000000000000) WHERE NOT ignore(number)", settings=settings
            )
        except DatabaseError as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    running = (
        "SELECT count() FROM system.processes WHERE query LIKE '%1000000000000%' AND query NOT LIKE '%LIKE%'"
    )
    while not client.command(running):
        time.sleep(0.05)
    with pytest.raises(DatabaseError) as same:
        client.query("SELECT 1", settings={"query_id": "it's mine"})
    assert same.value.code == 216
    assert client.command("KILL QUERY WHERE query_id = 'nobody' SYNC") == ""
    assert client.query("KILL QUERY WHERE query_id = 'it\\'s mine' SYNC").row_count == 1
    thread.join(20)
    assert [each.code for each in failed] == [394]
