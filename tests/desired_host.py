"""A host as far as desired state goes: reader, handlers, and the real way of its rows to Kafka."""

import threading
import time
from pathlib import Path
from typing import Any

from collector import inventory
from collector.desired import APPLIED, DesiredState, Outcome
from collector.kafka import Desk
from collector.recovery import open_state
from collector.ship import Shipper
from schemas import declare
from schemas.config import Config
from schemas.desired import Document, Kind
from schemas.errors import UsageError
from schemas.rows import columns

STREAMS = {name: each for name, each in declare.streams().items() if name in ("applied", "desired", "host")}


def check(spec: Any) -> None:
    if not isinstance(spec, dict) or "say" not in spec:
        raise UsageError("the spec must have `say`")


class Recorder:
    """A handler that remembers what it was given; ``answers`` and ``fault`` change what it says."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.calls: list[dict[str, Any]] = []  # id → what it says
        self.answers: dict[str, Outcome] = {}
        self.fault: Exception | None = None
        self.seconds = 0.0

    @property
    def now(self) -> dict[str, Any] | None:
        return self.calls[-1] if self.calls else None

    def apply(self, documents: list[Document]) -> dict[str, Outcome]:
        if self.seconds:
            time.sleep(self.seconds)
        if self.fault is not None:
            raise self.fault
        self.calls.append({each.id: each.spec["say"] for each in documents})
        return {each.id: self.answers.get(each.id, APPLIED) for each in documents}


def config_of(
    state: Path, servers: str, host: str, labels: dict[str, str] | None = None, **more: Any
) -> Config:
    config = Config(host=host, state_dir=str(state / host))
    Path(config.state_dir).mkdir(parents=True, exist_ok=True)
    config.kafka.servers = servers
    config.collector.labels = labels or {}
    for name, value in more.items():
        setattr(config.collector, name, value)
    return config


class Host:
    """Start to stop; rows go out as soon as there are any, as the agent does it."""

    def __init__(self, config: Config, *handlers: Recorder) -> None:
        self.config, self.handlers = config, handlers
        self.desired = DesiredState(config, handlers)
        self.sent: list[dict[str, Any]] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._ship, daemon=True)

    def start(self) -> "Host":
        self.desired.start()
        self._thread.start()
        return self

    def _ship(self) -> None:
        state = open_state(self.config)
        desk = Desk(self.config, self.config.host, STREAMS.values())
        shipper = Shipper(self.config, state.sequences, state.spool, state.losses, desk)
        desk.start()
        beat = inventory.describe(self.config.collector.labels, [], {}, time.time_ns() // 1000)
        shipper.ship(STREAMS["host"], columns(STREAMS["host"], [beat]))
        while not self._stopping.wait(0.005):
            for stream, rows in self.desired.rows().items():
                self.sent += [row | {"stream": stream} for row in rows]
                shipper.ship(STREAMS[stream], columns(STREAMS[stream], rows))
            shipper.pump()
        shipper.close(1)
        desk.stop()
        state.sequences.close()

    def said(self, name: str) -> list[tuple[str, str]]:
        """States and reasons of `kind/id` so far."""
        return [
            (row["state"], row["reason"])
            for row in self.sent
            if row["stream"] == "applied" and f"{row.get('kind', '')}/{row.get('id', '')}" == name
        ]

    def stop(self) -> None:
        self.desired.stop()
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(10)


def until(condition: Any, seconds: float = 10, what: str = "") -> Any:
    """The first true value; an assertion when there is none in time."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.005)
    return value
