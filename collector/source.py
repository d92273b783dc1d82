"""What a BPF source says of itself: programs, maps, settings and what it needs of the running kernel.

The words are those of bpf/common/probe.h. A source is scanned together with the files of ours that it
includes; its text is never changed: :func:`prelude` answers what it asked for with definitions that precede
it, :func:`postlude` adds the entry points and what the loader asks of the maps. Standard library only.
"""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from collector import syscalls
from collector.bpf_map import possible_cpus
from collector.btf import Btf, MissingError
from collector.btf_c import Wanted, struct_text
from schemas.errors import BpfleetError

ROOT = Path(__file__).resolve().parent.parent / "bpf"
_COMMENT = re.compile(
    r"/\*.*?\*/|//[^\n]*|^[ \t]*#[ \t]*define(?:[^\n]*\\\n)*[^\n]*", re.DOTALL | re.MULTILINE
)
_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]+"([^"]+)"', re.MULTILINE)
_CALL = re.compile(
    r"\b(TP_BTF|RAW_TP|TRACEPOINT|PERF_EVENT|UPROBE|UPROBE_MULTI|XDP|TC|MAP|MAP_FLAGS|SETTING|KERNEL_STRUCT|KERNEL_ENUM"
    r"|NEAR|NEAR_SIZED|GAP|SYSCALLS|ARG|HAS_ARG)\(([^()]*)"
)
_PROGRAMS = {"TP_BTF", "RAW_TP", "TRACEPOINT", "PERF_EVENT", "UPROBE", "UPROBE_MULTI", "XDP", "TC"}


@dataclass(frozen=True)
class Hook:
    """A program of a source and where it attaches: ``tp_btf`` ``sched_switch``."""

    kind: str
    target: str  # `category:name` of a classic tracepoint

    @property
    def function(self) -> str:
        """The C function behind the word."""
        return f"{self.kind}__{self.target.replace(':', '__')}"


@dataclass
class Needs:
    """Everything a scan found, in order of appearance."""

    hooks: list[Hook] = field(default_factory=list)
    maps: list[str] = field(default_factory=list)
    settings: dict[str, int] = field(default_factory=dict)  # name → default
    structs: dict[str, list[Wanted]] = field(default_factory=dict)
    enums: list[tuple[str, str]] = field(default_factory=list)
    syscalls: list[str] = field(default_factory=list)
    arguments: dict[tuple[str, str], bool] = field(default_factory=dict)  # (tracepoint, name) → optional


def scan(text: str, folder: Path) -> Needs:
    """Read ``text``, whose includes in quotes are relative to ``folder`` or to bpf/."""
    needs = Needs()
    _scan(text, folder, needs, set())
    return needs


def _scan(text: str, folder: Path, needs: Needs, seen: set[Path]) -> None:
    text = _COMMENT.sub("", text)
    for name in _INCLUDE.findall(text):
        for place in (folder / name, ROOT / name):
            if place.exists() and place.resolve() not in seen:
                seen.add(place.resolve())
                _scan(place.read_text(), place.parent, needs, seen)
                break
    for word, inside in _CALL.findall(text):
        _take(word, [each.strip() for each in inside.split(",")], needs)


def _take(word: str, given: list[str], needs: Needs) -> None:
    if word in _PROGRAMS:
        needs.hooks.append(Hook(word.lower(), ":".join(given)))
    elif word in ("MAP", "MAP_FLAGS"):
        needs.maps.append(given[1])
    elif word in ("NEAR", "NEAR_SIZED"):
        needs.maps.append(f"{given[0]}_near")
    elif word == "SETTING":
        if not given[1].isdigit():
            raise BpfleetError(f"SETTING({given[0]}, {given[1]}): the default must be a plain number")
        needs.settings[given[0]] = int(given[1])
    elif word == "KERNEL_STRUCT":
        wanted = needs.structs.setdefault(given[0], [])
        wanted += [Wanted(each.lstrip("?").strip(), each.startswith("?")) for each in given[1:]]
    elif word == "GAP":
        needs.maps.append(given[0])
    elif word == "SYSCALLS":
        needs.syscalls += given
    elif word == "KERNEL_ENUM":
        needs.enums += [(given[0], each) for each in given[1:]]
    else:
        place = (given[0], given[1])
        needs.arguments[place] = needs.arguments.get(place, False) or word == "HAS_ARG"


def prelude(needs: Needs, btf: Btf, header: str = "") -> str:
    """Definitions that precede the source; ``header`` is the one generated from a declaration.

    Raises :class:`MissingError` for a tracepoint, member, argument or value this kernel does not have.
    """
    for hook in needs.hooks:
        if hook.kind in ("tp_btf", "raw_tp"):
            btf.tracepoint_id(hook.target)
    lines = [f"#define MAP_NUMBER_{name} {number}" for number, name in enumerate(all_maps(needs, header))]
    lines.append(f"#define POSSIBLE_CPUS {possible_cpus()}")
    lines.append(f"#define PAGE_BYTES {os.sysconf('SC_PAGE_SIZE')}")
    lines += [f"#define SETTING_{name} {number}" for number, name in enumerate(needs.settings)]
    lines += [f"#define {value} {btf.enum(enum)[value]}" for enum, value in _present(needs, btf)]
    numbers = syscalls.numbers()
    lines += [f"#define NR_{name} {numbers.get(name, -1 - at)}" for at, name in enumerate(needs.syscalls)]
    for (tracepoint, name), optional in needs.arguments.items():
        lines += _argument(btf, tracepoint, name, optional)
    lines += ["struct pt_regs;", '#include "common/probe.h"']
    lines += [f"struct {name};" for name in needs.structs]
    lines += [struct_text(btf, name, wanted, set(needs.structs)) for name, wanted in needs.structs.items()]
    if needs.settings:
        lines.append(f"MAP(ARRAY, settings, u32, u64, {len(needs.settings)})")
    return "\n".join(lines) + "\n" + header


def all_maps(needs: Needs, header: str) -> list[str]:
    """Names of the maps of a source and its generated header; their positions are their numbers."""
    declared = [inside.split(",")[1].strip() for word, inside in _CALL.findall(header) if word == "MAP"]
    return [*declared, *needs.maps, *(["settings"] if needs.settings else [])]


def _present(needs: Needs, btf: Btf) -> list[tuple[str, str]]:
    for enum, value in needs.enums:
        if value not in btf.enum(enum):
            raise MissingError(f"this kernel's enum {enum} has no {value}")
    return needs.enums


def _argument(btf: Btf, tracepoint: str, name: str, optional: bool) -> list[str]:
    names = btf.arguments(tracepoint)
    known = name in names
    if not known and not optional:
        raise MissingError(f"this kernel's tracepoint {tracepoint} has no argument {name}")
    lines = [f"#define ARG_{tracepoint}__{name} {names.index(name)}"] if known else []
    return lines + ([f"#define HAS_ARG_{tracepoint}__{name} {int(known)}"] if optional else [])


def postlude(needs: Needs, header: str) -> str:
    """Entry points, which alone the compiler library keeps, and the maps' answers."""
    lines = [f"MAP_ANSWERS({number}, {name})" for number, name in enumerate(all_maps(needs, header))]
    lines += [
        f"int program_{number}(void *ctx) {{ return {hook.function}(ctx); }}"
        for number, hook in enumerate(needs.hooks)
    ]
    return "\n".join(lines) + "\n"
