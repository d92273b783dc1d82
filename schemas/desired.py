"""Desired state: what operators want of hosts, as documents on a compacted topic (docs/desired-state.md).

A document says what it is (`kind`), which one (`id`), for whom (`scope`), until when, and how exactly
(`spec`, checked by its kind). It travels as JSON, alone or signed. What is signed is its canonical form,
made from the parsed document itself: nothing is acted upon that the signature does not cover.
"""

import base64
import binascii
import hashlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from schemas.errors import BpfleetError, UsageError
from schemas.signing import PrivateKey, PublicKey

MAX_BYTES = 768 << 10  # of a message: below Kafka's own bound of 1 MB with all overheads
DOMAIN = b"bpfleet.desired.v1\n"  # precedes what is signed: no signature of ours fits anything else
KIND_NAME, ID = r"\A[a-z][a-z0-9_]{0,39}\Z", r"\A[A-Za-z0-9_][A-Za-z0-9_.:@-]{0,127}\Z"
DURATION = re.compile(r"(\d{1,9})(s|m|min|h|d)")
SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400}
Micros = Annotated[int, Meta(ge=0, le=2**53)]  # µs since 1970, exact in every JSON reader
Pattern = Annotated[str, Meta(min_length=1, max_length=256)]


class Refused(BpfleetError):
    """A document that must not be acted upon; the message is the reason, for its author."""


