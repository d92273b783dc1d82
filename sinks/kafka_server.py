"""Apache Kafka as a single KRaft node on loopback, started for you on a Java runtime.

``python -m sinks.kafka_server install`` fetches the artifacts ahead of time.
"""

import base64
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

from schemas.errors import BpfleetError, UsageError
from sinks import kafka_install

LOOPBACK = "127.0.0.1"
# A small machine's broker: quick to start, one heap, the cheap collector.
JVM = ["-Xms128m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto"]
JVM += ["-XX:+ExitOnOutOfMemoryError", "-Djava.awt.headless=true"]
MAIN = "kafka.Kafka"
FORMAT = ["kafka.tools.StorageTool", "format"]


class KafkaServer:
    """One broker whose data lives in ``state_dir/kafka``; the constructor touches nothing.

    start() returns when the process runs, wait_ready() when it answers. The broker ends with the thread
    that called start() (SIGKILL on the parent's death), so call it from a thread that stays.
    """

    def __init__(self, state_dir: str | Path, port: int = 9092, libs: Path | None = None) -> None:
        self.directory = Path(state_dir) / "kafka"
        self.port = port
        self.libs = libs or kafka_install.libs_dir()
        self.log = self.directory / "kafka.log"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def servers(self) -> str:
        """What clients call ``bootstrap.servers``."""
        return f"{LOOPBACK}:{self.port}"

    @property
    def data(self) -> Path:
        """Topics, offsets and the cluster's metadata."""
        return self.directory / "data"

    def start(self) -> None:
        """Format the storage once, then start the broker.

        Raises :class:`BpfleetError` when Java, the artifacts, the directory or the port won't do.
        """
        java = kafka_install.java()
        kafka_install.install(self.libs)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._write_properties()
        except OSError as error:
            raise BpfleetError(
                f"cannot write {self.directory}: {error.strerror}; check its owner or set state_dir"
            ) from None
        _refuse_taken(self.port)
        if not (self.data / "meta.properties").exists():
            self._format(java)
        self.process = self._spawn([*self._java(java), MAIN, str(self.directory / "server.properties")])

    def wait_ready(self, timeout: float = 60) -> None:
        """Return when this very broker answers (its cluster id is compared); raise if it can't."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if self.process is None or self.process.poll() is not None:
                raise BpfleetError(f"kafka did not start: {self._reason()}; see {self.log}")
            if _listening(self.port) and self._answers():
                return
            time.sleep(0.05)
        raise BpfleetError(f"kafka did not answer on {self.servers} within {timeout:.0f} s; see {self.log}")

    def wait(self, stop: threading.Event) -> None:
        """Return when ``stop`` is set; raise when the broker ends on its own."""
        while not stop.wait(0.2):
            if self.process is None or self.process.poll() is not None:
                raise BpfleetError(f"kafka stopped on its own: {self._reason()}; see {self.log}")

    def stop(self, timeout: float = 30) -> None:
        """Clean shutdown; a broker that ignores SIGTERM for ``timeout`` seconds is killed."""
        if self.process is None:
            return
        self.process.terminate()
        self.process.send_signal(signal.SIGCONT)  # a paused one must wake up to obey
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def kill(self) -> None:
        """SIGKILL: what the kill tests do."""
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None

    def pause(self) -> None:
        """SIGSTOP: the broker hangs, its connections stay open."""
        if self.process:
            self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        if self.process:
            self.process.send_signal(signal.SIGCONT)

    def _java(self, java: str) -> list[str]:
        log4j = Path(__file__).parent / "kafka" / "log4j2.properties"
        flags = [f"-Dlog4j2.configurationFile={log4j.as_uri()}", f"-Dbpfleet.log={self.log}"]
        return [java, *JVM, *flags, "-cp", f"{self.libs}/*"]

    def _spawn(self, command: list[str]) -> subprocess.Popen[bytes]:
        # util-linux: no code of ours between fork and exec. Killed with us: one that took its time to end
        # would hold the port, and the lock on its data, when we are started again.
        if setpriv := shutil.which("setpriv"):
            command = [setpriv, "--pdeathsig", "KILL", *command]
        with (self.directory / "kafka.out").open("wb") as out:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )

    def _format(self, java: str) -> None:
        shutil.rmtree(self.data, ignore_errors=True)  # half formatted: nothing was ever stored there
        properties = str(self.directory / "server.properties")
        command = [*self._java(java), *FORMAT, "-t", _cluster_id(), "-c", properties]
        if self._spawn(command).wait():
            raise BpfleetError(f"kafka could not format {self.data}: {self._reason()}")

    def _write_properties(self) -> None:
        controller = _free_port()
        settings = {
            "process.roles": "broker,controller",
            "node.id": 1,
            "controller.quorum.voters": f"1@{LOOPBACK}:{controller}",
            "controller.listener.names": "CONTROLLER",
            "listeners": f"PLAINTEXT://{self.servers},CONTROLLER://{LOOPBACK}:{controller}",
            "advertised.listeners": f"PLAINTEXT://{self.servers}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "log.dirs": self.data,
            "auto.create.topics.enable": "false",
            "offsets.topic.replication.factor": 1,
            "offsets.topic.num.partitions": 4,
            # Longer than any topic is kept: a sink that was away for weeks must find where it was.
            "offsets.retention.minutes": 60 * 24 * 60,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "transaction.state.log.num.partitions": 4,
            "group.initial.rebalance.delay.ms": 0,
            "group.min.session.timeout.ms": 1000,
            "num.network.threads": 2,
            "num.io.threads": 4,
            "log.cleaner.dedupe.buffer.size": 4 << 20,
            # A killed broker's registration must lapse before its successor may serve: seconds of start-up.
            "broker.session.timeout.ms": 2000,
            "broker.heartbeat.interval.ms": 500,
        }
        lines = "".join(f"{key}={value}\n" for key, value in settings.items())
        (self.directory / "server.properties").write_text(lines)

    def _answers(self) -> bool:
        from confluent_kafka import KafkaException
        from confluent_kafka.admin import AdminClient

        ours = re.search(r"^cluster\.id=(.*)$", (self.data / "meta.properties").read_text(), re.MULTILINE)
        options: dict[str, str | int | float | bool] = {
            "bootstrap.servers": self.servers,
            "log_level": 0,
            "socket.timeout.ms": 2000,
        }
        try:
            metadata = AdminClient(options).list_topics(timeout=2)
        except KafkaException:
            return False
        if not ours or metadata.cluster_id != ours[1]:
            raise BpfleetError(f"another Kafka answers on {self.servers}; stop it or use another port")
        return bool(metadata.brokers)

    def _reason(self) -> str:
        for file in (self.log, self.directory / "kafka.out"):
            lines = file.read_text(errors="replace").splitlines() if file.exists() else []
            wrong = [line for line in lines[-200:] if re.search("ERROR|FATAL|xception", line)]
            if wrong:
                return wrong[-1].strip()[:300]
        return "it gave no reason"


def port_of(servers: str) -> int:
    """The port of ``kafka.servers`` when this machine is to run it; raises :class:`UsageError` otherwise."""
    host, _, port = servers.rpartition(":")
    if host not in (LOOPBACK, "localhost") or not port.isdigit():
        advice = f"the embedded one is at {LOOPBACK}:PORT"
        raise UsageError(f"kafka.servers is {servers!r}, a Kafka that is not ours to start; {advice}")
    return int(port)


def _cluster_id() -> str:
    """22 characters of base64, as Kafka's own UUIDs; one must not start with a dash."""
    while (name := base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")).startswith("-"):
        pass
    return name


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def _refuse_taken(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            advice = "stop what listens there or set kafka.servers to another port"
            raise BpfleetError(f"port {port} cannot be used for kafka ({error.strerror}); {advice}") from None


def _listening(port: int) -> bool:
    try:
        socket.create_connection((LOOPBACK, port), timeout=1).close()
    except OSError:
        return False
    return True


if __name__ == "__main__":
    if sys.argv[1:] != ["install"]:
        sys.exit("usage: python -m sinks.kafka_server install")
    try:
        kafka_install.java()
        kafka_install.install()
    except BpfleetError as error:
        print(f"bpfleet: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
