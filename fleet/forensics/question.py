"""A question: a file of SQL whose first lines say what it asks and what it wants to know.

    -- What did this address do to us?          the question
    -- One line for each way it was seen …      more about it
    -- @address IPv6: the address asked about   a parameter; with ``= 'value'`` an option that has a default
    -- @since 90d                               how far back it looks unless told otherwise

The SQL names its parameters ``{address:IPv6}``; ``since`` and ``until`` are always there.
"""

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from schemas.errors import UsageError

DIRECTORY = Path(__file__).parent / "questions"
PARAMETER = re.compile(r"@(\w+) (\w+)(?: = '([^']*)')?: (.+)")
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
AGO = re.compile(r"(\d{1,6})([smhdw])")


@dataclass(frozen=True)
class Parameter:
    """What a question wants to know; ``default`` None: it must be told."""

    name: str
    kind: str  # its ClickHouse type
    default: str | None
    doc: str


@dataclass(frozen=True)
class Question:
    """One file."""

    name: str
    asks: str
    doc: str
    parameters: tuple[Parameter, ...]
    since: str
    sql: str

    def values(self, given: Mapping[str, str], since: str | None, until: str | None) -> dict[str, str]:
        """Its parameters as the server reads them. Raises :class:`UsageError` for what is not of its type."""
        now = datetime.now(UTC)
        values = {each.name: checked(each, given[each.name]) for each in self.parameters}
        window = {"since": moment(since or self.since, now), "until": moment(until or "0s", now)}
        if window["since"] >= window["until"]:
            raise UsageError(f"--since {window['since']} is not before --until {window['until']}; swap them")
        return values | window


def read(file: Path) -> Question:
    """A question from its file."""
    lines = file.read_text().splitlines()
    head = [line.removeprefix("--").strip() for line in lines if line.startswith("--")]
    sql = "\n".join(line for line in lines if not line.startswith("--"))
    told = [line for line in head[1:] if not line.startswith("@")]
    since = next((line.removeprefix("@since ") for line in head if line.startswith("@since ")), "1h")
    found = (PARAMETER.fullmatch(line) for line in head)
    parameters = tuple(Parameter(*match.groups()) for match in found if match)
    return Question(file.stem, head[0], " ".join(told), parameters, since, sql)


def questions() -> dict[str, Question]:
    """All of them by name."""
    return {file.stem: read(file) for file in sorted(DIRECTORY.glob("*.sql"))}


def checked(parameter: Parameter, text: str) -> str:
    """A value of the parameter's type. Raises :class:`UsageError`."""
    if parameter.kind == "IPv6":
        try:
            address = ipaddress.ip_address("" if "%" in text else text)  # a zone is of one host alone
        except ValueError:
            raise UsageError(
                f"{parameter.name}: `{text}` is no address; write 192.0.2.7 or 2001:db8::7"
            ) from None
        return str(address) if address.version == 6 else f"::ffff:{address}"
    if parameter.kind.startswith("UInt") and not _fits(text, int(parameter.kind[4:])):
        raise UsageError(f"{parameter.name}: `{text}` is no number that fits")
    return text


def _fits(text: str, bits: int) -> bool:
    return text.isascii() and text.isdigit() and int(text) < 1 << bits


def moment(text: str, now: datetime) -> str:
    """`90d` ago, or a time as ISO 8601 has it (UTC unless it says otherwise), for DateTime64."""
    try:
        if match := AGO.fullmatch(text):
            at = now - timedelta(seconds=int(match[1]) * UNITS[match[2]])
        else:
            at = datetime.fromisoformat(text)
            at = at.astimezone(UTC) if at.tzinfo else at
    except (ValueError, OverflowError):
        raise UsageError(f"`{text}` is no time; write 90d, 15m or 2026-05-01T12:30:00") from None
    return f"{at:%Y-%m-%d %H:%M:%S.%f}"
