"""Load BPF sources into the kernel without ever holding a compiler: a short-lived child does it.

    sources = [probe_source(probe, sizes={"tcp_flow": 1 << 20}, settings={"slow_io_us": 5000})]
    result = load(sources, enums=["skb_drop_reason"])
    result.loaded["tcp_flow"].maps["tcp_flow"]          # bpf_map.Map, owned by Loaded
    result.loaded["tcp_flow"].programs[0].id            # kernel's id; .fd, .link_fd (None: yours to attach)
    result.loaded["block_io"].set("slow_io_us", 1000)   # a SETTING of the source, while it runs
    result.failed["packet_drop"]                        # why not, in one line; the others run
    result.enums["skb_drop_reason"][3]                  # "NO_SOCKET"

A source is a file in bpf/ or a text (``Source(name, text=…)``); what it may say is in bpf/common/probe.h.
``pins`` keeps maps in bpffs and finds them there again, ``given`` lends it maps that exist, ``attach=False``
only loads. Closing :class:`Loaded` detaches, unless links were pinned.
"""

import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from collector import bpf_sys, loader_wire
from collector.bpf_map import Map
from schemas import c_header
from schemas.declare import Probe
from schemas.errors import BpfleetError

PYTHON = "/usr/bin/python3"  # the distribution's, for which bcc is packaged
CHILD = Path(__file__).with_name("loader_child.py")
ROOT = Path(__file__).resolve().parent.parent / "bpf"
PATIENCE = 120.0  # seconds without an answer after which a child is given up


@dataclass(frozen=True)
class Source:
    """What to load: ``file`` or ``text``, and how."""

    name: str
    file: Path | None = None
    text: str = ""
    header: str = ""  # generated from a declaration
    sizes: Mapping[str, int] = field(default_factory=dict)  # map → entries, or a ring's bytes
    settings: Mapping[str, int] = field(default_factory=dict)  # start values; others keep their default
    pins: Mapping[str, str] = field(default_factory=dict)  # map → path in bpffs
    given: Mapping[str, Map] = field(default_factory=dict)  # maps that exist; they stay the caller's
    attach: bool = True


@dataclass(frozen=True)
class Program:
    """A loaded program; ``link_fd`` keeps it attached, None where the caller attaches it."""

    name: str  # what it hooks, `sched_switch`
    kind: str  # tp_btf, raw_tp, tracepoint, perf_event, uprobe, xdp, tc
    fd: int
    link_fd: int | None
    id: int

    @property
    def hook(self) -> str:
        """Where it attaches, for people: ``tp_btf:sched_switch``."""
        return f"{self.kind}:{self.name}"


@dataclass
class Loaded:
    """A source in the kernel. Owns its descriptors; :meth:`close` detaches."""

    name: str
    maps: dict[str, Map]
    programs: list[Program]
    settings: list[str]
    _open: list[int]

    def set(self, setting: str, value: int) -> None:
        """Change a SETTING of the source at once. Raises :class:`BpfleetError` for an unknown one."""
        if setting not in self.settings:
            raise BpfleetError(f"{self.name} has no setting {setting}; it has: {', '.join(self.settings)}")
        number = self.settings.index(setting)
        self.maps["settings"].update(number.to_bytes(4, "little"), value.to_bytes(8, "little"))

    def program(self, name: str) -> Program:
        """The program that hooks ``name``."""
        return next(each for each in self.programs if each.name == name)

    def release(self, program: Program) -> None:
        """Detach one program; it stays loaded, for the caller to attach when it wants."""
        if program.link_fd in self._open:
            self._open.remove(program.link_fd)
            os.close(program.link_fd)

    def detach(self) -> None:
        """Detach the programs; maps stay, to be read to their end."""
        for each in self.programs:
            self.release(each)

    def close(self) -> None:
        """Detach and give everything back; again is harmless."""
        while self._open:
            os.close(self._open.pop())


@dataclass
class Result:
    """What became of each source: ``loaded`` or ``failed`` with the reason; enums by value."""

    loaded: dict[str, Loaded] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    logs: dict[str, str] = field(default_factory=dict)  # the verifier's whole log, where it refused
    enums: dict[str, dict[int, str]] = field(default_factory=dict)

    def close(self) -> None:
        """Detach everything."""
        for each in self.loaded.values():
            each.close()


def probe_source(probe: Probe, **how: Any) -> Source:
    """The source of a declared probe, ``bpf/<probe>.bpf.c``; ``how``: other fields of :class:`Source`."""
    return Source(probe.name, ROOT / f"{probe.name}.bpf.c", header=c_header.generate(probe), **how)


def kernel_enums(probes: Iterable[Probe]) -> list[str]:
    """Names of the kernel enums that fields of these probes are decoded with."""
    fields = (field for probe in probes for stream in probe.streams for field in stream.fields)
    return sorted({each.argument for each in fields if each.decode == "enum"})


