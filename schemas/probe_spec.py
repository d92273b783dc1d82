"""On-demand probes as data: the `spec` of a document of kind `probe`, and its form in one line.

    spec = one_line('log2(latency) syscall:openat by comm if pid == 7 sample 10')
    checked = check(spec)          # parsed: points, trees, names of the keys

    at: syscall:openat             # where; `until` names another point that ends what begins here
    pair: [dev, sector]            # what both have in common; none: they are of the same thread
    if: latency > 10ms             # a condition
    by: [comm, "str(filename)"]    # keys of an aggregate, or the fields of events
    value: log2(latency)           # count, sum(x), log2(x), linear(x, from, to, step), stacks, event …
    sample: 10                     # one in 10, weighted
    rate: 100                      # events a second and host
    cgroup: /system.slice/*        # only these and what is below them
    max_cpu: 0.005                 # of the host

Everything is checked here, before it is sent and again on each host; what only a host can know (is there such
a tracepoint, has it such a field) it says itself. Raw C is never part of it: ``source`` names a file that the
host's own administrator put into ``collector.probe_dir``.
"""

import re
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct, field

from schemas import probe_expression, probe_point
from schemas.desired import Kind
from schemas.errors import UsageError
from schemas.probe_expression import Name, Node, Number, Read
from schemas.probe_point import PAIRS, RETURNS, Point

KEYS = 4  # columns for keys that have none of their own
STANDARD = ("pid", "comm", "cgroup", "cpu", "kstack", "ustack")
KEY_BYTES = 288  # of all keys together: they lie on the program's stack, which has 512
VALUES = ("count", "sum", "log2", "linear", "stacks", "event", "outstanding")
LINEAR_BUCKETS = 62  # without those below and above
Expression = Annotated[str, Meta(max_length=probe_expression.MAX_CHARS)]
_VALUE = re.compile(r"\s*([a-z0-9]+)\s*(?:\((.*)\))?\s*", re.DOTALL)


