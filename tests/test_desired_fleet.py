"""Several hosts on one topic: scopes, signatures, bad messages, acknowledgements and how long they take."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from confluent_kafka import Producer
from desired_host import Host, Recorder, check, config_of, until

from collector import desired as state_module
from fleet import desired as desired_module
from fleet.acknowledge import Watch, complaint, history, live_hosts
from fleet.desired import Board, Draft
from schemas import desired, signing, topics
from schemas.config import Config
from schemas.desired import Document, Kind, Scope, now_us
from schemas.errors import BpfleetError, UsageError
from schemas.signing import PrivateKey
from sinks.kafka_server import KafkaServer

KEY, STRANGER = PrivateKey(b"k" * 32, "ops"), PrivateKey(b"s" * 32, "stranger")
THING, RULE = Kind("thing", check), Kind("rule", check, must_expire=True)
SIGNED = {"trusted_keys": [str(KEY.public)], "signed_kinds": ["rule"]}
Start = Callable[..., Host]


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory, free: Callable[[], int]) -> Iterator[KafkaServer]:
    """One of our own: nobody else's collectors and documents are on it."""
    server = KafkaServer(tmp_path_factory.mktemp("desired"), free())
    server.start()
    try:
        server.wait_ready()
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="module")
def free() -> Callable[[], int]:
    from conftest import free_port

    return free_port


@pytest.fixture
def start(broker: KafkaServer, tmp_path: Path) -> Iterator[Start]:
    """Makes hosts that are there (and have read the topic) when it returns."""
    made: list[Host] = []

    def make(
        name: str, labels: dict[str, str] | None = None, *, kinds: Any = (THING, RULE), **more: Any
    ) -> Host:
        config = config_of(tmp_path, broker.servers, name, labels, **(SIGNED | more))
        host = Host(config, *(Recorder(each) for each in kinds)).start()
        made.append(host)
        until(lambda: host.desired.settled and all(each.calls for each in host.handlers), 20, "settled")
        return host

    yield make
    for each in made:
        each.stop()


@pytest.fixture
def board(broker: KafkaServer, tmp_path: Path) -> Iterator[Board]:
    """Ends everything it published."""
    made = Board(config_of(tmp_path, broker.servers, "operator"), KEY)
    yield made
    left = [name for name, each in made.refresh().items() if not each.document.deleted]
    made.delete(left)
    made.close()


@pytest.fixture
def raw(broker: KafkaServer) -> Callable[[str, bytes | None], None]:
    """Puts any bytes on the topic, as who can write to it may."""
    producer = Producer({"bootstrap.servers": broker.servers})

    def put(key: str, value: bytes | None) -> None:
        producer.produce(topics.DESIRED, value, key)
        assert producer.flush(20) == 0

    return put


def test_each_host_takes_what_is_for_it(start: Start, board: Board) -> None:
    web, db = start("web1", {"role": "web", "dc": "a"}), start("db1", {"role": "db", "dc": "a"})
    board.publish([
        Draft(THING, "all", {"say": 1}),
        Draft(THING, "web", {"say": 2}, Scope(labels={"role": "web"})),
        Draft(THING, "named", {"say": 3}, Scope(("db*",))),
        Draft(THING, "nobody", {"say": 4}, Scope(("db*",), {"role": "web"})),
        Draft(RULE, "r", {"say": 5}, Scope(labels={"dc": "a"}), ttl_s=60),
    ])  # fmt: skip
    until(lambda: web.handlers[0].now == {"all": 1, "web": 2} and web.handlers[1].now == {"r": 5})
    until(lambda: db.handlers[0].now == {"all": 1, "named": 3} and db.handlers[1].now == {"r": 5})
    # A new revision moves it from one host to the other.
    board.publish([Draft(THING, "web", {"say": 6}, Scope(labels={"role": "db"}))])
    until(
        lambda: db.handlers[0].now == {"all": 1, "named": 3, "web": 6} and web.handlers[0].now == {"all": 1}
    )
    until(lambda: ("removed", "it is no longer for this host") in web.said("thing/web"))
    late = start("late", {"role": "web", "dc": "a"})
    assert late.handlers[0].now == {"all": 1} and late.handlers[1].now == {"r": 5}
    board.delete(["thing/all", "rule/r"])
    until(lambda: late.handlers[0].now == {} and late.handlers[1].now == {})
    until(lambda: [state for state, _ in web.said("thing/all")] == ["applied", "removed"])


