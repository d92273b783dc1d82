"""bpf(2): programs, maps and pins, on the real kernel."""

import errno
import os
import struct
from pathlib import Path

import pytest

from collector import bpf_sys, tracefs
from collector.bpf_map import NO_PREALLOC, Map, MapType, possible_cpus
from collector.bpf_sys import BpfError, ProgType

PACKET = bytes(64)
MOV_R0, EXIT = 0xB7, 0x95


def instruction(code: int, registers: int = 0, offset: int = 0, value: int = 0) -> bytes:
    return struct.pack("<BBhi", code, registers, offset, value)


def returning(value: int) -> bytes:
    return instruction(MOV_R0, value=value) + instruction(EXIT)


@pytest.fixture
def xdp_pass():
    fd = bpf_sys.prog_load(ProgType.XDP, returning(2), "test_pass")
    yield fd
    os.close(fd)


def test_a_program_runs_and_tells_of_itself(xdp_pass):
    stats = bpf_sys.enable_stats()
    before = bpf_sys.prog_info(xdp_pass)
    result = bpf_sys.prog_test_run(xdp_pass, PACKET, repeat=100)
    after = bpf_sys.prog_info(xdp_pass)
    os.close(stats)
    assert (result.retval, result.data) == (2, PACKET)
    assert after.name == "test_pass"
    assert after.type == ProgType.XDP
    assert after.run_count - before.run_count == 100
    assert after.instructions == 2


def test_the_verifiers_last_word_is_the_error():
    with pytest.raises(BpfError, match=r"the verifier refused program bad: .*R0 !read_ok") as caught:
        bpf_sys.prog_load(ProgType.XDP, instruction(EXIT), "bad")
    assert "\n" not in str(caught.value)
    assert "R0 !read_ok" in caught.value.log


def test_a_link_is_updated_in_place(xdp_pass):
    drop = bpf_sys.prog_load(ProgType.XDP, returning(1), "test_drop")
    link = bpf_sys.xdp_link(xdp_pass, 1, "generic")  # the loopback interface; dropping nothing yet
    try:
        with pytest.raises(BpfError):
            bpf_sys.link_update(link, xdp_pass, expected_fd=drop)
        bpf_sys.link_update(link, xdp_pass, expected_fd=xdp_pass)
    finally:
        os.close(link)
        os.close(drop)


@pytest.mark.parametrize(
    "kind", [MapType.HASH, MapType.PERCPU_HASH, MapType.LRU_HASH, MapType.LRU_PERCPU_HASH]
)
def test_hashes_by_key_and_whole(kind):
    table = Map.create(kind, 4, 12, 4096, "test_hash_with_a_long_name")
    values = {n: (n.to_bytes(12, "little").ljust(table.stride, b"\0")) for n in range(3000)}
    copies = table.element_size // table.stride
    table.update_many(
        b"".join(n.to_bytes(4, "little") for n in values), b"".join(v * copies for v in values.values()), 3000
    )
    keys, raw, count = table.read()
    size = table.element_size
    found = {
        int.from_bytes(keys[4 * n : 4 * n + 4], "little"): bytes(raw[size * n : size * (n + 1)])
        for n in range(count)
    }
    assert found == {n: v * copies for n, v in values.items()}
    assert table.lookup((7).to_bytes(4, "little")) == values[7] * copies
    assert table.delete((7).to_bytes(4, "little"))
    assert not table.delete((7).to_bytes(4, "little"))
    assert table.lookup((7).to_bytes(4, "little")) is None
    assert sum(1 for _ in table) == 2999
    assert table.read(delete=True)[2] == 2999
    assert table.read()[2] == 0
    table.close()


def test_arrays_and_per_cpu_arrays():
    plain = Map.create(MapType.ARRAY, 4, 8, 3, "test_array")
    plain.update(bytes(4), b"abcdefgh")
    assert plain.read() == (b"\0\0\0\0\1\0\0\0\2\0\0\0", b"abcdefgh" + bytes(16), 3)
    each = Map.create(MapType.PERCPU_ARRAY, 4, 4, 2, "test_percpu")
    each.update(bytes(4), b"wxyz\0\0\0\0" * possible_cpus())
    assert each.lookup(bytes(4)) == b"wxyz\0\0\0\0" * possible_cpus()
    assert each.read()[2] == 2
    plain.close()
    each.close()


