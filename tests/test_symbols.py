"""Symbols: files against binutils' tools, names against c++filt, hostile bytes against nothing at all."""

import contextlib
import ctypes
import mmap
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from profiled import compile_all

from collector.stacks import RECORD, Names
from collector.symbols import Symbols, elf, opening, perf_map
from collector.symbols.demangle import Demangler
from collector.symbols.modules import PerfMaps
from collector.symbols.vdso import vdso

LIBC = "/lib/x86_64-linux-gnu/libc.so.6"


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return compile_all(tmp_path_factory.mktemp("symbols"))


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def demangle(names: list[str]) -> dict[str, str]:
    demangler = Demangler()
    try:
        return demangler.names(names)
    finally:
        demangler.close()


def opened(file: Path | str) -> int:
    return os.open(file, os.O_RDONLY)


def functions(file: Path, *options: str) -> list[tuple[int, int, str]]:
    """(address, size, name) of defined functions, by nm."""
    text = subprocess.run(
        ["nm", "-S", *options, str(file)], capture_output=True, text=True, check=True
    ).stdout
    rows = [line.split() for line in text.splitlines()]
    return [
        (int(row[0], 16), int(row[1], 16), row[3].partition("@")[0])
        for row in rows
        if len(row) == 4 and row[2] in "tTwW"
    ]


@pytest.mark.parametrize("name", ["known_c", "known_cpp", "known_rust"])
def test_functions_are_those_that_nm_shows(programs: dict[str, Path], name: str) -> None:
    fd = opened(programs[name])
    found = elf.read(fd)
    assert found.full
    names = {}
    for address, size, text in functions(programs[name]):
        if size:
            names.setdefault(address, set()).add(text)
            for inside in (address, address + size - 1):
                at = found.find(inside)
                assert at >= 0 and int(found.addresses[at]) >= address
    for address, known in names.items():
        assert found.name(fd, found.find(address)) in known
    os.close(fd)
    notes = subprocess.run(
        ["readelf", "-n", str(programs[name])], capture_output=True, text=True, check=True
    ).stdout
    assert found.build_id == notes.partition("Build ID: ")[2].split()[0]


def test_a_stripped_library_shows_what_it_exports() -> None:
    fd = opened(LIBC)
    found = elf.read(fd)
    exported = {text: address for address, size, text in functions(Path(LIBC), "-D") if size}
    assert len(found.addresses) > 1500
    for name in ("getpid", "qsort_r", "printf"):
        at = found.find(exported[name] + 1)
        assert int(found.addresses[at]) == exported[name]
    os.close(fd)


def test_the_vdso_has_names() -> None:
    fd = vdso()
    found = elf.read(fd)
    assert "clock_gettime" in " ".join(found.name(fd, at) for at in range(len(found.addresses)))
    os.close(fd)


def test_names_read_as_cppfilt_reads_them(programs: dict[str, Path]) -> None:
    names = [text for _, _, text in functions(programs["known_cpp"]) if text.startswith("_Z")]
    names += [text for _, _, text in functions(programs["known_rust"]) if text.startswith(("_R", "_Z"))]
    assert sum(name.startswith("_R") for name in names) > 100
    theirs = subprocess.run(
        ["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True
    ).stdout.split("\n")
    ours = demangle(names)
    strip = re.compile(r"::h[0-9a-f]{16}|\[[0-9a-f]{6,16}\]")
    different = [
        (ours[a], strip.sub("", b))
        for a, b in zip(names, theirs, strict=False)
        if ours[a] != strip.sub("", b)
    ]
    # Lifetimes and the types of constants are left out, on purpose; everything else is the same.
    assert len(different) < 0.05 * len(names)
    assert not [each for each, _ in different if each.startswith(("_R", "_Z"))]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("_ZN4core3fmt5write17h0123456789abcdefE", "core::fmt::write"),
        ("_ZN60_$LT$alloc..string..String$u20$as$u20$core..fmt..Display$GT$3fmt17h0123456789abcdefE",
         "<alloc::string::String as core::fmt::Display>::fmt"),
        ("_RNvCskwGfYPst2Cb_4demo4main", "demo::main"),
        ("_RNCNvC4demo4main0", "demo::main::{closure#0}"),
        ("_ZN4shop4TillIiE5countEv", "shop::Till<int>::count()"),
        ("main", "main"),
        ("_Z", "_Z"),
        ("_R", "_R"),
    ],
)  # fmt: skip
def test_one_name(name: str, text: str) -> None:
    assert demangle([name])[name] == text


# ── Perf maps ────────────────────────────────────────────────────────────────────────────────────


