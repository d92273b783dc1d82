"""Nothing lost, nothing twice, whatever dies: sinks, store and broker killed, paused and joined under load.

``BPFLEET_SOAK=300 pytest tests/test_kill_sink.py`` (``make soak``) does so many blows instead of two dozen.
"""

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from confluent_kafka import Producer
from conftest import StoreProcess
from sinking import Place, Sender, SinkProcess, batch, declared, eventually, make_topics

from bench.common import free_port
from schemas import topics
from schemas.declare import Stream
from sinks.kafka_server import KafkaServer

BLOWS = int(os.environ.get("BPFLEET_SOAK", "24"))
PARTITIONS = 3
SESSION_SECONDS = 1.5
STREAM = declared("numbers")
TOPIC = topics.topic("numbers")
DAY = 86_400_000_000
MIDNIGHT = time.time_ns() // 1000 // DAY * DAY


class Load:
    """Sends numbered rows to every partition until stopped: one host a partition, ids and seqs from 0.

    Some batches span midnight, some are garbage, which is to end in the dead letters.
    """

    def __init__(self, servers: str, stream: Stream, seed: int) -> None:
        self.rows = [0] * PARTITIONS
        self.seqs = [0] * PARTITIONS
        self.garbage: set[tuple[int, bytes]] = set()
        self._random = random.Random(seed)
        self._stream = stream
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._producer = Producer({
            "bootstrap.servers": servers, "enable.idempotence": True, "linger.ms": 2, "log_level": 0,
            "delivery.timeout.ms": 600_000, "queue.buffering.max.messages": 100_000,
            "topic.metadata.refresh.interval.ms": 1_000, "reconnect.backoff.max.ms": 500,
        })  # fmt: skip
        self.failures: list[str] = []

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Returns when the broker has everything."""
        self._stopping.set()
        self._thread.join()
        assert self._producer.flush(120) == 0 and not self.failures, self.failures[:3]

    def _run(self) -> None:
        while not self._stopping.is_set():
            for partition in range(PARTITIONS):
                self._send(partition)
            self._producer.poll(0)
            time.sleep(0.01)

    def _send(self, partition: int) -> None:
        if self._random.random() < 0.01:
            garbage = self._random.randbytes(40)
            self.garbage.add((partition, garbage))
            self._produce(partition, garbage)
            return
        count = self._random.randint(1, 60)
        first, seq = self.rows[partition], self.seqs[partition]
        # Around midnight: some batches before, some across, some after.
        times = MIDNIGHT + (np.arange(first, first + count) % 100 - 50) * 1_000_000
        message = batch(self._stream, first, count, seq, f"host{partition}", times)
        self._produce(partition, message)
        self.rows[partition] += count
        self.seqs[partition] += 1

    def _produce(self, partition: int, value: bytes) -> None:
        def done(error: object, _: object) -> None:
            if error is not None:
                self.failures.append(str(error))

        self._producer.produce(TOPIC, value, partition=partition, on_delivery=done)


class Trouble:
    """Ways to hit a running pipeline; two or three sinks are kept up."""

    def __init__(self, place: Place, kafka: KafkaServer, store: StoreProcess, seed: int) -> None:
        self.place = place
        self.kafka = kafka
        self.store = store
        self.random = random.Random(seed)
        self.up: list[SinkProcess] = [place.sink(), place.sink()]
        self.done: list[str] = []
        self._wakers: list[threading.Timer] = []
        self._deck: list[Callable[[], None]] = []

    def strike(self) -> None:
        if not self._deck:  # every kind of blow comes up, in an order that nobody planned
            self._deck = [self.kill_sink] * 9 + [self.kill_store] * 3 + [self.kill_broker] * 2
            self._deck += [self.pause_sink] * 4 + [self.leave] * 2 + [self.join] * 2 + [self.kill_two] * 2
            self.random.shuffle(self._deck)
        blow = self._deck.pop()
        self.done.append(blow.__name__)
        blow()
        time.sleep(self.random.uniform(0.1, 1.5))

    def _any(self) -> SinkProcess:
        return self.random.choice(self.up)

    def kill_sink(self) -> None:
        """SIGKILL; the same sink starts again."""
        sink = self._any()
        sink.kill()
        sink.start()

    def kill_store(self) -> None:
        self.store.kill()
        time.sleep(self.random.uniform(0, 0.5))
        self.store.start()

    def kill_broker(self) -> None:
        self.kafka.kill()
        time.sleep(self.random.uniform(0, 0.5))
        self.kafka.start()
        self.kafka.wait_ready()

    def kill_two(self) -> None:
        """A sink and the store at once."""
        self._any().kill()
        self.kill_store()
        self.restart_dead()

    def pause_sink(self) -> None:
        """SIGSTOP past its session: others take over; later it wakes up and believes it still owns."""
        sink = self._any()
        sink.send_signal(signal.SIGSTOP)
        waker = threading.Timer(SESSION_SECONDS + 1.5, self.wake, [sink])
        waker.start()
        self._wakers.append(waker)

    def wake(self, sink: SinkProcess) -> None:
        if sink.process and sink.process.poll() is None:
            sink.send_signal(signal.SIGCONT)

    def leave(self) -> None:
        """SIGTERM, as a deployment does."""
        sink = self._any()
        sink.send_signal(signal.SIGCONT)
        sink.send_signal(signal.SIGTERM)
        assert sink.wait() in (0, -signal.SIGTERM)  # the latter: before it had begun
        sink.start()

    def join(self) -> None:
        if len(self.up) < 3:
            self.up.append(self.place.sink())

    def restart_dead(self) -> None:
        for sink in self.up:
            if sink.process is None or sink.process.poll() is not None:
                sink.start()

    def end(self) -> None:
        for waker in self._wakers:
            waker.join()
        self.restart_dead()


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[tuple[KafkaServer, StoreProcess]]:
    """A broker and a store of this test's own, to be killed."""
    kafka, store = KafkaServer(tmp_path, free_port()), StoreProcess(tmp_path / "store")
    try:
        kafka.start()
        store.start()
        kafka.wait_ready()
        yield kafka, store
    finally:
        kafka.kill()
        store.kill()


