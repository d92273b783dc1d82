"""The loader's child: compiles, loads and attaches, hands the descriptors over, and ends.

It runs under the distribution's Python, which has bcc; bcc is used as a compiler only. Maps are made,
programs loaded and attached through collector.bpf_sys, from the instructions the compiler leaves.
Started by collector.loader with the number of a socket; messages are those of collector.loader_wire:
the request, then one answer a source, then the tables of kernel enums.
"""

import contextlib
import os
import resource
import socket
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent))

from collector import bpf_sys, loader_wire, source, tracefs
from collector.bpf_map import Map, MapType
from collector.bpf_sys import AttachType, ProgType
from collector.btf import Btf, MissingError
from schemas.errors import BpfleetError

NO_BCC = "the BPF compiler is missing; install the package python3-bpfcc (for /usr/bin/python3)"
KINDS = {
    "tp_btf": ProgType.TRACING,
    "raw_tp": ProgType.RAW_TRACEPOINT,
    "tracepoint": ProgType.TRACEPOINT,
    "perf_event": ProgType.PERF_EVENT,
    "uprobe": ProgType.KPROBE,
    "uprobe_multi": ProgType.KPROBE,
    "xdp": ProgType.XDP,
    "tc": ProgType.SCHED_CLS,
}
MAP_PSEUDO_FD = 1  # BPF_PSEUDO_MAP_FD in the source register of a 64-bit load
LOAD_64, MOVE_32 = 0x18, 0xB7


class Module:
    """A compiled source. Raises :class:`BpfleetError` with the compiler's first error.

    The compiler library writes to standard error, which is a file of the parent's: should the library abort,
    the parent still finds there why.
    """

    def __init__(self, text: str) -> None:
        import bcc

        os.ftruncate(2, 0)
        os.lseek(2, 0, os.SEEK_SET)
        try:
            flags = ["-w", f"-I{source.ROOT}"]
            self._bcc = bcc.BPF(text=text.encode(), cflags=flags, allow_rlimit=False)
        except Exception as error:
            said = os.pread(2, 1 << 20, 0).decode(errors="replace")
            raise BpfleetError(loader_wire.first_error(said) or str(error)) from None

    def code(self, function: str) -> bytes:
        """Instructions of a function."""
        return bytes(self._bcc.dump_func(function.encode()))

    def constant(self, function: str) -> int:
        """What a function that only returns a constant returns."""
        code = self.code(function)
        low = int.from_bytes(code[4:8], "little")
        if code[0] == LOAD_64:
            return low | int.from_bytes(code[12:16], "little") << 32
        if code[0] == MOVE_32 and low < 1 << 31:
            return low
        raise BpfleetError(f"the compiler made no constant of {function}")


def answers(module: Module, number: int) -> tuple[int, int, int, int, int]:
    """(kind, flags, key size, value size, entries) of a map as its source declared it."""
    sizes, kinds = module.constant(f"map_sizes_{number}"), module.constant(f"map_kinds_{number}")
    entries = module.constant(f"map_entries_{number}")
    return kinds & 0xFFFFFFFF, kinds >> 32, sizes & 0xFFFFFFFF, sizes >> 32, entries


def make_map(module: Module, number: int, name: str, request: dict[str, Any]) -> Map:
    """A new map, or the one pinned where the request wants it pinned."""
    kind, flags, key, value, entries = answers(module, number)
    entries = request["sizes"].get(name, entries)
    place = request["pins"].get(name)
    if place and Path(place).exists():
        found = Map.pinned(place)
        if (found.type, found.key_size, found.value_size) != (kind, key, value):
            raise BpfleetError(f"{place} holds another kind of map than {name}; remove the pin")
        return found
    made = Map.create(MapType(kind), key, value, entries, name, flags=flags)
    if place:
        made.pin(place)
    return made


def patch(code: bytes, fds: list[int]) -> bytes:
    """Put map descriptors where the source has map numbers."""
    patched = bytearray(code)
    at = 0
    while at < len(patched):
        wide = patched[at] == LOAD_64
        if wide and patched[at + 1] >> 4 == MAP_PSEUDO_FD:
            number = int.from_bytes(patched[at + 4 : at + 8], "little")
            patched[at + 4 : at + 8] = fds[number].to_bytes(4, "little")
        at += 16 if wide else 8
    return bytes(patched)


def load_program(hook: source.Hook, code: bytes, btf: Btf) -> int:
    """Load one program; the kernel knows it by its target's name."""
    name = hook.target.rpartition(":")[2]
    if hook.kind == "tp_btf":
        return bpf_sys.prog_load(
            ProgType.TRACING, code, name, expected=AttachType.TRACE_RAW_TP,
            btf_id=btf.tracepoint_id(hook.target),
        )  # fmt: skip
    expected = AttachType.TRACE_UPROBE_MULTI if hook.kind == "uprobe_multi" else 0
    return bpf_sys.prog_load(KINDS[hook.kind], code, name, expected=expected)


