"""Guards: rules that would hit connections are held in shadow, and those that do are put back by the host."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from collecting import wait_for
from test_filter_netns import BODY, Lab, Web, download, inside, lab

from collector import xdp
from collector.filter.handler import Filters
from schemas.config import Config
from schemas.desired import Document, now_us
from schemas.filter import FILTER

__all__ = ["lab"]
REVISION = iter(range(1, 1000))


def document(name: str, **spec: Any) -> Document:
    made = Document(kind="filter", id=name, revision=next(REVISION), created=now_us(), spec=spec,
                    expires=now_us() + 600_000_000)  # fmt: skip
    FILTER.judge(made)
    return made


def rule(name: str, match: str, mode: str = "enforce", **more: Any) -> Document:
    return document(name, rule={"match": match, "mode": mode, **more})


class Host:
    """The handler in the protected namespace, while a client downloads without end."""

    def __init__(self, lab: Lab, directory: Path) -> None:
        self.lab, self.web = lab, Web(lab)
        self.asked = 0
        self.rows: list[tuple[str, dict[str, Any]]] = []
        with inside(lab.near):
            self.filters = Filters(Config(state_dir=str(directory)), self.again)
            self.filters.start()
        self.downloads, self.failed = 0, 0
        self._stopping = threading.Event()
        self._client = threading.Thread(target=self._download, daemon=True)
        self._client.start()

    def again(self) -> None:
        self.asked += 1

    def apply(self, *documents: Document) -> dict[str, tuple[str, str]]:
        with inside(self.lab.near):
            return {name: tuple(each) for name, each in self.filters.apply(list(documents)).items()}

    def _download(self) -> None:
        while not self._stopping.is_set():
            try:
                assert download(self.lab) == BODY
                self.downloads += 1
            except (OSError, AssertionError):
                self.failed += 1

    def events(self, name: str) -> list[dict[str, Any]]:
        for stream, rows in self.filters.rows().items():
            self.rows += [(stream, row) for row in rows]
        self.filters.batches()
        return [row for stream, row in self.rows if stream == "filter_event" and row["rule"] == name]

    def established(self) -> int:
        with self.filters._lock:  # its thread takes samples meanwhile
            return len(self.filters._guard._established(60))

    def goes_on(self) -> bool:
        before = self.downloads
        wait_for(lambda: self.downloads > before + 2, 20, "downloads")
        return True

    def close(self) -> None:
        self._stopping.set()
        self._client.join(15)
        with inside(self.lab.near):
            self.filters.apply([])
        self.filters.stop()
        self.web.stop()


@pytest.fixture
def host(lab: Lab, tmp_path: Path) -> Iterator[Host]:
    made = Host(lab, tmp_path)
    try:
        yield made
    finally:
        made.close()
        assert not [each for each in xdp.PINS.glob("filter_*") if each.name == made.filters._pins.name]


def test_connections_are_guarded(host: Host) -> None:
    watch = document("watch:all", watch={"samples": 5000})
    assert host.apply(watch) == {"watch:all": ("applied", "")}
    wait_for(lambda: host.filters._host and host.filters._host.followed, 30, "connections followed")
    wait_for(lambda: host.established() > 100, 20, "samples of connections")

    wide = rule("wide", "tcp")
    state, reason = host.apply(watch, wide)["wide"]
    assert state == "refused" and "held in shadow: it would drop 100% of the traffic" in reason
    assert host.goes_on() and host.failed == 0
    assert [each["event"] for each in host.events("wide")] == ["added", "held"]
    assert host.apply(watch, wide)["wide"][0] == "refused"  # said once, and still so

    narrow = rule("narrow", "tcp and src in @bad")
    bad = document("set:bad", set={"name": "bad", "prefixes": ["192.0.2.0/24"]})
    assert host.apply(watch, bad, narrow)["narrow"] == ("applied", "")
    assert host.goes_on()
    wrong = document("set:bad", set={"name": "bad", "prefixes": ["10.77.0.0/24"]})
    assert host.apply(watch, wrong, narrow)["narrow"] == ("applied", "")  # nobody looks at every list
    begin = time.monotonic()
    wait_for(lambda: host.events("narrow")[-1]["event"] == "rolled_back", 20, "the roll-back")
    print(f"\nrolled back {time.monotonic() - begin:.1f} s after the set was wrong")
    assert host.asked >= 1
    state, reason = host.apply(watch, wrong, narrow)["narrow"]
    assert state == "refused" and "put back into shadow" in reason
    assert host.goes_on()
    rolled = host.events("narrow")[-1]
    assert (rolled["source"], rolled["mode"]) == ("guard", "shadow") and rolled["legitimate"] > 0.5

    forced = rule("forced", "tcp dst port 8080 and src host 10.77.0.77", force=True)
    assert host.apply(watch, forced)["forced"] == ("applied", "")
    assert host.goes_on()


def test_documents_that_make_no_sense_harm_no_other(host: Host) -> None:
    good = document("good", rule={"fields": {"protocol": "udp", "dst_port": "9"}, "mode": "enforce"})
    deep = rule("deep", " or ".join(f"ip[({'(' * 12}ip[0] + 1{') * 3' * 12}):1] = {n}" for n in range(2)))
    outcomes = host.apply(
        good, deep,
        rule("unset", "src in @none"),
        Document(kind="filter", id="odd", revision=1, created=0, spec={"x": 1}),
        Document(kind="filter", id="Not-A-Name", revision=1, created=0, spec={"rule": {"match": "udp"}}),
        document("set:one", set={"name": "one", "prefixes": ["10.0.0.0/8"]}),
    )  # fmt: skip
    states = {name: state for name, (state, _) in outcomes.items()}
    assert states.pop("deep") in ("applied", "refused")  # whichever: it stopped nobody
    assert states == {"good": "applied", "unset": "refused", "odd": "refused", "Not-A-Name": "refused",
                      "set:one": "applied"}  # fmt: skip
    assert {row["rule"] for row in host.events("unset")} == {"unset"}
    assert host.goes_on()