def test_a_perf_map_of_many_lines(tmp_path: Path) -> None:
    file = tmp_path / "perf-1.map"
    with file.open("w") as out:
        out.write("no line at all\n\nzz 10 bad\n0 10 zero\n")
        for number in range(200_000):
            out.write(f"{0x7F0000000000 + number * 64:x} 40 function {number}\n")
        out.write(f"{0x7F0000000000:x} 20 newer\n" + "f" * 100_000 + "\n7fff00000000 1000 last")
    fd = opened(file)
    found = perf_map.read(fd)
    assert found.bytes < 5_000_000
    assert found.name(fd, 0x7F0000000000 + 64 * 77_777 + 63) == "function 77777"
    assert found.name(fd, 0x7F0000000001) == "newer" and found.name(fd, 0x7F0000000021) == ""
    assert found.name(fd, 0x1234) == ""
    os.close(fd)


def test_a_perf_map_that_grows_is_read_again(tmp_path: Path) -> None:
    file = Path(f"/tmp/perf-{os.getpid()}.map")
    maps = PerfMaps()
    maps.AGAIN_S = 0.0
    try:
        assert maps.name(os.getpid(), 0x1010) == ""
        file.write_text("1000 100 first\n")
        assert maps.name(os.getpid(), 0x1010) == "first"
        file.write_text("1000 100 first\n2000 100 second\n")
        assert maps.name(os.getpid(), 0x2010) == "second"
    finally:
        file.unlink(missing_ok=True)
        maps.close()


def test_a_jit_that_tells_its_names_later_is_named_then() -> None:
    """As Java is whose agent is attached after its stacks were seen."""
    code = mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, 7)
    place = ctypes.addressof(ctypes.c_char.from_buffer(code))
    record = np.zeros(1, RECORD)
    record["number"], record["pid"], record["frames"] = 42, os.getpid(), 1
    record["addresses"][0, 0] = place + 16
    names, number = Names(Symbols()), np.array([42], np.uint64)
    file = Path(f"/tmp/perf-{os.getpid()}.map")
    try:
        assert [told.frames for told in names.learn(record)] == ["[anonymous]"]
        assert names.of(number)[1] == []
        file.write_text(f"{place:x} 1000 later\n")
        names._looked = 0.0
        before, again = names.of(number)
        assert before[0] and again == [42], "the row that is there has its name still"
        assert [told.frames for told in names.learn(record)] == ["later"]
        names._looked = 0.0
        after, again = names.of(number)
        assert after[0] != before[0] and again == []
    finally:
        file.unlink(missing_ok=True)
        names.symbols.close()


# ── Other processes ──────────────────────────────────────────────────────────────────────────────


def address(name: str) -> int:
    place = ctypes.cast(getattr(ctypes.CDLL(None), name), ctypes.c_void_p).value
    assert place
    return place


def test_our_own_addresses() -> None:
    symbols = Symbols()
    places = np.array([address("getpid") + 2, 0x123, address("qsort_r") + 8], np.uint64)
    first, unknown, caller = symbols.user(os.getpid(), places)
    assert "getpid" in first.function and first.module == "libc.so.6"
    assert unknown == ("[unknown]", "", "")
    assert "qsort" in caller.function
    symbols.close()


def test_a_process_that_is_gone_is_known_by_what_was_seen_of_it(programs: dict[str, Path]) -> None:
    symbols = Symbols()
    process = subprocess.Popen([str(programs["known_c"]), "30"])
    try:
        time.sleep(0.2)
        found = symbols.look_at(process.pid)
        assert found is not None
        at = next(n for n, each in enumerate(found.files) if each.name == "known_c")
        burn = next(a for a, _, name in functions(programs["known_c"]) if name == "burn")
        base = int(found.starts[at]) - int(found.offsets[at])
    finally:
        process.kill()
        process.wait()
    # The file is read now for the first time: the path through /proc is gone, another process has it open.
    other = subprocess.Popen([str(programs["known_c"]), "30"])
    try:
        time.sleep(0.2)
        space_of_other = symbols.look_at(other.pid)
        assert space_of_other is not None
        base_of_other = int(space_of_other.starts[at]) - int(space_of_other.offsets[at])
        assert symbols.user(other.pid, np.array([base_of_other + burn + 4], np.uint64))[0].function == "burn"
    finally:
        other.kill()
        other.wait()
    assert symbols.user(process.pid, np.array([base + burn + 4], np.uint64))[0].function == "burn"
    assert symbols.user(1 << 21, np.array([1], np.uint64))[0].function == "[unknown]"
    symbols.close()


