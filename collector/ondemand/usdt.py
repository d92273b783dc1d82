"""Arguments of markers (USDT) as C: ``-4@%edi``, ``8@-24(%rbp)``, ``8@table(%rip)``, ``4@$7``.

Operands are those of GNU as for x86-64; other machines' markers can be hit but have no arguments.
"""

import platform
import re

_SIZE = re.compile(r"(-?[1248])f?@(.+)")
_MEMORY = re.compile(r"(-?(?:0x[0-9a-f]+|\d+))?\(%(\w+)(?:,%(\w+),([1248]))?\)")
_OLD = {"a": "ax", "b": "bx", "c": "cx", "d": "dx"}
_NAMED = {"si", "di", "bp", "sp"}


def register(name: str) -> str | None:
    """The member of pt_regs that holds a register: ``edi`` → ``di``, ``r8d`` → ``r8``."""
    if re.fullmatch(r"r(8|9|1[0-5])[dwb]?", name):
        return name.rstrip("dwb")
    bare = name.removeprefix("r").removeprefix("e")
    if bare in _NAMED or bare in _OLD.values():
        return bare
    if bare.endswith("l") and bare[:-1] in _NAMED | _OLD.keys():
        return _OLD.get(bare[:-1], bare[:-1])
    return None


def arguments(text: str) -> dict[str, str]:
    """``arg0`` … to C expressions of type s64; operands that are not understood are left out."""
    if platform.machine() != "x86_64":
        return {}
    found = {}
    for number, operand in enumerate(text.split()):
        match = _SIZE.fullmatch(operand)
        code = _operand(int(match[1]), match[2]) if match else None
        if code is not None:
            found[f"arg{number}"] = code
    return found


def _operand(size: int, text: str) -> str | None:
    kind = f"{'s' if size < 0 else 'u'}{abs(size) * 8}"
    if re.fullmatch(r"\$-?(0x[0-9a-f]+|\d+)", text):
        return f"(s64){int(text[1:], 0)}LL"
    if text.startswith("%"):
        name = register(text[1:])
        return f"(s64)({kind})ctx->{name}" if name else None
    match = _MEMORY.fullmatch(text)
    if match is None or (base := register(match[2])) is None:
        return None
    address = f"ctx->{base} + ({int(match[1] or '0', 0)}LL)"
    if match[3]:
        index = register(match[3])
        if index is None:
            return None
        address += f" + ctx->{index} * {int(match[4])}"
    read = f"bpf_probe_read_user(&_read, sizeof(_read), (void *)({address}))"
    return f"(s64)({{ {kind} _read = 0; {read}; _read; }})"
