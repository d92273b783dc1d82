"""The small typed language of on-demand probes: numbers, texts, and what may be asked of them.

    tree = parse('latency > 10ms && comm != "sshd" && str(filename) in ("/etc/passwd", "/etc/shadow")')
    names(tree)                                  # {"latency", "comm", "filename"}

Numbers are signed 64-bit integers; ``/`` and ``%`` treat them as unsigned, and dividing by zero gives zero.
Literals take a unit: ``10ms`` is in nanoseconds, ``4kB`` (1000) and ``4KiB`` (1024) in bytes. Texts can only
be compared. A tree holds nothing but nodes of this module: no text of the author's reaches a compiler.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from schemas.errors import UsageError

MAX_CHARS, MAX_DEPTH, MAX_PARTS, MAX_TEXT = 2000, 20, 200, 64
UNITS = {
    "ns": 1, "us": 1000, "ms": 10**6, "s": 10**9, "B": 1, "kB": 1000, "MB": 10**6, "GB": 10**9,
    "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30,
}  # fmt: skip
PRECEDENCE = (
    ("||",), ("&&",), ("==", "!=", "<", "<=", ">", ">="), ("|",), ("^",), ("&",), ("<<", ">>"), ("+", "-"),
    ("*", "/", "%"),
)  # fmt: skip
LOGIC, COMPARISON = ("||", "&&"), ("==", "!=", "<", "<=", ">", ">=")
WORDS = {"and": "&&", "or": "||", "not": "!"}
_TOKEN = re.compile(
    r"""\s*(?:(?P<number>0[xX][0-9a-fA-F]{1,16}|[0-9]{1,19})(?P<unit>[A-Za-z]*)
    |(?P<name>[A-Za-z_][A-Za-z0-9_]{0,63})|"(?P<text>[^"\\\x00-\x1f]*)"
    |(?P<op>\|\||&&|==|!=|<=|>=|<<|>>|[-+*/%&|^~!<>(),.]))""",
    re.VERBOSE,
)


@dataclass(frozen=True)
class Number:
    """A literal number."""

    value: int


@dataclass(frozen=True)
class Text:
    """A literal text, to compare with."""

    value: bytes


@dataclass(frozen=True)
class Name:
    """A field of the point, or a word every point knows."""

    name: str


@dataclass(frozen=True)
class Read:
    """The text at an address: ``str`` in the program's memory, ``kstr`` in the kernel's; bytes."""

    where: str
    address: "Node"
    size: int


@dataclass(frozen=True)
class Member:
    """A member of a kernel struct behind a pointer: ``member(prev, task_struct.pid)``."""

    pointer: "Node"
    struct: str
    path: str


@dataclass(frozen=True)
class Unary:
    """``-x``, ``~x``, ``!x``, or ``int32(x)``: the lower half with its sign, as a C function's int."""

    op: str
    one: "Node"


@dataclass(frozen=True)
class Binary:
    """Two operands; both are numbers, or both texts of which one is literal."""

    op: str
    left: "Node"
    right: "Node"


@dataclass(frozen=True)
class StartsWith:
    """Whether a text begins so."""

    one: "Node"
    prefix: bytes


Node = Number | Text | Name | Read | Member | Unary | Binary | StartsWith


def parse(text: str) -> Node:
    """The tree of an expression. Raises :class:`UsageError` that points at the place."""
    if len(text) > MAX_CHARS:
        raise UsageError(f"an expression of {len(text)} characters is too long; at most {MAX_CHARS}")
    parser = _Parser(text)
    tree = parser.binary(0)
    if parser.token[0] != "end":
        raise parser.wrong("an operator")
    return tree


def walk(tree: Node) -> Iterator[Node]:
    """The node and all below it."""
    yield tree
    below: tuple[Node, ...] = ()
    if isinstance(tree, Unary | StartsWith):
        below = (tree.one,)
    elif isinstance(tree, Binary):
        below = (tree.left, tree.right)
    elif isinstance(tree, Read):
        below = (tree.address,)
    elif isinstance(tree, Member):
        below = (tree.pointer,)
    for each in below:
        yield from walk(each)


