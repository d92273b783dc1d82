"""Expressions of the filter: pcap-filter(7), `in @set`, `state new|established`; libpcap is their judge.

What libpcap does not know becomes a *flag*: a placeholder in the classic BPF, which hosts answer in the
kernel and :class:`Judge` answers for stored samples.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.errors import UsageError
from schemas.filter_prefixes import contains, networks
from schemas.pcap import Instruction, Program

NAME = r"[a-z0-9][a-z0-9_.-]{0,62}"
PLACEHOLDER = 0x40000000  # a byte loaded from here on stands for a flag, each with room for …
PLACEHOLDER_BITS = 16  # … what `pppoes` and `geneve` add to the offsets of all that follows them
MAX_EXPRESSION = 8_000  # characters
MAX_MADE = 100_000  # of one that was made from fields
MAX_FLAGS = 8
_EXTENSION = re.compile(
    rf"\b(?:(?P<way>src|dst)\s+)?in\s+@(?P<set>{NAME})|\bstate\s+(?P<state>[a-z]+)\b", re.IGNORECASE
)
_HOST_NAME = re.compile(
    r"\b(?:host|net|gateway|src|dst)\s+(?!host\b|net\b|port\b|portrange\b|or\b|and\b|in\b|proto\b|broadcast\b)"
    r"([a-z_][a-z0-9_-]*(?:\.[a-z0-9_-]+)*)(?![\w.:])",
    re.IGNORECASE,
)
_HEX_ADDRESS = re.compile(r"[0-9a-f]{1,4}", re.IGNORECASE)
_ALWAYS, _NEVER = "len >= 0", "len < 0"
_compiling = Lock()  # libpcap's handle is one for all threads

Question = tuple[str, str]  # ("source" | "destination", set) or ("established", "")


@dataclass(frozen=True)
class Expression:
    """A compiled expression and the flags behind its placeholders."""

    text: str
    program: Program
    flags: tuple[Question, ...]

    @property
    def instructions(self) -> Sequence[Instruction]:
        """Classic BPF, with placeholders."""
        return self.program.instructions

    def sets(self) -> set[str]:
        """The address sets it names."""
        return {argument for name, argument in self.flags if name != "established"}


def compile_expression(text: str, most: int = MAX_EXPRESSION) -> Expression:
    """Text, of so many characters at most, to classic BPF. Raises :class:`UsageError`: what is wrong."""
    if len(text) > most:
        raise UsageError(f"the expression has {len(text)} characters, more than {most}; use an address set")
    flags: list[Question] = []

    def placeholder(question: Question) -> str:
        if question not in flags:
            flags.append(question)
        return f"ether[{PLACEHOLDER + (flags.index(question) << PLACEHOLDER_BITS)}:1] = 1"

    plain = _plain(text, placeholder)
    if len(flags) > MAX_FLAGS:
        raise UsageError(f"{text!r}: more than {MAX_FLAGS} questions of sets and state; split the rule")
    with _compiling:
        return Expression(text, Program(plain), tuple(flags))


def _plain(text: str, placeholder: Callable[[Question], str]) -> str:
    """The text with our own words replaced by what ``placeholder`` says of each question."""
    _refuse_names(text)

    def replace(found: re.Match[str]) -> str:
        if found["state"]:
            state = found["state"].lower()
            if state not in ("new", "established"):
                raise UsageError(f"{text!r}: state is `new` or `established`, not `{state}`")
            return f"({'not ' * (state == 'new')}({placeholder(('established', ''))}))"
        ways = {"src": ("source",), "dst": ("destination",)}.get((found["way"] or "").lower())
        asked = [placeholder((way, found["set"])) for way in ways or ("source", "destination")]
        return f"({' or '.join(asked)})"

    plain = _EXTENSION.sub(replace, text)
    if "@" in plain:
        raise UsageError(f"{text!r}: an address set is used as `src in @name`, `dst in @name` or `in @name`")
    return plain


def _refuse_names(text: str) -> None:
    """Names would be looked up in DNS, with another answer on another day."""
    for name in _HOST_NAME.findall(text):
        if not _HEX_ADDRESS.fullmatch(name):
            raise UsageError(f"{text!r}: `{name}` is no address; write addresses, not names")


class Judge:
    """Verdicts of an expression on many stored frames at once, sets and state included."""

    def __init__(self, text: str, sets: Mapping[str, Sequence[str] | NDArray[Any]] | None = None) -> None:
        """``sets``: the prefixes of each set that the expression names, as text or as made by
        :func:`schemas.filter_prefixes.networks`. Raises :class:`UsageError`."""
        self.expression = compile_expression(text, MAX_MADE)
        known = sets or {}
        for name in self.expression.sets() - known.keys():
            raise UsageError(f"there is no address set @{name}; define it or correct the name")
        self._sets = {name: _spans(known[name], name) for name in self.expression.sets()}
        self._variants: dict[tuple[bool, ...], Program | None] = {}  # None: it cannot match

    def select(
        self, frames: NDArray[np.uint8], captured: NDArray[Any], length: NDArray[Any],
        source: NDArray[np.uint8], destination: NDArray[np.uint8], established: NDArray[Any],
    ) -> NDArray[np.bool_]:  # fmt: skip
        """Which rows match. ``frames`` is (rows, bytes), addresses are (rows, 16), IPv4 mapped."""
        flags = self.expression.flags
        if not flags:
            return self.expression.program.select(frames, captured, length)
        told = np.stack([self._answer(each, source, destination, established) for each in flags], axis=1)
        result = np.zeros(len(frames), np.bool_)
        for answers in product((False, True), repeat=len(flags)):
            rows = (told == np.array(answers)).all(axis=1)
            if rows.any():
                program = self._variant(answers)
                if program is not None:
                    result[rows] = program.select(frames[rows], captured[rows], length[rows])
        return result

    def _answer(
        self, question: Question, source: NDArray[np.uint8], destination: NDArray[np.uint8],
        established: NDArray[Any],
    ) -> NDArray[np.bool_]:  # fmt: skip
        name, argument = question
        if name == "established":
            return np.asarray(established, np.bool_)
        return contains(self._sets[argument], source if name == "source" else destination)

    def _variant(self, answers: tuple[bool, ...]) -> Program | None:
        if answers not in self._variants:
            known = dict(zip(self.expression.flags, answers, strict=True))
            plain = _plain(self.expression.text, lambda asked: _ALWAYS if known[asked] else _NEVER)
            with _compiling:
                try:
                    self._variants[answers] = Program(plain)
                except UsageError as error:
                    if "rejects all packets" not in str(error):
                        raise
                    self._variants[answers] = None
        return self._variants[answers]


def _spans(prefixes: Sequence[str] | NDArray[Any], name: str) -> NDArray[Any]:
    return prefixes if isinstance(prefixes, np.ndarray) else networks(prefixes, f"@{name}")