class Scope(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Which hosts, and what on them. Patterns are those of a shell; `!pattern` leaves out."""

    hosts: Annotated[tuple[Pattern, ...], Meta(max_length=10_000)] = ()  # none: every host
    labels: dict[str, Pattern] = {}  # each must be a label of the host and match
    interfaces: Annotated[tuple[Pattern, ...], Meta(max_length=1_000)] = ()  # none: all; read by the kind

    def covers(self, host: str, labels: Mapping[str, str]) -> bool:
        """Whether the host is meant."""
        return matches(self.hosts, host) and all(
            name in labels and matches((pattern,), labels[name]) for name, pattern in self.labels.items()
        )

    def covers_interface(self, name: str) -> bool:
        """Whether the network interface is meant."""
        return matches(self.interfaces, name)


def matches(patterns: Sequence[str], name: str) -> bool:
    """Whether any plain pattern fits (or there is none), and no `!pattern` does."""
    wanted = [each for each in patterns if not each.startswith("!")]
    unwanted = [each[1:] for each in patterns if each.startswith("!")]
    fits = not wanted or any(fnmatchcase(name, each) for each in wanted)
    return fits and not any(fnmatchcase(name, each) for each in unwanted)


class Document(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One thing that is wanted, or, with ``deleted``, no longer wanted."""

    kind: Annotated[str, Meta(pattern=KIND_NAME)]
    id: Annotated[str, Meta(pattern=ID)]
    revision: Annotated[int, Meta(ge=1, le=2**53)]  # only ever rises; the µs of its making
    created: Micros
    author: Annotated[str, Meta(max_length=256)] = ""  # as the author says; a signature proves it
    comment: Annotated[str, Meta(max_length=4096)] = ""
    expires: Micros | None = None
    deleted: bool = False
    scope: Scope = Scope()
    spec: Any = None

    @property
    def name(self) -> str:
        """`kind/id`, the key of its message."""
        return f"{self.kind}/{self.id}"

    def expired(self, at_us: int) -> bool:
        """Whether its time to live is over."""
        return self.expires is not None and at_us >= self.expires

    @property
    def digest(self) -> str:
        """Names exactly this content: 32 hexadecimal digits."""
        return hashlib.sha256(canonical(self)).hexdigest()[:32]


class Sealed(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A document as it travels."""

    document: Document
    key: str = ""  # the public key whose owner signed; empty: nobody did
    signature: str = ""  # base64, of DOMAIN and the canonical form


_decoder = msgspec.json.Decoder(Sealed)


def canonical(document: Document) -> bytes:
    """JSON with sorted keys, no spaces, and without fields that have their defaults."""
    return msgspec.json.encode(document, order="sorted")


def seal(document: Document, key: PrivateKey | None = None) -> bytes:
    """The message that carries it, signed if there is a key. Raises :class:`UsageError`."""
    whole = checked(document)
    sealed = Sealed(whole)
    if key is not None:
        signature = base64.b64encode(key.sign(DOMAIN + canonical(whole))).decode()
        sealed = Sealed(whole, key.public.text, signature)
    message = encode(sealed)
    if len(message) > MAX_BYTES:
        raise UsageError(f"{document.name} is {len(message):,} bytes, at most {MAX_BYTES:,} travel; split it")
    return message


def encode(sealed: Sealed) -> bytes:
    """The bytes of an envelope; its signature stays valid."""
    return msgspec.json.encode(sealed, order="sorted")


def checked(document: Document) -> Document:
    """The document as its readers will see it. Raises :class:`UsageError` when they could not."""
    try:
        spec = msgspec.to_builtins(document.spec, str_keys=True)
        plain = msgspec.structs.replace(document, spec=spec)
        read = msgspec.json.decode(canonical(plain), type=Document)
    except (msgspec.MsgspecError, TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"{document.kind}/{document.id} is not a document: {_reason(error)}") from None
    if read.spec != spec:
        raise UsageError(f"the spec of {document.name} is not plain JSON: it does not read back equal")
    return read


def unseal(message: bytes) -> Sealed:
    """Parse what travelled; its signature is not looked at yet. Raises :class:`Refused`, for any bytes."""
    if len(message) > MAX_BYTES:
        raise Refused(f"{len(message):,} bytes, at most {MAX_BYTES:,} are read")
    try:
        return _decoder.decode(message)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise Refused(f"not a document: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    text = "nested too deeply" if isinstance(error, RecursionError) else str(error)
    return " ".join(text.replace("`$.", "`").split())[:200]


@dataclass(frozen=True)
class Trust:
    """Whose signatures a host accepts, and where it insists on one."""

    keys: Mapping[str, PublicKey]  # by their text
    signed_kinds: tuple[str, ...]  # patterns; without keys nothing can be insisted upon

    def signer(self, sealed: Sealed) -> str:
        """Who signed: the key's name, or its text; empty for nobody. Raises :class:`Refused`."""
        kind = sealed.document.kind
        if not sealed.key and not sealed.signature:
            if self.keys and self.signed_kinds and matches(self.signed_kinds, kind):
                raise Refused(f"not signed, and this host takes {kind} only signed; publish it with a key")
            return ""
        if not self.keys:
            return ""
        key = self.keys.get(sealed.key)
        if key is None:
            raise Refused(f"signed by a key that this host does not trust: {sealed.key[:60]}")
        try:
            signature = base64.b64decode(sealed.signature, validate=True)
        except (binascii.Error, ValueError):
            signature = b""
        if not key.verify(DOMAIN + canonical(sealed.document), signature):
            raise Refused("its signature does not fit: it was changed after it was signed")
        return key.name or key.text


def _anything(_: Any) -> None:
    """The check of a kind that leaves it to its handler."""


@dataclass(frozen=True)
class Kind:
    """A sort of document. ``check`` raises :class:`BpfleetError` for a spec that makes no sense anywhere."""

    name: str
    check: Callable[[Any], None] = _anything
    must_expire: bool | Callable[[Any], bool] = False  # or: which specs must

    def judge(self, document: Document) -> None:
        """Raises :class:`Refused`."""
        if document.deleted:
            return
        must = self.must_expire(document.spec) if callable(self.must_expire) else self.must_expire
        if must and document.expires is None:
            raise Refused(f"a {self.name} needs a time to live; give it a ttl")
        try:
            self.check(document.spec)
        except BpfleetError as error:
            raise Refused(str(error)) from None


def audit_row(document: Document, signer: str, source: str) -> dict[str, Any]:
    """A row of the stream `desired`."""
    return {
        "ts": now_us(), "kind": document.kind, "id": document.id, "revision": document.revision,
        "deleted": document.deleted, "author": document.author, "signer": signer,
        "comment": document.comment, "expires": document.expires or 0,
        "scope": msgspec.json.encode(document.scope, order="sorted").decode(),
        "spec": msgspec.json.encode(document.spec, order="sorted").decode(),
        "source": source, "digest": document.digest,
    }  # fmt: skip


def now_us() -> int:
    """The wall clock in µs."""
    return time.time_ns() // 1000


def seconds(text: str) -> int:
    """``90s``, ``15m``, ``2h``, ``7d`` → seconds. Raises :class:`UsageError`."""
    match = DURATION.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"`{text}` is not a time like 90s, 15m, 2h or 7d")
    return int(match[1]) * SECONDS[match[2]]