def names(*trees: Node) -> set[str]:
    """Every name they mention."""
    return {each.name for tree in trees for each in walk(tree) if isinstance(each, Name)}


def conjuncts(tree: Node) -> list[Node]:
    """What all must hold: the parts between the outermost ``&&``."""
    if isinstance(tree, Binary) and tree.op == "&&":
        return conjuncts(tree.left) + conjuncts(tree.right)
    return [tree]


class _Parser:
    """Recursive descent over the tokens; ``token`` is (kind, text, place) of the next one."""

    def __init__(self, text: str) -> None:
        self.text, self.at, self.depth, self.parts = text, 0, 0, 0
        self.token = self._next()

    def _next(self) -> tuple[str, str, int]:
        if not self.text[self.at :].strip():
            return "end", "", len(self.text)
        match = _TOKEN.match(self.text, self.at)
        if match is None:
            place = len(self.text) - len(self.text[self.at :].lstrip())
            raise UsageError(f"`{self.text}`: cannot read `{self.text[place : place + 12]}`")
        self.at = match.end()
        kind = str(match.lastgroup if match.lastgroup != "unit" else "number")
        word = match[kind] + (match["unit"] or "") if kind == "number" else match[kind]
        if kind == "name" and word in WORDS:
            kind, word = "op", WORDS[word]
        return kind, word, match.start(kind)

    def wrong(self, wanted: str) -> UsageError:
        """What is said of a token that does not fit."""
        found = f"`{self.token[1]}`" if self.token[0] != "end" else "the end"
        return UsageError(f"`{self.text}`: expected {wanted} at character {self.token[2] + 1}, found {found}")

    def take(self, *ops: str) -> str:
        """The operator, if it is next and one of these."""
        kind, word, _ = self.token
        if kind == "op" and word in ops:
            self.token = self._next()
            return word
        return ""

    def need(self, op: str) -> None:
        """The operator, which must be next."""
        if not self.take(op):
            raise self.wrong(f"`{op}`")

    def binary(self, level: int) -> Node:
        """Operators of this precedence or tighter ones, from left to right."""
        if level == len(PRECEDENCE):
            return self.unary()
        tree = self.binary(level + 1)
        while True:
            if level == 2 and self.token[:2] == ("name", "in"):
                self.token = self._next()
                tree = self._among(tree)
            elif op := self.take(*PRECEDENCE[level]):
                tree = self._pair(op, tree, self.binary(level + 1))
            else:
                return tree

    def _pair(self, op: str, left: Node, right: Node) -> Node:
        texts = [is_text(each) for each in (left, right)]
        literal = isinstance(left, Text) + isinstance(right, Text)
        if any(texts) and op not in ("==", "!="):
            raise UsageError(f"`{self.text}`: `{op}` takes numbers; texts only compare with == and !=")
        if literal == 2 or (all(texts) and not literal):
            raise UsageError(f'`{self.text}`: compare a text with a literal, as in comm == "sshd"')
        if isinstance(right, Text) and not texts[0] and not isinstance(left, Name):
            raise UsageError(
                f"`{self.text}`: a number is compared with a text; write str(…) for what it points to"
            )
        if isinstance(left, Text):
            left, right = right, left
        return Binary(op, left, right)

    def _among(self, one: Node) -> Node:
        self.need("(")
        tree = self._pair("==", one, self.unary())
        while self.take(","):
            tree = Binary("||", tree, self._pair("==", one, self.unary()))
        self.need(")")
        return tree

    def unary(self) -> Node:
        """``-x``, ``~x``, ``!x`` or something whole."""
        self.depth += 1
        self.parts += 1
        if self.depth > MAX_DEPTH or self.parts > MAX_PARTS:
            raise UsageError(f"`{self.text[:60]}…` is too long or nested too deeply")
        tree = self._unary()
        self.depth -= 1
        return tree

    def _unary(self) -> Node:
        op = self.take("-", "~", "!")
        if op:
            inner = self.unary()
            if is_text(inner):
                raise UsageError(f"`{self.text}`: `{op}` takes a number")
            return Number(-inner.value) if op == "-" and isinstance(inner, Number) else Unary(op, inner)
        if self.take("("):
            tree = self.binary(0)
            self.need(")")
            return tree
        kind, word, _ = self.token
        if kind in ("end", "op"):
            raise self.wrong("a value")
        self.token = self._next()
        if kind == "number":
            return Number(number(word))
        if kind == "text":
            return Text(self._bytes(word))
        if word == "args" and self.take("."):
            return Name(f"args.{self._word()}")
        return self._call(word) if self.take("(") else Name(word)

    def _bytes(self, word: str) -> bytes:
        raw = word.encode()
        if len(raw) >= MAX_TEXT:
            raise UsageError(
                f"`{self.text[:60]}…`: a text of {len(raw)} bytes; shorter than {MAX_TEXT} compare"
            )
        return raw

    def _call(self, name: str) -> Node:
        if name in ("str", "kstr"):
            address = self.binary(0)
            if is_text(address):
                raise UsageError(f"`{self.text}`: {name}() takes an address, not a text")
            size = self._size() if self.take(",") else MAX_TEXT
            tree: Node = Read(name, address, size)
        elif name == "starts_with":
            one = self.binary(0)
            self.need(",")
            kind, word, _ = self.token
            if kind != "text" or not (is_text(one) or isinstance(one, Name)):
                raise self.wrong('a text, as in starts_with(comm, "kworker")')
            self.token = self._next()
            tree = StartsWith(one, self._bytes(word))
        elif name == "int32":
            inner = self.binary(0)
            if is_text(inner):
                raise UsageError(f"`{self.text}`: int32() takes a number")
            tree = Unary(name, inner)
        elif name == "member":
            tree = self._member()
        else:
            raise UsageError(
                f"`{self.text}`: no function {name}(); there are str, kstr, int32, starts_with and member"
            )
        self.need(")")
        return tree

    def _size(self) -> int:
        kind, word, _ = self.token
        if kind != "number" or not word.isdigit() or int(word) not in (16, 32, 64, 128):
            raise self.wrong("a size of 16, 32, 64 or 128 bytes")
        self.token = self._next()
        return int(word)

    def _member(self) -> Node:
        pointer = self.binary(0)
        self.need(",")
        parts = [self._word()]
        while self.take("."):
            parts.append(self._word())
        if len(parts) < 2 or is_text(pointer):
            raise UsageError(f"`{self.text}`: write member(pointer, struct.member)")
        return Member(pointer, parts[0], ".".join(parts[1:]))

    def _word(self) -> str:
        kind, word, _ = self.token
        if kind != "name":
            raise self.wrong("a name")
        self.token = self._next()
        return word


def is_text(tree: Node) -> bool:
    """Whether it is a text whatever the point has; a :class:`Name` may turn out to be one."""
    return isinstance(tree, Text | Read) or (isinstance(tree, Name) and tree.name == "comm")


def number(word: str) -> int:
    """``10ms``, ``0x1f``, ``4KiB``. Raises :class:`UsageError`."""
    match = re.fullmatch(r"(0[xX][0-9a-fA-F]+|[0-9]+)([A-Za-z]*)", word)
    if match is None or (match[2] and match[2] not in UNITS):
        raise UsageError(f"`{word}` is no number; units are {', '.join(UNITS)}")
    if match[1][0] == "0" and match[1].isdigit() and len(match[1]) > 1:
        raise UsageError(f"`{word}`: write numbers without leading zeros")
    value = int(match[1], 0) * UNITS.get(match[2], 1)
    if value >= 1 << 63 and not match[1].startswith(("0x", "0X")):
        raise UsageError(f"`{word}` does not fit into 64 bits")
    return value & 0xFFFFFFFFFFFFFFFF if value < 1 << 64 else _too_large(word)


def _too_large(word: str) -> int:
    raise UsageError(f"`{word}` does not fit into 64 bits")
