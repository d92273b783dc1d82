"""Where in a function's first instructions a trap is cheap.

The kernel emulates some instructions of x86-64 under a trap (push, jumps, calls, nop): about 1 µs. Others it
must run elsewhere with a second trap after one step, which on virtual machines takes ten times as long
(decision 0081). glibc's free() begins with such a one, ``test %rdi,%rdi``; the jump behind it serves as well.
Only instructions that leave arguments and stack alone are passed over, and at most three of them.
"""

import platform

STEPPED_NS = 8600  # on top of an ordinary trap
PASSED = 3


def cheap(code: bytes) -> tuple[int, bool]:
    """(bytes to pass over, whether the instruction there is emulated), for the code of a function's entry."""
    if platform.machine() != "x86_64":
        return 0, True
    at = 0
    for _ in range(PASSED + 1):
        if is_emulated(code[at:]):
            return at, True
        size = harmless(code[at:])
        if not size:
            break
        at += size
    return 0, False


def is_emulated(code: bytes) -> bool:
    """Whether the kernel runs this instruction itself (arch/x86/kernel/uprobes.c)."""
    if code[:1] == b"\x41":  # push %r8 … %r15
        return len(code) > 1 and 0x50 <= code[1] <= 0x57
    first, second = (code[0], code[1] if len(code) > 1 else 0) if code else (0, 0)
    return (
        0x50 <= first <= 0x57  # push
        or 0x70 <= first <= 0x7F  # short conditional jumps
        or first in (0x90, 0xE8, 0xE9, 0xEB)  # nop, call, jmp
        or (first == 0x0F and 0x80 <= second <= 0x8F)  # conditional jumps
    )


def harmless(code: bytes) -> int:
    """Length of an instruction that changes nothing but flags or %rax; 0 for any other."""
    if code[:4] == b"\xf3\x0f\x1e\xfa":  # endbr64
        return 4
    rex = 1 if code[:1] and 0x48 <= code[0] <= 0x4F else 0
    opcode, modrm = (code[rex], code[rex + 1]) if len(code) > rex + 1 else (0, 0)
    registers = modrm >= 0xC0  # both operands are
    if opcode in (0x85, 0x39, 0x3B) and registers:  # test, cmp of registers
        return rex + 2
    if opcode == 0x83 and registers and (modrm >> 3 & 7) == 7:  # cmp with a small number
        return rex + 3
    if code[:2] == b"\x31\xc0":  # xor %eax,%eax
        return 2
    return 0
