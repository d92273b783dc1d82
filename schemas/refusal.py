"""What librdkafka says of its connections, beside its answers to calls: wrong password, wrong certificate.

A call that fails for such a reason only times out; the reason comes by ``error_cb``, while the client polls.
"""

from typing import Any

from schemas.errors import BpfleetError

# KafkaError codes that waiting does not mend; numbers, so that nothing is imported for them (rdkafka.h).
ADVICE = {
    -169: "check kafka.options (sasl.username, sasl.mechanism) and kafka.password_file",  # _AUTHENTICATION
    -181: "check kafka.options (security.protocol, ssl.ca.location)",  # _SSL
    29: "allow this user to read bpfleet's topics",  # TOPIC_AUTHORIZATION_FAILED
    30: "allow this user to use the group sink.group",  # GROUP_AUTHORIZATION_FAILED
}


class Heard:
    """An ``error_cb`` that remembers the last refusal; part of :func:`schemas.config.kafka_options`."""

    def __init__(self) -> None:
        self.last: Any = None

    def __call__(self, error: Any) -> None:
        """Called by librdkafka's poll."""
        if error.code() in ADVICE:
            self.last = error


def refusal(options: dict[str, Any], error: Any = None, client: Any = None) -> BpfleetError | None:
    """The one line for a broker that answers, and does not want us; None when that is not what is wrong.

    ``options`` are those that ``client`` was made with; ``error``: a KafkaError at hand.
    """
    if client is not None:
        client.poll(0)  # brings what waits for error_cb
    heard = options.get("error_cb")
    told = error if error is not None and error.code() in ADVICE else getattr(heard, "last", None)
    if told is None:
        return None
    servers = options["bootstrap.servers"]
    return BpfleetError(f"Kafka at {servers} refuses us: {told.str()}; {ADVICE[told.code()]}")
