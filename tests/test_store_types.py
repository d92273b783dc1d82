"""Every column type bpfleet may meet, in and out through clickhouse-connect, equal."""

import datetime as dt
import decimal
import ipaddress
import uuid
from collections.abc import Iterator
from typing import Any

import clickhouse_connect
import numpy as np
import pandas as pd
import pytest
from clickhouse_connect.driver.client import Client
from conftest import StoreProcess

MAPPED = [ipaddress.IPv6Address("::ffff:10.1.2.3"), ipaddress.IPv6Address("2001:db8::1")]
MOMENTS = [dt.datetime(1970, 1, 1), dt.datetime(2026, 11, 22, 17, 0, 0, 123456)]  # UTC

# type → values, extremes first
TYPES: dict[str, list[Any]] = {
    **{f"UInt{bits}": [0, 2**bits - 1, 7] for bits in (8, 16, 32, 64, 128, 256)},
    **{f"Int{bits}": [-(2 ** (bits - 1)), 2 ** (bits - 1) - 1, 0] for bits in (8, 16, 32, 64, 128, 256)},
    "Float32": [0.0, -1.5, 2.0**127],
    "Float64": [0.0, -1.5e-300, 1.7e308],
    "Bool": [True, False],
    "String": ["", "tab\tnew\nline\\ 'quote'", "ünïcödé ☃", "x" * 10_000],
    "LowCardinality(String)": ["", "a", "b", "a"],
    "LowCardinality(Nullable(String))": ["a", None, ""],
    "FixedString(4)": [b"abcd", b"\x00\x01\xff\xfe"],
    "IPv4": [ipaddress.IPv4Address("0.0.0.0"), ipaddress.IPv4Address("255.1.2.3")],
    "IPv6": MAPPED,
    "UUID": [uuid.UUID(int=0), uuid.UUID(int=2**128 - 1)],
    "Date": [dt.date(1970, 1, 1), dt.date(2149, 6, 6)],
    "Date32": [dt.date(1900, 1, 1), dt.date(2299, 12, 31)],
    "DateTime('UTC')": [each.replace(microsecond=0) for each in MOMENTS],
    "DateTime64(6, 'UTC')": MOMENTS,
    "Decimal(18, 4)": [decimal.Decimal("-12345678901234.5678"), decimal.Decimal("0.0001")],
    "Enum8('a' = 1, 'b' = -5)": ["a", "b"],
    "Enum16('x' = 300, 'y' = 2)": ["x", "y"],
    "Array(UInt64)": [[], [0, 2**64 - 1]],
    "Array(Array(String))": [[["a"], []], []],
    "Nullable(UInt64)": [None, 0, 2**64 - 1],
    "Nullable(String)": [None, "", "a"],
    "Map(String, UInt64)": [{}, {"a": 1, "b": 2**64 - 1}],
    "Map(LowCardinality(String), Array(Int32))": [{"a": [1, -1]}, {}],
    "Tuple(UInt8, String)": [(1, "a"), (255, "")],
    "Nested(a UInt8, b String)": [[], [{"a": 1, "b": "x"}]],
}


@pytest.fixture(scope="module")
def client(store: StoreProcess) -> Iterator[Client]:
    client = clickhouse_connect.get_client(dsn=store.url)
    client.command("CREATE DATABASE types")
    client.database = "types"
    yield client
    client.command("DROP DATABASE types")
    client.close()


@pytest.mark.parametrize("name", TYPES)
def test_in_and_out(client: Client, name: str) -> None:
    table = "t" + "".join(each if each.isalnum() else "_" for each in name)
    settings = "SETTINGS flatten_nested = 0"
    client.command(f"CREATE TABLE {table} (n UInt32, v {name}) ENGINE = MergeTree ORDER BY n {settings}")
    rows = [[at, value] for at, value in enumerate(TYPES[name])]
    client.insert(table, rows, column_names=["n", "v"])
    answer = client.query(f"SELECT n, v FROM {table} ORDER BY n")
    assert [list(row) for row in answer.result_rows] == rows
    assert answer.column_types[1].name.startswith(name.split("(", 1)[0])


@pytest.mark.parametrize("compression", [False, "lz4", "zstd", "gzip"])
def test_compression_both_ways(store: StoreProcess, client: Client, compression: str | bool) -> None:
    other = clickhouse_connect.get_client(dsn=store.url, compress=compression, database="types")
    table = f"compressed_{compression}"
    other.command(f"CREATE TABLE {table} (a UInt64, s String) ENGINE = MergeTree ORDER BY a")
    rows = [[at, str(at) * 10] for at in range(100_000)]
    other.insert(table, rows, column_names=["a", "s"])
    assert [list(row) for row in other.query(f"SELECT a, s FROM {table} ORDER BY a").result_rows] == rows


@pytest.mark.parametrize(
    "form", ["CSV", "JSONEachRow", "TSV", "RowBinary", "Avro", "Parquet", "ArrowStream", "Native"]
)
def test_raw_inserts_of_every_format(client: Client, form: str) -> None:
    client.command(f"CREATE TABLE raw_{form} (a UInt64, s String) ENGINE = MergeTree ORDER BY a")
    query = "SELECT number AS a, toString(number) AS s FROM numbers(10000)"
    data = client.raw_query(query, fmt=form)
    client.raw_insert(f"raw_{form}", ["a", "s"], data, fmt=form)
    compressed = client.raw_query(query, fmt=form)
    client.raw_insert(
        f"raw_{form}",
        ["a", "s"],
        (compressed[at : at + 999] for at in range(0, len(compressed), 999)),
        fmt=form,
    )
    assert client.query(f"SELECT count(), sum(a), uniqExact(s) FROM raw_{form}").result_rows == [
        (20_000, 2 * sum(range(10_000)), 10_000)
    ]


def test_numpy_pandas_and_arrow(client: Client) -> None:
    frame = pd.DataFrame({"a": np.arange(1000, dtype="u8"), "s": [f"s{at}" for at in range(1000)]})
    client.command("CREATE TABLE frames (a UInt64, s String) ENGINE = MergeTree ORDER BY a")
    client.insert_df("frames", frame)
    assert (client.query_np("SELECT a FROM frames ORDER BY a")[:, 0] == frame["a"].to_numpy()).all()
    assert list(client.query_df("SELECT s FROM frames ORDER BY a")["s"]) == list(frame["s"])
    table = client.query_arrow("SELECT a, s FROM frames ORDER BY a")
    assert table.column("a").to_pylist() == frame["a"].tolist()
    client.insert_arrow("frames", table)
    assert client.command("SELECT count() FROM frames") == 2000
    with client.query_arrow_stream("SELECT a FROM frames ORDER BY a") as stream:
        assert sum(batch.num_rows for batch in stream) == 2000
    with client.query_df_stream("SELECT a FROM frames ORDER BY a") as stream:
        assert sum(len(part) for part in stream) == 2000


def test_an_empty_result_has_its_columns(client: Client) -> None:
    assert client.query("SELECT 1 AS a WHERE 0").result_rows == []
    assert client.query("SELECT 1 AS a, 'x' AS b LIMIT 0").column_names == ("a", "b")
