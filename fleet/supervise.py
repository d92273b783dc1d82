"""Start the parts of bpfleet as processes of this machine, in order; stop them in the reverse order."""

import ctypes
import http.client
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

import click

from schemas.config import Config
from schemas.errors import BpfleetError, UsageError

PR_SET_PDEATHSIG = 1
STOP_SECONDS = {"kafka": 20.0}  # the others: 10
ARGUMENTS = {"diagnose": ("--watch",)}
ENDING_SECONDS = 5.0
READY_SECONDS = 180.0  # a part that ends is noticed at once; one that is only slow has a busy machine


def _die_with_parent() -> None:
    """In the child, before it becomes the part: even a killed `bpfleet run` leaves nothing behind."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _same_settings() -> list[str]:
    """``--config FILE``, where the command that starts a part was given it."""
    context = click.get_current_context(silent=True)
    file = context.find_root().params.get("file") if context else None
    return ["--config", file] if file else []


@dataclass
class Part:
    """One process: ``bpfleet <name>``, its log, and when it counts as up."""

    name: str
    address: tuple[str, int] | None  # answers here once it is ready; None: nobody waits for it
    log: Path
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def answers(self) -> bool:
        """Whether somebody listens at its address."""
        return self.address is not None and _answers(self.address)

    @property
    def where(self) -> str:
        """Its address as people write it; "" when it has none."""
        return "" if self.address is None else f"{self.address[0]}:{self.address[1]}"

    def start(self) -> None:
        """Start the process. Raises :class:`BpfleetError` when somebody else keeps its address.

        What a killed `bpfleet run` left behind is still ending, and is waited for.
        """
        deadline = time.monotonic() + ENDING_SECONDS
        while self.answers():
            if time.monotonic() > deadline:
                raise BpfleetError(
                    f"{self.where} is in use, {self.name} needs it; stop what is there or set another address"
                )
            time.sleep(0.1)
        command = [sys.executable, "-m", "fleet", *_same_settings(), self.name]
        command += ARGUMENTS.get(self.name, ())
        with self._open_log() as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,  # Ctrl-C is ours to pass on, in order
                preexec_fn=_die_with_parent,  # noqa: PLW1509 — no thread runs yet
            )  # fmt: skip

    def _open_log(self) -> BinaryIO:
        try:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            return self.log.open("ab")
        except OSError as error:
            raise BpfleetError(
                f"cannot write {self.log}: {error.strerror}; check its owner or set state_dir"
            ) from None

    def wait_ready(self, seconds: float) -> None:
        """Return when it answers. Raises :class:`BpfleetError` with its last words when it ends instead."""
        deadline = time.monotonic() + seconds
        while not self._ready():
            self.check()
            if time.monotonic() > deadline:
                raise BpfleetError(f"{self.name} did not answer within {seconds:.0f} s; see {self.log}")
            time.sleep(0.1)

    def _ready(self) -> bool:
        """Kafka listens once it is ready; the others answer HTTP."""
        if self.address is None:
            return True
        if self.name == "kafka" or not _answers(self.address):
            return _answers(self.address)
        connection = http.client.HTTPConnection(*self.address, timeout=1)
        try:
            connection.request("GET", "/ping" if self.name == "store" else "/metrics")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def check(self) -> None:
        """Raise :class:`BpfleetError` when the process has ended."""
        if self.process is not None and self.process.poll() is not None:
            raise BpfleetError(f"{self.name} ended: {self.last_words()} (log: {self.log})")

    def last_words(self) -> str:
        """The last line it wrote that is not empty."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        spoken = [line.strip() for line in lines if line.strip()]
        return spoken[-1].removeprefix("bpfleet: ") if spoken else "without a word"

    def stop(self) -> None:
        """SIGTERM, wait, and SIGKILL only past its time."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS.get(self.name, 10.0))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _answers(address: tuple[str, int]) -> bool:
    try:
        with socket.create_connection(address, timeout=0.3):
            return True
    except OSError:
        return False


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def parts_of(config: Config) -> list[Part]:
    """What has to run here, in starting order: a Kafka or ClickHouse of another host is left to it.

    Raises :class:`UsageError` when the store would listen elsewhere than it is looked for.
    """
    logs = Path(config.state_dir) / "logs"
    kafka_host, _, kafka_port = config.kafka.servers.split(",")[0].rpartition(":")
    store = urlsplit(config.clickhouse.url)
    addresses: dict[str, tuple[str, int] | None] = {}
    if _is_loopback(kafka_host):
        addresses["kafka"] = (kafka_host, int(kafka_port))
    if _is_loopback(store.hostname or ""):
        port = store.port or 8123
        if port != config.store.port and not _answers((str(store.hostname), port)):
            raise UsageError(
                f"clickhouse.url is {config.clickhouse.url} and store.port {config.store.port}; "
                "give both the same port"
            )
        addresses["store"] = (str(store.hostname), port)
    addresses["sink"] = ("127.0.0.1", config.sink.metrics_port)
    addresses["collect"] = ("127.0.0.1", config.collector.metrics_port)
    addresses["diagnose"] = None
    return [Part(name, address, logs / f"{name}.log") for name, address in addresses.items()]


def start(parts: list[Part], say: Callable[[str], None]) -> None:
    """Bring up every part; each is ready before the next one starts."""
    for part in parts:
        begun = time.monotonic()
        say(f"{part.name}: starting")
        part.start()
        part.wait_ready(READY_SECONDS)
        at = f" at {part.where}" if part.where else ""
        say(f"{part.name}: up{at} after {time.monotonic() - begun:.1f} s")


def stop(parts: list[Part], say: Callable[[str], None]) -> None:
    """Stop in reverse order, so that what was collected still reaches the store."""
    for part in reversed(parts):
        if part.process is not None and part.process.poll() is None:
            say(f"{part.name}: stopping")
            part.stop()
