"""The store under SIGKILL, SIGTERM and a client that leaves: what was acknowledged is there, once."""

import http.client
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from conftest import StoreProcess

ROUNDS = int(os.environ.get("SOAK_ROUNDS", "12"))
ROWS = 500  # of an insert


def ask(store: StoreProcess, query: str, **settings: str) -> str:
    """One statement on a connection of its own; raises for anything but 200."""
    connection = http.client.HTTPConnection("127.0.0.1", store.port, timeout=60)
    try:
        url = "/?" + "&".join(f"{name}={quote(value)}" for name, value in settings.items())
        connection.request("POST", url, query.encode())
        answer = connection.getresponse()
        body = answer.read().decode()
    finally:
        connection.close()
    assert answer.status == 200, body
    return body


@pytest.fixture
def own_store(tmp_path: Path) -> Iterator[StoreProcess]:
    store = StoreProcess(tmp_path)
    store.start()
    yield store
    store.kill()


class Writer(threading.Thread):
    """Inserts batch after batch; a batch whose answer did not come is sent again, with its token."""

    def __init__(self, store: StoreProcess, name: int, stop: threading.Event) -> None:
        super().__init__()
        self.store, self.number, self.stopping = store, name, stop
        self.acknowledged = 0
        self.repeated = 0
        self.wrong: list[str] = []

    def run(self) -> None:
        while not self.stopping.is_set():
            rows = "".join(f"{self.number},{self.acknowledged},{row}\n" for row in range(ROWS))
            token = f"{self.number}:{self.acknowledged}"
            while True:
                try:
                    ask(self.store, f"INSERT INTO kept FORMAT CSV\n{rows}", insert_deduplication_token=token)
                    self.acknowledged += 1
                    break
                except (OSError, http.client.HTTPException):
                    self.repeated += 1
                    time.sleep(0.02)
                except AssertionError as error:
                    self.wrong.append(str(error))
                    return


def test_acknowledged_inserts_survive_sigkill_once(own_store: StoreProcess) -> None:
    ask(own_store, "CREATE TABLE kept (w UInt8, b UInt32, r UInt32) ENGINE = MergeTree ORDER BY (w, b)")
    stop = threading.Event()
    writers = [Writer(own_store, number, stop) for number in range(3)]
    for each in writers:
        each.start()
    for _ in range(ROUNDS):
        time.sleep(random.uniform(0.05, 0.6))
        own_store.kill()
        own_store.start()
    stop.set()
    for each in writers:
        each.join()
    assert not [each.wrong for each in writers if each.wrong]
    counted = (
        "SELECT w, uniqExact(b), count(), uniqExact(b, r) FROM kept GROUP BY w ORDER BY w FORMAT JSONCompact"
    )
    found = json.loads(ask(own_store, counted))["data"]
    rows = {each.number: each.acknowledged for each in writers}
    assert [[w, int(b), int(n), int(u)] for w, b, n, u in found] == [
        [w, batches, batches * ROWS, batches * ROWS] for w, batches in rows.items()
    ]
    assert sum(rows.values()) > ROUNDS
    assert sum(each.repeated for each in writers) >= ROUNDS


def test_sigterm_finishes_the_running_insert(own_store: StoreProcess) -> None:
    ask(own_store, "CREATE TABLE slow (a UInt64) ENGINE = MergeTree ORDER BY a")
    answered: list[str] = []
    insert = "INSERT INTO slow SELECT number + sleepEachRow(0.5) FROM numbers(4)"
    settings = {"function_sleep_max_microseconds_per_block": "10000000"}
    thread = threading.Thread(target=lambda: answered.append(ask(own_store, insert, **settings)))
    thread.start()
    time.sleep(0.5)
    assert own_store.stop() == 0
    thread.join()
    assert answered == [""]
    own_store.start()
    assert ask(own_store, "SELECT count() FROM slow") == "4\n"


def test_sigterm_ends_running_queries(own_store: StoreProcess) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", own_store.port)
    connection.request("POST", "/", "SELECT sum(sipHash64(number)) FROM numbers(1000000000000)")
    wait_for(lambda: "sipHash64" in ask(own_store, "SELECT query FROM system.processes"))
    start = time.monotonic()
    assert own_store.stop() == 0
    assert time.monotonic() - start < 10
    assert connection.getresponse().getheader("X-ClickHouse-Exception-Code") == "394"


def test_tables_of_the_default_database_survive(own_store: StoreProcess) -> None:
    ask(own_store, "CREATE TABLE here (a UInt64) ENGINE = MergeTree ORDER BY a")
    ask(own_store, "INSERT INTO here VALUES (1)")
    for way in (own_store.stop, own_store.kill, own_store.stop):
        way()
        own_store.start()
        assert ask(own_store, "SELECT sum(a) FROM here") == "1\n"
        assert ask(own_store, "SELECT engine FROM system.databases WHERE name = 'default'") == "Atomic\n"


