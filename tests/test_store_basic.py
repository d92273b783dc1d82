"""The store answers as a ClickHouse server does: curl's view and clickhouse-connect's first steps."""

import urllib.error
import urllib.request

import clickhouse_connect
from conftest import StoreProcess


def ask(store: StoreProcess, query: str) -> str:
    with urllib.request.urlopen(store.url, data=query.encode(), timeout=30) as answer:
        return answer.read().decode()


def test_a_select_by_post(store: StoreProcess) -> None:
    assert ask(store, "SELECT 1, 'a'") == "1\ta\n"


def test_connect_creates_inserts_and_reads(store: StoreProcess) -> None:
    client = clickhouse_connect.get_client(dsn=store.url)
    client.command("CREATE DATABASE basic")
    client.command("CREATE TABLE basic.t (a UInt64, b LowCardinality(String)) ENGINE = MergeTree ORDER BY a")
    client.insert("basic.t", [[1, "x"], [2, "y"]], column_names=["a", "b"])
    assert client.query("SELECT a, b FROM basic.t ORDER BY a").result_rows == [(1, "x"), (2, "y")]
    answer = client.query("SELECT b FROM basic.t WHERE a = {a:UInt64}", parameters={"a": 2})
    assert answer.result_rows == [("y",)]
    client.command("DROP DATABASE basic")


def test_a_repeated_token_inserts_once(store: StoreProcess) -> None:
    client = clickhouse_connect.get_client(dsn=store.url)
    client.command("CREATE DATABASE tokens")
    client.command("CREATE TABLE tokens.t (a UInt64) ENGINE = MergeTree ORDER BY a")
    for token in ("one", "one", "two"):
        settings = {"insert_deduplication_token": token}
        client.insert("tokens.t", [[1], [2]], column_names=["a"], settings=settings)
    assert client.query("SELECT count() FROM tokens.t").result_rows == [(4,)]
    client.command("DROP DATABASE tokens")
