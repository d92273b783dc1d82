"""The way to ClickHouse (or the embedded store), for the operator's side and the sink alike."""

import logging
import re
from typing import Any
from urllib.parse import urlsplit

from schemas.config import Clickhouse, secret
from schemas.errors import BpfleetError, Unreachable


def connect(
    config: Clickhouse, timeout: float = 10.0, database: str | None = None, answer_timeout: float = 300.0
) -> Any:
    """A clickhouse-connect client. Raises :class:`BpfleetError` when the server does not let us in,
    :class:`Unreachable` when there is none.

    ``database`` "" leaves the server's default (for a server where ours is not made yet).
    ``answer_timeout``: seconds that one statement may take.
    """
    import clickhouse_connect
    from clickhouse_connect.driver.exceptions import ClickHouseError

    # The driver logs what it raises; we say it once, in our words.
    logging.getLogger("clickhouse_connect").setLevel(logging.CRITICAL)
    logging.getLogger("urllib3").setLevel(logging.CRITICAL)
    url = urlsplit(config.url)
    try:
        return clickhouse_connect.get_client(
            host=url.hostname,
            port=url.port or (8443 if url.scheme == "https" else 8123),
            secure=url.scheme == "https",
            ca_cert=config.ca_file or None,
            username=config.user,
            password=secret(config.password_file),
            database=config.database if database is None else database,
            connect_timeout=timeout,
            send_receive_timeout=answer_timeout,
            autogenerate_session_id=False,
        )
    except (ClickHouseError, OSError) as error:
        raise explain(error, config) from None


def explain(error: Exception, config: Clickhouse) -> BpfleetError:
    """One line for a person out of what the driver or the server said."""
    text = " ".join(str(error).split())
    if "Max retries" in text or "refused" in text or "timed out" in text:
        return Unreachable(
            f"cannot reach ClickHouse at {config.url}; "
            "start it with `bpfleet store` or set BPFLEET_CLICKHOUSE"
        )
    if "AUTHENTICATION_FAILED" in text or "REQUIRED_PASSWORD" in text or "Code: 516" in text:
        return BpfleetError(
            f"ClickHouse at {config.url} refuses user {config.user}; check clickhouse.password_file"
        )
    told = re.search(r"DB::Exception: (.*?)(?: \(version [^)]*\))?(?: \(for url [^)]*\))?$", text)
    said = told[1] if told else text
    code = re.search(r" \([A-Z_0-9]+\)$", said)  # of what may be long: a parser names all that it expected
    said, end = (said[: code.start()], code[0]) if code else (said, "")
    return BpfleetError(f"ClickHouse: {said.partition(' Expected one of: ')[0][:600]}{end}")
