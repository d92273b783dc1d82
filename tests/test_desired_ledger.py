"""What a host has accepted: older revisions, the disk, bounds, and what is not for it."""

import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from desired_host import check, config_of

from collector import desired_ledger
from collector.desired_ledger import Ledger
from schemas import desired
from schemas.desired import Document, Kind, Refused, Sealed, Trust, now_us
from schemas.signing import PrivateKey

KEY = PrivateKey(b"k" * 32, "ops")
THING, RULE = Kind("thing", check), Kind("rule", check, must_expire=True)
HOUR = 3_600_000_000


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


def test_an_unsigned_kind_takes_no_room_from_a_signed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desired_ledger, "MAX_DOCUMENTS", 3)
    monkeypatch.setattr(desired_ledger, "MAX_NUMBERS", 4)
    ledger = ledger_of(tmp_path)
    for number in range(3):
        take(ledger, sealed(None, kind="thing", id=f"t{number}"))
    with pytest.raises(Refused, match="documents of thing"):
        take(ledger, sealed(None, kind="thing", id="t9"))
    take(ledger, sealed())
    assert "rule/r" in live(ledger)


def test_many_revisions_do_not_fill_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desired_ledger, "SLACK_BYTES", 20_000)
    ledger = ledger_of(tmp_path)
    take(ledger, sealed())
    for number in range(1, 300):
        take(ledger, sealed(None, kind="thing", id="t", revision=number))
    file = next(tmp_path.rglob("accepted.jsonl"))
    assert file.stat().st_size < 25_000
    ledger.close()
    again = ledger_of(tmp_path)
    assert again.load(lambda *_: None)
    assert live(again) == {"rule/r": 5, "thing/t": 299}
