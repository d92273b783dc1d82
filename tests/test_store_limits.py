"""A limit has a test at which it trips: memory, queries at once, sessions, forms; and settings arrive."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from asking import Answer, code, send
from conftest import StoreProcess


@pytest.fixture
def small(tmp_path: Path) -> Iterator[StoreProcess]:
    """A store of 400 MB with everything else set, too."""
    secret = tmp_path / "password"
    secret.write_text("secret")
    server = StoreProcess(
        tmp_path, max_memory_mb=400, threads=1, fsync=True, listen="0.0.0.0", password_file=str(secret)
    )
    server.start()
    yield server
    server.kill()


def test_settings_reach_the_engine(small: StoreProcess) -> None:
    def ask(query: str) -> bytes:
        return send(small, query, password="secret")[2]

    assert ask("SELECT getSetting('max_threads')") == b"1\n"
    for name in ("fsync_after_insert", "fsync_part_directory"):
        assert ask(f"SELECT value FROM system.merge_tree_settings WHERE name = '{name}'") == b"1\n"
    limit = "SELECT value FROM system.server_settings WHERE name = 'max_server_memory_usage'"
    assert ask(limit) == f"{400 << 20}\n".encode()
    assert code(send(small, "SELECT 1")) == 516


def test_a_query_past_the_stores_memory_fails_alone(small: StoreProcess) -> None:
    greedy = [
        "SELECT groupArray(number) FROM numbers(1000000000) FORMAT Null",
        "SELECT number, repeat('x', 1000) FROM numbers(3000000) FORMAT JSON",
        "SELECT uniqExact(number) FROM numbers(1000000000)",
    ]
    for query in greedy:
        assert code(send(small, query, password="secret")) == 241
        assert send(small, "SELECT 1", password="secret")[2] == b"1\n"


def test_too_many_queries_at_once(store: StoreProcess) -> None:
    answers: list[Answer] = []
    threads = [
        threading.Thread(target=lambda: answers.append(send(store, "SELECT sleep(2)"))) for _ in range(80)
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    refused = [answer for answer in answers if answer[0] != 200]
    assert 0 < len(refused) <= 16
    assert {(answer[0], code(answer)) for answer in refused} == {(503, 202)}


def test_more_sessions_than_are_kept(store: StoreProcess) -> None:
    for number in range(250):
        assert send(store, "SELECT 1", session_id=f"many-{number}")[0] == 200
    assert code(send(store, "SELECT 1", session_id="many-0", session_check="1")) == 372
    assert send(store, "SELECT 1", session_id="many-249", session_check="1")[0] == 200


def test_a_form_too_large_or_broken(store: StoreProcess) -> None:
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    part = b'--x\r\nContent-Disposition: form-data; name="query"\r\n\r\nSELECT 1\r\n'
    assert send(store, part + b"--x--\r\n", headers=kind)[2] == b"1\n"
    assert code(send(store, b"y" * (65 << 20), headers=kind)) == 230
    assert code(send(store, part, headers=kind)) == 36
    assert code(send(store, part.replace(b"name", b"nome") + b"--x--\r\n", headers=kind)) == 36
    assert code(send(store, part, headers={"Content-Type": "multipart/form-data"})) == 36
    table = b'--x\r\nContent-Disposition: form-data; name="t"; filename="t"\r\n\r\n1\n\r\n--x--\r\n'
    assert code(send(store, table, headers=kind, query="SELECT * FROM t")) == 36
    escape = {"t_structure": "a UInt8) ENGINE = File(CSV, '/etc/passwd') --", "query": "SELECT * FROM t"}
    assert code(send(store, table, headers=kind, **escape)) == 497
    assert send(store, table, headers=kind, query="SELECT _1 + 1 FROM t", t_types="UInt8")[2] == b"2\n"