def test_a_pid_that_runs_another_program_is_read_again(programs: dict[str, Path]) -> None:
    symbols = Symbols()
    process = subprocess.Popen(["sh", "-c", f"sleep 0.7; exec {programs['known_c']} 30"])
    try:
        time.sleep(0.2)
        before = symbols.look_at(process.pid)
        time.sleep(1.2)
        after = symbols.look_at(process.pid)
    finally:
        process.kill()
        process.wait()
    assert before is not None and after is not None
    assert "known_c" not in {each.name for each in before.files}
    assert "known_c" in {each.name for each in after.files}


def test_nothing_outside_of_a_process_root_is_opened(tmp_path: Path) -> None:
    """Links, absolute or upwards, and things that are no files, in a root of their own."""
    root = tmp_path / "root"
    (root / "tmp").mkdir(parents=True)
    secret = tmp_path / "secret"
    secret.write_text("1000 10 secret\n")
    (root / "inside").write_text("inside")
    (root / "tmp" / "absolute").symlink_to(secret)
    (root / "tmp" / "upwards").symlink_to("../../secret")
    (root / "tmp" / "honest").symlink_to("/inside")
    (root / "tmp" / "magic").symlink_to("/proc/self/root")
    os.mkfifo(root / "tmp" / "pipe")
    held = f"import os,time; os.chroot({str(root)!r}); os.chdir('/'); print(1, flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", held], stdout=subprocess.PIPE)
    try:
        assert process.stdout and process.stdout.readline()
        for name in ("absolute", "upwards", "magic", "pipe", "missing", "."):
            with pytest.raises(OSError):
                opening.open_inside(process.pid, f"/tmp/{name}")
        fd = opening.open_inside(process.pid, "/tmp/honest")
        assert os.read(fd, 10) == b"inside"
        os.close(fd)
    finally:
        process.kill()
        process.wait()


def test_what_is_kept_is_bounded(programs: dict[str, Path], tmp_path: Path) -> None:
    """Many different files: neither descriptors nor symbols pile up."""
    from collector.symbols.modules import FILES, Modules
    from collector.symbols.space import Mapped

    modules = Modules(limit=40_000)
    before = descriptors()
    raw = programs["known_cpp"].read_bytes()
    for number in range(150):
        file = tmp_path / f"copy{number}"
        file.write_bytes(raw)
        module = modules.of(os.getpid(), Mapped(str(file), "00:01", file.stat().st_ino))
        assert module.elf is not None
        file.unlink()
        assert modules.bytes <= 40_000 + module.bytes
        assert descriptors() - before <= FILES
    modules.close()
    assert descriptors() == before


def descendant(pid: int, name: str) -> int:
    """The process of that name below ``pid``."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        waiting = [pid]
        for each in waiting:
            with contextlib.suppress(OSError):
                if Path(f"/proc/{each}/comm").read_text().strip() == name:
                    return each
                waiting += map(int, Path(f"/proc/{each}/task/{each}/children").read_text().split())
        time.sleep(0.05)
    raise AssertionError(f"no {name} below {pid}")


def test_a_container_has_files_and_pids_of_its_own(programs: dict[str, Path]) -> None:
    """The program and its perf map lie on file systems that the host does not see."""
    work = Path("/var/tmp") / f"bpfleet-test-{os.getpid()}"
    work.mkdir()
    steps = (
        f"mount -t tmpfs none {work} && cp {programs['known_c']} {programs['known_jit']} {work} && "
        f"mount -t tmpfs none /tmp && {{ {work}/known_jit 30 & exec {work}/known_c 30; }}"
    )
    seen: list[int] = []
    process = subprocess.Popen(
        [
            "unshare",
            "--mount",
            "--pid",
            "--fork",
            "--mount-proc",
            "--propagation",
            "private",
            "sh",
            "-c",
            steps,
        ]
    )
    symbols = Symbols()
    try:
        seen += [descendant(process.pid, "known_c"), descendant(process.pid, "known_jit")]
        known, jit = seen
        time.sleep(0.3)
        assert not (work / "known_c").exists()
        found = symbols.look_at(known)
        assert found is not None
        at = next(n for n, each in enumerate(found.files) if each.name == "known_c")
        burn = next(a for a, _, name in functions(programs["known_c"]) if name == "burn")
        place = int(found.starts[at]) - int(found.offsets[at]) + burn + 4
        assert symbols.user(known, np.array([place], np.uint64))[0].function == "burn"
        code = next(
            int(line.split("-")[0], 16)
            for line in Path(f"/proc/{jit}/maps").read_text().splitlines()
            if " rwxp " in line
        )
        assert symbols.user(jit, np.array([code + 5], np.uint64))[0] == (
            "js:hot,path square.js:3",
            "[jit]",
            "",
        )
    finally:
        for each in seen:
            with contextlib.suppress(OSError):
                os.kill(each, signal.SIGKILL)
        process.kill()
        process.wait()
        work.rmdir()
        symbols.close()
