"""Type information for the functions of a program, as far as the verifier wants it.

Functions that it knows as *global* it checks once, by themselves, and not again at each call: that keeps
loading quick and makes loops over calls possible. Format:
https://www.kernel.org/doc/html/latest/bpf/btf.html.
"""

import ctypes
import struct
from collections.abc import Sequence

from collector import bpf_sys
from collector.filter.layout import SCRATCH

STATIC, GLOBAL = 0, 1
_INT, _PTR, _STRUCT, _FUNC, _FUNC_PROTO = 1, 2, 4, 12, 13
# type numbers, in order
_NUMBER, _CONTEXT, _TO_CONTEXT, _SCRATCH, _TO_SCRATCH, _ENTRY, _OTHER = range(1, 8)
_FIRST_FUNCTION = 8


class _Types:
    """BTF in the making: strings and types."""

    def __init__(self) -> None:
        self.strings = bytearray(b"\0")
        self.types = bytearray()

    def name(self, text: str) -> int:
        at = len(self.strings)
        self.strings += text.encode() + b"\0"
        return at

    def add(self, name: str, kind: int, count: int, size_or_type: int, rest: bytes = b"") -> None:
        start = self.name(name) if name else 0
        self.types += struct.pack("=III", start, kind << 24 | count, size_or_type) + rest

    def blob(self) -> bytes:
        head = struct.pack(
            "=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(self.types), len(self.types), len(self.strings)
        )
        return bytes(head + self.types + self.strings)


def describe(functions: Sequence[tuple[str, int, bool]]) -> tuple[int, bytes]:
    """(name, first instruction, global?) of each, in order → BTF descriptor and the ``func_info`` of a load.

    The first takes the context, the others it and a CPU's scratch, whose size lets the verifier check those
    that are global by themselves; all return a number. The caller closes the descriptor.
    """
    types = _Types()
    types.add("u64", _INT, 0, 8, struct.pack("=I", 64))
    types.add("xdp_md", _STRUCT, 0, 4)
    types.add("", _PTR, 0, _CONTEXT)
    types.add("filter_scratch", _STRUCT, 0, SCRATCH.itemsize)
    types.add("", _PTR, 0, _SCRATCH)
    parameter = struct.pack("=II", types.name("ctx"), _TO_CONTEXT)
    types.add("", _FUNC_PROTO, 1, _NUMBER, parameter)
    types.add("", _FUNC_PROTO, 2, _NUMBER, parameter + struct.pack("=II", types.name("scratch"), _TO_SCRATCH))
    info = b""
    for number, (name, start, is_global) in enumerate(functions):
        types.add(name, _FUNC, GLOBAL if is_global else STATIC, _OTHER if number else _ENTRY)
        info += struct.pack("=II", start, _FIRST_FUNCTION + number)
    return _load(types.blob()), info


def _load(blob: bytes) -> int:
    data = ctypes.create_string_buffer(blob, len(blob))
    attributes = bpf_sys.pack("QQIIII", ctypes.addressof(data), 0, len(blob), 0, 0, 0)
    return bpf_sys.system_call(bpf_sys.Command.BTF_LOAD, attributes, "cannot load type information")
