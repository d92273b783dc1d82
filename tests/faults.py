"""Real faults, each with what it must be called: made on entry, gone on exit, whatever happens between.

with FAULTS["cpu_quota"].make(tmp_path) as culprit: …
"""

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from collector.pressure_cgroup import mounts

WORK = Path(__file__).with_name("faults_work.py")
CPUS = os.cpu_count() or 1
PORT = 7070
_numbers = itertools.count(os.getpid() % 1000 * 100)


def sh(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert not done.returncode, f"{' '.join(words)}: {done.stderr}"
    return done.stdout.strip()


class Group:
    """A cgroup of its own, in the unified hierarchy and in those of v1 controllers that limits need."""

    def __init__(self, name: str, *controllers: str) -> None:
        self.path = f"/fault-{name}-{next(_numbers)}"
        places = mounts()
        self.unified = Path(places[""] + self.path)
        self.v1 = {name: Path(places[name] + self.path) for name in controllers if name in places}
        self.controllers = controllers
        self.root = Path(places[""])

    def make(self) -> None:
        for each in set(self.controllers) - set(self.v1):
            (self.root / "cgroup.subtree_control").write_text(f"+{'io' if each == 'blkio' else each}")
        for each in (self.unified, *self.v1.values()):
            each.mkdir()

    def limit(self, controller: str, v1: dict[str, str], v2: dict[str, str]) -> None:
        place, files = (self.v1[controller], v1) if controller in self.v1 else (self.unified, v2)
        for name, text in files.items():
            (place / name).write_text(text)

    def remove(self) -> None:
        for each in (self.unified, *self.v1.values()):
            end = time.monotonic() + 10
            while each.exists():
                with suppress(OSError):
                    each.rmdir()
                    break
                assert time.monotonic() < end, f"{each} stays"
                time.sleep(0.05)


@contextmanager
def group(name: str, *controllers: str) -> Iterator[Group]:
    made = Group(name, *controllers)
    try:
        made.make()
        yield made
    finally:
        made.remove()


@contextmanager
def work(
    *arguments: str, into: Group | None = None, inside: str = "", times: int = 1
) -> Iterator[list["subprocess.Popen[bytes]"]]:
    """Programs of faults_work.py, ended on exit with all that they started."""
    directories = [into.unified, *into.v1.values()] if into else []
    environment = {**os.environ, "FAULT_CGROUPS": ":".join(map(str, directories))}
    enter = ["nsenter", f"--net=/run/netns/{inside}"] if inside else []
    command = [*enter, sys.executable, "-S", str(WORK), *arguments]
    started = [subprocess.Popen(command, env=environment, start_new_session=True) for _ in range(times)]
    try:
        yield started
    finally:
        for each in started:
            with suppress(ProcessLookupError):
                os.killpg(each.pid, signal.SIGKILL)
        for each in started:
            each.wait()


@contextmanager
def cpu_hogs(_: Path) -> Iterator[str]:
    with group("hogs") as own, work("hog", into=own, times=3 * CPUS):
        yield own.path


@contextmanager
def cpu_quota(_: Path) -> Iterator[str]:
    with group("quota", "cpu", "cpuacct") as own:
        own.limit("cpu", {"cpu.cfs_quota_us": "30000"}, {"cpu.max": "30000 100000"})
        with work("hog", "0.9", into=own):
            yield own.path


@contextmanager
def noisy_neighbour(_: Path) -> Iterator[str]:
    with ExitStack() as stack:
        victim, loud = stack.enter_context(group("victim")), stack.enter_context(group("loud"))
        stack.enter_context(work("hog", "0.6", into=victim))
        stack.enter_context(work("hog", into=loud, times=3 * CPUS))
        yield loud.path


@contextmanager
def memory_limit(directory: Path) -> Iterator[str]:
    file = directory / f"pages{next(_numbers)}"
    fd = os.open(file, os.O_RDWR | os.O_CREAT)
    try:
        for _ in range(96):
            os.write(fd, os.urandom(1 << 20))
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)  # else its pages are charged to us
        with group("memory", "memory") as own:
            own.limit("memory", {"memory.limit_in_bytes": "48M"}, {"memory.max": "48M"})
            with work("thrash", str(file), into=own):
                yield own.path
    finally:
        os.close(fd)
        file.unlink()


@contextmanager
def loop(backing: str, *options: str) -> Iterator[str]:
    device = sh("losetup", "--find", "--show", *options, backing)
    try:
        yield device
    finally:
        end = time.monotonic() + 10
        while subprocess.run(["losetup", "-d", device], capture_output=True, check=False).returncode:
            assert time.monotonic() < end, f"{device} stays"
            time.sleep(0.1)


def number_of(device: str) -> str:
    found = Path(device).stat().st_rdev
    return f"{os.major(found)}:{os.minor(found)}"


@contextmanager
def image(directory: Path) -> Iterator[str]:
    file = directory / f"disk{next(_numbers)}"
    with file.open("wb") as made:
        made.truncate(64 << 20)
    try:
        yield str(file)
    finally:
        file.unlink()


@contextmanager
def io_limit(directory: Path) -> Iterator[str]:
    """A cgroup that may have 20 reads a second of a device that is fast."""
    with image(directory) as file, loop(file) as device, group("io", "blkio") as own:
        own.limit("blkio", {"blkio.throttle.read_iops_device": f"{number_of(device)} 20"},
                  {"io.max": f"{number_of(device)} riops=20"})  # fmt: skip
        with work("read_direct", device, into=own):
            yield own.path


