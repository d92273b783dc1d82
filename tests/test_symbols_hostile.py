"""Symbols of hostile files and names: read or refused, in bounded time and memory."""

import os
import random
import resource
import struct
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from profiled import compile_all

from collector.symbols import elf, perf_map, space
from collector.symbols.demangle import Demangler
from collector.symbols.rust import demangle_v0


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return compile_all(tmp_path_factory.mktemp("hostile"))


def test_hostile_names_cost_no_more_than_they_may() -> None:
    """Names that explode, nest and refer to themselves: answered, and soon."""
    bomb = "_Z1f" + "".join(f"N1a{'S0_' * 3}E" for _ in range(400))
    nested = "_Z" + "P" * 1500 + "i"
    names = [bomb, nested, "_R" + "B_" * 900, "_RNvB2_" * 200, "_RI" * 600, "_RNvNtB" + "9" * 2000]
    names += ["_Z4back" + "S_" * 800, "_ZN" + "9" * 300 + "E", "_RNvC9\udcff"]
    begun = time.monotonic()
    demangler = Demangler()
    done = demangler.names([each.encode("utf-8", "replace").decode() for each in names])
    demangler.close()
    assert time.monotonic() - begun < 8
    assert len(done) == len(names) and all(len(each) <= 60_000 for each in done.values())


@settings(max_examples=300, deadline=None)
@given(st.text("_RNvCtMXYIBKLEsu0123456789abchp", max_size=80))
def test_any_rust_name_ends(tail: str) -> None:
    assert isinstance(demangle_v0("_R" + tail), str)


# ── Hostile files ────────────────────────────────────────────────────────────────────────────────


def parsed(raw: bytes) -> None:
    """Read and use a file of these bytes: an Elf, or InvalidElf."""
    fd = os.memfd_create("hostile")
    try:
        os.write(fd, raw)
        found = elf.read(fd)
        for offset in (0, 4096, 1 << 40, (1 << 64) - 1):
            at = found.find(found.address(offset))
            if at >= 0:
                found.name(fd, at)
        if len(found.addresses):
            found.name(fd, 0)
            found.name(fd, len(found.addresses) - 1)
    except elf.InvalidElf:
        pass
    finally:
        os.close(fd)


def test_mutated_files_are_read_or_refused(programs: dict[str, Path]) -> None:
    """Bytes of headers and tables turned to anything, files cut anywhere."""
    whole = programs["known_c"].read_bytes()
    sections_at = struct.unpack_from("<Q", whole, 40)[0]
    dice = random.Random(7)
    begun = time.monotonic()
    for _ in range(1500):
        raw = bytearray(whole)
        for _ in range(dice.randint(1, 12)):
            base = dice.choice((0, 64, sections_at))
            at = min(base + dice.randrange(2000), len(raw) - 8)
            raw[at : at + dice.choice((1, 2, 4, 8))] = dice.choice(
                (b"\xff" * 8, b"\0" * 8, dice.randbytes(8), (1 << dice.randrange(64)).to_bytes(8, "little"))
            )
        parsed(bytes(raw[: dice.choice((len(raw), dice.randrange(len(raw))))]))
    assert time.monotonic() - begun < 20


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_are_refused(tail: bytes) -> None:
    parsed(elf.MAGIC + tail)


def test_a_file_that_claims_very_much_is_refused_at_once() -> None:
    """A sparse file of gigabytes that calls itself one symbol table takes neither time nor memory."""
    fd = os.memfd_create("huge")
    head = bytearray(64)
    head[:7] = elf.MAGIC
    struct.pack_into("<Q", head, 40, 64)
    struct.pack_into("<HHH", head, 58, 64, 1, 0)
    size = elf.SYMBOLS * 24 + (1 << 30)
    section = struct.pack("<IIQQQQIIQQ", 0, elf.SHT_SYMTAB, 0, 0, 0, size, 0, 0, 8, 24)
    os.pwrite(fd, bytes(head) + section, 0)
    os.ftruncate(fd, size + 4096)
    before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    assert len(elf.read(fd).addresses) == 0
    os.close(fd)
    assert time.monotonic() - begun < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=600))
def test_any_mappings_are_read(text: bytes) -> None:
    found = space.parse(text)
    for address in (0, 1, 1 << 63):
        found.place(address)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=600))
def test_any_perf_map_is_read(text: bytes) -> None:
    fd = os.memfd_create("map")
    os.write(fd, text)
    found = perf_map.read(fd)
    found.name(fd, 1 << 40)
    os.close(fd)
