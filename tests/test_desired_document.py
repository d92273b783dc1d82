"""Documents: what is signed is what is acted upon; any bytes are read or refused in one line; scopes."""

import base64
import fnmatch
import json
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from schemas import desired, signing
from schemas.desired import Document, Kind, Refused, Scope, Sealed, Trust
from schemas.errors import BpfleetError, UsageError
from schemas.signing import PrivateKey

KEY = PrivateKey(b"k" * 32, "ops")
OTHER = PrivateKey(b"o" * 32, "stranger")
TRUST = Trust({KEY.public.text: KEY.public}, ("filter", "lb"))

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=("Cs",)), max_size=12),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text(st.characters(exclude_categories=("Cs",)), max_size=8), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip
patterns = st.text("abw*?[]!-1", min_size=1, max_size=8)
scopes = st.builds(
    Scope,
    hosts=st.lists(patterns, max_size=4).map(tuple),
    labels=st.dictionaries(st.sampled_from(["role", "dc"]), patterns, max_size=2),
)
documents = st.builds(
    Document,
    kind=st.sampled_from(["filter", "lb", "probe"]), id=st.from_regex(desired.ID, fullmatch=True),
    revision=st.integers(1, 2**53), created=st.integers(0, 2**53), author=st.text("aé☃ ", max_size=9),
    expires=st.none() | st.integers(0, 2**53), deleted=st.booleans(), scope=scopes, spec=json_values,
)  # fmt: skip


def document(**more: Any) -> Document:
    return Document(**({"kind": "filter", "id": "x", "revision": 1, "created": 1, "spec": {"a": 1}} | more))


@given(document=documents)
def test_the_canonical_form_is_one_and_reads_back(document: Document) -> None:
    whole = desired.checked(document)
    text = desired.canonical(whole)
    again = msgspec.json.decode(text, type=Document)
    assert again == whole and desired.canonical(again) == text
    # However it was spaced and ordered on its way: the same bytes are signed.
    tree = json.loads(text)
    shuffled = json.dumps(dict(reversed(tree.items())), indent=2).encode()
    assert desired.canonical(msgspec.json.decode(shuffled, type=Document)) == text
    assert b"\n" not in text and list(tree) == sorted(tree)


@given(document=documents)
def test_what_was_sealed_opens_equal_and_its_signature_fits(document: Document) -> None:
    message = desired.seal(document, KEY)
    sealed = desired.unseal(message)
    assert sealed.document == desired.checked(document) and TRUST.signer(sealed) == "ops"
    assert desired.encode(sealed) == message


@given(document=documents, field=st.sampled_from(["revision", "expires", "scope", "spec", "id", "deleted"]))
def test_no_field_can_be_changed_under_a_signature(document: Document, field: str) -> None:
    sealed = desired.unseal(desired.seal(document, KEY))
    before = sealed.document
    new = {
        "revision": before.revision % 2**53 + 1, "expires": 7 if before.expires != 7 else None,
        "scope": Scope(("changed",)), "spec": {"changed": before.spec}, "id": before.id[:99] + "x",
        "deleted": not before.deleted,
    }  # fmt: skip
    changed = msgspec.structs.replace(before, **{field: new[field]})
    with pytest.raises(Refused, match="changed after it was signed"):
        TRUST.signer(Sealed(changed, sealed.key, sealed.signature))


@pytest.mark.parametrize(
    ("sealed", "says"),
    [
        (desired.seal(document()), "not signed"),
        (desired.seal(document(), OTHER), "does not trust"),
        (desired.encode(Sealed(document(), KEY.public.text, "")), "does not fit"),
        (desired.encode(Sealed(document(), KEY.public.text, "!!")), "does not fit"),
        (
            desired.encode(Sealed(document(), KEY.public.text, base64.b64encode(b"x" * 64).decode())),
            "not fit",
        ),
        (desired.encode(Sealed(document(), "", "abc")), "does not trust"),
    ],
)
def test_a_signature_that_will_not_do(sealed: bytes, says: str) -> None:
    with pytest.raises(Refused, match=says):
        TRUST.signer(desired.unseal(sealed))


def test_where_no_signature_is_needed() -> None:
    probe = desired.unseal(desired.seal(document(kind="probe")))
    assert TRUST.signer(probe) == ""
    assert Trust({}, ("filter",)).signer(desired.unseal(desired.seal(document()))) == ""
    every = Trust(TRUST.keys, ("*",))
    with pytest.raises(Refused, match="not signed"):
        every.signer(probe)


@given(data=st.binary(max_size=200) | json_values.map(lambda tree: json.dumps(tree).encode()))
@example(b"[" * 100_000)
@example(b'{"document":{"kind":"a","id":"b","revision":1,"created":1,"spec":' + b"[" * 100_000)
@example(b'{"document":{"kind":"a","id":"b","revision":1,"created":1,"spec":"\\ud800"}}')
@example(b'{"document":{"kind":"a","id":"b","revision":1,"created":1,"spec":' + b"9" * 6000 + b"}}")
@example(b'{"document":{"kind":"a","id":"b\\n","revision":1,"created":1}}')
@example(b'{"document":{"kind":"a","id":"b","revision":1,"created":1,"more":1}}')
@example(b" " * (desired.MAX_BYTES + 1))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        sealed = desired.unseal(data)
        TRUST.signer(sealed)
        assert sealed.document.digest
    except Refused as error:
        assert "\n" not in str(error) and len(str(error)) < 400


