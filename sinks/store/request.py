"""What a client asked for: user, settings, parameters and format, from URL and headers."""

import base64
import binascii
import hmac
import uuid
from collections.abc import Mapping
from dataclasses import dataclass

from starlette.requests import Request

from sinks.store import codec, form
from sinks.store.errors import (
    AUTHENTICATION_FAILED,
    BAD_ARGUMENTS,
    INVALID_SESSION_TIMEOUT,
    StoreError,
)

# URL parameters that are no settings, as in ClickHouse's HTTPHandler.
_RESERVED = {
    "add_http_cors_header", "allow_experimental_analyzer_http", "buffer_size", "client_protocol_version",
    "close_session", "compress", "database", "decompress", "default_format", "enable_http_compression",
    "http_headers_progress_interval_ms", "http_zlib_compression_level", "password", "query", "query_id",
    "quota_key", "readonly", "role", "send_progress_in_http_headers", "session_check", "session_id",
    "session_timeout", "stacktrace", "user", "wait_end_of_query",
    "cancel_http_readonly_queries_on_client_close",
}  # fmt: skip
LONGEST_SESSION = 3600


@dataclass(slots=True)
class Asked:
    """One request, understood; the body is not read yet."""

    query: str
    database: str
    settings: dict[str, str]
    params: dict[str, str]
    format: str  # when the text names none
    encoding: codec.Encoding  # of the answer
    read_only: bool
    query_id: str
    revision: int = 0  # of the client's protocol, when it speaks one
    external: form.External | None = None
    session: str = ""
    session_timeout: float = 60
    session_check: bool = False


def understand(request: Request, sent: form.Form) -> Asked:
    """Read URL, headers and form; raises :class:`StoreError` for what cannot be served."""
    url = dict(request.query_params) | sent.fields
    external = form.External(sent.files, url) if sent.files else None
    no_settings = _RESERVED | form.settings_of(sent.files)
    params = {name[6:]: value for name, value in url.items() if name.startswith("param_")}
    settings = {
        name: value
        for name, value in url.items()
        if name not in no_settings and not name.startswith("param_")
    }
    wants = yes(url, "enable_http_compression", "1")
    readonly = url.get("readonly", "0")
    if readonly not in ("0", "1", "2"):
        raise StoreError(BAD_ARGUMENTS, f"readonly must be 0, 1 or 2, not {readonly!r}")
    return Asked(
        query=url.get("query", ""),
        database=request.headers.get("x-clickhouse-database") or url.get("database", ""),
        settings=settings,
        params=params,
        format=request.headers.get("x-clickhouse-format") or url.get("default_format") or "TabSeparated",
        encoding=codec.Encoding(
            codec.choose(request.headers.get("accept-encoding", "")) if wants else "", yes(url, "compress")
        ),
        read_only=request.method in ("GET", "HEAD") or readonly != "0",
        query_id=url.get("query_id") or str(uuid.uuid4()),
        revision=_number(url.get("client_protocol_version", "")),
        external=external,
        session=url.get("session_id", ""),
        session_timeout=_session_timeout(url.get("session_timeout", "60")),
        session_check=yes(url, "session_check"),
    )


def yes(url: Mapping[str, str], name: str, otherwise: str = "0") -> bool:
    """Whether a parameter that is on or off is on."""
    return url.get(name, otherwise).lower() in ("1", "true")


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 9 else 0


def _session_timeout(text: str) -> float:
    if not text.isascii() or not text.isdigit() or not 0 <= int(text) <= LONGEST_SESSION:
        raise StoreError(INVALID_SESSION_TIMEOUT, f"Invalid session timeout: '{text[:32]}'")
    return float(text)


def authenticate(request: Request, user: str, password: str) -> None:
    """Compare with the one user there is; raises :class:`StoreError` 516."""
    given_user, given_password = _credentials(request)
    same_user = hmac.compare_digest(given_user, user.encode())
    same_password = not password or hmac.compare_digest(given_password, password.encode())
    if not (same_user and same_password):
        shown = "".join(each for each in given_user[:64].decode(errors="replace") if each.isprintable())
        message = "Authentication failed: password is incorrect, or there is no user with such name"
        raise StoreError(AUTHENTICATION_FAILED, f"{shown}: {message}")


def _credentials(request: Request) -> tuple[bytes, bytes]:
    headers = request.headers
    if "x-clickhouse-user" in headers or "x-clickhouse-key" in headers:
        user, password = headers.get("x-clickhouse-user", "default"), headers.get("x-clickhouse-key", "")
        return user.encode("latin-1"), password.encode("latin-1")  # the header's own bytes
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "basic":
        try:
            given_user, _, given_password = base64.b64decode(token, validate=True).partition(b":")
        except (binascii.Error, ValueError):
            raise StoreError(AUTHENTICATION_FAILED, "Invalid Basic authentication header") from None
        return given_user, given_password
    if scheme:
        raise StoreError(AUTHENTICATION_FAILED, f"Unsupported authentication scheme {scheme[:20]!r}")
    url = request.query_params
    return url.get("user", "default").encode(), url.get("password", "").encode()