class Spec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A probe as its author writes it."""

    at: Annotated[str, Meta(max_length=600)]
    until: Annotated[str, Meta(max_length=600)] = ""
    where: Expression = field(name="if", default="")
    pair: Annotated[tuple[Expression, ...], Meta(max_length=4)] = ()
    by: Annotated[tuple[Expression, ...], Meta(max_length=KEYS + len(STANDARD))] = ()
    value: Expression = "count"
    sample: Annotated[int, Meta(ge=1, le=1_000_000)] = 1
    rate: Annotated[int, Meta(ge=1, le=10_000)] = 100
    cgroup: Annotated[str, Meta(max_length=256, pattern=r"\A[^\x00-\x1f]*\Z")] = ""
    pid: Annotated[int, Meta(ge=0, le=1 << 22)] = 0
    max_cpu: Annotated[float, Meta(gt=0, le=1)] = 0.01
    source: Annotated[str, Meta(pattern=r"\A([A-Za-z0-9_-]{1,80}\.c)?\Z")] = ""
    about: Annotated[str, Meta(max_length=400)] = ""


@dataclass(frozen=True)
class Key:
    """A column of the result: a name for people and where its content comes from."""

    name: str
    tree: Node

    @property
    def standard(self) -> bool:
        """Whether it has a column of its own, as pid has."""
        return isinstance(self.tree, Name) and self.tree.name in STANDARD


@dataclass(frozen=True)
class Checked:
    """A spec whose every part was parsed."""

    spec: Spec
    at: Point
    until: Point | None
    where: tuple[Node, ...]  # all must hold
    keys: tuple[Key, ...]
    value: str  # one of VALUES
    of: Node | None  # what is summed or distributed
    linear: tuple[int, int, int] = (0, 0, 0)  # from, to, step
    pair: tuple[Node, ...] = ()

    @property
    def paired(self) -> bool:
        """Whether it has a beginning and an end, and so a latency."""
        return self.until is not None or self.at.pairs

    @property
    def trees(self) -> tuple[Node, ...]:
        """Every expression of it."""
        return (*self.where, *(each.tree for each in self.keys), *((self.of,) if self.of else ()))

    @property
    def names(self) -> set[str]:
        """Every name its expressions mention."""
        return probe_expression.names(*self.trees)


def convert(tree: Any) -> Spec:
    """A spec from plain data. Raises :class:`UsageError`."""
    try:
        return msgspec.convert(tree, Spec)
    except msgspec.ValidationError as error:
        raise UsageError(f"not a probe: {str(error).replace('`$.', '`').replace('`$', '`')}") from None


def check(tree: Any) -> Checked:
    """Parse every part. Raises :class:`UsageError` with what to do."""
    spec = tree if isinstance(tree, Spec) else convert(tree)
    at = probe_point.parse(spec.at)
    until = probe_point.parse(spec.until) if spec.until else None
    value, of, linear = _value(spec.value)
    keys = _keys(spec.by, value)
    where = tuple(probe_expression.conjuncts(_number(spec.where))) if spec.where else ()
    pair = tuple(_number(each) for each in spec.pair)
    checked = Checked(spec, at, until, where, keys, value, of, linear, pair)
    _check_points(checked)
    _check_names(checked)
    return checked


def _number(text: str) -> Node:
    tree = probe_expression.parse(text)
    if probe_expression.is_text(tree):
        raise UsageError(f"`{text}` is a text where a number or condition is needed")
    return tree


def _value(text: str) -> tuple[str, Node | None, tuple[int, int, int]]:
    match = _VALUE.fullmatch(text)
    kind, inside = (match[1], match[2]) if match else ("", None)
    if kind not in VALUES:
        raise UsageError(f"`{text}` is no value; values are {', '.join(VALUES)}, as in log2(latency)")
    if kind in ("count", "stacks", "event", "outstanding"):
        if inside and inside.strip():
            raise UsageError(f"`{kind}` takes nothing in parentheses; fields of events go into `by`")
        return kind, None, (0, 0, 0)
    if not inside:
        raise UsageError(f"`{kind}` of what? write {kind}(latency)")
    parts = split(inside)
    if kind != "linear":
        return kind, _number(inside), (0, 0, 0)
    if len(parts) != 4:
        raise UsageError("write linear(x, from, to, step)")
    low, high, step = (_literal(each) for each in parts[1:])
    if step < 1 or high <= low or (high - low + step - 1) // step > LINEAR_BUCKETS:
        raise UsageError(f"`{text}`: from < to, step > 0, and at most {LINEAR_BUCKETS} buckets")
    return kind, _number(parts[0]), (low, high, step)


def _literal(text: str) -> int:
    tree = probe_expression.parse(text)
    if not isinstance(tree, Number) or not -(1 << 52) <= tree.value <= 1 << 52:
        raise UsageError(f"`{text.strip()}` must be a plain number")
    return tree.value


def split(text: str) -> list[str]:
    """Parts between commas that stand outside of parentheses and quotes."""
    parts, depth, quoted = [""], 0, False
    for letter in text:
        quoted ^= letter == '"'
        depth += 0 if quoted else (letter == "(") - (letter == ")")
        if letter == "," and not depth and not quoted:
            parts.append("")
        else:
            parts[-1] += letter
    return [each.strip() for each in parts]


def _keys(texts: tuple[str, ...], value: str) -> tuple[Key, ...]:
    keys = [_key(text, number) for number, text in enumerate(texts, 1)]
    if value == "stacks":
        present = {each.tree.name for each in keys if isinstance(each.tree, Name)}
        keys += [Key(name, Name(name)) for name in ("kstack", "ustack") if name not in present]
    names = [each.name for each in keys]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise UsageError(f"two keys are called {twice}; rename one, as in `other={twice}`")
    if sum(not each.standard for each in keys) > KEYS:
        raise UsageError(f"at most {KEYS} keys besides {', '.join(STANDARD)}")
    if value == "event" and not keys:
        raise UsageError("an event needs fields; name them with `by`")
    return tuple(keys)


def _key(text: str, number: int) -> Key:
    alias, _, rest = text.partition("=")
    name = alias.strip()
    if not (re.fullmatch(r"[a-z_][a-z0-9_]{0,29}", name) and rest and not rest.startswith("=")):
        name, rest = "", text
    tree = probe_expression.parse(rest)
    if isinstance(tree, probe_expression.Text | Number):
        raise UsageError(f"`{text}`: a key that never changes is none")
    if not name:
        inner = tree.address if isinstance(tree, Read) else tree
        name = inner.name if isinstance(inner, Name) else f"key{number}"
    return Key(name, tree)


def _check_points(checked: Checked) -> None:
    at, until, spec = checked.at, checked.until, checked.spec
    if (checked.value == "outstanding") != (at.kind == "heap"):
        raise UsageError(
            "outstanding goes with a point of kind heap, as in `outstanding heap:libc by ustack`"
        )
    if until and (at.pairs or until.pairs or "heap" in (at.kind, until.kind)):
        kinds = ", ".join(sorted(PAIRS))
        raise UsageError(f"`until` goes with two single points; {kinds} are entry and return already")
    if spec.pair and not until:
        raise UsageError("`pair` says what two points have in common; name the second with `until`")
    if until and at.kind in RETURNS:
        raise UsageError(f"`{at}` is where something ends; it cannot be the beginning")
    if at.kind == "heap" and (spec.where or {each.name for each in checked.keys} - {"ustack", "comm", "pid"}):
        raise UsageError("outstanding takes no condition, and only ustack, comm and pid as keys")
    if at.kind == "heap" and not (spec.pid or spec.cgroup):
        raise UsageError("a heap watches processes: say which, by pid or cgroup")
    if spec.source and at.kind == "heap":
        raise UsageError("heap points have a program of their own; leave `source` out")


def _check_names(checked: Checked) -> None:
    if "latency" in checked.names and not checked.paired:
        wanted = ", ".join(sorted(PAIRS))
        raise UsageError(f"latency needs a beginning and an end: a point of kind {wanted}, or `until`")
    ends = checked.paired or checked.at.kind in RETURNS
    if "retval" in checked.names and not ends:
        raise UsageError(f"{checked.at} has no retval; take a function, a syscall, or its return")
    for tree in (*checked.where, *((checked.of,) if checked.of else ())):
        stacks = {"kstack", "ustack"} & probe_expression.names(tree)
        if stacks:
            raise UsageError(f"{stacks.pop()} can only be a key")


def _judge(tree: Any) -> None:
    check(tree)


PROBE = Kind("probe", _judge, must_expire=True)


# ── In one line ──────────────────────────────────────────────────────────────────────────────────

_CLAUSE = re.compile(r"\s(by|if|sample|rate|until)\s")


def one_line(text: str) -> Spec:
    """``VALUE POINT [until POINT] [by KEY, KEY…] [if CONDITION] [sample N] [rate N]``.

    Raises :class:`UsageError`.
    """
    head, *rest = _clauses(text.strip())
    value, _, at = head.rpartition(" ")
    if not value.strip():
        raise UsageError(f"`{text}` is not written as: count syscall:openat by comm if pid == 7")
    tree: dict[str, Any] = {"value": value.strip(), "at": at.strip()}
    for word, content in zip(rest[::2], rest[1::2], strict=True):
        if word in tree:
            raise UsageError(f"`{text}` says `{word}` twice")
        tree[word] = _content(word, content.strip())
    return convert(tree)


def _content(word: str, content: str) -> Any:
    if word == "by":
        return split(content)
    if word in ("sample", "rate"):
        if not re.fullmatch(r"[0-9]{1,9}", content):
            raise UsageError(f"`{word}` takes a number, not `{content}`")
        return int(content)
    return content


def _clauses(text: str) -> list[str]:
    """The text cut at its clause words, those inside of quotes left alone."""
    hidden = re.sub(r'"[^"]*"', lambda match: "_" * len(match[0]), text)
    parts, last = [], 0
    for match in _CLAUSE.finditer(hidden):
        if match.start() >= last:
            parts += [text[last : match.start()], match[1]]
            last = match.end()
    return [*parts, text[last:]]