@contextmanager
def slow_device(directory: Path) -> Iterator[str]:
    """A device whose backing store makes it wait: slow for everybody, and no reader has a limit on it."""
    with ExitStack() as stack:
        file = stack.enter_context(image(directory))
        below = stack.enter_context(loop(file))
        device = stack.enter_context(loop(below, "--direct-io=on"))
        # Of v1, the root has a limit too; requests of a loop device count for who made them.
        own = stack.enter_context(group("below", "blkio"))
        limit = Path(mounts()["blkio"]) if "blkio" in own.v1 else own.unified
        name = "blkio.throttle.read_iops_device" if "blkio" in own.v1 else "io.max"
        narrow, wide = ("12", "0") if "blkio" in own.v1 else ("riops=12", "riops=max")
        stack.enter_context(work("read_direct", device, into=None if "blkio" in own.v1 else own))
        (limit / name).write_text(f"{number_of(below)} {narrow}")
        stack.callback((limit / name).write_text, f"{number_of(below)} {wide}")
        yield Path(device).name


class Net:
    """A namespace behind a pair of virtual interfaces: we are .1, it is .2."""

    def __init__(self) -> None:
        number = next(_numbers)
        self.name, self.ours = f"fault{number}", f"fo{number}"
        subnet = f"10.{77 + number // 200 % 100}.{number % 200}"
        self.us, self.them = f"{subnet}.1", f"{subnet}.2"

    def make(self) -> None:
        sh("ip", "netns", "add", self.name)
        sh("ip", "link", "add", self.ours, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        sh("ip", "addr", "add", f"{self.us}/24", "dev", self.ours)
        sh("ip", "link", "set", self.ours, "up")
        for words in (["addr", "add", f"{self.them}/24", "dev", "eth0"], ["link", "set", "eth0", "up"],
                      ["link", "set", "lo", "up"]):  # fmt: skip
            sh("ip", "-n", self.name, *words)

    def shape(self, *words: str) -> None:
        sh("tc", "qdisc", "replace", "dev", self.ours, "root", "tbf", *words)

    def remove(self) -> None:
        subprocess.run(["ip", "link", "del", self.ours], capture_output=True, check=False)
        subprocess.run(["ip", "netns", "del", self.name], capture_output=True, check=False)


@contextmanager
def net() -> Iterator[Net]:
    made = Net()
    try:
        made.make()
        yield made
    finally:
        made.remove()


@contextmanager
def loss(_: Path) -> Iterator[str]:
    """A bucket that drops what it has no room for, under a connection that wants more."""
    with ExitStack() as stack:
        made = stack.enter_context(net())
        stack.enter_context(work("swallow", made.them, str(PORT), inside=made.name))
        stack.enter_context(work("send", made.them, str(PORT), "400000"))
        time.sleep(1)
        made.shape("rate", "1mbit", "burst", "4kb", "limit", "8kb")
        yield made.them


@contextmanager
def delay(_: Path) -> Iterator[str]:
    """A deep queue in front of a slow link: nothing is lost, everything is late."""
    with ExitStack() as stack:
        made = stack.enter_context(net())
        stack.enter_context(work("swallow", made.them, str(PORT), inside=made.name))
        stack.enter_context(work("send", made.them, str(PORT), "100000", times=3))
        time.sleep(1)
        made.shape("rate", "1mbit", "burst", "4kb", "limit", "4mb")
        yield made.them


@contextmanager
def slow_server(_: Path) -> Iterator[str]:
    """A server that takes 0.4 s for each answer."""
    with ExitStack() as stack:
        made = stack.enter_context(net())
        stack.enter_context(work("serve", made.them, str(PORT), "0.4", inside=made.name))
        stack.enter_context(work("ask", made.them, str(PORT)))
        yield f"{made.them}:{PORT}"


@contextmanager
def nothing(_: Path) -> Iterator[str]:
    """Ordinary work: a quick server, a little CPU."""
    with ExitStack() as stack:
        made = stack.enter_context(net())
        stack.enter_context(work("serve", made.them, str(PORT), "0.002", inside=made.name))
        stack.enter_context(work("ask", made.them, str(PORT)))
        own = stack.enter_context(group("ordinary"))
        stack.enter_context(work("hog", "0.1", into=own))
        yield ""


@dataclass(frozen=True)
class Fault:
    """How it is made, and the verdict on it; the context's value is (part of) the culprit's name."""

    make: Callable[[Path], "contextmanager[str]"]  # type: ignore[valid-type]
    verdict: str


FAULTS = {
    "cpu_hogs": Fault(cpu_hogs, "cpu_saturation"),
    "cpu_quota": Fault(cpu_quota, "cpu_quota"),
    "noisy_neighbour": Fault(noisy_neighbour, "noisy_neighbour"),
    "memory_limit": Fault(memory_limit, "memory_pressure"),
    "io_limit": Fault(io_limit, "slow_disk"),
    "slow_device": Fault(slow_device, "slow_disk"),
    "loss": Fault(loss, "network"),
    "delay": Fault(delay, "network"),
    "slow_server": Fault(slow_server, "remote_slowness"),
    "nothing": Fault(nothing, "nothing_wrong"),
}
PAIRS = (
    ("cpu_hogs", "slow_server"), ("cpu_quota", "loss"), ("memory_limit", "slow_server"),
    ("io_limit", "delay"), ("noisy_neighbour", "io_limit"), ("cpu_quota", "slow_device"),
    ("memory_limit", "loss"), ("cpu_hogs", "loss"), ("slow_server", "loss"), ("cpu_quota", "memory_limit"),
)  # fmt: skip
