"""Frames of functions without frame pointer: as readelf tells them, and whatever bytes come."""

import os
import platform
import random
import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collector.symbols import call_frames, elf

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="call frames are read on x86-64")
SOURCE = r"""
#include <string>
#include <stdexcept>
__attribute__((noinline)) std::string repeat(const std::string &text, int times)
{
	std::string all;
	char room[300];
	for (int i = 0; i < times; i++) all += text;
	if (all.size() > sizeof(room)) throw std::runtime_error(all);
	all.copy(room, sizeof(room));
	return all + room[0];
}
int main(int count, char **words)
{
	try { return repeat(words[0], count).size() == 0; } catch (...) { return 2; }
}
"""
ROW = re.compile(r"^([0-9a-f]{16}) (\S+) .*$")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("frames")
    (directory / "s.cpp").write_text(SOURCE)
    made = directory / "program"
    subprocess.run(["g++", "-O2", "-fomit-frame-pointer", "-o", made, directory / "s.cpp"], check=True)
    return made


def rows(file: Path) -> list[tuple[int, tuple[int, int] | None]]:
    """(address, what readelf says there) of the first and the last byte of each row."""
    text = subprocess.run(["readelf", "-wF", file], capture_output=True, text=True, check=False).stdout
    found: list[tuple[int, int, dict[str, str]]] = []
    end, columns = 0, [""]
    for line in text.splitlines():
        if header := re.search(r"(FDE|CIE).*?(?:pc=[0-9a-f]+\.\.([0-9a-f]+))?$", line):
            end = int(header[2] or "0", 16)
        words = line.split()
        if line.strip().startswith("LOC"):
            columns = words
        elif end and ROW.match(line):
            if found and found[-1][1] == end:  # the same function's row before
                found[-1] = (found[-1][0], int(words[0], 16), found[-1][2])
            found.append((int(words[0], 16), end, dict(zip(columns, words, strict=False))))
    told = []
    for start, stop, row in found:
        frame, saved = re.fullmatch(r"rsp\+(\d+)", row["CFA"]), row.get("rbp", "u")
        expected = (
            (int(frame[1]), int(saved[2:]) if saved != "u" else 0) if frame and row["ra"] == "c-8" else None
        )
        told += [(start, expected), (stop - 1, expected)] if stop > start else []
    return told


@pytest.mark.parametrize("name", ["program", "libc.so.6", "libstdc++.so.6"])
def test_frames_are_those_that_readelf_tells(name: str, program: Path) -> None:
    file = program
    if name != "program":
        linked = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
        file = Path(next(line.split()[2] for line in linked.splitlines() if name in line))
    fd = os.open(file, os.O_RDONLY)
    loaded = elf.program_headers(fd)
    loaded = loaded[loaded["type"] == elf.PT_LOAD]
    told = rows(file)
    assert sum(expected is not None for _, expected in told) > 20
    for address, expected in random.Random(4).sample(told, min(len(told), 300)):
        (part,) = [each for each in loaded if 0 <= address - int(each["vaddr"]) < int(each["filesz"])]
        offset = address - int(part["vaddr"]) + int(part["offset"])
        assert call_frames.rule(fd, offset) == expected, hex(address)
    os.close(fd)


@given(seed=st.integers(0, 1 << 32), changes=st.integers(1, 200), cut=st.booleans())
@settings(max_examples=60, deadline=None)
def test_damaged_files_have_no_frames_or_others_but_do_no_harm(
    program: Path, seed: int, changes: int, *, cut: bool
) -> None:
    chance = random.Random(seed)
    raw = bytearray(program.read_bytes())
    for _ in range(changes):
        raw[chance.randrange(64, len(raw))] = chance.randrange(256)
    fd = os.memfd_create("damaged")
    os.write(fd, raw[: chance.randrange(len(raw))] if cut else raw)
    for _ in range(20):
        found = call_frames.rule(fd, chance.randrange(len(raw)))
        assert found is None or (8 <= found.size <= call_frames.MOST and 0 <= found.saved <= call_frames.MOST)
    os.close(fd)


def test_where_functions_begin_as_the_symbols_say(program: Path) -> None:
    fd = os.open(program, os.O_RDONLY)
    begins, whole = call_frames.starts(fd), elf.read(fd)
    os.close(fd)
    own = [at for at, size in zip(whole.addresses.tolist(), whole.sizes.tolist(), strict=True) if size > 16]
    described = [at for at in own if begins.before(at) == at]
    assert len(described) > 3 and len(described) >= 0.8 * len(own)
    for at in described:
        assert begins.before(at + 7) == at
    assert begins.before(0) == 0 and begins.before(1 << 60) in begins_of(begins)


def begins_of(begins: call_frames.Starts) -> set[int]:
    return {begins.base + place for place in begins.places}


@given(st.binary(max_size=200))
@settings(max_examples=50, deadline=None)
def test_where_functions_begin_in_a_file_of_any_bytes(raw: bytes) -> None:
    fd = os.memfd_create("any")
    os.write(fd, elf.MAGIC + raw)
    assert call_frames.starts(fd).before(1000) == 0
    os.close(fd)
