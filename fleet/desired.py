"""Publish desired state: documents onto their compacted topic, and each into the audit trail.

The publisher enters into the trail what it publishes, once, rather than each host that hears it: a document
of some hundred kilobytes for a thousand hosts is one row. What the hosts made of it is in `applied`.
"""

import getpass
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from fleet.events import Events
from schemas import declare, desired, topics
from schemas.admin import ANYONE, COMPACTED, PATIENCE, QUIET, prepare, unpackable, watermarks
from schemas.config import Config, kafka_options
from schemas.desired import Document, Kind, Refused, Scope, Sealed, Trust, now_us
from schemas.errors import BpfleetError, UsageError
from schemas.signing import PrivateKey, private_key, trusted_keys

DAY_US = 86_400_000_000
SWEEP = 200  # long expired documents taken off the topic with one publication
CONSUMER = {"group.id": "bpfleet-desired", "enable.auto.commit": False, "auto.offset.reset": "earliest",
            "enable.partition.eof": True, **ANYONE,
            "fetch.wait.max.ms": 10}  # fmt: skip  # other requests queue behind a fetch that waits
TRAIL = declare.streams()["desired"]

EVERYWHERE = Scope()


@dataclass(frozen=True)
class Draft:
    """What an operator wants, before it has an author, a revision and a signature."""

    kind: Kind
    id: str
    spec: Any
    scope: Scope = EVERYWHERE
    ttl_s: int | None = None
    comment: str = ""


