"""Does each probe work on this host: load it, attach it, make something happen, decode one event, detach.

What is made to happen is harmless and bounded: a TCP connection and a UDP packet on loopback, a synced write
and a direct read of a small file of our own, a cgroup made and removed.
"""

import contextlib
import json
import mmap
import os
import signal
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from collector import probes
from collector.agent import Agent
from collector.cgroup import find_mount
from collector.output import Shipped
from collector.printer import Printer
from schemas.columns import Column
from schemas.config import Config
from schemas.declare import Stream
from schemas.errors import BpfleetError
from schemas.rows import json_rows
from schemas.wire import Batch, Envelope

STIMULUS_S = 0.25
SCRATCH = Path("/var/tmp")  # on a disk, where /tmp may be memory


@dataclass
class Outcome:
    """What is known of one probe."""

    probe: str
    ok: bool
    reason: str = ""  # why not
    hooks: list[str] = field(default_factory=list)
    events: dict[str, int] = field(default_factory=dict)  # stream → rows decoded
    example: dict[str, Any] = field(default_factory=dict)


class _Witness(Printer):
    """An output that counts rows and keeps the first of each stream."""

    def __init__(self, host: str) -> None:
        super().__init__(host)
        self.examples: dict[str, dict[str, Any]] = {}

    def ship(self, stream: Stream, columns: Mapping[str, Column], sample_rate: int = 1) -> list[int]:
        """Count, and decode one row all the way."""
        rows = len(columns[stream.fields[0].name])
        count = self.streams.setdefault(stream.name, Shipped())
        count.shipped += rows
        if stream.name not in self.examples and rows:
            batch = Batch(stream.name, Envelope(self._host, self._boot, 0), rows, dict(columns))
            self.examples[stream.name] = next(json_rows(stream, batch))
        return [0]


def check(config: Config, patterns: list[str], seconds: float) -> list[Outcome]:
    """Try the probes that the patterns name. Raises :class:`BpfleetError` when nothing can be loaded."""
    config.collector.probes = patterns or ["*"]
    config.collector.metrics_port = 0
    config.collector.batch_ms = config.collector.aggregate_ms = config.collector.profile_ms = 100
    config.collector.slow_io_us = 1  # every request is an outlier
    witness = _Witness(config.host)
    agent = Agent(config, witness)
    with _stimulated():
        try:
            agent.start()
        except BpfleetError:
            if not agent.failed:
                raise
            return [Outcome(name, False, reason) for name, reason in sorted(agent.failed.items())]
        try:
            _watch(agent, witness, seconds)
        finally:
            agent.close()
    outcomes = [Outcome(name, False, reason) for name, reason in agent.failed.items()]
    outcomes += [_judge(each, witness, seconds) for each in agent.attached]
    return sorted(outcomes, key=lambda each: each.probe)


def _watch(agent: Agent, witness: _Witness, seconds: float) -> None:
    """Until each kernel stream gave a row, or time is up; what only trouble makes is not waited for."""
    wanted = {stream.name for each in agent.attached for stream in kernel_streams(each) if not stream.rare}
    end = time.monotonic() + seconds
    for each in agent.companions:
        each.start()
    while time.monotonic() < end and not wanted <= witness.examples.keys():
        agent.step()
        time.sleep(0.02)


def kernel_streams(attached: probes.Attached) -> list[Stream]:
    """The streams that a probe's programs make."""
    return [each for each in attached.probe.streams if each.source != "host"]


def _judge(attached: probes.Attached, witness: _Witness, seconds: float) -> Outcome:
    streams = [each.name for each in kernel_streams(attached)]
    events = {name: witness.streams.get(name, Shipped()).shipped for name in streams}
    example = next((witness.examples[name] for name in streams if name in witness.examples), {})
    rare = {each.name for each in kernel_streams(attached) if each.rare}
    silent = [name for name, rows in events.items() if not rows and name not in rare]
    reason = f"attached, but no event of {' and '.join(silent)} within {seconds:g} s" if silent else ""
    hooks = [each.hook for each in attached.programs]
    return Outcome(attached.probe.name, not silent, reason, hooks, events, example)


# ── Something to see ─────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def _stimulated() -> Iterator[None]:
    """A child that keeps things happening: it still has the privileges that the agent gives up."""
    parent = os.getpid()
    child = os.fork()
    if not child:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        while os.getppid() == parent:
            stimulate()
            time.sleep(STIMULUS_S)
        os._exit(0)
    try:
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with contextlib.suppress(OSError):
            _cgroup_directory(child).rmdir()


def stimulate() -> None:
    """Make one of each thing happen. What the host does not let happen is left out."""
    for each in (_tcp, _udp, _disk, _cgroup):
        with contextlib.suppress(OSError):
            each()


def _tcp() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        accepted, _ = server.accept()
        with client, accepted:
            for _ in range(3):  # questions and answers
                client.sendall(b"bpfleet check")
                accepted.recv(64)
                accepted.sendall(b"bpfleet check")
                client.recv(64)


def _udp() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        closed = free.getsockname()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"bpfleet check", closed)


def _disk() -> None:
    size = 4096
    with tempfile.NamedTemporaryFile(dir=SCRATCH, prefix="bpfleet-check-") as file:
        file.write(os.urandom(size))
        file.flush()
        os.fsync(file.fileno())
        direct = os.open(file.name, os.O_RDONLY | os.O_DIRECT)
        try:
            os.readv(direct, [mmap.mmap(-1, size)])  # aligned memory, as O_DIRECT wants it
        finally:
            os.close(direct)


def _cgroup() -> None:
    directory = _cgroup_directory(os.getpid())
    directory.mkdir()
    directory.rmdir()


def _cgroup_directory(process: int) -> Path:
    return (find_mount() or Path("/nonexistent")) / f"bpfleet-check-{process}"


# ── Report ───────────────────────────────────────────────────────────────────────────────────────


def as_json(outcomes: list[Outcome]) -> str:
    """For other programs."""
    return json.dumps([asdict(each) for each in outcomes], indent=2)


def as_table(outcomes: list[Outcome]) -> str:
    """For people: one line a probe, its reason below if it failed."""
    width = max((len(each.probe) for each in outcomes), default=5)
    lines = [f"{'PROBE':<{width}}  RESULT  ROWS SEEN"]
    for each in outcomes:
        seen = ", ".join(f"{name} {rows}" for name, rows in each.events.items())
        lines.append(f"{each.probe:<{width}}  {'ok' if each.ok else 'FAILED':<6}  {seen or '-'}")
        if each.reason:
            lines.append(f"{'':<{width}}  {each.reason}")
    failed = sum(not each.ok for each in outcomes)
    lines.append(f"{len(outcomes) - failed} of {len(outcomes)} probes work on this host")
    return "\n".join(lines)
