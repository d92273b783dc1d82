"""The store through the driver of Grafana's data source: clickhouse-go over HTTP, set up as it does."""

import json
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from boards import BOARDS, Filled
from conftest import StoreProcess
from sinking import eventually

from fleet.render.variables import expand
from schemas import ddl, declare

ROOT = Path(__file__).parents[1]
# type → (literal, how the program shows what the driver makes of it)
TYPES: dict[str, tuple[str, Any]] = {
    "String": ("'naïve ☃'", "naïve ☃"),
    "LowCardinality(String)": ("toLowCardinality('web')", "web"),
    "DateTime64(6, 'UTC')": (
        "toDateTime64('2026-11-22 20:15:01.123456', 6, 'UTC')",
        "2026-11-22 20:15:01.123456",
    ),
    "IPv6": ("toIPv6('2001:db8::1')", "2001:db8::1"),
    "UUID": ("toUUID('00112233-4455-6677-8899-aabbccddeeff')", "00112233-4455-6677-8899-aabbccddeeff"),
    "Bool": ("true", True),
    "UInt8": ("toUInt8(255)", 255),
    "UInt16": ("toUInt16(65535)", 65535),
    "UInt32": ("toUInt32(4294967295)", 4294967295),
    "UInt64": ("toUInt64(18446744073709551615)", "18446744073709551615"),
    "Int16": ("toInt16(-32768)", -32768),
    "Int32": ("toInt32(-2147483648)", -2147483648),
    "Int64": ("toInt64(-9223372036854775808)", "-9223372036854775808"),
    "Float64": ("toFloat64(0.1)", 0.1),
    "Array(UInt32)": ("[toUInt32(1), 2]", "[1 2]"),
    "Array(UInt64)": ("[toUInt64(1), 18446744073709551615]", "[1 18446744073709551615]"),
    "FixedString(128)": ("toFixedString('frame', 128)", "frame" + "\0" * 123),
    # What queries make of them.
    "DateTime": ("toDateTime('2026-11-22 20:15:01', 'UTC')", "2026-11-22 20:15:01.000000"),
    "Nullable(Float64)": ("CAST(NULL, 'Nullable(Float64)')", None),
    "Nullable(String)": ("CAST('there', 'Nullable(String)')", "there"),
}
# Types that no table of ours has, and somebody's query may make.
OTHER_TYPES: dict[str, tuple[str, Any]] = {
    "LowCardinality(Nullable(String))": ("CAST(NULL, 'LowCardinality(Nullable(String))')", None),
    "Nullable(IPv6)": ("CAST('::1', 'Nullable(IPv6)')", "::1"),
    "IPv4": ("toIPv4('192.0.2.1')", "192.0.2.1"),
    "Array(Tuple(UInt8, String))": (
        "[(1, 'a'), (2, 'b')]::Array(Tuple(UInt8, String))",
        [[1, "a"], [2, "b"]],
    ),
    "Tuple(n UInt8, s String)": ("CAST((1, 'a'), 'Tuple(n UInt8, s String)')", {"n": 1, "s": "a"}),
    "Map(String, Array(UInt64))": ("map('a', [1, 2])::Map(String, Array(UInt64))", {"a": [1, 2]}),
    "Map(LowCardinality(String), UInt64)": (
        "CAST(map('a', 1), 'Map(LowCardinality(String), UInt64)')",
        {"a": 1},
    ),
    "Enum8('b' = -2, 'a' = 1)": ("CAST('b', 'Enum8(''a'' = 1, ''b'' = -2)')", "b"),
    "Decimal(18, 3)": ("toDecimal64('-123456789.123', 3)", "-123456789.123"),
    "Decimal(76, 20)": ("toDecimal256('1.5', 20)", "1.5"),
    "DateTime64(9, 'America/New_York')": (
        "toDateTime64('2026-11-22 20:15:01.123456789', 9, 'America/New_York')",
        "2026-11-23 01:15:01.123456",
    ),
    "DateTime64(3, 'UTC')": (
        "toDateTime64('1960-01-02 00:00:00.5', 3, 'UTC')",
        "1960-01-02 00:00:00.500000",
    ),
    "Date32": ("toDate32('1930-01-02')", "1930-01-02 00:00:00.000000"),
    "Int128": ("toInt128('-170141183460469231731687303715884105728')", str(-(1 << 127))),
    "UInt256": ("toUInt256('5')", "5"),
    "Array(Array(String))": ("[['a'], [], ['b', 'c']]", [["a"], [], ["b", "c"]]),
    "Array(Nullable(Int32))": ("[1, NULL]::Array(Nullable(Int32))", [1, None]),
    "Array(LowCardinality(String))": ("['a', 'b']::Array(LowCardinality(String))", ["a", "b"]),
    "Variant(String, UInt64)": ("CAST('x', 'Variant(String, UInt64)')", "x"),
    "Dynamic": ("CAST('x', 'Dynamic')", "x"),
    "Nullable(Nothing)": ("NULL", None),
    "IntervalSecond": ("INTERVAL 5 SECOND", "5 Seconds"),
}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, built with the versions that its go.sum pins."""
    go = subprocess.run(
        [ROOT / "deploy" / "go.sh"], capture_output=True, text=True, check=True
    ).stdout.strip()
    binary = tmp_path_factory.mktemp("go") / "ask"
    build = [go, "build", "-mod=readonly", "-o", str(binary), "."]
    plain = os.environ | {"CGO_ENABLED": "0"}
    subprocess.run(build, cwd=ROOT / "tests" / "clickhouse_go", check=True, env=plain)
    return binary


class Driver:
    """The program, running: one question at a time, over its one pool of connections."""

    def __init__(self, program: Path, store: StoreProcess, database: str, *options: str) -> None:
        self.process = subprocess.Popen(
            [program, "-address", f"127.0.0.1:{store.port}", "-database", database, *options],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def ask(self, sql: str, cancel_after_ms: int = 0) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps({"sql": sql, "cancel_after_ms": cancel_after_ms}) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def close(self) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.wait(10)
        self.process.stdout.close()


@pytest.fixture
def driver(program: Path, store: StoreProcess, rows: Filled) -> Iterator[Driver]:
    made = Driver(program, store, rows.database)
    try:
        yield made
    finally:
        made.close()


def test_every_type_that_a_table_has_is_tried() -> None:
    used = {kind for stream in declare.streams().values() for kind, _ in ddl.columns(stream).values()}
    assert used <= set(TYPES)


def test_every_type_arrives_as_it_is(driver: Driver) -> None:
    types = TYPES | OTHER_TYPES
    columns = ", ".join(f"{literal} AS c{number}" for number, (literal, _) in enumerate(types.values()))
    for count in (3, 0):
        answer = driver.ask(f"SELECT {columns} FROM numbers({count})")
        assert answer["error"] == ""
        assert answer["rows"] == [[shown for _, shown in types.values()]] * count
        told = [each.replace("DateTime('UTC')", "DateTime") for each in answer["types"] or types]
        assert told == list(types)


def test_every_panels_query_goes_over_the_wire(driver: Driver, rows: Filled) -> None:
    asked = 0
    for board in BOARDS.values():
        choices = rows.choices(board)
        for panel in board.panels:
            for sql in panel.queries.values():
                text = expand(sql, choices, panel.window(rows.window))
                answer, expected = driver.ask(text), rows.ask(text)
                assert answer["error"] == "", f"{board.title}, {panel.title}: {answer['error']}"
                assert answer["columns"] == list(expected.names) and len(answer["rows"]) == expected.rows
                asked += 1
    assert asked > 100


def test_a_large_answer_comes_whole(driver: Driver) -> None:
    answer = driver.ask("SELECT number, toString(number) AS text FROM numbers(300000)")
    assert answer["error"] == "" and len(answer["rows"]) == 300_000
    assert answer["rows"][-1] == ["299999", "299999"]


def test_answers_and_errors_in_blocks(program: Path, store: StoreProcess) -> None:
    driver = Driver(program, store, "default", "-blocks")
    try:
        answer = driver.ask("SELECT number, toString(number) AS text FROM numbers(300000)")
        assert answer["error"] == "" and answer["rows"][-1] == ["299999", "299999"]
        assert "Code: 47. DB::Exception: Unknown" in driver.ask("SELECT nonsense")["error"]
    finally:
        driver.close()


def test_no_rows_are_no_error(driver: Driver) -> None:
    answer = driver.ask("SELECT host, ts FROM host WHERE 0")
    assert (answer["error"], answer["rows"]) == ("", [])


@pytest.mark.parametrize(
    ("sql", "says"),
    [
        ("SELECT nonsense", "Code: 47. DB::Exception: Unknown expression identifier `nonsense`"),
        ("SELECT * FROM nowhere", "Code: 60. DB::Exception: Unknown table"),
        ("SELEKT 1", "Code: 62. DB::Exception: "),
        ("SELECT throwIf(1, 'as asked')", "Code: 395. DB::Exception: as asked"),
        ("SELECT sleep(3) SETTINGS max_execution_time = 0.5", "Code: 159. DB::Exception: Timeout exceeded"),
    ],
)
def test_an_error_says_what_clickhouse_says(driver: Driver, sql: str, says: str) -> None:
    answer = driver.ask(sql)
    assert says in answer["error"]
    assert driver.ask("SELECT 1")["rows"] == [[1]]


def test_an_error_on_the_way_is_no_short_answer(driver: Driver) -> None:
    far = "SELECT throwIf(number = 400000, 'too far') FROM numbers(500000) SETTINGS max_block_size = 8192"
    answer = driver.ask(far)
    assert answer["error"] != ""
    assert driver.ask("SELECT 1")["rows"] == [[1]]


def test_who_goes_away_in_the_middle_of_an_answer_ends_it_there_too(
    program: Path, store: StoreProcess, driver: Driver, rows: Filled
) -> None:
    """Another's query beside it is answered meanwhile and afterwards."""
    slow = "SELECT randomPrintableASCII(3000), sleepEachRow(0.001) FROM numbers(100000) "
    slow += "SETTINGS max_block_size = 50"
    running = (
        "SELECT count() FROM system.processes WHERE query LIKE '%sleepEachRow%' AND query NOT LIKE '%LIKE%'"
    )
    answers: list[dict[str, Any]] = []
    asking = threading.Thread(target=lambda: answers.append(driver.ask(slow, 900)))
    asking.start()
    other = Driver(program, store, rows.database)
    try:
        eventually(lambda: rows.values(running) == ["1"], 0.8)
        assert len(other.ask("SELECT number FROM numbers(100000)")["rows"]) == 100_000
        asking.join(20)
        assert "cancel" in answers[0]["error"] and 0 < len(answers[0]["rows"]) < 5_000
        eventually(lambda: rows.values(running) == ["0"], 10)
        assert other.ask("SELECT 1")["rows"] == driver.ask("SELECT 1")["rows"] == [[1]]
    finally:
        other.close()


def test_a_cancelled_query_ends_here_and_there(driver: Driver, rows: Filled) -> None:
    query = "SELECT count() FROM numbers(1000000000000) WHERE NOT ignore(sipHash64(number))"
    running = (
        "SELECT count() FROM system.processes WHERE query LIKE '%NOT ignore%' AND query NOT LIKE '%LIKE%'"
    )
    answers: list[dict[str, Any]] = []
    asking = threading.Thread(target=lambda: answers.append(driver.ask(query, 1_500)))
    asking.start()
    eventually(lambda: rows.values(running) == ["1"], 1.4)
    asking.join(20)
    assert "cancel" in answers[0]["error"] and answers[0]["seconds"] < 4
    eventually(lambda: rows.values(running) == ["0"], 10)
    assert driver.ask("SELECT 1")["rows"] == [[1]]
