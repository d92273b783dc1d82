"""A whole fleet of one host for on-demand probes: collector, sink, and the commands of an operator."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import yaml
from collecting import CollectorProcess
from sinking import Place, eventually

from collector.ondemand.desired import Probes
from collector.timing import Timing
from schemas.config import Config
from schemas.desired import Document, now_us
from schemas.probe_spec import one_line

HOST = "probed"


class Whole:
    """``bpfleet probe …`` against a collector and a sink of their own."""

    def __init__(self, place: Place, **collector: Any) -> None:
        self.place = place
        self.collector = CollectorProcess(
            place.directory / "host", place.servers, HOST, probes=["tcp_flow"], kinds=["probe"], **collector
        )
        self.config = place.directory / "operator.yaml"
        tree = {
            "host": "desk", "kafka": {"servers": place.servers}, "state_dir": str(place.directory),
            "clickhouse": {"url": place.url, "database": place.database},
        }  # fmt: skip
        self.config.write_text(yaml.safe_dump(tree))

    def start(self) -> None:
        self.place.sink()
        self.collector.start()
        eventually(self._is_heard, 60)

    def _is_heard(self) -> bool:
        """Whether the host's heartbeat is in its table: commands expect an answer from no other."""
        (there,) = self.place.ask("EXISTS TABLE DB.host")[0]
        return bool(there) and bool(self.place.ask("SELECT count() FROM DB.host")[0][0])

    def stop(self) -> None:
        self.collector.kill()
        self.place.close()

    def command(self, *arguments: str, code: int = 0, seconds: float = 60) -> str:
        """What `bpfleet probe …` prints."""
        clean = {name: text for name, text in os.environ.items() if not name.startswith("BPFLEET_")}
        done = subprocess.run(
            [sys.executable, "-m", "fleet", "--config", str(self.config), "probe", *arguments],
            capture_output=True, text=True, env=clean, timeout=seconds, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr + self.collector.said()[-2000:]
        return done.stdout + done.stderr

    def rows(self, probe: str, columns: str, rest: str = "") -> list[tuple[Any, ...]]:
        query = f"SELECT {columns} FROM DB.probe_result WHERE probe = '{probe}' {rest}"
        return self.place.ask(query)

    def events(self, probe: str) -> list[tuple[Any, ...]]:
        """(event, reason) in order."""
        return self.place.ask(f"SELECT event, reason FROM DB.probe_event WHERE probe = '{probe}' ORDER BY ts")


class Alone:
    """The handler in this process, with nothing around it: rows instead of a stream."""

    def __init__(self, **settings: Any) -> None:
        self.timing = Timing.open()
        self.agent: Any = SimpleNamespace(config=Config(), companions=[], costs={}, timing=self.timing)
        for name, value in settings.items():
            setattr(self.agent.config.collector, name, value)
        self.probes = Probes(self.agent)
        self.agent.companions.append(self.probes)
        self.documents: list[Document] = []
        self.results: list[dict[str, Any]] = []
        self.said: list[dict[str, Any]] = []
        self.stacks: dict[int, str] = {}
        self.probes.start()

    def run(self, name: str, probe: str | dict[str, Any], ttl: float = 60, **more: Any) -> Any:
        """Have it run; its outcome."""
        spec = msgspec.to_builtins(one_line(probe)) if isinstance(probe, str) else dict(probe)
        document = Document(
            kind="probe", id=name, revision=now_us(), created=now_us(),
            expires=now_us() + int(ttl * 1e6), spec={"max_cpu": 1.0, **spec, **more},
        )  # fmt: skip
        self.documents = [each for each in self.documents if each.id != name] + [document]
        return self.probes.apply(self.documents)[name]

    def end(self, name: str) -> list[dict[str, Any]]:
        """End it; all it found."""
        self.documents = [each for each in self.documents if each.id != name]
        self.probes.apply(self.documents)
        return self.found(name)

    def found(self, name: str) -> list[dict[str, Any]]:
        """Rows of probe_result so far; columns that say nothing left out."""
        self._take()
        return [each for each in self.results if each["probe"] == name]

    def heard(self, name: str) -> list[dict[str, Any]]:
        """Rows of probe_event so far."""
        self._take()
        return [each for each in self.said if each["probe"] == name]

    def _take(self) -> None:
        self.said += self.probes.rows().get("probe_event", [])
        for stream, columns, _ in self.probes.batches():
            lists = {
                name: column.strings() if hasattr(column, "strings") else column.tolist()
                for name, column in columns.items()
            }
            rows = [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]
            if stream == "stack":
                self.stacks |= {row["stack"]: row["frames"] for row in rows}
            else:
                self.results += rows

    def close(self) -> None:
        self.probes.apply([])
        self.probes.stop()
        self.timing.close()


@contextmanager
def alone(**settings: Any) -> Any:
    made = Alone(**settings)
    try:
        yield made
    finally:
        made.close()


def total(rows: list[dict[str, Any]], what: str = "count", **where: Any) -> int:
    """The sum of a column over the rows that are so."""
    return sum(row[what] for row in rows if all(row[name] == value for name, value in where.items()))


def python(code: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run a program of the distribution's Python: few surprises in what it calls."""
    return subprocess.run(
        ["/usr/bin/python3", "-S", "-E", "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )


def until(condition: Callable[[], Any], seconds: float = 10) -> Any:
    """The first true value."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, condition
        time.sleep(0.05)
    return value


def as_json(text: str) -> Any:
    return json.loads(text)


def compiled(directory: Path, name: str, source: str, *flags: str) -> Path:
    """A C program."""
    file = directory / f"{name}.c"
    file.write_text(source)
    subprocess.run(
        ["gcc", "-O1", "-fno-omit-frame-pointer", "-fno-builtin", "-o", directory / name, file, *flags],
        check=True,
    )
    return directory / name