@given(key=st.sampled_from(["id", "kind", "revision", "created", "scope", "expires"]), value=json_values)
def test_any_field_is_read_or_refused(key: str, value: Any) -> None:
    tree = {"kind": "a", "id": "b", "revision": 1, "created": 1} | {key: value}
    try:
        desired.unseal(json.dumps({"document": tree}).encode())
    except Refused as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    "spec", [float("nan"), {"a": float("inf")}, {"a": "\ud800"}, {"a": (1, 2)}, object()]
)
def test_a_spec_that_json_cannot_hold_is_refused_before_it_travels(spec: Any) -> None:
    with pytest.raises(UsageError):
        desired.seal(document(spec=spec))


def test_a_document_too_large_to_travel() -> None:
    fits = "x" * (desired.MAX_BYTES - 1000)
    assert desired.unseal(desired.seal(document(spec=fits), KEY)).document.spec == fits
    with pytest.raises(UsageError, match="split it"):
        desired.seal(document(spec="x" * desired.MAX_BYTES), KEY)


# ── Scope ────────────────────────────────────────────────────────────────────────────────────────


@given(scope=scopes, host=st.text("abw1", min_size=1, max_size=6),
       labels=st.dictionaries(st.sampled_from(["role", "dc"]), st.text("abw1", max_size=4)))  # fmt: skip
def test_scopes_against_a_plain_reading(scope: Scope, host: str, labels: dict[str, str]) -> None:
    def fits(patterns: tuple[str, ...], name: str) -> bool:
        result = not [each for each in patterns if not each.startswith("!")]
        for each in patterns:
            result = result or (not each.startswith("!") and fnmatch.fnmatchcase(name, each))
        for each in patterns:
            if each.startswith("!") and fnmatch.fnmatchcase(name, each[1:]):
                return False
        return result

    wanted = fits(scope.hosts, host)
    for name, pattern in scope.labels.items():
        wanted = wanted and name in labels and fits((pattern,), labels[name])
    assert scope.covers(host, labels) is wanted


@pytest.mark.parametrize(
    ("scope", "covers"),
    [
        (Scope(), True),
        (Scope(("web3",)), True),
        (Scope(("web*", "!web3")), False),
        (Scope(("!db*",)), True),
        (Scope(labels={"role": "edge"}), True),
        (Scope(labels={"role": "!edge"}), False),
        (Scope(labels={"absent": "*"}), False),
        (Scope(("web*",), {"role": "e*", "dc": "fra?"}), True),
    ],
)
def test_scopes_by_example(scope: Scope, covers: bool) -> None:
    assert scope.covers("web3", {"role": "edge", "dc": "fra1"}) is covers


def test_interfaces() -> None:
    assert Scope().covers_interface("eth0") and Scope(interfaces=("eth*",)).covers_interface("eth0")
    assert not Scope(interfaces=("eth*", "!eth0")).covers_interface("eth0")


# ── Kinds and keys ───────────────────────────────────────────────────────────────────────────────


def test_a_kind_judges_its_documents() -> None:
    def check(spec: Any) -> None:
        if spec != {"good": True}:
            raise UsageError("not good")

    kind = Kind("filter", check, must_expire=True)
    kind.judge(document(spec={"good": True}, expires=5))
    kind.judge(document(spec=None, deleted=True))
    with pytest.raises(Refused, match="time to live"):
        kind.judge(document(spec={"good": True}))
    with pytest.raises(Refused, match="not good"):
        kind.judge(document(expires=5))


@pytest.mark.parametrize(
    ("text", "value"), [("90s", 90), ("15m", 900), ("2h", 7200), ("7d", 604_800), ("3min", 180)]
)
def test_times(text: str, value: int) -> None:
    assert desired.seconds(text) == value


@pytest.mark.parametrize("text", ["", "5", "h", "-1h", "1.5h", "1 h 5 m", "99999999999h"])
def test_wrong_times(text: str) -> None:
    with pytest.raises(UsageError, match="is not a time"):
        desired.seconds(text)


def test_a_private_key_is_for_its_owner_alone(tmp_path: Path) -> None:
    file = tmp_path / "key"
    made = signing.create(file, "ops at\nhome")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert signing.private_key(file) == made and made.name == "ops at home"
    assert "private" not in repr(made) and made.seed.hex() not in repr(made)
    with pytest.raises(UsageError, match="never overwritten"):
        signing.create(file, "")
    file.chmod(0o640)
    with pytest.raises(UsageError, match="chmod 600"):
        signing.private_key(file)
    file.chmod(0o600)
    for text in ("", "ed25519:AAAA", str(made.public), "ed25519-private:AAAA", "\xff" * 9):
        file.write_bytes(text.encode("latin1"))
        with pytest.raises(UsageError):
            signing.private_key(file)


def test_trusted_keys_from_words_and_files(tmp_path: Path) -> None:
    file = tmp_path / "trusted"
    file.write_text(f"# operators\n\n{OTHER.public}\n")
    found = signing.trusted_keys([str(KEY.public), str(file)])
    assert {each.name for each in found.values()} == {"ops", "stranger"}
    assert found[KEY.public.text].verify(b"m", KEY.sign(b"m"))
    file.write_text("# nobody\n")
    for wrong in ([str(file)], [str(tmp_path / "absent")], ["ed25519:AAAA x"], ["ed25519:????"]):
        with pytest.raises(BpfleetError) as caught:
            signing.trusted_keys(wrong)
        assert "\n" not in str(caught.value)


def test_the_library_is_loaded_only_when_needed() -> None:
    code = (
        "import sys, schemas.desired as d; d.seal(d.Document(kind='a', id='b', revision=1, created=1));"
        "sys.exit('nacl' in sys.modules or 'confluent_kafka' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