def load(sources: Sequence[Source], enums: Sequence[str] = (), python: str = PYTHON) -> Result:
    """Load all sources in one child (in another, should one of them kill it).

    A source that fails is in ``failed`` and touches no other. Raises :class:`BpfleetError` only when nothing
    can be loaded: no BTF, no compiler, no Python.
    """
    result = Result()
    waiting = {each.name: each for each in sources}
    if len(waiting) < len(sources):
        raise BpfleetError("two sources to load have the same name")
    while True:
        ending = _one_child(list(waiting.values()), enums, python, result)
        for name in (*result.loaded, *result.failed):
            waiting.pop(name, None)
        if not ending:
            return result
        if not waiting:
            raise BpfleetError(f"the loader's child failed: {ending}")
        result.failed[next(iter(waiting))] = f"the compiler gave up: {ending}"
        waiting.pop(next(iter(waiting)))


def load_side_by_side(sources: Sequence[Source], enums: Sequence[str] = (), children: int = 2) -> Result:
    """As :func:`load`, with the sources shared out to several children: compiling is most of a start.

    Each has the compiler in its memory while it lives (about 140 MB).
    """
    parts = [part for start in range(children) if (part := sources[start::children])]
    whole = Result()
    with ThreadPoolExecutor(max(len(parts), 1)) as pool:
        asked = [pool.submit(load, part, enums if part is parts[0] else ()) for part in parts]
        wait(asked)
    failed = [each.exception() for each in asked if each.exception()]
    for each in asked:
        if not each.exception():
            result = each.result()
            if failed:
                result.close()
            for name, table in vars(result).items():
                getattr(whole, name).update(table)
    if failed:
        raise failed[0] or BpfleetError("the loader's child failed")
    order = [each.name for each in sources]
    whole.loaded = dict(sorted(whole.loaded.items(), key=lambda each: order.index(each[0])))
    return whole


def _one_child(sources: list[Source], enums: Sequence[str], python: str, result: Result) -> str:
    """Run a child over ``sources``; "" when it came to its end, else how it died."""
    ours, theirs = socket.socketpair()
    with ours, tempfile.TemporaryFile() as said:
        with theirs:
            child = _start(python, theirs, said)
        ours.settimeout(PATIENCE)
        try:
            _ask(ours, sources, enums)
            if _answers(ours, {each.name: each for each in sources}, result):
                return ""
        except (TimeoutError, ConnectionError) as error:
            child.kill()
            return f"{type(error).__name__} while waiting for it"
        finally:
            ours.close()
            status = child.wait()
        said.seek(0)
        words = loader_wire.first_error(said.read().decode(errors="replace"))
    return words or (signal.Signals(-status).name if status < 0 else f"exit code {status}")


def _answers(channel: socket.socket, sources: dict[str, Source], result: Result) -> bool:
    """Take what the child sends; True when it said that this was all."""
    while (message := loader_wire.receive(channel)) is not None:
        answer, fds = message
        if "fatal" in answer:
            raise BpfleetError(answer["fatal"])
        if "enums" in answer:
            result.enums = {name: _by_value(name, table) for name, table in answer["enums"].items()}
            return True
        _take(answer, fds, sources, result)
    return False


def _start(python: str, channel: socket.socket, said: IO[bytes]) -> "subprocess.Popen[bytes]":
    command = [python, "-I", "-B", str(CHILD), str(channel.fileno())]
    try:
        return subprocess.Popen(command, pass_fds=[channel.fileno()], stdin=subprocess.DEVNULL, stderr=said)
    except OSError as error:
        why = error.strerror or "unknown error"
        raise BpfleetError(f"cannot run {python}: {why}; install python3 and python3-bpfcc") from None


def _ask(channel: socket.socket, sources: list[Source], enums: Sequence[str]) -> None:
    fds: list[int] = []
    requests = []
    for each in sources:
        given = {name: len(fds) + number for number, name in enumerate(each.given)}
        fds += [found.fd for found in each.given.values()]
        requests.append(
            {
                "name": each.name, "file": str(each.file or ""), "text": each.text, "header": each.header,
                "sizes": dict(each.sizes), "settings": dict(each.settings), "pins": dict(each.pins),
                "given": given, "attach": each.attach,
            }
        )  # fmt: skip
    loader_wire.send(channel, {"sources": requests, "enums": list(enums)}, fds)


def _take(answer: dict[str, Any], fds: list[int], sources: dict[str, Source], result: Result) -> None:
    """Turn one answer into :class:`Loaded` or a reason."""
    name = answer["name"]
    if answer["error"]:
        result.failed[name] = answer["error"]
        result.logs[name] = answer.get("log", "")
        return
    rest = iter(fds)
    given = sources[name].given
    maps = {each: given[each] if each in given else Map.of(next(rest), each) for each in answer["maps"]}
    bare = [(each, next(rest)) for each in answer["programs"]]
    programs = [
        Program(
            each["target"],
            each["kind"],
            fd,
            next(rest) if each["attached"] else None,
            bpf_sys.prog_info(fd).id,
        )
        for each, fd in bare
    ]
    result.loaded[name] = Loaded(name, maps, programs, answer["settings"], fds)


def _by_value(name: str, table: dict[str, int]) -> dict[int, str]:
    """value → name, without the prefix that repeats the enum's name or that all values share."""
    prefix = name.upper() + "_"
    if not any(each.startswith(prefix) for each in table):
        prefix = os.path.commonprefix(list(table)).rpartition("_")[0] + "_"  # noqa: RUF071 letters, not paths
    return {value: each.removeprefix(prefix) for each, value in table.items()}
