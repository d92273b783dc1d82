"""Who may write to the topic, and has no key, keeps nothing from hosts and puts nothing under a signature."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from desired_host import Host, Recorder, check, config_of, until
from sinking import delete_topics

from fleet.desired import Board, Draft
from fleet.drop_edit import edited, published
from schemas import desired, topics
from schemas.admin import COMPACTED, make_topics
from schemas.desired import Document, Kind, now_us
from schemas.errors import UsageError
from schemas.filter import FILTER
from schemas.signing import PrivateKey
from sinks.kafka_server import KafkaServer

KEY, STRANGER = PrivateKey(b"k" * 32, "ops"), PrivateKey(b"s" * 32, "stranger")
RULE = Kind("rule", check, must_expire=True)
SIGNED = {"trusted_keys": [str(KEY.public)], "signed_kinds": ["rule", "filter"]}
Put = Callable[..., None]


@pytest.fixture(scope="module")
def servers(kafka: KafkaServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    delete_topics(kafka.servers)
    make_topics(
        config_of(tmp_path_factory.mktemp("made"), kafka.servers, "made"), {topics.DESIRED: COMPACTED}
    )
    yield kafka.servers
    delete_topics(kafka.servers)


@pytest.fixture
def put(servers: str) -> Put:
    """Any bytes onto the topic, as who can write to it may."""

    def put(key: str, value: bytes | None, **options: Any) -> None:
        producer = Producer({"bootstrap.servers": servers, "message.max.bytes": 200_000_000, **options})
        producer.produce(topics.DESIRED, value, key)
        assert producer.flush(30) == 0

    return put


@pytest.fixture
def board(servers: str, tmp_path: Path) -> Iterator[Board]:
    made = Board(config_of(tmp_path, servers, "operator", **SIGNED), KEY)
    yield made
    made.close()


@pytest.fixture
def host(servers: str, tmp_path: Path) -> Iterator[Host]:
    made = Host(config_of(tmp_path, servers, "web1", **SIGNED), Recorder(RULE)).start()
    until(lambda: made.desired.settled, 20)
    yield made
    made.stop()


def forged(spec: Any, key: PrivateKey | None = None, **more: Any) -> bytes:
    tree = {"kind": "filter", "id": "flood", "revision": now_us(), "created": now_us(),
            "expires": now_us() + 3_600_000_000, "spec": spec}  # fmt: skip
    return desired.seal(Document(**(tree | more)), key)


@pytest.mark.parametrize("revision", [None, 2**53])
@pytest.mark.parametrize("key", [None, STRANGER])
def test_an_edit_never_signs_what_somebody_else_wrote(
    board: Board, put: Put, key: PrivateKey | None, revision: int | None
) -> None:
    spec = {"rule": {"match": "udp and src port 53"}}
    first = board.publish([Draft(FILTER, "flood", spec, ttl_s=600)])[0]
    put("filter/flood", forged({"rule": {"match": "ip or ip6"}}, key, revision=revision or now_us()))
    put("filter/wide", forged({"rule": {"match": "ip"}}, key, id="wide"))
    drafts = edited(published(board), ["flood"], lambda rule: rule, "")
    assert drafts[0].spec == spec
    second = board.publish(drafts)[0]
    assert first.revision < second.revision < 2**53
    with pytest.raises(UsageError, match="there is no rule wide"):
        edited(published(board), ["wide"], lambda rule: rule, "")
    assert "filter/wide" in board.doubtful and "not" in board.doubt("filter/wide")
    (ended,) = board.delete(["filter/wide"])
    assert ended.deleted and board.refresh()["filter/wide"].document == ended
    assert "filter/wide" not in board.doubtful


def test_a_replay_or_a_tombstone_of_kafka_misleads_no_operator(board: Board, put: Put) -> None:
    old = board.publish([Draft(FILTER, "flood", {"rule": {"match": "ip"}}, ttl_s=600)])[0]
    replay = desired.seal(old, KEY)
    new = board.publish([Draft(FILTER, "flood", {"rule": {"match": "udp"}}, ttl_s=600)])[0]
    put("filter/flood", replay)
    put("filter/flood", None)
    assert board.refresh()["filter/flood"].document == new


def test_what_vanished_from_the_topic_can_still_be_ended(board: Board, host: Host) -> None:
    board.publish([Draft(RULE, "lost", {"say": 1}, ttl_s=600)])
    until(lambda: host.handlers[0].now == {"lost": 1})
    board.refresh()
    board.documents.clear()  # as after a compaction that somebody's tombstone led to
    with pytest.raises(UsageError, match="there is no rule/lost"):
        board.delete(["rule/lost"])
    board.delete(["rule/lost"], unseen=True)
    until(lambda: host.handlers[0].now == {})


def test_an_open_transaction_holds_up_nobody(board: Board, host: Host, servers: str) -> None:
    stuck = Producer({"bootstrap.servers": servers, "transactional.id": "stuck"})
    stuck.init_transactions(30)
    stuck.begin_transaction()
    stuck.produce(topics.DESIRED, b"?", "rule/x")
    stuck.flush(10)
    try:
        begun = time.monotonic()
        board.publish([Draft(RULE, "urgent", {"say": 1}, ttl_s=600)])
        until(lambda: host.handlers[0].now == {"urgent": 1}, 5)
        assert board.refresh()["rule/urgent"] and time.monotonic() - begun < 5
    finally:
        stuck.abort_transaction(30)


def test_a_message_that_swells_when_it_is_unpacked_stops_nobody(board: Board, host: Host, put: Put) -> None:
    put("rule/bomb", bytes(120_000_000), **{"compression.type": "zstd"})
    board.publish([Draft(RULE, "next", {"say": 1}, ttl_s=600)])
    until(lambda: (host.handlers[0].now or {}).get("next") == 1, 20)
