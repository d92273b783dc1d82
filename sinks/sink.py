"""Kafka into ClickHouse, exactly once: the consumer's loop (docs/life-of-an-event.md, "The sink").

One thread talks to the consumer group: it takes messages, commits intents and gives and takes partitions.
Threads beside it insert. Nothing is inserted before its intent is committed, no offset moves past what the
store has not acknowledged, and whoever reads an intent forms the same batch with the same tokens.
Commits wait for their answer: a commit that librdkafka kept for later could be sent after this member came
back as another one, when the broker would no longer recognise it as late.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from concurrent.futures import TimeoutError as NotYet
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from schemas.admin import ANYONE, unpackable
from schemas.config import Config, kafka_options
from schemas.errors import BpfleetError, Unreachable
from sinks import broker, insert, tables
from sinks.backlog import Backlog
from sinks.dead import DeadLetters, DeadShare
from sinks.insert import Inserter, Outcome
from sinks.intent import UnknownIntent
from sinks.judge import Judge
from sinks.metrics import Metrics
from sinks.partition import Message, Partition
from sinks.writer import Writer

log = logging.getLogger("bpfleet.sink")
PATTERN = r"^bpfleet\.[a-z0-9_]+\.v[0-9]+$"
INTERNAL = r"^bpfleet\.(schemas|dead|desired)\.v[0-9]+$"
WORKERS = 2  # inserts at once
HANDOVER_SECONDS = 3.0  # how long a partition that is taken away waits for its batch
BUSY_SECONDS, QUIET_SECONDS = 0.005, 0.1  # how long to wait for a message with and without work under way
LAG_SECONDS = 2.0
# How long to ask where partitions begin: a busy broker takes its time to lead hundreds of new ones. Meanwhile
# librdkafka keeps us in the group.
BEGIN_SECONDS = 60.0
AT_ONCE = 500  # messages taken from librdkafka in one go
NAMED = 3  # topics that a line of the log names

Key = tuple[str, int]


class Sink:
    """One member of the group. The constructor does nothing; run() works until ``stop`` is set."""

    def __init__(self, config: Config, metrics: Metrics | None = None) -> None:
        self._config = config
        self._metrics = metrics or Metrics()
        self._partitions: dict[Key, Partition] = {}
        self._jobs: dict[Key, Future[Outcome]] = {}
        self._pool = ThreadPoolExecutor(WORKERS, "insert")
        self._share = DeadShare(config.sink.dead_share)
        self._backlog = Backlog(config.sink.buffer_mb << 20)
        self._lag_due = self._commit_due = 0.0

    def run(self, stop: threading.Event) -> None:
        """Consume until stopped; then finish what is under way, commit, and leave the group.

        Raises :class:`BpfleetError` when a server refuses us or most messages are unreadable.
        """
        admin = broker.wait_for_kafka(self._config, stop)
        writer = _wait_for_store(self._config, stop)
        if admin is None or writer is None:
            return
        tables.ensure_topics(self._config, admin)
        self._admin = admin
        self._tables = tables.SchemaTables(self._config, writer)
        self._judge = Judge(self._tables)
        options = kafka_options(self._config.kafka)
        fresh = self._config.sink.session_timeout_ms / 1000
        self._inserter = Inserter(writer, DeadLetters(options), self._metrics, fresh, self._tables.renew)
        self._consumer = Consumer(consumer_options(self._config), logger=log)
        self._tables.start()
        self._consumer.subscribe(
            [PATTERN], on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost
        )
        try:
            while not stop.is_set():
                self._turn()
        finally:
            self._consumer.close()  # hands over through _revoked
            self._tables.stop()
            self._pool.shutdown(wait=False, cancel_futures=True)
            writer.close()

    # ── One turn of the loop ─────────────────────────────────────────────────────────────────────

    def _turn(self) -> None:
        for message in self._take():
            self._collect(message, time.monotonic())
        for partition in self._partitions.values():
            partition.judge(self._judge, self._share)
        self._share.check()
        self._reap()
        now = time.monotonic()
        if now >= self._commit_due:
            self._commit(now)
        self._hold_back(now)
        if now >= self._lag_due:
            self._lag_due = now + LAG_SECONDS
            self._measure_lag()

    def _take(self) -> Iterator[Any]:
        if not self._backlog.reading:
            if self._jobs:
                wait(self._jobs.values(), BUSY_SECONDS, FIRST_COMPLETED)
            else:
                time.sleep(BUSY_SECONDS)
            return
        busy = any(each.busy or each.behind for each in self._partitions.values())
        first = self._consumer.poll(BUSY_SECONDS if busy else QUIET_SECONDS)
        if first is not None:
            yield first
            yield from self._consumer.consume(AT_ONCE, timeout=0)

    def _collect(self, message: Any, now: float) -> None:
        if (error := message.error()) is not None:
            if unpackable(error):
                self._pass_over(message, now)
            else:
                self._complain(message, error)
            return
        partition = self._partitions.get((message.topic(), message.partition()))
        if partition is None or message.offset() < partition.collected:
            return  # taken away meanwhile
        self._metrics.messages.labels(partition.topic).inc()
        partition.collect(Message(message.offset(), message.key(), message.value()), now)

    def _pass_over(self, message: Any, now: float) -> None:
        """What Kafka's batch holds cannot be unpacked: an unreadable message, and on to the next offset.

        How many offsets the batch covers is unknown, so each is asked for. A new owner judges the same.
        """
        partition = self._partitions.get((message.topic(), message.partition()))
        if partition is None:
            return
        offset = max(partition.collected, message.offset())
        log.error("%s:%d: offset %d: %s", partition.topic, partition.number, offset, message.error().str())
        self._metrics.messages.labels(partition.topic).inc()
        partition.collect(Message(offset, None, b""), now)
        self._consumer.seek(TopicPartition(partition.topic, partition.number, offset + 1))

    def _complain(self, message: Any, error: KafkaError) -> None:
        broker.refuse_fatal(error, self._config.kafka.servers)
        if error.code() != KafkaError._AUTO_OFFSET_RESET:
            log.warning("kafka: %s", error.str())
            return
        partition = self._partitions.get((message.topic(), message.partition()))
        if partition is None:
            return
        place = TopicPartition(partition.topic, partition.number)
        low, high = self._consumer.get_watermark_offsets(place, timeout=broker.ANSWER_SECONDS)
        place.offset = low if partition.collected < low else high
        expired = max(0, low - partition.collected)
        log.error("%s:%d: retention took %d messages before they were read; going on at %d",
                  partition.topic, partition.number, expired, place.offset)  # fmt: skip
        self._metrics.expired.labels(partition.topic).inc(expired)
        partition.collected = place.offset
        self._consumer.seek(place)

    def _reap(self) -> None:
        for key in [each for each, job in self._jobs.items() if job.done()]:
            if self._jobs.pop(key).result() is Outcome.LANDED:
                self._partitions[key].land(self._share)

    def _commit(self, now: float) -> None:
        """Commit what is due, in one request: intents of new batches, ends of the last ones."""
        wanted = []
        for key, partition in self._partitions.items():
            if key in self._jobs:
                continue
            if flight := partition.form(now) or partition.flight:
                wanted.append(TopicPartition(*key, flight.start, flight.intent.write(flight.start)))
            elif partition.commit_when_idle(now):
                wanted.append(TopicPartition(*key, partition.next, ""))
        if wanted:
            asked_at = insert.now()
            for place in self._committed(wanted):
                self._launch((place.topic, place.partition), place.offset, asked_at)

    def _launch(self, key: Key, offset: int, asked_at: float) -> None:
        partition = self._partitions[key]
        partition.note_commit(offset)
        if partition.flight is not None:
            partition.flight.committed_at = asked_at
            self._jobs[key] = self._pool.submit(self._inserter.land, partition.flight)

    def _committed(self, wanted: list[TopicPartition]) -> list[TopicPartition]:
        """Commit and wait; returns those that Kafka took. The others are tried again in a while."""
        try:
            answers = self._consumer.commit(offsets=wanted, asynchronous=False)
            errors = [each.error for each in answers if each.error is not None]
        except KafkaException as error:
            answers, errors = [], [error.args[0]]
        for each in errors:
            self._metrics.commits.labels(each.name()).inc()
            log.warning("commit refused: %s", each.str())
            self._commit_due = time.monotonic() + 0.1
        taken = [each for each in answers if each.error is None]
        self._metrics.commits.labels("ok").inc(len(taken))
        return taken

    def _hold_back(self, now: float) -> None:
        """Pause partitions that hold much of the memory for long, resume those that have got rid of it."""
        full, drained = self._backlog.settle(self._partitions.values(), now)
        if full:
            self._consumer.pause([TopicPartition(each.topic, each.number) for each in full])
        if drained:
            self._consumer.resume([TopicPartition(each.topic, each.number) for each in drained])

    def _measure_lag(self) -> None:
        for (topic, number), partition in self._partitions.items():
            _, high = self._consumer.get_watermark_offsets(TopicPartition(topic, number), cached=True)
            if high >= 0:
                self._metrics.lag.labels(topic, number).set(max(0, high - partition.next))
        self._metrics.held.set(sum(each.size for each in self._partitions.values()))
        self._metrics.paused.set(sum(each.paused for each in self._partitions.values()))

    # ── Rebalance: called back from within poll() and close() ────────────────────────────────────

    def _assigned(self, consumer: Any, places: list[TopicPartition]) -> None:
        sink = self._config.sink
        starts = []
        for begin in self._beginnings(consumer, places):
            partition = Partition(
                begin.topic, begin.number, begin.label, begin.committed, begin.opened,
                sink.flush_rows, sink.flush_ms / 1000,
            )  # fmt: skip
            partition.collected = begin.fetch
            self._metrics.expired.labels(begin.topic).inc(begin.expired)
            self._partitions[begin.topic, begin.number] = partition
            starts.append(TopicPartition(begin.topic, begin.number, begin.fetch))
        self._metrics.rebalances.labels("assigned").inc(len(starts))
        log.info("partitions given: %s", _names(starts))
        consumer.incremental_assign(starts)

    def _beginnings(self, consumer: Any, places: list[TopicPartition]) -> list[broker.Beginning]:
        """Without them nothing may be consumed: insist for a while, then end (and be started again)."""
        deadline = time.monotonic() + BEGIN_SECONDS
        told = ""
        while True:
            try:
                return broker.beginnings(consumer, self._admin, places)
            except UnknownIntent as error:
                raise BpfleetError(f"{error}; is sink.group used by another program?") from None
            except KafkaException as error:
                broker.refuse_fatal(error.args[0], self._config.kafka.servers)
                if time.monotonic() > deadline:
                    raise Unreachable(
                        f"Kafka does not say where to begin: {error.args[0].str()}; is it up?"
                    ) from None
                if told != error.args[0].str():
                    told = error.args[0].str()
                    log.warning("commits cannot be read, will try again: %s", told)
                time.sleep(0.2)

    def _revoked(self, consumer: Any, places: list[TopicPartition]) -> None:
        """Let batches under way land if they do soon, commit what landed, and forget the rest."""
        deadline = time.monotonic() + HANDOVER_SECONDS
        ends = []
        for place in places:
            key = (place.topic, place.partition)
            partition, job = self._partitions.pop(key, None), self._jobs.pop(key, None)
            if partition is None:
                continue
            if job is not None and _landed(job, deadline):
                partition.land(self._share)
            if partition.flight is not None:
                partition.flight.abandoned.set()
            if partition.behind:
                ends.append(TopicPartition(*key, partition.next, ""))
        self._forget_lag(places)
        self._metrics.rebalances.labels("revoked").inc(len(places))
        log.info("partitions taken: %s", _names(places))
        if ends:
            self._committed(ends)

    def _lost(self, _: Any, places: list[TopicPartition]) -> None:
        """Somebody else owns them by now: forget them without a word to Kafka."""
        for place in places:
            key = (place.topic, place.partition)
            self._jobs.pop(key, None)
            partition = self._partitions.pop(key, None)
            if partition is not None and partition.flight is not None:
                partition.flight.abandoned.set()
        self._forget_lag(places)
        self._metrics.rebalances.labels("lost").inc(len(places))
        log.warning("partitions lost: %s", _names(places))

    def _forget_lag(self, places: list[TopicPartition]) -> None:
        for place in places:
            try:
                self._metrics.lag.remove(place.topic, str(place.partition))
            except KeyError:
                continue


def consumer_options(config: Config) -> dict[str, Any]:
    """librdkafka's settings of the group's member."""
    session = config.sink.session_timeout_ms
    return {
        **kafka_options(config.kafka),
        **ANYONE,
        "group.id": config.sink.group,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "error",  # never silently from elsewhere
        "partition.assignment.strategy": "cooperative-sticky",
        "session.timeout.ms": session,
        "heartbeat.interval.ms": max(100, min(1_000, session // 5)),
        "max.poll.interval.ms": max(300_000, session),
        "topic.metadata.refresh.interval.ms": 1_000,  # a new probe's topic is seen within a second
        "topic.blacklist": INTERNAL,
        "queued.max.messages.kbytes": max(1_024, config.sink.buffer_mb * 1_024 // 4),
        "fetch.queue.backoff.ms": 10,  # librdkafka's second is longer than an insert takes
        "fetch.wait.max.ms": 100,
        "socket.timeout.ms": 10_000,
        "reconnect.backoff.max.ms": 1_000,
    }


def _wait_for_store(config: Config, stop: threading.Event) -> Writer | None:
    """A connection once the store answers; None when stopped before. Raises on wrong credentials."""
    said = False
    while not stop.is_set():
        try:
            return Writer(config.clickhouse)
        except Unreachable:
            if not said:
                url = config.clickhouse.url
                log.warning("waiting for ClickHouse at %s; start it with `bpfleet store`", url)
                said = True
            stop.wait(0.5)
    return None


def _landed(job: Future[Outcome], deadline: float) -> bool:
    try:
        return job.result(max(0.0, deadline - time.monotonic())) is Outcome.LANDED
    except NotYet:
        return False


def _names(places: list[TopicPartition]) -> str:
    """For a line of the log: `4 of bpfleet.tcp_flow.v1, 2 of …`."""
    counts = Counter(each.topic for each in places)
    named = [f"{count} of {topic}" for topic, count in counts.most_common(NAMED)]
    more = [f"{len(counts) - NAMED} more topics"] if len(counts) > NAMED else []
    return ", ".join([*named, *more]) or "none"
