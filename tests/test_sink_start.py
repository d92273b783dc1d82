"""What a sink says, and how it ends, when a server or a port is not as it should be."""

import signal
import socket
import time
from pathlib import Path

from conftest import StoreProcess
from sinking import Place, SinkProcess, eventually

from bench.common import free_port
from sinks.kafka_server import KafkaServer


def last_line(sink: SinkProcess) -> str:
    return sink.said().strip().splitlines()[-1]


def test_servers_that_are_not_up_yet_are_waited_for(tmp_path: Path) -> None:
    place = Place(f"127.0.0.1:{free_port()}", f"http://127.0.0.1:{free_port()}", "away", tmp_path)
    sink = place.sink()
    try:
        eventually(lambda: "waiting for Kafka at" in sink.said())
        assert "start it with `bpfleet kafka`" in sink.said()
        began = time.monotonic()
        sink.send_signal(signal.SIGTERM)
        assert sink.wait() == 0 and time.monotonic() - began < 9
        assert "Traceback" not in sink.said()
    finally:
        place.close()


def test_a_wrong_password_of_the_store_ends_it(kafka: KafkaServer, tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("secret")
    store = StoreProcess(tmp_path / "store", password_file=str(password))
    place = Place(kafka.servers, store.url, "closed", tmp_path)
    try:
        store.start()
        sink = place.sink()
        assert sink.wait(20) == 1
        assert last_line(sink).startswith("bpfleet: ClickHouse at") and "password_file" in last_line(sink)
        assert "Traceback" not in sink.said()
    finally:
        place.close()
        store.kill()


def test_wrong_options_of_kafka_end_it(kafka: KafkaServer, tmp_path: Path) -> None:
    place = Place(kafka.servers, f"http://127.0.0.1:{free_port()}", "odd", tmp_path)
    try:
        sink = place.sink(BPFLEET_KAFKA_OPTIONS="{no.such.option: 'on'}")
        assert sink.wait(20) != 0
        assert last_line(sink).startswith("bpfleet: kafka.options") and "no.such.option" in last_line(sink)
    finally:
        place.close()


def test_a_taken_metrics_port_ends_it(kafka: KafkaServer, tmp_path: Path) -> None:
    place = Place(kafka.servers, f"http://127.0.0.1:{free_port()}", "taken", tmp_path)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        place.settings["metrics_port"] = other.getsockname()[1]
        try:
            sink = place.sink()
            assert sink.wait(20) == 1
            assert "sink.metrics_port" in last_line(sink) and "Traceback" not in sink.said()
        finally:
            place.close()
