"""listen_drop: connections that a full queue turns away, per listener, against the kernel's total."""

import errno
import os
import socket
import time
from contextlib import ExitStack, closing

import pytest
from hypothesis import given
from hypothesis import strategies as st
from workloads import snmp

from collector import listeners
from collector.companion import Companion
from collector.polled import Polled, Reader
from schemas import declare
from schemas.rows import columns


def test_a_full_queue_shows_with_what_it_turned_away():
    watch = listeners.Listeners()
    with closing(socket.create_server(("127.0.0.1", 0), backlog=1)) as server, ExitStack() as stack:
        list(watch.rows())
        before = snmp("TcpExt")["ListenDrops"]
        for _ in range(7):
            client = stack.enter_context(closing(socket.socket()))
            client.setblocking(False)
            assert client.connect_ex(server.getsockname()) == errno.EINPROGRESS
        time.sleep(0.2)
        rows = [each for each in watch.rows() if each["local_port"] == server.getsockname()[1]]
        kernel = snmp("TcpExt")["ListenDrops"] - before
    (row,) = rows
    assert (row["local_address"], row["queued"], row["limit"]) == ("127.0.0.1", 2, 1)
    assert row["drops"] == kernel >= 5
    assert columns(declare.streams()["listen_drop"], [row | {"ts": 1, "interval_us": 1}])


def test_ipv6_listeners_have_their_address():
    with closing(socket.create_server(("::1", 0), family=socket.AF_INET6)) as server:
        found = {each.port: each for each in listeners.listeners()}
        assert found[server.getsockname()[1]].address == "::1"


@given(st.binary(min_size=72, max_size=300))
def test_any_bytes_after_the_struct_end_in_a_listener(message):
    assert 0 <= listeners.listener(message, socket.AF_INET).port < 65536


def test_rows_are_shipped_with_their_interval_and_a_failure_stops_nothing():
    answers = iter([[{"n": 0}], OSError("gone"), [{"n": 1}]])
    read_at = []

    def read():
        read_at.append(time.monotonic())
        answer = next(answers, [])
        if isinstance(answer, OSError):
            raise answer
        return answer

    polled = Polled(Reader("listen_drop", read))
    assert isinstance(polled, Companion)
    polled.start()
    try:
        end = time.monotonic() + 10
        rows: list = []
        while not rows and time.monotonic() < end:
            rows = polled.rows().get("listen_drop", [])
            time.sleep(0.05)
    finally:
        polled.stop()
        os.close(polled.fd)
    assert [each["n"] for each in rows] == [1]
    # Since it was last read well, which the failure is not.
    assert rows[0]["interval_us"] == pytest.approx(1e6 * (read_at[2] - read_at[0]), abs=0.2e6)
