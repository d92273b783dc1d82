"""One host: what its own files say, what it keeps over a restart, what becomes of handlers that misbehave."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from desired_host import Recorder, check, config_of, until

from collector import desired as state_module
from collector import desired_ledger, desired_worker
from collector.desired import DesiredState, Outcome
from collector.desired_ledger import Ledger
from schemas import desired
from schemas.config import Config
from schemas.desired import Document, Kind, Refused, Sealed, Trust, now_us
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


# ── The ledger ───────────────────────────────────────────────────────────────────────────────────


def ledger_of(tmp_path: Path, signed: bool = True) -> Ledger:
    keys = {KEY.public.text: KEY.public} if signed else {}
    config = config_of(tmp_path, "", "h", {"role": "web"})
    return Ledger(config, Trust(keys, ("rule",)), {"thing": THING, "rule": RULE})


def sealed(key: PrivateKey | None = KEY, **more: Any) -> Sealed:
    tree = {
        "kind": "rule",
        "id": "r",
        "revision": 5,
        "created": 1,
        "expires": now_us() + HOUR,
        "spec": {"say": 1},
    }
    return desired.unseal(desired.seal(Document(**(tree | more)), key))


def take(ledger: Ledger, one: Sealed) -> Any:
    return ledger.take(one.document.name, one)


def live(ledger: Ledger) -> dict[str, int]:
    return {each.document.name: each.document.revision for each in ledger.live(now_us())}


def test_an_older_revision_is_refused_whatever_happened_meanwhile(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path)
    first = sealed(revision=5)
    take(ledger, first)
    assert take(ledger, first) is None, "heard twice is heard once"
    take(ledger, sealed(revision=6, deleted=True))
    assert live(ledger) == {}
    for replayed in (first, sealed(revision=6, spec={"say": 2})):
        with pytest.raises(Refused, match="not newer than 6"):
            take(ledger, replayed)
    ledger.close()
    again = ledger_of(tmp_path)
    again.load(lambda *_: None)
    with pytest.raises(Refused, match="not newer than 6"):
        take(again, first)
    take(again, sealed(revision=7))
    assert live(again) == {"rule/r": 7}


def test_a_replay_after_a_shortened_life_is_refused(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path)
    first = sealed(revision=5, expires=now_us() + HOUR)
    take(ledger, first)
    take(ledger, sealed(revision=6, expires=now_us() - 1))
    assert live(ledger) == {}
    ledger.close()
    again = ledger_of(tmp_path)
    again.load(lambda *_: None)
    with pytest.raises(Refused, match="not newer than 6"):
        take(again, first)


def test_what_is_not_for_this_host_is_remembered_by_its_number(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path)
    elsewhere = desired.Scope(labels={"role": "db"})
    take(ledger, sealed(revision=5))
    take(ledger, sealed(revision=6, scope=elsewhere))
    assert live(ledger) == {}
    assert b"say" not in (tmp_path / "h/desired/accepted.jsonl").read_bytes().splitlines()[-1]
    with pytest.raises(Refused, match="not newer than 6"):
        take(ledger, sealed(revision=5))
    ledger.close()
    again = ledger_of(tmp_path)
    again.load(lambda *_: None)
    with pytest.raises(Refused, match="not newer than"):
        take(again, sealed(revision=5))


def test_new_labels_at_a_restart_change_what_is_for_this_host(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path)
    for_db = sealed(id="d", scope=desired.Scope(labels={"role": "db"}))
    for_web = sealed(id="w", scope=desired.Scope(labels={"role": "web"}))
    take(ledger, for_db)
    take(ledger, for_web)
    ledger.close()
    trust = Trust({KEY.public.text: KEY.public}, ("rule",))
    moved = Ledger(config_of(tmp_path, "", "h", {"role": "db"}), trust, {"rule": RULE})
    moved.load(lambda *_: None)
    assert live(moved) == {}
    take(moved, for_db)
    take(moved, for_web)
    assert live(moved) == {"rule/d": 5}
    moved.close()


def test_bad_configuration_is_refused_and_the_good_one_stays(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path)
    take(ledger, sealed(revision=5))
    for wrong in (sealed(revision=6, spec={}), sealed(revision=6, expires=None), sealed(None, revision=6)):
        with pytest.raises(Refused):
            take(ledger, wrong)
    with pytest.raises(Refused, match="came under the key"):
        ledger.take("rule/other", sealed(revision=6))
    assert live(ledger) == {"rule/r": 5}


def test_the_disk_is_not_believed_blindly(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path)
    for name in "abc":
        take(ledger, sealed(id=name))
    ledger.close()
    file = tmp_path / "h/desired/accepted.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    lines[0] = lines[0].replace(b'"say":1', b'"say":9')
    file.write_bytes(b"".join(lines[:2]) + b"garbage\n\xff\xfe\n" + lines[2][:-40])
    refused: list[str] = []
    again = ledger_of(tmp_path)
    assert again.load(lambda _, reason: refused.append(reason))
    assert live(again) == {"rule/b": 5} and len(refused) == 1 and "changed after" in refused[0]
    take(again, sealed(id="c"))  # the torn line did no harm to the next
    again.close()
    third = ledger_of(tmp_path)
    third.load(lambda *_: None)
    assert live(third) == {"rule/b": 5, "rule/c": 5}
    strict = Ledger(config_of(tmp_path, "", "h"), Trust({"x": KEY.public}, ("*",)), {"rule": RULE})
    strict.load(lambda _, reason: refused.append(reason))
    assert live(strict) == {}, "a key that is no longer trusted carries nothing"


def test_the_log_is_rewritten_when_most_of_it_is_old(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path)
    for revision in range(1, desired_ledger.SLACK_LINES + 10):
        take(ledger, sealed(revision=revision))
    take(ledger, sealed(id="gone", expires=now_us() - 2 * desired_ledger.DAY_US))
    ledger.close()
    again = ledger_of(tmp_path)
    again.load(lambda *_: None)
    again.close()
    kept = (tmp_path / "h/desired/accepted.jsonl").read_bytes().splitlines()
    assert len(kept) == 1 and live(again) == {"rule/r": desired_ledger.SLACK_LINES + 9}


def test_a_host_holds_a_bounded_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desired_ledger, "MAX_DOCUMENTS", 3)
    monkeypatch.setattr(desired_ledger, "MAX_NUMBERS", 6)
    ledger = ledger_of(tmp_path)
    for number in range(3):
        take(ledger, sealed(id=f"a{number}"))
    with pytest.raises(Refused, match="already holds 3"):
        take(ledger, sealed(id="more"))
    take(ledger, sealed(id="a0", revision=6, deleted=True))
    take(ledger, sealed(id="more"))
    for number in range(2):
        take(ledger, sealed(id=f"far{number}", scope=desired.Scope(("elsewhere",))))
    with pytest.raises(Refused, match="already remembers 6"):
        take(ledger, sealed(id="far3", scope=desired.Scope(("elsewhere",))))


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


def test_thousands_of_documents_are_read_back_quickly(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path)
    document = sealed().document
    messages = []
    for number in range(2000):
        one = msgspec.structs.replace(document, id=f"r{number}")
        messages.append(desired.unseal(desired.seal(one, KEY)))
    begun = time.monotonic()
    for one in messages:
        take(ledger, one)
    took, ledger_size = time.monotonic() - begun, len(ledger.entries)
    ledger.close()
    begun = time.monotonic()
    again = ledger_of(tmp_path)
    again.load(lambda *_: None)
    back = time.monotonic() - begun
    print(f"\na signed document: {took / 2000 * 1e6:.0f} µs to accept, {back / 2000 * 1e6:.0f} µs read back")
    assert ledger_size == 2000 == len(live(again)) and took < 5