@pytest.mark.kill
@pytest.mark.timeout(180 + 10 * BLOWS)
def test_every_row_once_whatever_dies(servers: tuple[KafkaServer, StoreProcess], tmp_path: Path) -> None:
    kafka, store = servers
    seed = int(os.environ.get("BPFLEET_SEED", str(random.randrange(10**6))))
    print(f"seed {seed}")
    make_topics(kafka.servers, topics.SCHEMAS)
    make_topics(kafka.servers, TOPIC, partitions=PARTITIONS)
    Sender(kafka.servers).schema(STREAM)
    settings = {"flush_ms": 60, "flush_rows": 1_000, "session_timeout_ms": int(SESSION_SECONDS * 1000)}
    place = Place(kafka.servers, store.url, "killed", tmp_path, settings)
    load = Load(kafka.servers, STREAM, seed)
    try:
        trouble = Trouble(place, kafka, store, seed)
        load.start()
        eventually(lambda: place.count(STREAM) > 0)
        for _ in range(BLOWS):
            trouble.strike()
        trouble.end()
        load.stop()
        judge(place, load, trouble)
    finally:
        load._stopping.set()
        place.close()


def judge(place: Place, load: Load, trouble: Trouble) -> None:
    """Each host's ids and seqs are 0 … n-1, each once; each piece of garbage is a dead letter."""
    wanted = [
        (f"host{number}", load.rows[number], load.rows[number], load.rows[number] - 1, load.seqs[number])
        for number in range(PARTITIONS)
    ]
    query = (
        "SELECT host, count(), uniqExact(id), max(id), uniqExact(seq) FROM DB.numbers GROUP BY 1 ORDER BY 1"
    )
    total = sum(load.rows)
    counts = [-1]
    try:
        while counts[-1] < total:  # as slowly as the machine wants, but on and on
            eventually(lambda: place.count(STREAM) > counts[-1], seconds=60)
            counts.append(place.count(STREAM))
        time.sleep(1.5)  # for a late second copy
        assert place.ask(query) == wanted, trouble.done
    except AssertionError:
        print(trouble.done, place.ask(query), wanted, f"{total} rows, then {counts[::100]}", sep="\n")
        for log in place.directory.glob("*.log"):
            print(log, *log.read_text(errors="replace").splitlines()[-20:], sep="\n")
        raise
    eventually(lambda: load.garbage <= dead(place), seconds=20)
    assert load.garbage == dead(place)
    print(
        f"{total} rows, {len(load.garbage)} dead letters, {len(trouble.done)} blows: {sorted(trouble.done)}"
    )


def dead(place: Place) -> set[tuple[int, bytes]]:
    """Partition and bytes of each dead letter."""
    return {(int(dict(each.headers())["partition"]), each.value()) for each in place.letters()}