def test_who_acknowledged_and_who_did_not(start: Start, board: Board, broker: KafkaServer) -> None:
    good, bad = start("good1"), start("bad1")
    bad.handlers[0].answers = {"x": state_module.Outcome("failed", "no such interface")}  # type: ignore[attr-defined]
    config = board._config
    until(lambda: {"good1", "bad1"} <= live_hosts(config).keys(), 20, "heartbeats")
    hosts: dict[str, dict[str, str]] = {"good1": {}, "bad1": {}, "dead1": {}}
    watch = Watch(config)
    try:
        begun = time.monotonic()
        documents = board.publish([Draft(THING, "x", {"say": 1})])
        answers = watch.wait(documents, hosts, 1.0)
        assert time.monotonic() - begun > 1.0, "it waited for the host that is dead"
        said = {host: (each.state, each.reason) if each else None for (_, host), each in answers.items()}
        assert said == {"good1": ("applied", ""), "bad1": ("failed", "no such interface"), "dead1": None}
        assert "of 3 answers 1 refused or failed and 1 not heard" in str(complaint(answers))
        del hosts["dead1"]
        gone = watch.wait(board.delete(["thing/x"]), hosts, 5)
        assert {each.state for each in gone.values() if each} == {"removed"} and complaint(gone) is None
        nobody = board.publish([Draft(THING, "y", {"say": 1}, Scope(("no-such-host",)))])
        assert "no host in scope" in str(complaint(watch.wait(nobody, hosts, 1)))
        heard = history(config, documents[0])
        assert {host: each.state for host, each in heard.items()} == {"good1": "removed", "bad1": "removed"}
    finally:
        watch.close()
    assert good.said("thing/x")[0] == ("applied", "")


def document(**more: Any) -> Document:
    tree = {"kind": "rule", "id": "x", "revision": now_us(), "created": now_us(), "spec": {"say": 1},
            "expires": now_us() + 60_000_000}  # fmt: skip
    return Document(**(tree | more))


def test_nothing_bad_is_acted_upon_and_all_of_it_is_reported(
    start: Start, board: Board, raw: Callable[..., None]
) -> None:
    host = start("guard1")
    (first,) = board.publish([Draft(RULE, "x", {"say": 1}, ttl_s=60)])
    until(lambda: host.handlers[1].now == {"x": 1})
    old = board.refresh()["rule/x"]
    (second,) = board.publish([Draft(RULE, "x", {"say": 2}, ttl_s=60)])
    until(lambda: host.handlers[1].now == {"x": 2})
    whole = desired.seal(document(spec={"say": 3}), KEY)
    replaced = msgspec.structs.replace(second, spec={"say": 4}, revision=second.revision + 1)
    cases = {
        "does not trust": desired.seal(document(spec={"say": 3}), STRANGER),
        "not signed": desired.seal(document(spec={"say": 3})),
        "changed after it was signed": whole.replace(b'"say":3', b'"say":5'),
        "not newer than": desired.encode(old),
        "needs a time to live": desired.seal(document(expires=None), KEY),
        "must have `say`": desired.seal(document(spec={}), KEY),
        "not a document": b"\x00\xff garbage",
        "nested too deeply": b'{"document":{"spec":' + b"[" * 50_000,
        "at most 786,432 are read": b"{" + b" " * desired.MAX_BYTES + b"}",
        "unknown field": whole.replace(b'"id"', b'"di":1,"id"'),
    }
    for reason, message in cases.items():
        raw("rule/x", message)
        until(lambda reason=reason: any(reason in said for _, said in host.said("rule/x")), 5, reason)
    raw("rule/x", desired.encode(desired.Sealed(replaced, old.key, old.signature)))
    until(lambda: host.said("rule/x")[-1][0] == "refused")
    raw("no key \U0001f511", whole)
    until(lambda: any("came under the key" in row.get("reason", "") for row in host.sent))
    raw("unknown/x", desired.seal(document(kind="unknown"), KEY))
    until(
        lambda: host.said("unknown/x") == [("refused", "this collector knows no kind `unknown`; upgrade it")]
    )
    raw("rule/x", None)  # Kafka's own tombstone is nobody's word
    raw("rule/gone", desired.seal(document(id="gone", expires=now_us() - 5), KEY))
    until(lambda: host.said("rule/gone") == [("expired", "its time to live was over before it arrived")])
    time.sleep(0.2)
    assert host.handlers[1].now == {"x": 2}, "the running state stays"
    assert first.revision < second.revision
    # An unsigned tombstone does not switch it off; the operator's does.
    raw("rule/x", desired.seal(document(deleted=True, spec=None)))
    until(lambda: "not signed" in host.said("rule/x")[-1][1])
    assert host.handlers[1].now == {"x": 2}
    raw("rule/x", desired.seal(document(deleted=True, spec=None), KEY))
    until(lambda: host.handlers[1].now == {})