def test_a_second_store_on_the_same_directory_is_refused(own_store: StoreProcess) -> None:
    assert own_store.process
    second = [sys.executable, "-m", "fleet", "store", "--config", str(own_store.config)]
    environment = os.environ | {"BPFLEET_STORE_PORT": "0"}
    done = subprocess.run(second, capture_output=True, text=True, env=environment, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"bpfleet: the store in {own_store.state_dir}/store is in use by process ")
    assert str(own_store.process.pid) in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert ask(own_store, "SELECT 1") == "1\n"


def test_a_client_that_leaves_stops_its_query(own_store: StoreProcess) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", own_store.port)
    connection.request("POST", "/", "SELECT sum(sipHash64(number)) FROM numbers(1000000000000)")
    running = (
        "SELECT count() FROM system.processes WHERE query LIKE '%sipHash64%' AND query NOT LIKE '%processes%'"
    )
    wait_for(lambda: ask(own_store, running) == "1\n")
    connection.close()
    wait_for(lambda: ask(own_store, running) == "0\n")


def test_a_client_that_leaves_stops_its_stream(own_store: StoreProcess) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", own_store.port)
    connection.request("POST", "/", "SELECT number, sipHash64(number) FROM numbers(1000000000000)")
    connection.getresponse().read(1_000_000)
    running = (
        "SELECT count() FROM system.processes WHERE query LIKE '%sipHash64%' AND query NOT LIKE '%processes%'"
    )
    assert ask(own_store, running) == "1\n"
    connection.close()
    wait_for(lambda: ask(own_store, running) == "0\n")


def test_a_body_that_breaks_off_inserts_nothing(own_store: StoreProcess) -> None:
    ask(own_store, "CREATE TABLE broken (a UInt64) ENGINE = MergeTree ORDER BY a")
    for size in (10, 3_000_000):
        connection = http.client.HTTPConnection("127.0.0.1", own_store.port)
        connection.putrequest("POST", "/?query=" + quote("INSERT INTO broken FORMAT CSV"))
        connection.putheader("Content-Length", str(10 * size))
        connection.endheaders()
        connection.send(b"1\n" * (size // 2))
        time.sleep(0.2)
        connection.close()
    time.sleep(0.5)
    assert ask(own_store, "SELECT count() FROM broken") == "0\n"


def test_a_full_disk_is_an_error_and_passes(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(tmp_path)], check=True)
    store = StoreProcess(tmp_path)
    try:
        store.start()
        ask(store, "CREATE TABLE full (a UInt64, s String) ENGINE = MergeTree ORDER BY a")
        acknowledged, failed = 0, ""
        for at in range(120):
            try:
                insert(store, "full", b"".join(binary_row(at) for _ in range(1000)))
                acknowledged += 1
            except AssertionError as error:
                failed = str(error)
                break
        assert failed.startswith("Code: 243.") or "No space left" in failed
        assert acknowledged > 5
        assert (
            ask(store, "SELECT count(), uniqExact(a) FROM full") == f"{acknowledged * 1000}\t{acknowledged}\n"
        )
        ask(store, "DROP TABLE full SYNC")
        ask(store, "CREATE TABLE full (a UInt64, s String) ENGINE = MergeTree ORDER BY a")
        store.kill()
        store.start()
        insert(store, "full", binary_row(1))
        assert ask(store, "SELECT count() FROM full") == "1\n"
    finally:
        store.kill()
        subprocess.run(["umount", str(tmp_path)], check=True)


def binary_row(number: int) -> bytes:
    """A number and a thousand bytes that nothing compresses, as RowBinary."""
    return number.to_bytes(8, "little") + b"\xe8\x07" + os.urandom(1000)


def insert(store: StoreProcess, table: str, rows: bytes) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", store.port, timeout=60)
    try:
        connection.request("POST", "/?query=" + quote(f"INSERT INTO {table} FORMAT RowBinary"), rows)
        answer = connection.getresponse()
        data = answer.read()
    finally:
        connection.close()
    assert answer.status == 200, data.decode()


def test_a_paused_store_answers_after_it_wakes(own_store: StoreProcess) -> None:
    assert own_store.process
    own_store.process.send_signal(signal.SIGSTOP)
    timer = threading.Timer(1, own_store.resume)
    timer.start()
    assert ask(own_store, "SELECT 1") == "1\n"
    timer.join()


def wait_for(what: object, timeout: float = 20) -> None:
    assert callable(what)
    end = time.monotonic() + timeout
    while not what():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.05)
