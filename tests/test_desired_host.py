"""One host: what its own files say, what it keeps over a restart, what becomes of handlers that misbehave."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from desired_host import Recorder, check, config_of, until

from collector import desired as state_module
from collector import desired_worker
from collector.desired import DesiredState, Outcome
from schemas import desired
from schemas.config import Config
from schemas.desired import Document, Kind, now_us
from schemas.errors import UsageError
from schemas.signing import PrivateKey

KEY = PrivateKey(b"k" * 32, "ops")
THING, RULE = Kind("thing", check), Kind("rule", check, must_expire=True)
HOUR = 3_600_000_000


@pytest.fixture
def started() -> Iterator[list[DesiredState]]:
    made: list[DesiredState] = []
    yield made
    for each in made:
        each.stop()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    made = tmp_path / "desired.d"
    made.mkdir()
    return made


def begin(started: list[DesiredState], config: Config, *handlers: Recorder) -> DesiredState:
    state = DesiredState(config, handlers, kafka=False)
    started.append(state)
    state.start()
    until(lambda: state.settled, what="settled")
    return state


def applied(state: DesiredState, sink: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """(id, state, reason) of every row so far."""
    sink += state.rows().get("applied", [])
    return [(row.get("id", ""), row["state"], row["reason"]) for row in sink]


# ── Files ────────────────────────────────────────────────────────────────────────────────────────


def test_files_come_change_and_go(directory: Path, tmp_path: Path, started: list[DesiredState]) -> None:
    config = config_of(tmp_path, "127.0.0.1:1", "h", {"role": "web"}, desired_dir=str(directory))
    thing, rule, rows = Recorder(THING), Recorder(RULE), []
    state = begin(started, config, thing, rule)
    until(lambda: thing.now == {} and rule.now == {}, what="told that nothing is wanted")
    begun = time.monotonic()
    (directory / "a.yaml").write_text("kind: thing\nid: a\nspec: {say: 1}\n")
    until(lambda: thing.now == {"a": 1})
    print(f"\na file is in force after {time.monotonic() - begun:.3f} s")
    assert time.monotonic() - begun < 1.0
    listed = [{"kind": "thing", "id": "b", "spec": {"say": 2}},
              {"kind": "thing", "id": "c", "spec": {"say": 3}, "scope": {"labels": {"role": "db"}}},
              {"kind": "rule", "id": "r", "spec": {"say": 4}, "ttl": "1h"}]  # fmt: skip
    (directory / "b.json").write_text(json.dumps(listed))
    until(lambda: thing.now == {"a": 1, "b": 2} and rule.now == {"r": 4})
    (directory / "a.yaml").unlink()
    until(lambda: thing.now == {"b": 2})
    until(lambda: ("a", "removed", "it is no longer in the host's own files") in applied(state, rows))
    audit = [row for row in rows if row["id"] == "a"]
    assert [row["state"] for row in audit] == ["applied", "removed"]
    assert {row["source"] for row in audit} == {"file"} and audit[0]["author"].startswith("file /")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not valid YAML"),
        ("kind: rule\nid: r\nspec: {say: 1}\n", "time to live"),
        ("kind: thing\nid: a\nspec: {sey: 1}\n", "must have `say`"),
        ("kind: thing\nid: 'a b'\nspec: {say: 1}\n", "matching regex"),
        ("kind: other\nid: a\n", "knows no kind"),
        ("kind: rule\nid: a\nttl: soon\nspec: {say: 1}\n", "is not a time"),
        ("- 3\n", "expected a mapping"),
        ("kind: thing\nid: a\nwat: 1\n", "unknown field"),
        ("x" * (desired.MAX_BYTES + 1), "split it"),
        ("&a [*a]", "expected a mapping"),
    ],
)
def test_a_wrong_file_changes_nothing(
    text: str, says: str, directory: Path, tmp_path: Path, started: list[DesiredState]
) -> None:
    config = config_of(tmp_path, "127.0.0.1:1", "h", desired_dir=str(directory))
    thing, rows = Recorder(THING), []
    file = directory / "a.yaml"
    file.write_text("kind: thing\nid: a\nspec: {say: 1}\n")
    state = begin(started, config, thing, Recorder(RULE))
    until(lambda: thing.now == {"a": 1})
    file.write_text(text)
    until(lambda: any(says in reason for _, _, reason in applied(state, rows)), what=says)
    assert all("\n" not in row["reason"] for row in rows)
    assert thing.now == {"a": 1}


def test_a_file_that_others_may_write_is_refused(
    directory: Path, tmp_path: Path, started: list[DesiredState]
) -> None:
    config = config_of(tmp_path, "127.0.0.1:1", "h", desired_dir=str(directory))
    file = directory / "a.yaml"
    file.write_text("kind: thing\nid: a\nspec: {say: 1}\n")
    file.chmod(0o666)
    thing, rows = Recorder(THING), []
    state = begin(started, config, thing)
    until(lambda: any("others may write it" in reason for _, _, reason in applied(state, rows)))
    file.chmod(0o644)
    os.chown(file, 65534, 65534)
    os.utime(file, ns=(1, 1))
    until(lambda: len(applied(state, rows)) == 2)
    assert thing.now == {}


def test_a_time_to_live_ends(directory: Path, tmp_path: Path, started: list[DesiredState]) -> None:
    config = config_of(tmp_path, "127.0.0.1:1", "h", desired_dir=str(directory))
    rule, rows = Recorder(RULE), []
    state = begin(started, config, rule)
    (directory / "a.yaml").write_text("kind: rule\nid: r\nttl: 2s\nspec: {say: 1}\n")
    until(lambda: rule.now == {"r": 1})
    ends = (directory / "a.yaml").stat().st_mtime + 2
    until(lambda: rule.now == {})
    late = time.time() - ends
    print(f"\nended {late * 1000:.1f} ms after its time")
    assert 0 <= late < 0.5
    until(lambda: ("r", "expired", "") in applied(state, rows))


# ── Handlers ─────────────────────────────────────────────────────────────────────────────────────


def test_a_handler_that_fails_is_asked_again(
    directory: Path, tmp_path: Path, started: list[DesiredState], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desired_worker, "FIRST_RETRY_S", 0.05)
    config = config_of(tmp_path, "127.0.0.1:1", "h", desired_dir=str(directory))
    thing, rows = Recorder(THING), []
    thing.fault = RuntimeError("boom")
    (directory / "a.yaml").write_text(
        "[{kind: thing, id: a, spec: {say: 1}}, {kind: thing, id: b, spec: {say: 2}}]"
    )
    state = begin(started, config, thing)
    until(lambda: len(applied(state, rows)) == 2)
    time.sleep(0.3)
    assert sorted(applied(state, rows)) == [
        (each, "failed", "RuntimeError: boom") for each in "ab"
    ]  # told once
    thing.fault, thing.answers = (
        None,
        {"a": Outcome("failed", "no such interface"), "b": Outcome("refused", "no")},
    )
    until(lambda: len(applied(state, rows)) == 4)
    assert applied(state, rows)[2:] == [("a", "failed", "no such interface"), ("b", "refused", "no")]
    before = len(thing.calls)
    until(lambda: len(thing.calls) > before, what="tried again by itself")
    thing.answers = {}
    until(lambda: len(applied(state, rows)) == 6)
    time.sleep(0.2)
    calm = len(thing.calls)
    time.sleep(0.3)
    assert len(thing.calls) == calm, "all is well: it is left in peace"
    thing.answers = {"a": Outcome("failed", "detached by the overhead budget")}
    state.again("thing")
    until(lambda: applied(state, rows)[-1] == ("a", "failed", "detached by the overhead budget"))


def test_a_handler_that_says_nothing_is_told_on(
    directory: Path, tmp_path: Path, started: list[DesiredState]
) -> None:
    class Silent(Recorder):
        def apply(self, documents: list[Document]) -> dict[str, Outcome]:
            return {}

    config = config_of(tmp_path, "127.0.0.1:1", "h", desired_dir=str(directory))
    (directory / "a.yaml").write_text("kind: thing\nid: a\nspec: {say: 1}\n")
    rows: list[dict[str, Any]] = []
    state = begin(started, config, Silent(THING))
    until(lambda: applied(state, rows) == [("a", "failed", "the handler of thing said nothing about it")])


def test_a_slow_kind_holds_up_nobody(directory: Path, tmp_path: Path, started: list[DesiredState]) -> None:
    config = config_of(tmp_path, "127.0.0.1:1", "h", desired_dir=str(directory))
    slow, quick = Recorder(THING), Recorder(Kind("quick", check))
    slow.seconds = 2.0
    begin(started, config, slow, quick)
    (directory / "a.yaml").write_text(
        "[{kind: thing, id: a, spec: {say: 1}}, {kind: quick, id: b, spec: {say: 2}}]"
    )
    begun = time.monotonic()
    until(lambda: quick.now == {"b": 2})
    assert time.monotonic() - begun < 1.0 and slow.now != {"a": 1}
    until(lambda: slow.now == {"a": 1})


def test_no_handler_is_called_before_it_is_known_what_is_wanted(
    tmp_path: Path, started: list[DesiredState]
) -> None:
    """No Kafka, no files, nothing on disk: what a former collector left in the kernel stays."""
    thing = Recorder(THING)
    state = DesiredState(config_of(tmp_path, "127.0.0.1:1", "h"), [thing])
    started.append(state)
    state.start()
    time.sleep(state_module.GRACE_S + 1)
    assert not state.settled and thing.calls == []


def test_clocks_apart_are_worth_a_word(tmp_path: Path, directory: Path, started: list[DesiredState]) -> None:
    config = config_of(tmp_path, "127.0.0.1:1", "h", desired_dir=str(directory))
    tree = {"kind": "thing", "id": "a", "spec": {"say": 1}, "created": now_us() + 2 * HOUR}
    (directory / "a.json").write_text(json.dumps(tree))
    rows: list[dict[str, Any]] = []
    state = begin(started, config, Recorder(THING))
    until(lambda: applied(state, rows))
    assert "this clock is 7,199 s behind its author's" in applied(state, rows)[0][2]


def test_keys_that_cannot_be_read_stop_the_collector(tmp_path: Path) -> None:
    config = config_of(tmp_path, "", "h", trusted_keys=[str(tmp_path / "absent")])
    with pytest.raises(UsageError, match="cannot read"):
        DesiredState(config, [])
