"""The fixed part of the filter, compiled once and kept in a file: changing rules never waits for a
compiler."""

import hashlib
import json
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from collector.bpf_map import Map, MapType
from collector.filter.layout import SIZES
from collector.filter.link import CALL, LOAD_64, PSEUDO_FD, PSEUDO_VALUE, Piece
from collector.loader import PYTHON
from collector.source import ROOT
from schemas import c_header, declare
from schemas.errors import BpfleetError

CHILD = Path(__file__).with_name("skeleton_child.py")
FUNCTIONS = (
    "act",
    "record",
    "source_sets",
    "destination_sets",
    "step",
    "established",
    "table",
    "fields",
    "passed",
    "own",
    "follow",
)  # by the numbers in filter_act.h
FIRST_FUNCTION = 0x7F000000
PATIENCE = 120  # seconds


@dataclass(frozen=True)
class MapShape:
    """A map as the source declares it."""

    name: str
    kind: int
    flags: int
    key: int
    value: int
    entries: int

    def create(self, entries: int = 0) -> Map:
        """A new map, of another size if wanted."""
        return Map.create(
            MapType(self.kind), self.key, self.value, entries or self.entries, self.name, flags=self.flags
        )


@dataclass(frozen=True)
class Skeleton:
    """Functions (calls known, map numbers in place) and the maps behind the numbers."""

    pieces: Mapping[str, Piece]
    maps: tuple[MapShape, ...]
    fingerprint: str  # of the source: maps of another one mean something else


def skeleton(directory: Path) -> Skeleton:
    """The compiled skeleton, from ``directory`` if this source was compiled before.

    Raises :class:`BpfleetError` with the compiler's first error.
    """
    header = c_header.generate(declare.read(declare.DIRECTORY / "packet_sample.avsc"))
    file = directory / f"filter-{_fingerprint(header)}.json"
    text = file.read_text() if file.exists() else _compile(header)
    answer = json.loads(text)
    if "error" in answer:
        raise BpfleetError(f"cannot compile the filter: {answer['error']}")
    if not file.exists():
        directory.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        partial.write_text(text)
        partial.replace(file)
    maps = tuple(MapShape(**each) for each in answer["maps"])
    for each in maps:
        if SIZES.get(each.name, each.value) != each.value:
            raise BpfleetError(
                f"{each.name}: Python and C disagree on its layout (a fault; please report it)"
            )
    pieces = {name: _piece(bytes.fromhex(code)) for name, code in answer["pieces"].items()}
    return Skeleton(pieces, maps, _fingerprint(header))


@cache
def _fingerprint(header: str) -> str:
    digest = hashlib.sha256(header.encode())
    for file in sorted([*ROOT.glob("xdp/*"), *ROOT.glob("common/*"), CHILD]):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _compile(header: str) -> str:
    command = [PYTHON, "-I", "-B", str(CHILD)]
    with tempfile.TemporaryFile("w+") as said:  # a file, in which the compiler library's words survive it
        try:
            done = subprocess.run(
                command, input=header, stdout=subprocess.PIPE, stderr=said, text=True, timeout=PATIENCE,
                check=False,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BpfleetError(f"cannot compile the filter: {error}; install python3-bpfcc") from None
        said.seek(0)
        if done.returncode:
            last = (said.read().strip().splitlines() or ["no reason given"])[-1]
            raise BpfleetError(f"cannot compile the filter: {last}")
    return done.stdout


def _piece(code: bytes) -> Piece:
    calls = []
    at = 0
    while at < len(code):
        number = int.from_bytes(code[at + 4 : at + 8], "little") - FIRST_FUNCTION
        wide, kind = code[at] == LOAD_64, code[at + 1] >> 4
        if 0 <= number < len(FUNCTIONS) and code[at] == CALL:
            calls.append((at // 8, FUNCTIONS[number]))
        elif (code[at] == CALL and kind) or (wide and kind not in (0, PSEUDO_FD, PSEUDO_VALUE)):
            raise BpfleetError("the compiler made a reference the filter does not know; please report it")
        at += 16 if wide else 8
    return Piece(code, tuple(calls))