def attach(hook: source.Hook, fd: int) -> int | None:
    """The descriptor that keeps a program attached; None for kinds that their owner attaches."""
    if hook.kind in ("tp_btf", "raw_tp"):
        return bpf_sys.raw_tracepoint_open(fd, hook.target if hook.kind == "raw_tp" else "")
    if hook.kind == "tracepoint":
        event = tracefs.tracepoint_event(*hook.target.split(":"))
        tracefs.attach(event, fd)
        return event
    return None


class Build:
    """One source on its way into the kernel; ``fds`` are closed here once they were handed over."""

    def __init__(self, request: dict[str, Any], btf: Btf, given: dict[str, int]) -> None:
        self.request = request
        self.btf = btf
        self.given = given
        self.fds: list[int] = []

    def run(self) -> dict[str, Any]:
        """Everything for one source; the answer names what :attr:`fds` are, in order."""
        text, folder = self._text()
        needs = source.scan(text, folder)
        header = self.request["header"]
        if not needs.hooks:
            raise BpfleetError("the source has no program (TP_BTF, XDP, …)")
        main = source.prelude(needs, self.btf, header) + self._include(text) + source.postlude(needs, header)
        module = Module(main)
        names = source.all_maps(needs, header)
        maps = [self._map(module, number, name) for number, name in enumerate(names)]
        self._preset(needs, dict(zip(names, maps, strict=True)))
        programs = self._programs(module, needs, [each.fd for each in maps])
        return {"maps": names, "programs": programs, "settings": list(needs.settings)}

    def _text(self) -> tuple[str, Path]:
        if self.request["text"]:
            return self.request["text"], source.ROOT
        file = Path(self.request["file"])
        try:
            return file.read_text(), file.parent
        except OSError as error:
            raise BpfleetError(f"cannot read {file}: {(error.strerror or 'error').lower()}") from None

    def _include(self, text: str) -> str:
        if self.request["text"]:
            return f'#line 1 "{self.request["name"]}"\n{text}\n#line 1 "after"\n'
        return f'#include "{self.request["file"]}"\n'

    def _map(self, module: Module, number: int, name: str) -> Map:
        if name in self.given:
            return Map.of(self.given[name], name)
        made = make_map(module, number, name, self.request)
        self.fds.append(made.fd)
        return made

    def _preset(self, needs: source.Needs, maps: dict[str, Map]) -> None:
        for number, (name, fallback) in enumerate(needs.settings.items()):
            value = self.request["settings"].get(name, fallback)
            maps["settings"].update(number.to_bytes(4, "little"), value.to_bytes(8, "little"))

    def _programs(self, module: Module, needs: source.Needs, map_fds: list[int]) -> list[dict[str, Any]]:
        programs: list[dict[str, Any]] = []
        for number, hook in enumerate(needs.hooks):
            fd = load_program(hook, patch(module.code(f"program_{number}"), map_fds), self.btf)
            self.fds.append(fd)
            programs.append({"kind": hook.kind, "target": hook.target, "fd": fd, "attached": False})
        for hook, program in zip(needs.hooks, programs, strict=True):
            link = attach(hook, program.pop("fd")) if self.request["attach"] else None
            if link is not None:
                self.fds.append(link)
                program["attached"] = True
        return programs

    def close(self) -> None:
        """Give up what was opened."""
        for fd in self.fds:
            os.close(fd)


def enums(btf: Btf, names: list[str]) -> dict[str, dict[str, int]]:
    """Tables of kernel enums; one the kernel lacks is empty."""
    tables = {}
    for name in names:
        try:
            tables[name] = btf.enum(name)
        except MissingError:
            tables[name] = {}
    return tables


def build(channel: socket.socket, request: dict[str, Any], btf: Btf, given: dict[str, int]) -> None:
    """Load one source and answer; no failure of it reaches another."""
    work = Build(request, btf, given)
    try:
        answer = {"error": "", **work.run()}
        loader_wire.send(channel, {"name": request["name"], **answer}, work.fds)
    except Exception as error:
        words = str(error) if isinstance(error, BpfleetError) else f"{type(error).__name__}: {error}"
        log = getattr(error, "log", "")
        loader_wire.send(channel, {"name": request["name"], "error": " ".join(words.split()), "log": log}, [])
    finally:
        work.close()


def main(channel: socket.socket) -> None:
    """Serve one request."""
    message = loader_wire.receive(channel)
    if message is None:
        return
    request, fds = message
    os.environ["BCC_KERNEL_SOURCE"] = str(source.ROOT / "kernel")
    try:
        btf = Btf.read()
        if request["sources"]:
            import bcc  # noqa: F401
    except ImportError:
        loader_wire.send(channel, {"fatal": NO_BCC}, [])
        return
    except BpfleetError as error:
        loader_wire.send(channel, {"fatal": str(error)}, [])
        return
    with contextlib.suppress(OSError, ValueError):  # kernels since 5.11 do not count maps against it
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    for each in request["sources"]:
        build(channel, each, btf, {name: fds[number] for name, number in each["given"].items()})
    loader_wire.send(channel, {"enums": enums(btf, request["enums"])}, [])


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
    os._exit(0)  # the compiler library's own clean-up would only cost time
