"""Ed25519 keys: how they are written, where they lie, who trusts them.

A public key is one line, ``ed25519:BASE64 name``; the name is for people. A private key is a file of one
line that only its owner may read. The library is loaded when a signature is made or checked, not before.
"""

import base64
import binascii
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from schemas.errors import UsageError

PUBLIC = "ed25519:"
PRIVATE = "ed25519-private:"
KEY_BYTES, SIGNATURE_BYTES = 32, 64


@dataclass(frozen=True)
class PublicKey:
    """What a host trusts."""

    raw: bytes
    name: str = ""

    @property
    def text(self) -> str:
        """The key without its name."""
        return PUBLIC + base64.b64encode(self.raw).decode()

    def __str__(self) -> str:
        return f"{self.text} {self.name}".rstrip()

    def verify(self, message: bytes, signature: bytes) -> bool:
        """Whether this key's owner signed exactly that message."""
        from nacl.exceptions import BadSignatureError
        from nacl.signing import VerifyKey

        if len(signature) != SIGNATURE_BYTES:
            return False
        try:
            VerifyKey(self.raw).verify(message, signature)
        except BadSignatureError:
            return False
        return True


@dataclass(frozen=True, repr=False)
class PrivateKey:
    """What its owner signs with; it never prints itself."""

    seed: bytes
    name: str = ""

    @property
    def public(self) -> PublicKey:
        """The half that others may see."""
        from nacl.signing import SigningKey

        return PublicKey(bytes(SigningKey(self.seed).verify_key), self.name)

    def sign(self, message: bytes) -> bytes:
        """64 bytes."""
        from nacl.signing import SigningKey

        return bytes(SigningKey(self.seed).sign(message).signature)


def create(file: Path, name: str) -> PrivateKey:
    """Make a key and write it where nobody else can read it. Raises :class:`UsageError`; never overwrites."""
    key = PrivateKey(os.urandom(KEY_BYTES), " ".join(name.split()))
    line = f"{PRIVATE}{base64.b64encode(key.seed).decode()} {key.name}".rstrip() + "\n"
    try:
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise UsageError(f"{file} exists, and a key is never overwritten; name another file") from None
    except OSError as error:
        raise UsageError(f"cannot write {file}: {error.strerror}; name another file") from None
    with os.fdopen(handle, "w") as out:
        out.write(line)
    return key


def private_key(file: Path) -> PrivateKey:
    """Read a private key. Raises :class:`UsageError`, also when others could have read it."""
    try:
        with file.open() as source:
            if os.fstat(source.fileno()).st_mode & 0o077:
                raise UsageError(f"{file} can be read by others; chmod 600 it, or make another key")
            text = source.read(4096)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the key {file}: {error}; make one with `bpfleet key new`") from None
    raw, name = _parse(text.strip(), PRIVATE, f"{file}: not a private key of `bpfleet key new`")
    return PrivateKey(raw, name)


def public_key(text: str) -> PublicKey:
    """Read ``ed25519:BASE64 name``. Raises :class:`UsageError`."""
    line = text.strip()
    return PublicKey(*_parse(line, PUBLIC, f"`{line[:80]}` is not a key like `ed25519:BASE64 name`"))


def _parse(text: str, prefix: str, complaint: str) -> tuple[bytes, str]:
    word, _, name = text.partition(" ")
    try:
        raw = base64.b64decode(word.removeprefix(prefix), validate=True)
    except (binascii.Error, ValueError):
        raise UsageError(complaint) from None
    if not word.startswith(prefix) or len(raw) != KEY_BYTES or "\n" in name:
        raise UsageError(complaint)
    return raw, name.strip()


def trusted_keys(entries: Iterable[str]) -> dict[str, PublicKey]:
    """The keys of ``collector.trusted_keys`` by their text: each entry a key, or a file of one key a line.

    Raises :class:`UsageError`: a host must not start with less protection than was asked for.
    """
    found: dict[str, PublicKey] = {}
    for entry in entries:
        lines = [entry] if entry.strip().startswith(PUBLIC) else _lines(Path(entry))
        for line in lines:
            key = public_key(line)
            found[key.text] = key
    return found


def _lines(file: Path) -> list[str]:
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"collector.trusted_keys: cannot read {file}: {error}") from None
    kept = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not kept:
        raise UsageError(f"collector.trusted_keys: {file} holds no key; add one, or take the entry out")
    return kept
