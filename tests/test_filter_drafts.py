"""What `bpfleet drop` would publish, of what is published and of a file."""

from pathlib import Path

import pytest

from fleet.desired import Draft
from fleet.drop_edit import edited, file_drafts, set_drafts, sets_of
from schemas.desired import Document, Scope, now_us
from schemas.errors import UsageError
from schemas.filter_file import read

TEXT = """
allow: [10.0.0.0/8]
sets: {bots: {file: bots.txt}}
rules:
- {id: bots, ttl: 7d, match: src in @bots, mode: enforce}
- {id: ntp, ttl: 1h, fields: {protocol: udp, src_port: "123"}, scope: {interfaces: [eth0]}}
"""


def published(drafts: list[Draft], before: dict[str, Document] | None = None) -> dict[str, Document]:
    known = dict(before or {})
    for each in drafts:
        expires = None if each.ttl_s is None else now_us() + each.ttl_s * 1_000_000
        document = Document(kind="filter", id=each.id, revision=1, created=now_us(), expires=expires,
                            scope=each.scope, spec=each.spec)  # fmt: skip
        each.kind.judge(document)
        known[each.id] = document
    return known


def test_a_file_applied_twice_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "bots.txt").write_text("192.0.2.0/24\n2001:db8::/32  # two\n")
    file = tmp_path / "rules.yaml"
    file.write_text(TEXT)
    scope = Scope(labels={"site": "fra"})
    drafts, stale = file_drafts({}, read(file), "file:rules", scope)
    known = published(drafts)
    assert set(known) == {"set:bots", "bots", "ntp", "allow:rules"} and not stale
    assert known["ntp"].scope == Scope((), {"site": "fra"}, ("eth0",))
    assert sets_of(known) == {"bots": ["192.0.2.0/24", "2001:db8::/32"]}
    assert file_drafts(known, read(file), "file:rules", scope) == ([], [])
    file.write_text("rules: [{id: ntp, ttl: 1h, match: udp src port 123}]")
    drafts, stale = file_drafts(known, read(file), "file:rules", scope)
    assert [each.id for each in drafts] == ["ntp"] and set(stale) == {"set:bots", "bots", "allow:rules"}
    with pytest.raises(UsageError, match="elsewhere"):
        file_drafts(known, read(file), "file:others", scope)


def test_edits_keep_scope_and_end(tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text("rules: [{id: a, ttl: 1h, match: udp, scope: {interfaces: [eth1]}}]")
    known = published(file_drafts({}, read(file), "file:x", Scope(("web*",)))[0])
    (draft,) = edited(known, ["a"], lambda rule: type(rule)(rule.match, mode="enforce"), "now")
    assert (draft.scope, draft.comment) == (Scope(("web*",), {}, ("eth1",)), "now")
    assert draft.spec["rule"]["mode"] == "enforce" and 3590 < (draft.ttl_s or 0) <= 3601
    with pytest.raises(UsageError, match="no rule b"):
        edited(known, ["b"], lambda rule: rule, "")


def test_a_set_grows_into_parts_and_back() -> None:
    many = [f"10.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}" for n in range(40_000)]
    drafts, stale = set_drafts({}, "big", many, Scope(), None)
    assert [each.id for each in drafts] == [f"set:big:{n}-16" for n in range(16)] and not stale
    known = published(drafts)
    assert sorted(sets_of(known)["big"]) == sorted(many)
    drafts, stale = set_drafts(known, "big", many[:-1], Scope(), None)
    assert len(drafts) == 1 and not stale
    drafts, stale = set_drafts(known, "big", many[:5], Scope(), None)
    assert [each.id for each in drafts] == ["set:big"] and len(stale) == 16


def test_unknown_sets_and_wrong_rules_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    for text, reason in (("src in @none", "no address set @none"), ("udp and and", "syntax error"),
                         ("ip and ip6", "rejects all packets")):  # fmt: skip
        file.write_text(f"rules: [{{id: a, ttl: 1h, match: '{text}'}}]")
        with pytest.raises(UsageError, match=f"rule a.*{reason}"):
            file_drafts({}, read(file), "file:x", Scope())
