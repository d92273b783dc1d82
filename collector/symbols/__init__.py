"""Addresses to functions: of the kernel, of programs and libraries, of code that a JIT made.

    symbols = Symbols(kernel)                   # collector.ksym.Symbols
    symbols.look_at(pid)                        # learn its mappings now; it may be gone later
    frames = symbols.user(pid, addresses)       # innermost first, as bpf_get_stack has them
    frames = symbols.kernel(addresses)
    frames[0].function, frames[0].module, frames[0].build_id

Files: `elf` (symbol tables as numpy arrays), `space` (a process's mappings), `modules` (opened files,
bounded), `perf_map` (JITs), `demangle`, `resolve` (puts them together).
"""

from collector.symbols.resolve import UNKNOWN, Frame, Symbols, is_unnamed

__all__ = ["UNKNOWN", "Frame", "Symbols", "is_unnamed"]