def test_a_flood_of_garbage_is_summed_up(
    start: Start, raw: Callable[..., None], broker: KafkaServer, board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_module, "REFUSALS_S", 2.0)
    host = start("flood1")
    producer = Producer({"bootstrap.servers": broker.servers})
    for _ in range(3000):
        producer.produce(topics.DESIRED, b"garbage", "thing/flood")
    assert producer.flush(30) == 0
    board.publish([Draft(THING, "after", {"say": 1})])
    until(lambda: host.handlers[0].now == {"after": 1}, 5, "the good one came through")
    raw("rule/mistake", desired.seal(document(id="mistake")))
    until(lambda: host.said("rule/mistake"), 1.5, "a mistake is answered even so")
    until(
        lambda: any("more unreadable messages were refused" in row.get("reason", "") for row in host.sent), 15
    )
    refused = [row for row in host.sent if row.get("state") == "refused"]
    assert state_module.REFUSALS < len(refused) <= 3 * (state_module.REFUSALS + 1)
    raw("thing/flood", None)


def test_a_draft_that_no_host_could_accept_is_not_sent(board: Board, start: Start) -> None:
    for draft, says in (
        (Draft(RULE, "x", {"say": 1}), "time to live"),
        (Draft(THING, "x", {}), "must have `say`"),
        (Draft(THING, "x y", {"say": 1}), "matching regex"),
        (Draft(THING, "x", {"say": float("nan")}), "plain JSON"),
        (Draft(THING, "x", {"say": "x" * desired.MAX_BYTES}), "split it"),
    ):
        with pytest.raises(UsageError, match=says):
            board.publish([Draft(THING, "sound", {"say": 1}), draft])
    assert "thing/sound" not in board.refresh()
    with pytest.raises(UsageError, match="there is no"):
        board.delete(["thing/absent"])


def test_long_ended_documents_leave_the_topic(board: Board, raw: Callable[..., None]) -> None:
    past = now_us() - 2 * 86_400_000_000
    raw("rule/ancient", desired.seal(document(id="ancient", expires=past, created=past), KEY))
    assert "rule/ancient" in board.refresh()
    board.publish([Draft(THING, "new", {"say": 1})])
    assert "rule/ancient" not in board.refresh()


def test_the_trail_has_each_publication_once(board: Board, broker: KafkaServer) -> None:
    from collecting import read_topic, rows

    drafts = [Draft(THING, f"t{number}", {"say": "x" * 100_000}, comment="why") for number in range(12)]
    board.publish(drafts)
    board.delete(["thing/t0"], "enough")
    batches = [each for each in read_topic(broker.servers, "desired") if each.envelope.host == "operator"]
    found = [row for row in rows(batches) if row["id"].startswith("t") and row["id"][1:].isdigit()]
    assert sorted((row["id"], row["deleted"]) for row in found) == sorted(
        [(f"t{number}", False) for number in range(12)] + [("t0", True)]
    )
    one = next(row for row in found if row["id"] == "t1")
    assert one["signer"] == KEY.public.text and one["comment"] == "why" and json.loads(one["spec"])["say"]
    assert one["digest"] == board.refresh()["thing/t1"].document.digest
    ours = [each.envelope for each in batches if each.envelope.boot == board.events.session]
    assert [each.seq for each in ours] == list(range(len(ours))), "no gap that would look like a loss"


