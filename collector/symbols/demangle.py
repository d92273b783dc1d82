"""Mangled names to what people wrote: Rust (both manglings) here, C++ by the C++ runtime in a child process.

The runtime's ``__cxa_demangle`` (libstdc++ or libc++abi) knows all of C++; names come out of files that
anybody may have made, so it runs in a child that may crash or be killed. One child serves all new names of a
round. Where the library is missing, names stay as they are.
"""

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from collector.symbols.rust import demangle_v0

CHILD = Path(__file__).with_name("demangle_child.py")
PATIENCE = 5.0  # seconds; then the names stay mangled
LONGEST = 2048  # letters of a name that is tried
LEGACY = re.compile(r"_ZN(.*)17h[0-9a-f]{16}E(?:\.llvm\.\w+|\.cold|\.\d+)*")
ESCAPES = {
    "$SP$": "@", "$BP$": "*", "$RF$": "&", "$LT$": "<", "$GT$": ">", "$LP$": "(", "$RP$": ")", "$C$": ",",
}  # fmt: skip
_ESCAPE = re.compile(r"\$(?:SP|BP|RF|LT|GT|LP|RP|C|u[0-9a-f]{1,6})\$")


def demangle(names: Sequence[str]) -> dict[str, str]:
    """The readable form of each name; names that are not mangled, or not known, as they are."""
    found = {name: rust(name) or name for name in names}
    left = [name for name, text in found.items() if name is text and is_cpp(name)]
    return found | _cpp(left) if left else found


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


def _cpp(names: list[str]) -> dict[str, str]:
    """Ask the child."""
    command = [sys.executable, "-I", "-S", str(CHILD)]
    try:
        done = subprocess.run(
            command, input="\n".join(names).encode(), capture_output=True, timeout=PATIENCE, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return {}
    lines = done.stdout.decode("utf-8", "replace").split("\n")
    return {name: text for name, text in zip(names, lines, strict=False) if text}
