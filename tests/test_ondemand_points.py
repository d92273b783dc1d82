"""Functions of a name in several places, and files that processes have loaded: none of them is missed."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from ondemand import Alone, alone, compiled, python, total

from collector.ondemand.binary import find
from collector.ondemand.elf import Elf
from schemas import probe_point
from schemas.errors import BpfleetError, UsageError

# An old and a new version of a function, as glibc has of pthread_cond_wait or realpath; a static one twice.
LIBRARY = r"""
__attribute__((noinline)) int old(int n) { __asm__ volatile(""); return n + 1; }
__attribute__((noinline)) int recent(int n) { __asm__ volatile(""); return n + 2; }
__asm__(".symver old, twice@ONE\n.symver recent, twice@@TWO");
__attribute__((noinline)) int other(int n) { __asm__ volatile(""); return n + 3; }
static int plain(int n) { return n; }
static void *choose(void) { return plain; }
int chosen(int n) __attribute__((ifunc("choose")));
"""
VERSIONS = "ONE { };\nTWO { global: twice; other; chosen; local: *; } ONE;\n"
CALLS = (
    "int twice(int), other(int);\nint main(void) { for (int n = 0; n < 23; n++) { twice(n); other(n); } }\n"
)


@pytest.fixture(scope="module")
def host() -> Iterator[Alone]:
    with alone(probe_max_cpu=1.0) as made:
        yield made


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program, linked to ``libtwice.so`` beside it."""
    directory = tmp_path_factory.mktemp("versions")
    (directory / "versions").write_text(VERSIONS)
    compiled(
        directory,
        "libtwice.so",
        LIBRARY,
        "-shared",
        "-fPIC",
        f"-Wl,--version-script={directory / 'versions'}",
    )
    return compiled(directory, "calls", CALLS, f"-L{directory}", "-ltwice", f"-Wl,-rpath,{directory}")


def test_all_versions_of_a_function_are_probed(host: Alone, program: Path) -> None:
    library = program.parent / "libtwice.so"
    with Elf(library) as elf:
        assert len(elf.functions("twice")) == 2
    assert host.run("twice", f"sum(retval) function:{library}:twice").state == "applied"
    subprocess.run([program], check=False)
    rows = host.end("twice")
    assert (total(rows), total(rows, "sum")) == (23, sum(range(23)) + 46)


def test_one_of_several_functions(host: Alone, program: Path) -> None:
    library = program.parent / "libtwice.so"
    assert host.run("any", f"count uprobe:{library}:other|twice|nowhere by comm").state == "applied"
    subprocess.run([program], check=False)
    assert total(host.end("any"), comm="calls") == 46
    outcome = host.run("none", f"count uprobe:{library}:nowhere|never")
    assert "has no function nowhere" in outcome.reason


def test_a_function_that_is_chosen_at_run_time_says_so(program: Path) -> None:
    with Elf(program.parent / "libtwice.so") as elf, pytest.raises(BpfleetError, match="chosen at run time"):
        elf.functions("chosen")


def test_a_name_means_what_the_process_has_loaded(program: Path, tmp_path: Path) -> None:
    code = "import ctypes, sys\nctypes.CDLL(sys.argv[1])\nprint(flush=True)\nsys.stdin.read()"
    child = subprocess.Popen(
        ["/usr/bin/python3", "-S", "-E", "-c", code, program.parent / "libtwice.so"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert child.stdout
        child.stdout.readline()
        (found,) = find("libtwice", [child.pid])
        assert found.samefile(program.parent / "libtwice.so")
    finally:
        child.kill()
        child.communicate()
    with pytest.raises(BpfleetError, match="there is no libtwice on this host"):
        find("libtwice")
    (tmp_path / "script").write_text("#!/bin/sh\n")
    with pytest.raises(BpfleetError, match="is no program or library"):
        find(str(tmp_path / "script"))


@pytest.mark.parametrize(
    "text",
    ["uprobe:libc:a|", "uprobe:libc:|a", "uprobe:libc:a||b", "uprobe:libc:a+4|b", "usdt:libc:a|b:c",
     "kprobe:a|b", "uprobe:libc:" + "|".join("abcdefghi"), "tracepoint:a|b:c"],
)  # fmt: skip
def test_alternatives_of_other_kinds_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        probe_point.parse(text)


def test_tls_bytes_count_both_ways_to_write(host: Alone, tmp_path: Path) -> None:
    """Python writes by SSL_write_ex, most others by SSL_write."""
    from fleet import probe_choice

    assert host.run("tls", probe_choice.choose("tls-bytes", {}).spec).state == "applied"
    python(
        "import ctypes, ssl\nctypes.CDLL(None).prctl(15, b'writing')\n"
        "context = ssl.create_default_context()\n"
        "made = context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname='x')\n"
        "for _ in range(3):\n"
        "    try: made.write(b'x' * 1000)\n"
        "    except ssl.SSLError: pass\n"
    )
    rows = host.end("tls")
    assert (total(rows, comm="writing"), total(rows, "sum", comm="writing")) == (3, 3000)
