"""Demangles C++ names: one a line from standard input to standard output, an empty line where it cannot.

Run by collector.symbols.demangle; standard library only. What the runtime makes of a name is cut to a length
that is still of use, and the child to an address space and a CPU time that a hostile name cannot exceed.
"""

import contextlib
import ctypes
import resource
import sys

LIBRARIES = ("libstdc++.so.6", "libc++abi.so.1")
LONGEST = 1024
MEMORY = 512 << 20  # bytes of address space
SECONDS = 60  # of CPU; a name that takes long is ended by the parent


def _runtime() -> ctypes.CDLL | None:
    for name in LIBRARIES:
        with contextlib.suppress(OSError):
            return ctypes.CDLL(name)
    return None


def main() -> None:
    """Serve until the end of the input."""
    runtime = _runtime()
    if runtime is None:
        return
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    free = ctypes.CDLL(None).free
    free.argtypes = [ctypes.c_void_p]
    runtime.__cxa_demangle.restype = ctypes.c_void_p
    runtime.__cxa_demangle.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
    for line in sys.stdin.buffer:
        place = runtime.__cxa_demangle(line.rstrip(b"\n"), None, None, None)
        text = ctypes.string_at(place) if place else b""
        free(place)
        sys.stdout.buffer.write(text.replace(b"\n", b" ")[:LONGEST] + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
