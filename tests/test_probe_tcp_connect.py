"""tcp_connect: known connections and refusals, and how long they took."""

import socket
import threading
import time
from contextlib import closing, suppress

import pytest
from probing import probing


@pytest.fixture(scope="module")
def probe():
    with probing("tcp_flow") as loaded:
        yield loaded


def row(probe, port: int):
    (found,) = (value for key, value in probe.rows("tcp_connect") if key["remote_port"] == port)
    return found


def test_every_connection_is_counted_with_its_latency(probe):
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        probe.rows("tcp_connect")
        passed = 0
        for _ in range(41):
            begun = time.monotonic_ns()
            client = socket.create_connection(server.getsockname())
            passed += time.monotonic_ns() - begun
            accepted, _ = server.accept()
            accepted.close()
            client.close()
        found = row(probe, server.getsockname()[1])
    assert (found["count"], found["failed"]) == (41, 0)
    assert 0 < found["sum_ns"] < passed
    assert found["latencies"].sum() == 41


def test_refusals_are_failures(probe):
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        probe.rows("tcp_connect")
        for _ in range(9):
            with closing(socket.socket()) as client, suppress(ConnectionRefusedError):
                client.connect(free.getsockname())
        found = row(probe, free.getsockname()[1])
    assert (found["count"], found["failed"], found["latencies"].sum()) == (0, 9, 0)


def test_a_server_that_is_slow_to_take_a_connection_shows(probe):
    """The accept queue is full until the server takes one: the client's SYN is sent again after a second."""
    with closing(socket.create_server(("127.0.0.1", 0), backlog=0)) as server:
        first = socket.create_connection(server.getsockname())
        probe.rows("tcp_connect")

        def take() -> None:
            server.accept()[0].close()

        thread = threading.Timer(0.3, take)
        thread.start()
        begun = time.monotonic()
        with closing(socket.create_connection(server.getsockname(), timeout=10)), closing(first):
            passed = time.monotonic() - begun
        thread.join()
        found = row(probe, server.getsockname()[1])
    assert found["count"] == 1
    assert passed > 0.5
    assert found["sum_ns"] / 1e9 == pytest.approx(passed, abs=0.1)