def test_a_trie_finds_the_longest_prefix():
    trie = Map.create(MapType.LPM_TRIE, 8, 4, 16, "test_trie", flags=NO_PREALLOC)
    trie.update(struct.pack("<I4B", 8, 10, 0, 0, 0), b"wide")
    trie.update(struct.pack("<I4B", 24, 10, 1, 2, 0), b"near")
    assert trie.lookup(struct.pack("<I4B", 32, 10, 1, 2, 3)) == b"near"
    assert trie.lookup(struct.pack("<I4B", 32, 10, 9, 9, 9)) == b"wide"
    assert trie.lookup(struct.pack("<I4B", 32, 11, 0, 0, 1)) is None
    trie.close()


def test_pins_outlive_the_descriptor(xdp_pass):
    tracefs.mount()
    folder = tracefs.BPFFS / f"bpfleet-test-{os.getpid()}"
    folder.mkdir()
    table = Map.create(MapType.HASH, 4, 4, 4, "test_pinned")
    try:
        table.update(b"1234", b"5678")
        table.pin(folder / "map")
        table.close()
        bpf_sys.pin(xdp_pass, folder / "program")
        again = Map.pinned(folder / "map")
        assert (again.name, again.lookup(b"1234")) == ("test_pinned", b"5678")
        again.close()
        program = bpf_sys.obj_get(folder / "program")
        assert bpf_sys.prog_info(program).name == "test_pass"
        os.close(program)
        with pytest.raises(BpfError, match=r"cannot pin .*: file exists"):
            bpf_sys.pin(xdp_pass, folder / "program")
    finally:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()


def test_wrong_sizes_and_limits_are_refused():
    table = Map.create(MapType.HASH, 4, 4, 1, "test_small")
    with pytest.raises(BpfError, match="key has 3 bytes, not 4"):
        table.lookup(b"123")
    with pytest.raises(BpfError, match="value has 5 bytes, not 4"):
        table.update(b"1234", b"12345")
    table.update(b"1234", b"1234")
    with pytest.raises(BpfError) as full:
        table.update(b"1235", b"1234")
    assert full.value.errno == errno.E2BIG
    table.close()


def test_a_tracepoint_program_counts_its_firings():
    tracefs.mount()
    stats = bpf_sys.enable_stats()
    program = bpf_sys.prog_load(ProgType.TRACEPOINT, returning(0), "test_count")
    event = tracefs.tracepoint_event("syscalls", "sys_enter_sched_yield")
    tracefs.attach(event, program)
    for _ in range(23):
        os.sched_yield()
    assert bpf_sys.prog_info(program).run_count >= 23
    for fd in (event, program, stats):
        os.close(fd)


def test_missing_tracepoints_are_named():
    with pytest.raises(BpfError.__base__, match="no tracepoint sched:no_such_thing"):
        tracefs.tracepoint_id("sched", "no_such_thing")
    with pytest.raises(BpfError, match="cannot attach to tracepoint no_such_thing"):
        program = bpf_sys.prog_load(ProgType.RAW_TRACEPOINT, returning(0), "test_raw")
        bpf_sys.raw_tracepoint_open(program, "no_such_thing")
    os.close(program)


def test_without_privileges_the_error_says_what_to_grant():
    """In a child, since privileges once dropped do not come back."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.setresuid(65534, 65534, 65534)
        try:
            bpf_sys.prog_load(ProgType.XDP, returning(2), "denied")
        except BpfError as error:
            os.write(writer, str(error).encode())
        os._exit(0)
    os.close(writer)
    with Path(f"/proc/self/fd/{reader}").open() as stream:
        text = stream.read()
    os.waitpid(child, 0)
    os.close(reader)
    assert "run as root or grant CAP_NET_ADMIN, CAP_PERFMON, CAP_BPF" in text
