"""The topic of desired state: read whole at the start, then followed; no consumer group, nothing committed.

The broker answers a waiting fetch as soon as there is a message, so following costs a request in two seconds
and still hears within milliseconds.
"""

import logging
import time
from typing import Any

from schemas import topics
from schemas.admin import ANYONE, COMPACTED, QUIET, make_topics, unpackable
from schemas.config import Config, kafka_options
from schemas.errors import BpfleetError

log = logging.getLogger("bpfleet.collector")
AT_ONCE = 1_000  # messages between two looks at everything else
ASK_S, ANSWER_S = 0.5, 0.4  # where does the topic begin? how often, and how long an answer may take
CONSUMER = {
    "enable.auto.commit": False,
    "enable.partition.eof": True,
    "auto.offset.reset": "earliest",  # also when the topic was made anew
    "reconnect.backoff.ms": 100,
    "reconnect.backoff.max.ms": 1000,
    "fetch.error.backoff.ms": 100,
    "fetch.wait.max.ms": 2000,
    "queued.max.messages.kbytes": 8192,
    "socket.keepalive.enable": True,
    **ANYONE,
    **QUIET,
}

Message = tuple[bytes | None, bytes | None]


class DesiredTopic:
    """Key and value of each message. For one thread."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._consumer: Any = None
        self._assigned = False
        self._ask_at = 0.0
        self._end = 0  # of what was there at the start
        self._next = 0  # behind what could not be unpacked
        self.whole = False  # everything that was there at the start has been handed out
        self._trouble = ""

    def poll(self, timeout: float) -> list[Message]:
        """What has come; waits ``timeout`` seconds at most for the first. A broker's fault raises nothing."""
        if not (self._assigned or self._begin()):
            time.sleep(timeout)
            return []
        found: list[Message] = []
        message = self._consumer.poll(timeout)
        while message is not None:
            if message.error() is None:
                found.append((message.key(), message.value()))
                self.whole = self.whole or message.offset() + 1 >= self._end
            elif unpackable(message.error()):
                self._pass_over(message)
            else:
                self._heed(message.error())
            message = self._consumer.poll(0) if self._assigned and len(found) < AT_ONCE else None
        return found

    def _begin(self) -> bool:
        """Find where the topic begins and ends, and read from there; False: not yet.

        Asked here, as librdkafka itself would wait for a topic in silence, and tell of its end half a second
        late.
        """
        from confluent_kafka import Consumer, KafkaException, TopicPartition

        now = time.monotonic()
        if now < self._ask_at:
            return False
        self._ask_at = now + ASK_S
        place = TopicPartition(topics.DESIRED, 0)
        try:
            if self._consumer is None:
                group = f"bpfleet-desired-{self._config.host}"
                self._options = {**kafka_options(self._config.kafka), **CONSUMER, "group.id": group}
                self._consumer = Consumer(self._options)
            listed = self._consumer.list_topics(topics.DESIRED, timeout=ANSWER_S).topics[topics.DESIRED]
            if listed.error is not None:
                make_topics(self._config, {topics.DESIRED: COMPACTED})
                self._ask_at = 0.0
                return False
            place.offset, self._end = self._consumer.get_watermark_offsets(place, timeout=ANSWER_S)
            self._consumer.assign([place])
        except KafkaException as error:
            self._complain(str(topics.unreachable(self._options, error, self._consumer)))
            return False
        except BpfleetError as error:
            self._complain(str(error))
            return False
        self._assigned, self._trouble = True, ""
        self.whole = self.whole or place.offset >= self._end
        return True

    def _pass_over(self, message: Any) -> None:
        """Go on behind a batch that cannot be unpacked, an offset at a time: what it covers is unknown."""
        from confluent_kafka import TopicPartition

        self._next = max(self._next, message.offset()) + 1
        self._complain(f"{topics.DESIRED}: passed over: {message.error().str()}")
        self._consumer.seek(TopicPartition(topics.DESIRED, 0, self._next))
        self.whole = self.whole or self._next >= self._end

    def _heed(self, error: Any) -> None:
        from confluent_kafka import KafkaError

        code = error.code()
        if code == KafkaError._PARTITION_EOF:
            self.whole, self._trouble = True, ""
        elif code in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_PARTITION) or error.fatal():
            self.close()
        elif not error.retriable():
            self._complain(f"{topics.DESIRED}: {error.str()}")

    def _complain(self, reason: str) -> None:
        if reason != self._trouble:
            log.warning("desired state: %s", reason)
        self._trouble = reason

    def close(self) -> None:
        """Give the connections back; :meth:`poll` opens new ones."""
        self._assigned = False
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None
