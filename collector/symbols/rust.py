"""Rust's v0 mangling (https://doc.rust-lang.org/rustc/symbol-mangling/v0.html) to paths that people read.

    _RNvCskwGfYPst2Cb_4demo4main  →  demo::main

Crate hashes are left out. A name that is no v0 name, or nests too deeply, gives "".
"""

from collections.abc import Callable

BASIC = {
    "a": "i8", "b": "bool", "c": "char", "d": "f64", "e": "str", "f": "f32", "h": "u8", "i": "isize",
    "j": "usize", "l": "i32", "m": "u32", "n": "i128", "o": "u128", "p": "_", "s": "i16", "t": "u16",
    "u": "()", "v": "...", "x": "i64", "y": "u64", "z": "!",
}  # fmt: skip
POINTERS = {"R": "&", "Q": "&mut ", "P": "*const ", "O": "*mut "}
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
DEPTH, STEPS = 64, 2000
SPECIAL = {"C": "closure", "S": "shim"}


class _Wrong(Exception):
    """Not a name of this mangling."""


def demangle_v0(name: str) -> str:
    """The path; "" for what is not one."""
    try:
        return _Reader(name[2:]).path(in_value=True)
    except (_Wrong, RecursionError):
        return ""


class _Reader:
    def __init__(self, text: str) -> None:
        self.text, self.at, self.depth, self.steps = text, 0, 0, 0

    # ── Letters and numbers ──────────────────────────────────────────────────────────────────────

    def take(self) -> str:
        self.steps += 1
        if self.at >= len(self.text) or self.steps > STEPS:
            raise _Wrong
        self.at += 1
        return self.text[self.at - 1]

    def has(self, letter: str) -> bool:
        if self.text.startswith(letter, self.at):
            self.at += 1
            return True
        return False

    def base62(self) -> int:
        if self.has("_"):
            return 0
        value = 0
        while (letter := self.take()) != "_":
            digit = DIGITS.find(letter)
            if digit < 0:
                raise _Wrong
            value = value * 62 + digit
        return value + 1

    def identifier(self) -> tuple[str, int]:
        """A name, and the number that tells items of one name apart."""
        number = self.base62() + 1 if self.has("s") else 0
        return self._name(), number

    def _name(self) -> str:
        encoded = self.has("u")
        digits = "0" if self.has("0") else ""
        while digits != "0" and self.at < len(self.text) and self.text[self.at] in DIGITS[:10]:
            digits += self.take()
        if not digits or len(digits) > 4:
            raise _Wrong
        self.has("_")
        end = self.at + int(digits)
        if end > len(self.text):
            raise _Wrong
        found, self.at = self.text[self.at : end], end
        if encoded:
            plain, _, code = found.rpartition("_")
            try:
                found = f"{plain}-{code}".encode().decode("punycode") if code else found
            except (UnicodeError, ValueError, OverflowError):
                raise _Wrong from None
        return found

    # ── Paths and types ──────────────────────────────────────────────────────────────────────────

    def path(self, *, in_value: bool = False) -> str:
        self.depth += 1
        if self.depth > DEPTH:
            raise _Wrong
        try:
            return self._path(in_value)
        finally:
            self.depth -= 1

    def _path(self, in_value: bool) -> str:
        kind = self.take()
        if kind == "C":
            return self.identifier()[0]
        if kind == "N":
            space = self.take()
            outer = self.path(in_value=in_value)
            inner, number = self.identifier()
            if space.isupper():
                return f"{outer}::{{{SPECIAL.get(space, space)}{':' if inner else ''}{inner}#{number}}}"
            return f"{outer}::{inner}" if inner else outer
        if kind in "MX":
            self._skip_impl_path()
            subject = self.type()
            return f"<{subject}>" if kind == "M" else f"<{subject} as {self.path()}>"
        if kind == "Y":
            subject = self.type()
            return f"<{subject} as {self.path()}>"
        if kind == "I":
            outer = self.path(in_value=in_value)
            return f"{outer}{'::' if in_value else ''}<{self._until_end(self._argument)}>"
        if kind == "B":
            return self._again(lambda: self.path(in_value=in_value))
        raise _Wrong

    def _skip_impl_path(self) -> None:
        if self.has("s"):
            self.base62()
        self.path()

    def _argument(self) -> str:
        if self.has("L"):
            self.base62()
            return "'_"
        return self.constant() if self.has("K") else self.type()

    def _until_end(self, read: Callable[[], str]) -> str:
        parts = []
        while not self.has("E"):
            parts.append(read())
        return ", ".join(parts)

    def _again(self, read: Callable[[], str]) -> str:
        """A reference to what stood earlier."""
        begun, to = self.at - 1, self.base62()
        if to >= begun:
            raise _Wrong
        back, self.at = self.at, to
        try:
            return read()
        finally:
            self.at = back

    def type(self) -> str:
        self.depth += 1
        if self.depth > DEPTH:
            raise _Wrong
        try:
            return self._type()
        finally:
            self.depth -= 1

    def _type(self) -> str:
        kind = self.take()
        if kind in BASIC:
            return BASIC[kind]
        if kind in POINTERS:
            if kind in "RQ" and self.has("L"):
                self.base62()
            return POINTERS[kind] + self.type()
        if kind == "A":
            return f"[{self.type()}, {self.constant()}]"
        if kind == "S":
            return f"[{self.type()}]"
        if kind == "T":
            return f"({self._until_end(self.type)})"
        if kind == "F":
            return self._function()
        if kind == "D":
            return self._object()
        if kind == "B":
            return self._again(self.type)
        self.at -= 1
        return self.path()

    def _function(self) -> str:
        if self.has("G"):
            self.base62()
        self.has("U")
        if self.has("K") and not self.has("C"):
            self._name()
        arguments = self._until_end(self.type)
        result = self.type()
        return f"fn({arguments})" + ("" if result == "()" else f" -> {result}")

    def _object(self) -> str:
        if self.has("G"):
            self.base62()
        parts = []
        while not self.has("E"):
            part = self.path()
            while self.has("p"):
                part += f"<{self._name()} = {self.type()}>"
            parts.append(part)
        if self.has("L"):
            self.base62()
        return "dyn " + " + ".join(parts)

    def constant(self) -> str:
        if self.has("B"):
            return self._again(self.constant)
        kind = self.take()
        if kind == "p":
            return "_"
        if kind not in BASIC:
            raise _Wrong
        sign = "-" if self.has("n") else ""
        digits = ""
        while not self.has("_"):
            digits += self.take()
        try:
            value = int(digits or "0", 16)
        except ValueError:
            raise _Wrong from None
        return {"b0": "false", "b1": "true"}.get(f"{kind}{value}", f"{sign}{value}")
