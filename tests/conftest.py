"""The two servers that most tests need: one of each for the whole session, own ports, own directories."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from bench.common import free_port
from collector import xdp_chain
from sinks.kafka_server import KafkaServer

if TYPE_CHECKING:
    from boards import Filled
    from sinking import Place

# Settings of whoever runs the tests are not the tests' settings.
for name in [each for each in os.environ if each.startswith("BPFLEET_") and each != "BPFLEET_SOAK"]:
    del os.environ[name]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without a Grafana to ask, its tests are not part of the run."""
    if "GRAFANA_URL" not in os.environ:
        asked = [each for each in items if each.get_closest_marker("grafana")]
        items[:] = [each for each in items if each not in asked]
        config.hook.pytest_deselected(items=asked)


class StoreProcess:
    """`bpfleet store` as a process of its own, on a fixed port and directory over all its lives.

    start() returns when it answers; stop() is SIGTERM, kill() SIGKILL, pause()/resume() SIGSTOP/SIGCONT.
    """

    def __init__(self, state_dir: Path, **settings: object) -> None:
        self.state_dir = state_dir
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = state_dir / "store.log"
        self.config = state_dir / "store.yaml"
        self.settings = settings
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, timeout: float = 60) -> None:
        self.state_dir.mkdir(parents=True, exist_ok=True)
        tree = {"state_dir": str(self.state_dir), "store": {"port": self.port, **self.settings}}
        self.config.write_text(yaml.safe_dump(tree))
        command = [sys.executable, "-m", "fleet", "store", "--config", str(self.config)]
        environment = {name: text for name, text in os.environ.items() if not name.startswith("BPFLEET_")}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        end = time.monotonic() + timeout
        while not self.answers():
            if self.process.poll() is not None or time.monotonic() > end:
                self.kill()
                raise AssertionError(f"the store did not start:\n{self.log.read_text()[-2000:]}")
            time.sleep(0.02)

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/ping", timeout=2) as answer:
                return bool(answer.read() == b"Ok.\n")
        except OSError:
            return False

    def stop(self, timeout: float = 60) -> int:
        assert self.process
        self.process.terminate()
        self.process.send_signal(signal.SIGCONT)
        try:
            return self.process.wait(timeout)
        finally:
            self.kill()

    def kill(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None

    def pause(self) -> None:
        assert self.process
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self.process
        self.process.send_signal(signal.SIGCONT)


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    """An own broker: ``.servers``; tests name their own topics. Who kills it starts it again."""
    server = KafkaServer(tmp_path_factory.mktemp("kafka"), free_port())
    server.start()
    try:
        server.wait_ready()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreProcess]:
    """An own store: ``.url``; tests name their own databases. Who kills it starts it again."""
    server = StoreProcess(tmp_path_factory.mktemp("store"))
    server.start()
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture
def place(kafka: KafkaServer, store: StoreProcess, tmp_path: Path) -> Iterator["Place"]:
    """A database, a group and no topics of anybody else's: where one test's sinks work."""
    from sinking import Place, delete_topics

    delete_topics(kafka.servers)
    made = Place(kafka.servers, store.url, f"t{time.monotonic_ns()}", tmp_path)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="session")
def rows(store: StoreProcess) -> Iterator["Filled"]:
    """A database with three hours of every stream that dashboards show."""
    from boards import filled

    yield from filled(store.url)


def pytest_sessionfinish() -> None:
    """Pins of interfaces that went with their namespaces, and folders of pins that have been empty for long.

    Not fresh ones: those another session is about to fill.
    """
    xdp_chain.sweep()
    root = Path("/sys/fs/bpf/bpfleet")
    for each in sorted((path for path in root.rglob("*") if path.is_dir()), reverse=True):
        with contextlib.suppress(OSError):
            if time.time() - each.stat().st_mtime > 300:
                each.rmdir()
    with contextlib.suppress(OSError):
        root.rmdir()
