"""Dead letters: messages that no table can take, whole, with where they were and why they are here."""

import logging
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from confluent_kafka import KafkaException, Producer

from schemas import topics
from schemas.errors import BpfleetError

log = logging.getLogger("bpfleet.sink")
WINDOW = 400  # recent messages whose dead share is watched
ENOUGH = 100  # of them before a share means something
FLUSH_SECONDS = 10.0


class TooManyDead(BpfleetError):
    """Most of what arrives is unreadable: draining the topic would help nobody."""

    exit_code = 3


@dataclass(frozen=True)
class Letter:
    """One dead message."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    reason: str
    detail: str

    def headers(self) -> list[tuple[str, str | bytes | None]]:
        """What travels beside the original bytes, all of it UTF-8 text."""
        named = {
            "topic": self.topic, "partition": str(self.partition), "offset": str(self.offset),
            "reason": self.reason, "detail": self.detail[:1000],
        }  # fmt: skip
        return [(name, text.encode()) for name, text in named.items()]


def read_letter(headers: list[tuple[str, bytes]], value: bytes | None) -> Letter:
    """A message of the dead-letter topic. Raises ValueError when it is no letter of ours."""
    named = {name: (text or b"").decode(errors="replace") for name, text in headers}
    try:
        return Letter(
            named["topic"], int(named["partition"]), int(named["offset"]), None, value,
            named["reason"], named["detail"],
        )  # fmt: skip
    except KeyError as missing:
        raise ValueError(f"a dead letter without {missing}") from None


class DeadLetters:
    """Delivers letters to :data:`schemas.topics.DEAD`; thread-safe.

    A letter may arrive twice when its sink was killed in between; its key (topic, partition, offset) tells.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        self._producer = Producer({
            **options, "acks": "all", "enable.idempotence": True, "compression.type": "zstd",
            "message.max.bytes": 32 << 20, "delivery.timeout.ms": 30_000, "linger.ms": 5,
        })  # fmt: skip
        self._one_at_a_time = threading.Lock()

    def deliver(self, letters: Sequence[Letter]) -> bool:
        """Returns whether the brokers have all of them; when not, deliver them again."""
        failures: list[str] = []

        def done(error: Any, _: Any) -> None:
            if error is not None:
                failures.append(error.str())

        with self._one_at_a_time:
            try:
                for letter in letters:
                    key = f"{letter.topic}:{letter.partition}:{letter.offset}"
                    self._producer.produce(
                        topics.DEAD, letter.value, key, headers=letter.headers(), on_delivery=done
                    )
                left = self._producer.flush(FLUSH_SECONDS)
            except (KafkaException, BufferError) as error:
                failures.append(str(error))
                left = 0
        if left or failures:
            reason = failures[0] if failures else "no answer"
            log.warning("%d dead letters are not delivered, will try again: %s", len(letters), reason)
            return False
        return True


class DeadShare:
    """Trips when too many of the recent messages are dead."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._recent: deque[bool] = deque(maxlen=WINDOW)
        self._last = ""

    def note(self, dead: bool, detail: str = "") -> None:
        """Another message was judged; when dead, why."""
        self._recent.append(dead)
        self._last = detail if dead else self._last

    def rejected(self, detail: str) -> None:
        """A message that was noted as good turned out to be dead."""
        if False in self._recent:
            self._recent.remove(False)
        self.note(True, detail)

    def check(self) -> None:
        """Raises :class:`TooManyDead`; call before anything of these messages is committed."""
        dead = sum(self._recent)
        if len(self._recent) >= ENOUGH and dead > self._limit * len(self._recent):
            raise TooManyDead(
                f"{dead} of the last {len(self._recent)} messages cannot be stored (the last: {self._last}); "
                "stopped rather than drain the topic: mend the cause, or raise sink.dead_share to let "
                f"them go to {topics.DEAD}"
            )