def test_published_to_acknowledged(start: Start, board: Board) -> None:
    hosts = [start(f"quick{number}") for number in range(3)]
    watch = Watch(board._config)
    there: dict[str, dict[str, str]] = {host.config.host: {} for host in hosts}
    applied, acknowledged = [], []
    try:
        board.publish([Draft(THING, "warm", {"say": 0})])
        for number in range(30):
            begun = time.monotonic()
            documents = board.publish([Draft(RULE, "quick", {"say": number}, ttl_s=60)])
            answers = watch.wait(documents, there, 5)
            acknowledged.append(time.monotonic() - begun)
            applied += [each.ts - documents[0].created for each in answers.values() if each]
            assert complaint(answers) is None
    finally:
        watch.close()
    p50, worst = statistics.median(acknowledged), max(acknowledged)
    print(f"\npublish → applied on a host: median {statistics.median(applied) / 1000:.1f} ms;"
          f" → acknowledged by 3 hosts: median {p50 * 1000:.1f} ms, worst {worst * 1000:.1f} ms")  # fmt: skip
    assert p50 <= 0.5


def test_a_hundred_at_once(start: Start, board: Board) -> None:
    host = start("bulk1")
    watch = Watch(board._config)
    try:
        begun = time.monotonic()
        drafts = [Draft(RULE, f"r{number}", {"say": number}, ttl_s=60) for number in range(100)]
        answers = watch.wait(board.publish(drafts), {"bulk1": {}}, 10)
    finally:
        watch.close()
    print(f"\n100 signed documents published and acknowledged in {time.monotonic() - begun:.3f} s")
    assert complaint(answers) is None and len(host.handlers[1].now or {}) == 100


# ── The command line ─────────────────────────────────────────────────────────────────────────────


def bpfleet(config: Config, *arguments: str, code: int = 0) -> tuple[str, str]:
    environment = {
        "BPFLEET_KAFKA": config.kafka.servers, "BPFLEET_HOST": config.host, "HOME": config.state_dir,
        "BPFLEET_OPERATOR_AUTHOR": "alice", "PATH": "/usr/bin:/bin",
    }  # fmt: skip
    command = [sys.executable, "-m", "fleet", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done
    assert "Traceback" not in done.stderr
    return done.stdout, done.stderr


def test_the_commands(start: Start, board: Board) -> None:
    start("cli1")
    config = board._config
    until(lambda: "cli1" in live_hosts(config), 20)
    board.publish([Draft(RULE, "c", {"say": 1}, Scope(("cli*",)), 600, "because")])
    listed = json.loads(bpfleet(config, "desired", "list", "rule", "--json")[0])
    assert [(row["document"], row["scope"], row["comment"]) for row in listed] == [
        ("rule/c", "cli*", "because")
    ]
    assert "rule/c" in bpfleet(config, "desired", "list")[0]
    until(lambda: history(config, board.refresh()["rule/c"].document))
    shown = json.loads(bpfleet(config, "desired", "show", "rule/c", "--json")[0])
    assert shown["hosts"]["cli1"]["state"] == "applied" and shown["spec"] == {"say": 1}
    assert "cli1" in bpfleet(config, "desired", "show", "rule/c")[0]
    _, unsigned = bpfleet(config, "desired", "rm", "rule/c", "--wait", "--timeout", "5", code=1)
    assert "1 refused or failed" in unsigned
    assert "there is no rule/absent" in bpfleet(config, "desired", "show", "rule/absent", code=2)[1]


def test_rm_with_a_key_waits_for_the_hosts(start: Start, board: Board, tmp_path: Path) -> None:
    config = board._config
    file = tmp_path / "op.key"
    public = bpfleet(config, "key", "new", str(file), "--name", "op")[0].strip()
    assert bpfleet(config, "key", "show", str(file))[0].strip() == public
    start("cli2", trusted_keys=[str(KEY.public), public])
    until(lambda: "cli2" in live_hosts(config), 20)
    board.publish([Draft(RULE, "k", {"say": 1}, Scope(("cli2",)), 600)])
    out, _ = bpfleet(config, "desired", "rm", "rule/k", "--wait", "--key", str(file), "--json")
    (answer,) = json.loads(out)
    print(f"\n`desired rm --wait`: acknowledged {answer['after_ms']} ms after publication")
    assert (answer["host"], answer["state"]) == ("cli2", "removed") and answer["after_ms"] < 2500
    assert "rule/k" not in bpfleet(config, "desired", "list")[0]
    assert '"removed"' in bpfleet(config, "desired", "list", "--all", "--json")[0]
    assert signing.private_key(file).name == "op"


def test_without_kafka_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desired_module, "PATIENCE", 1.0)
    config = config_of(tmp_path, "127.0.0.1:1", "operator")
    with pytest.raises(BpfleetError, match=r"cannot reach Kafka at 127\.0\.0\.1:1"):
        Board(config).refresh()
