"""block_io: known direct reads and writes of a loop device, against the kernel's own disk statistics."""

import mmap
import os
import subprocess
from pathlib import Path

import pytest
from probing import probing

BLOCK = 4096


@pytest.fixture(scope="module")
def probe():
    with probing("block_io", settings={"slow_io_us": 10_000_000}) as loaded:
        yield loaded


@pytest.fixture
def disk(tmp_path):
    """A loop device of 8 MB, and the kernel's number of it."""
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(8 << 20))
    device = subprocess.run(
        ["losetup", "--find", "--show", str(image)], check=True, capture_output=True, text=True
    ).stdout.strip()
    try:
        yield Path(device)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


def number(device: Path) -> int:
    """dev_t as the kernel keeps it."""
    found = device.stat().st_rdev
    return os.major(found) << 20 | os.minor(found)


def statistics(device: Path) -> list[int]:
    return [int(each) for each in Path(f"/sys/block/{device.name}/stat").read_text().split()]


def direct(device: Path, reads: int = 0, writes: int = 0) -> None:
    """Single requests past the page cache."""
    buffer = mmap.mmap(-1, BLOCK)
    fd = os.open(device, os.O_RDWR | os.O_DIRECT)
    for at in range(reads):
        assert os.preadv(fd, [buffer], at * BLOCK) == BLOCK
    for at in range(writes):
        assert os.pwritev(fd, [buffer], at * BLOCK) == BLOCK
    os.close(fd)


def operations(probe, device: Path) -> dict[str, dict]:
    names = probe.enums["REQ_OP_READ"]
    return {
        names[int(key["operation"])]: value
        for key, value in probe.rows("block_io")
        if key["device"] == number(device)
    }


def test_every_direct_request_is_in_the_histogram(probe, disk):
    probe.rows("block_io")
    before = statistics(disk)
    direct(disk, reads=137, writes=41)
    rows, after = operations(probe, disk), statistics(disk)
    assert (rows["READ"]["count"], rows["WRITE"]["count"]) == (137, 41)
    assert (after[0] - before[0], after[4] - before[4]) == (137, 41)
    for operation, count, sectors in (("READ", 137, 2), ("WRITE", 41, 6)):
        row = rows[operation]
        assert row["latencies"].sum() == count
        assert row["bytes"] == count * BLOCK == (after[sectors] - before[sectors]) * 512
        assert row["errors"] == 0
        assert 0 < row["latency_ns"] < 10_000_000_000
        low = sum(n * (1 << bucket >> 1) for bucket, n in enumerate(row["latencies"].tolist()))
        assert low * 1000 <= row["latency_ns"] <= (2 * low + count) * 1000


def test_requests_are_told_apart_by_size_and_their_queueing_is_a_histogram(probe, disk):
    """Each class of size from one page to more than a megabyte; a request of 2 MB the kernel may split."""
    classes = next(each for each in probe.declared.streams[0].fields if each.name == "size").argument.split(
        ","
    )
    probe.rows("block_io")
    fd = os.open(disk, os.O_RDONLY | os.O_DIRECT)
    sizes = {"4K": 4096, "16K": 8192, "64K": 65536, "256K": 131072}
    for size in sizes.values():
        for at in range(6):
            assert os.preadv(fd, [mmap.mmap(-1, size)], at * size) == size
    os.close(fd)
    rows = {classes[k["size"]]: v for k, v in probe.rows("block_io") if k["device"] == number(disk)}
    assert {name: int(row["count"]) for name, row in rows.items()} == dict.fromkeys(sizes, 6)
    assert {name: int(row["bytes"]) for name, row in rows.items()} == {n: 6 * s for n, s in sizes.items()}
    for row in rows.values():
        assert row["queues"].sum() == row["count"]
        low = sum(n * (1 << bucket >> 1) for bucket, n in enumerate(row["queues"].tolist()))
        assert low * 1000 <= row["queued_ns"] <= (2 * low + int(row["count"])) * 1000


def test_slow_requests_are_events_and_the_threshold_is_set_while_it_runs(probe, disk):
    probe.events("block_io_slow", seconds=0)
    direct(disk, reads=10)
    assert probe.events("block_io_slow", seconds=0) == []
    probe.loaded.set("slow_io_us", 0)
    direct(disk, reads=10)
    probe.loaded.set("slow_io_us", 10_000_000)
    events = probe.events("block_io_slow", lambda found: len(found) >= 10)
    ours = [each for each in events if each["device"] == number(disk)]
    assert [int(each["sector"]) for each in ours] == [at * BLOCK // 512 for at in range(10)]
    assert {int(each["bytes"]) for each in ours} == {BLOCK}
    assert {int(each["pid"]) for each in ours} == {os.getpid()}
    assert {each["comm"].decode() for each in ours} == {Path("/proc/self/comm").read_text().strip()}
    assert all(each["latency_ns"] > 0 for each in ours)
    direct(disk, reads=10)
    assert probe.events("block_io_slow", seconds=0) == []


def test_nothing_is_left_of_finished_requests(probe, disk):
    direct(disk, reads=50)
    assert probe.loaded.maps["block_io_issued"].read()[2] < 10
    assert probe.counts()[:, 1].tolist() == [0, 0]


def test_agrees_with_biolatency(probe, disk):
    """libbpf-tools' biolatency over the same requests; it shows all disks together, so it may see more."""
    tool = subprocess.Popen(
        ["stdbuf", "-oL", "biolatency", "2", "1"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert tool.stdout is not None
    assert "Tracing" in tool.stdout.readline()  # it is attached
    probe.rows("block_io")
    direct(disk, reads=2000)
    text = tool.communicate(timeout=20)[0]
    theirs = sum(int(line.split()[4]) for line in text.splitlines() if "->" in line)
    rows = probe.rows("block_io")
    ours = sum(int(v["count"]) for k, v in rows if k["device"] == number(disk))
    everything = sum(int(value["count"]) for _, value in rows)
    assert ours == 2000
    assert 2000 <= theirs <= everything + 100