class Board:
    """The topic, whole and current, and the pen to write on it. For one thread; may stay open for days.

    What an operator edits is signed anew, so nothing is built upon that hosts would refuse: where keys are
    known (``collector.trusted_keys``, and our own), documents of others are in ``doubtful`` only.
    """

    def __init__(self, config: Config, key: PrivateKey | None = None) -> None:
        """``key`` signs; None: that of ``operator.key_file``, if one is set. Touches no server yet."""
        self._config, self._options = config, kafka_options(config.kafka)
        file = config.operator.key_file
        self._key = key or (private_key(Path(file)) if file else None)
        self._consumer: Any = None
        self._offset = 0
        self.events = Events(config)  # the trail, and what else its owner ships
        self._prepared = False
        self.documents: dict[str, Sealed] = {}  # by name; as of the last refresh
        self.doubtful: dict[str, tuple[Sealed, str]] = {}  # the last that is not believed, and why
        own = {self._key.public.text: self._key.public} if self._key else {}
        self._trust = Trust(trusted_keys(config.collector.trusted_keys) | own,
                            tuple(config.collector.signed_kinds))  # fmt: skip

    @property
    def author(self) -> str:
        """Who we say we are."""
        return self._config.operator.author or f"{getpass.getuser()}@{self._config.host}"

    # ── Reading ──────────────────────────────────────────────────────────────────────────────────

    def refresh(self) -> dict[str, Sealed]:
        """Read on to the topic's end; the highest believed revision of each name, ended ones included.

        Raises :class:`BpfleetError` when Kafka does not answer. Unreadable messages are passed over: hosts
        refuse them, and say so.
        """
        from confluent_kafka import KafkaException, TopicPartition

        consumer = self._open()
        try:
            place = TopicPartition(topics.DESIRED, 0)
            if not self._exists(consumer, topics.DESIRED):
                return self.documents
            low, high = watermarks(consumer, place)
            if high < self._offset:  # the topic was made anew
                self._offset, self.documents, self.doubtful = 0, {}, {}
            consumer.assign([TopicPartition(topics.DESIRED, 0, max(low, self._offset))])
            self._offset = max(low, self._offset)
            self._read_to(consumer, high)
            consumer.unassign()
        except KafkaException as error:
            raise topics.unreachable(self._options, error, consumer) from None
        return self.documents

    def _read_to(self, consumer: Any, high: int) -> None:
        from confluent_kafka import KafkaError, TopicPartition

        while self._offset < high:
            message = consumer.poll(PATIENCE)
            if message is None:
                raise BpfleetError(f"reading {topics.DESIRED} takes too long; is Kafka well?")
            error = message.error()
            if error is None:
                self._offset = message.offset() + 1
                self._keep(message.key() or b"", message.value())
            elif error.code() == KafkaError._PARTITION_EOF:
                self._offset = high
            elif unpackable(error):
                self._offset = max(self._offset, message.offset()) + 1
                consumer.seek(TopicPartition(topics.DESIRED, 0, self._offset))
            elif not error.retriable():
                raise BpfleetError(f"cannot read {topics.DESIRED}: {error.str()}")

    def _keep(self, key: bytes, value: bytes | None) -> None:
        name = key.decode("utf-8", "replace")
        known = self.documents.get(name)
        if value is None:  # it ends nothing on hosts either
            if known is not None and (known.document.deleted or known.document.expired(now_us())):
                del self.documents[name]
            self.doubtful.pop(name, None)
            return
        try:
            sealed = desired.unseal(value)
        except Refused:
            return
        if sealed.document.name != name:
            return
        try:
            self._trust.signer(sealed)
        except Refused as error:
            self.doubtful[name] = (sealed, str(error).replace("this host", "this machine"))
            return
        if known is None or sealed.document.revision > known.document.revision:
            self.documents[name] = sealed
            self.doubtful.pop(name, None)

    def doubt(self, name: str) -> str:
        """What to add to "there is no NAME": why the one on the topic is not believed, if there is one."""
        if name not in self.doubtful:
            return ""
        return f" that can be believed: the one on the topic is {self.doubtful[name][1]}"

    def _open(self) -> Any:
        from confluent_kafka import Consumer

        if self._consumer is None:
            self._consumer = Consumer({**self._options, **CONSUMER, **QUIET})
        return self._consumer

    def _exists(self, consumer: Any, topic: str) -> bool:
        listed = consumer.list_topics(topic, timeout=PATIENCE).topics[topic]
        return listed.error is None and bool(listed.partitions)

    # ── Writing ──────────────────────────────────────────────────────────────────────────────────

    def publish(self, drafts: Sequence[Draft]) -> list[Document]:
        """Write them down: new ids appear, known ones get a new revision. All are checked before any is sent.

        Raises :class:`UsageError` for a draft that no host could accept, :class:`BpfleetError` when Kafka
        does not take it.
        """
        known = self.refresh()
        return self._send([self._document(each, known) for each in drafts])

    def delete(self, names: Iterable[str], comment: str = "", *, unseen: bool = False) -> list[Document]:
        """End the documents of these names (`kind/id`), by tombstones. Raises :class:`UsageError`.

        ``unseen``: also those that the topic does not have (any more): a host may have them in force.
        """
        known = self.refresh()
        tombstones = []
        for name in names:
            sealed = known.get(name)
            ended = sealed is None or sealed.document.deleted
            if ended and (unseen or name in self.doubtful):
                kind, _, identity = name.partition("/")
                revision = sealed.document.revision if sealed else 1
                scope = self.doubtful[name][0].document.scope if name in self.doubtful else EVERYWHERE
                last = Document(kind=kind, id=identity, revision=revision, created=0, scope=scope)
            elif sealed is None or sealed.document.deleted:
                raise UsageError(f"there is no {name}; `bpfleet desired list` shows what there is")
            else:
                last = sealed.document
            tombstones.append(
                msgspec.structs.replace(
                    last, revision=max(now_us(), last.revision + 1), created=now_us(), author=self.author,
                    comment=comment, deleted=True, spec=None,
                )
            )  # fmt: skip
        return self._send(tombstones)

    def _document(self, draft: Draft, known: dict[str, Sealed]) -> Document:
        now = now_us()
        before = known.get(f"{draft.kind.name}/{draft.id}")
        document = desired.checked(
            Document(
                kind=draft.kind.name, id=draft.id, created=now, author=self.author, comment=draft.comment,
                revision=max(now, before.document.revision + 1 if before else 1),
                expires=None if draft.ttl_s is None else now + draft.ttl_s * 1_000_000,
                scope=draft.scope, spec=draft.spec,
            )
        )  # fmt: skip
        try:
            draft.kind.judge(document)
        except Refused as error:
            raise UsageError(f"{document.name}: {error}") from None
        return document

    def _send(self, documents: list[Document]) -> list[Document]:
        from confluent_kafka import KafkaException

        messages = [(each.name.encode(), desired.seal(each, self._key)) for each in documents]
        signer = self._key.public.text if self._key else ""
        try:
            self._prepare()
        except KafkaException as error:
            raise topics.unreachable(self._options, error) from None
        self.events.put(TRAIL, [desired.audit_row(each, signer, "kafka") for each in documents])
        for key, value in messages:
            self.events.produce(topics.DESIRED, value, key)
        for name in self._stale():
            self.events.produce(topics.DESIRED, None, name.encode())
        self.events.settle()
        return documents

    def _prepare(self) -> None:
        """Make the topics once there is something for them."""
        if self._prepared:
            return
        consumer = self._open()
        if not (self._exists(consumer, topics.DESIRED) and self._exists(consumer, topics.AUDIT)):
            prepare(self._config, [TRAIL], {topics.DESIRED: COMPACTED})
        self._prepared = True

    def _stale(self) -> list[str]:
        """Names whose last word was over a day ago: no host minds them any more."""
        horizon = now_us() - DAY_US
        return [name for name, each in self.documents.items() if each.document.expired(horizon)][:SWEEP]

    def close(self) -> None:
        """Give the connections back."""
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None
