"""The topic of desired state: read whole at the start, then followed; no consumer group, nothing committed.

The broker answers a waiting fetch as soon as there is a message, so following costs two requests a second
and still hears within milliseconds.
"""

import logging
import time
from typing import Any

from schemas import topics
from schemas.admin import COMPACTED, QUIET, make_topics
from schemas.config import Config, kafka_options
from schemas.errors import BpfleetError

log = logging.getLogger("bpfleet.collector")
AT_ONCE = 1_000  # messages between two looks at everything else
ASK_S, ANSWER_S = 0.5, 0.4  # is the topic there? how often, and how long an answer may take
CREATE_S = 5.0  # between two attempts to make the topic
CONSUMER = {
    "enable.auto.commit": False,
    "enable.partition.eof": True,
    "auto.offset.reset": "earliest",  # also when the topic was made anew
    "reconnect.backoff.ms": 100,
    "reconnect.backoff.max.ms": 1000,
    "fetch.error.backoff.ms": 100,
    "fetch.wait.max.ms": 500,
    "queued.max.messages.kbytes": 8192,
    "socket.keepalive.enable": True,
    **QUIET,
}

Message = tuple[bytes | None, bytes | None]


class DesiredTopic:
    """Key and value of each message. For one thread."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._consumer: Any = None
        self._ask_at = self._create_at = 0.0
        self.whole = False  # everything that was there at the start has been handed out
        self._trouble = ""

    def poll(self, timeout: float) -> list[Message]:
        """What has come; waits ``timeout`` seconds at most for the first. A broker's fault raises nothing."""
        if self._consumer is None and not self._open():
            time.sleep(timeout)
            return []
        if not self.whole and self._is_missing():
            self._create()
            return []
        found: list[Message] = []
        message = self._consumer.poll(timeout)
        while message is not None:
            if message.error() is None:
                found.append((message.key(), message.value()))
            else:
                self._heed(message.error())
            message = self._consumer.poll(0) if len(found) < AT_ONCE else None
        return found

    def _open(self) -> bool:
        from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, TopicPartition

        try:
            options = kafka_options(self._config.kafka)
            group = f"bpfleet-desired-{self._config.host}"
            consumer = Consumer({**options, **CONSUMER, "group.id": group})
            consumer.assign([TopicPartition(topics.DESIRED, 0, OFFSET_BEGINNING)])
        except (KafkaException, BpfleetError) as error:
            self._complain(f"cannot follow {topics.DESIRED}: {error}")
            return False
        self._consumer = consumer
        return True

    def _is_missing(self) -> bool:
        """Ask, from time to time until the topic was read: librdkafka itself would wait for it in silence."""
        from confluent_kafka import KafkaException

        now = time.monotonic()
        if now < self._ask_at:
            return False
        self._ask_at = now + ASK_S
        try:
            listed = self._consumer.list_topics(topics.DESIRED, timeout=ANSWER_S).topics[topics.DESIRED]
        except KafkaException:
            return False
        return bool(listed.error is not None)

    def _heed(self, error: Any) -> None:
        from confluent_kafka import KafkaError

        code = error.code()
        if code == KafkaError._PARTITION_EOF:
            self.whole, self._trouble = True, ""
        elif code in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_PARTITION):
            self._create()
        elif error.fatal():
            self.close()
        elif not error.retriable():
            self._complain(f"{topics.DESIRED}: {error.str()}")

    def _create(self) -> None:
        """Nobody has published yet: make the topic, and begin at its beginning."""
        from confluent_kafka import KafkaException

        now = time.monotonic()
        if now < self._create_at:
            return
        self._create_at = now + CREATE_S
        try:
            make_topics(self._config, {topics.DESIRED: COMPACTED})
        except (KafkaException, BpfleetError) as error:
            self._complain(str(error))
        self.close()

    def _complain(self, reason: str) -> None:
        if reason != self._trouble:
            log.warning("desired state: %s", reason)
        self._trouble = reason

    def close(self) -> None:
        """Give the connections back; :meth:`poll` opens new ones."""
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None
