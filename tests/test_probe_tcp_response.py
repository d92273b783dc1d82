"""Answers of a server that takes a known time, counted and timed exactly."""

import socket
import threading
import time

import numpy as np
from probing import probing

ANSWERS = 23
SLOW_S = 0.03


def serve(server: socket.socket, pause: float) -> None:
    peer, _ = server.accept()
    with peer, peer.makefile("rb") as questions:
        for _ in questions:
            time.sleep(pause)
            peer.sendall(b"a short answer")


def test_each_answer_is_counted_with_its_time_and_the_server_s_side_is_not():
    with probing("tcp_response") as probe, socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        thread = threading.Thread(target=serve, args=(server, SLOW_S))
        thread.start()
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            own_port = client.getsockname()[1]
            for _ in range(ANSWERS):
                client.sendall(b"the first part ")
                client.sendall(b"of a question\n")
                assert client.recv(100)
                time.sleep(0.005)
        thread.join(10)
        found = probe.rows("tcp_response")
    ((_, value),) = [(key, value) for key, value in found if key["remote_port"] == port]
    assert own_port not in {key["remote_port"] for key, _ in found}
    assert value["count"] == ANSWERS
    mean = value["sum_us"] / ANSWERS
    assert SLOW_S * 1e6 <= mean < SLOW_S * 1e6 * 2
    assert value["rtt_us"] / ANSWERS < mean
    buckets = np.nonzero(value["times"])[0]
    assert value["times"].sum() == ANSWERS and 2 ** (buckets.min() - 1) <= mean <= 2 ** buckets.max()


def swallow(server: socket.socket, answers: int) -> None:
    """Answers so many questions, then never again."""
    peer, _ = server.accept()
    with peer:
        for _ in range(answers):
            while not peer.recv(1000).endswith(b"length"):
                pass
            peer.sendall(b"an answer")
        while peer.recv(1000):
            pass


def test_a_question_without_an_answer_is_open_until_its_connection_ends():
    with probing("tcp_response") as probe, socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def rows() -> list[object]:
            return [value for key, value in probe.rows("tcp_response") if key["remote_port"] == port]

        thread = threading.Thread(target=swallow, args=(server, ANSWERS))
        thread.start()
        with socket.create_connection(("127.0.0.1", port)) as client:
            for _ in range(ANSWERS):
                client.sendall(b"a question of usual length")
                assert client.recv(100)
                client.sendall(b"ok")  # no question: far shorter, and nothing comes back
                time.sleep(0.002)
            time.sleep(0.05)
            (value,) = rows()
            assert value["count"] == ANSWERS and value["questions"] == ANSWERS
            client.sendall(b"a question of usual length")
            time.sleep(SLOW_S)
            (value,) = rows()
            assert (value["count"], value["questions"], value["unanswered"]) == (0, 1, 0)
        thread.join(10)
        (value,) = rows()
    assert (value["count"], value["questions"], value["unanswered"]) == (0, 0, 1)
    assert SLOW_S * 1e6 <= value["unanswered_us"] < 1e6
