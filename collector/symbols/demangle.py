"""Mangled names to what people wrote: Rust (both manglings) here, C++ by the C++ runtime in a child process.

The runtime's ``__cxa_demangle`` (libstdc++ or libc++abi) knows all of C++; names come out of files that
anybody may have made, so it runs in a child that may crash or be killed, and ends when it is not needed.
Where the library is missing, names stay as they are.
"""

import contextlib
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from collector.symbols.rust import demangle_v0

CHILD = Path(__file__).with_name("demangle_child.py")
PATIENCE = 3.0  # seconds for some names; then they stay mangled
REST_S = 30.0  # without a question, after which the child ends
AT_ONCE = 12  # names that fit into a pipe, and their answers into the other
LONGEST = 2048  # letters of a name that is tried
LEGACY = re.compile(r"_ZN(.*)17h[0-9a-f]{16}E(?:\.llvm\.\w+|\.cold|\.\d+)*")
ESCAPES = {
    "$SP$": "@", "$BP$": "*", "$RF$": "&", "$LT$": "<", "$GT$": ">", "$LP$": "(", "$RP$": ")", "$C$": ",",
}  # fmt: skip
_ESCAPE = re.compile(r"\$(?:SP|BP|RF|LT|GT|LP|RP|C|u[0-9a-f]{1,6})\$")


class Demangler:
    """Has the child, as long as there is something to ask it. Not for two threads at once."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._used = 0.0

    def names(self, names: Sequence[str]) -> dict[str, str]:
        """The readable form of each name; names that are not mangled, or not known, as they are."""
        found = {name: rust(name) or name for name in names}
        left = [name for name, text in found.items() if name is text and is_cpp(name)]
        for first in range(0, len(left), AT_ONCE):
            found |= self._ask(left[first : first + AT_ONCE])
        return found

    def _ask(self, names: list[str]) -> dict[str, str]:
        """What the child says; a name it dies of, or takes too long over, is left out with those after it."""
        self._used = time.monotonic()
        try:
            child = self._running()
            assert child.stdin and child.stdout
            child.stdin.write("".join(f"{name}\n" for name in names).encode("utf-8", "replace"))
            child.stdin.flush()
            lines = _lines(child.stdout.fileno(), len(names))
        except OSError:
            lines = []
        if len(lines) < len(names):
            self.close()
        return {name: text for name, text in zip(names, lines, strict=False) if text}

    def _running(self) -> "subprocess.Popen[bytes]":
        if self._child is None:
            command = [sys.executable, "-I", "-S", str(CHILD)]
            pipe = subprocess.PIPE
            self._child = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)
        return self._child

    def rest(self) -> None:
        """End the child if nothing was asked for a while."""
        if time.monotonic() - self._used > REST_S:
            self.close()

    def close(self) -> None:
        """End the child."""
        child, self._child = self._child, None
        if child:
            child.kill()
            with contextlib.suppress(OSError):
                child.communicate()


def _lines(fd: int, count: int) -> list[str]:
    """So many lines, or as many as come in time."""
    text, end = b"", time.monotonic() + PATIENCE
    while text.count(b"\n") < count:
        ready, _, _ = select.select([fd], [], [], max(end - time.monotonic(), 0))
        part = os.read(fd, 65536) if ready else b""
        if not part:
            break
        text += part
    return [line.decode("utf-8", "replace") for line in text.split(b"\n")[:-1]]


def is_cpp(name: str) -> bool:
    """Whether the C++ runtime could have something to say."""
    return name.startswith("_Z") and len(name) <= LONGEST and "\n" not in name


def rust(name: str) -> str:
    """A Rust name, without the hash that tells crates apart; "" for any other."""
    if name.startswith("_R"):
        return demangle_v0(name[:LONGEST])
    match = LEGACY.fullmatch(name)
    if match is None:
        return ""
    parts, rest = [], match[1]
    while rest:
        digits = re.match(r"[0-9]{1,4}", rest)
        if digits is None or len(rest) < digits.end() + int(digits[0]):
            return ""
        end = digits.end() + int(digits[0])
        parts.append(_unescape(rest[digits.end() : end]))
        rest = rest[end:]
    return "::".join(parts)


def _unescape(part: str) -> str:
    if part.startswith("_$"):
        part = part[1:]
    return _ESCAPE.sub(_letter, part).replace("..", "::")


def _letter(match: re.Match[str]) -> str:
    text = match[0]
    if text in ESCAPES:
        return ESCAPES[text]
    code = int(text[2:-1], 16)
    return chr(code) if 0x20 <= code < 0xD800 or 0xE000 <= code < 0x110000 else text
