"""What kind of SQL a request carries: just enough lexing to route it; the engine does the parsing.

Told apart: the statement from the data that follows it in an INSERT, the output format somebody asked for in
the text, and words that reach out of the database (``forbidden``).
"""

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass

from sinks.store.connection import TAG, literal
from sinks.store.errors import ACCESS_DENIED, INTO_OUTFILE_NOT_ALLOWED, SYNTAX_ERROR, StoreError

_TOKEN = re.compile(
    r"""
    (?P<space>\s+|--[^\n]*|\#[\ !][^\n]*|/\*.*?(?:\*/|\Z))
    |(?P<string>'(?:[^'\\]|\\.|'')*(?:'|\Z)|\$(?P<tag>\w*)\$.*?(?:\$(?P=tag)\$|\Z))
    |`(?P<back>(?:[^`\\]|\\.|``)*)(?:`|\Z)|"(?P<double>(?:[^"\\]|\\.|"")*)(?:"|\Z)
    |(?P<word>[A-Za-z_][A-Za-z0-9_$]*)
    |(?P<number>[0-9][A-Za-z0-9_]*)
    |(?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)
# Between a format's name and the data: blanks and one end of line.
_GAP = re.compile(r"[ \t]*;?[ \t]*(?:\r?\n)?")
# The engine takes these for quotes as well; nobody needs them and two lexers must not differ on them.
_ODD_QUOTES = re.compile("|".join(each.encode().decode("latin-1") for each in "‘’“”"))
# Functions, table functions and sources that read the host or this process, each followed by `(`.
_REACH_OUT = {"file", "python", "executable", "disk", "http", "odbc", "mongodb", "mysql", "postgresql"}
_QUERY_ID = re.compile(r"\bquery_id\s*=\s*'((?:[^'\\]|\\.|'')*)'", re.IGNORECASE | re.DOTALL)
_PLAIN_DATABASES = {"atomic", "memory"}
_STREAMED = {"SELECT", "WITH"}  # the engine streams nothing else


@dataclass(frozen=True, slots=True)
class Token:
    """One word or sign outside comments; ``bare`` when it may be a keyword."""

    text: str
    end: int
    depth: int
    bare: bool

    @property
    def upper(self) -> str:
        """The keyword it may be; empty for strings and quoted names."""
        return self.text.upper() if self.bare else ""


@dataclass(frozen=True, slots=True)
class Statement:
    """``text`` is complete; of an insert with data, it is what stands before FORMAT or VALUES.

    A character of ``text`` is a byte of the request.
    """

    text: str
    kind: str  # first keyword, upper case
    format: str = ""  # named in the text; for an insert, of its data
    data: int | None = None  # where an insert's data starts; None when it carries none
    streams: bool = False  # its answer can be sent while it is being made
    input: tuple[int, int, str] | None = None  # where input('structure') stands, and the literal in it

    @property
    def sql(self) -> bytes:
        """``text`` as the client sent it."""
        return self.text.encode("latin-1")


def tokens(text: str) -> Iterator[Token]:
    """Words, names and signs of ``text``; strings come as a sign."""
    depth = 0
    for match in _TOKEN.finditer(text):
        group = match.lastgroup
        if group == "space":
            continue
        if group in ("back", "double"):
            yield Token(match[group], match.end(), depth, False)
        elif group in ("string", "tag"):
            yield Token("'", match.end(), depth, False)
        else:
            sign = match[0]
            if _ODD_QUOTES.match(text, match.start()):
                raise StoreError(SYNTAX_ERROR, "Syntax error: use ASCII quotes")
            depth -= sign in ")]}"
            yield Token(sign, match.end(), depth, True)
            depth += sign in "([{"


def parse(sent: bytes) -> Statement:
    """Split a request's SQL; raises :class:`StoreError` for words that reach out of the database.

    Bytes are taken one for one as characters (latin-1): all syntax is ASCII, the rest need not be UTF-8.
    """
    text = sent.decode("latin-1")
    words = _Guarded(tokens(text))
    kind = next((each.upper for each in words if each.text != "("), "")
    if kind == "INSERT":
        return _insert(text, words)
    named = ""
    before = None
    for token in words:
        if before and before.depth == 0 and before.upper == "FORMAT" and token.bare:
            named = token.text
        before = token
    return Statement(text, kind, named, streams=kind in _STREAMED)


def _insert(text: str, words: "_Guarded") -> Statement:
    """INSERT INTO [TABLE|FUNCTION] name [(columns)] [SETTINGS …] then FORMAT, VALUES or a query."""
    name = True
    for token in words:
        if token.upper in ("INTO", "TABLE", "FUNCTION") and name:
            continue
        if name:
            name = False
            continue
        if token.depth or not token.bare:
            continue
        if token.upper == "FORMAT":
            return _formatted(text, token, words)
        if token.upper == "VALUES":
            return Statement(text[: token.end - len("VALUES")], "INSERT", "Values", token.end)
        if token.upper in ("SELECT", "WITH"):
            return _selected(text, words)
    return Statement(text, "INSERT")


def _selected(text: str, words: "_Guarded") -> Statement:
    """INSERT … SELECT; it carries data when it reads input('structure')."""
    found = None
    last: list[Token] = []
    for token in words:
        last = [*last[-3:], token]
        if [each.text.lower() for each in last] == ["input", "(", "'", ")"]:
            found = (last[0].end - len("input"), token.end, text[last[1].end : last[2].end])
        if found and token.upper == "FORMAT" and token.depth == 0:
            return dataclasses.replace(_formatted(text, token, words), input=found)
    return Statement(text, "INSERT")


def _formatted(text: str, keyword: Token, words: "_Guarded") -> Statement:
    named = next(words, None)
    if named is None or not named.bare:
        raise StoreError(SYNTAX_ERROR, "Syntax error: FORMAT is followed by no name")
    data = _GAP.match(text, named.end)
    assert data
    return Statement(text[: keyword.end - len("FORMAT")], "INSERT", named.text, data.end())


def killed(statement: Statement) -> str:
    """The query id that a KILL QUERY names; empty for any other statement, and for other conditions."""
    named = _QUERY_ID.search(statement.text) if statement.kind == "KILL" else None
    return re.sub(r"\\(.)|'(')", r"\1\2", named[1]) if named else ""


def kill_tagged(statement: Statement, tags: list[str]) -> Statement:
    """The same KILL QUERY, also for what runs on connections with these tags."""
    if not tags:
        return statement
    also = f"Settings['{TAG}'] IN ({', '.join(map(literal, tags))})"
    text = _QUERY_ID.sub(lambda found: f"({found[0]} OR {also})", statement.text, count=1)
    return dataclasses.replace(statement, text=text)


class _Guarded:
    """Tokens, looked over on their way: nothing that leaves the database passes."""

    def __init__(self, source: Iterator[Token]) -> None:
        self._source = source
        self._last = ["", "", ""]  # words before this one, lower case, the nearest last
        self._first = ""
        self._database = False  # CREATE or ATTACH DATABASE

    def __iter__(self) -> "_Guarded":
        return self

    def __next__(self) -> Token:
        token = next(self._source)
        word = token.text.lower()
        self._first = self._first or word
        self._database = self._database or (word == "database" and self._last[-1] in ("create", "attach"))
        self._check(token, word)
        self._last = [*self._last[1:], word]
        return token

    def _check(self, token: Token, word: str) -> None:
        before = self._last[-1]
        if word == "(" and token.bare and "\\" in before:
            raise StoreError(ACCESS_DENIED, "a function's name has no escapes here")
        if word == "(" and token.bare and before in _REACH_OUT:
            raise StoreError(ACCESS_DENIED, f"{before}() reaches out of the database; it is off here")
        if before == "into" and word == "outfile":
            raise StoreError(INTO_OUTFILE_NOT_ALLOWED, "INTO OUTFILE is not allowed")
        if before == "from" and word == "infile":
            raise StoreError(ACCESS_DENIED, "FROM INFILE reads files of this host; it is off here")
        if self._first == "attach" and word == "from":
            raise StoreError(ACCESS_DENIED, "ATTACH … FROM a path is off here")
        if word == "role" and before in ("set", "default"):
            raise StoreError(ACCESS_DENIED, "SET ROLE is off here: there is one role for clients")
        if self._last[-2:] == ["source", "("] and word not in ("clickhouse", "null"):
            raise StoreError(ACCESS_DENIED, f"a dictionary from {token.text} reaches out of the database")
        if self._database and word not in _PLAIN_DATABASES:
            engine = before == "engine" and word != "="
            if engine or self._last[-2:] == ["engine", "="]:
                raise StoreError(ACCESS_DENIED, f"a database of engine {token.text} reaches out of the store")
