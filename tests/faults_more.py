"""Other ways to the same troubles, and other ordinary work: what `faults` does not do, for the benchmark."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from faults import CPUS, PORT, Fault, Group, Net, group, image, loop, net, number_of, sh, work

DROPPED = 2  # TC_ACT_SHOT
RANDOM = 0xFFFFF038  # where classic BPF reads a random number
MB = 1 << 20


@contextmanager
def short_processes(_: Path) -> Iterator[str]:
    with work("fork", str(4 * CPUS)):
        yield ""


@contextmanager
def kernel_time(_: Path) -> Iterator[str]:
    with group("copies") as own, work("copy", into=own, times=3 * CPUS):
        yield own.path


@contextmanager
def quota_above(_: Path) -> Iterator[str]:
    """A quota of short periods, on the cgroup above the one that works."""
    with group("above", "cpu") as above:
        above.limit(
            "cpu", {"cpu.cfs_period_us": "5000", "cpu.cfs_quota_us": "1500"}, {"cpu.max": "1500 5000"}
        )
        below = Group("below", "cpu")
        below.path = f"{above.path}/below"
        below.unified = above.unified / "below"
        below.v1 = {name: place / "below" for name, place in above.v1.items()}
        try:
            below.make()
            with work("hog", into=below):
                yield above.path
        finally:
            below.remove()


@contextmanager
def light_victim(_: Path) -> Iterator[str]:
    """One that wants a third of a CPU, beside many short processes."""
    with (
        group("light") as victim,
        group("many") as loud,
        work("hog", "0.35", into=victim),
        work("fork", str(4 * CPUS), into=loud),
    ):
        yield loud.path


@contextmanager
def killed(_: Path) -> Iterator[str]:
    with group("killed", "memory") as own:
        own.limit("memory", {"memory.limit_in_bytes": "32M"}, {"memory.max": "32M"})
        with work("grow", "64", into=own):
            yield own.path


@contextmanager
def write_limit(directory: Path) -> Iterator[str]:
    """Bytes written a second are limited, not requests read."""
    with image(directory) as file, loop(file) as device, group("bytes", "blkio") as own:
        own.limit("blkio", {"blkio.throttle.write_bps_device": f"{number_of(device)} {MB}"},
                  {"io.max": f"{number_of(device)} wbps={MB}"})  # fmt: skip
        with work("write_direct", device, into=own):
            yield own.path


def drop(made: Net, share: float) -> None:
    """Drop that share of what leaves for it, at random."""
    sh("tc", "qdisc", "add", "dev", made.ours, "clsact")
    program = f"4,32 0 0 {RANDOM},53 1 0 {int(share * 2**32)},6 0 0 {DROPPED},6 0 0 0"
    sh("tc", "filter", "add", "dev", made.ours, "egress", "bpf", "da", "bytecode", program)


@contextmanager
def scattered_loss(_: Path) -> Iterator[str]:
    """One packet in twelve, of short questions and answers."""
    with (
        net() as made,
        work("serve", made.them, str(PORT), "0", inside=made.name),
        work("ask", made.them, str(PORT), "0.005"),
    ):
        time.sleep(1)
        drop(made, 0.08)
        yield made.them


@contextmanager
def gone(_: Path) -> Iterator[str]:
    """Nothing gets through any more."""
    with (
        net() as made,
        work("swallow", made.them, str(PORT), inside=made.name),
        work("send", made.them, str(PORT), "100000"),
    ):
        time.sleep(1)
        drop(made, 0.999999)
        yield made.them


@contextmanager
def now_and_then(_: Path) -> Iterator[str]:
    """One answer in eight takes 0.6 s."""
    with (
        net() as made,
        work("serve", made.them, str(PORT), "0.6", "8", inside=made.name),
        work("ask", made.them, str(PORT), "0.01"),
    ):
        yield f"{made.them}:{PORT}"


@contextmanager
def stopped(_: Path) -> Iterator[str]:
    """A server that answered, and whose process is stopped."""
    with (
        net() as made,
        work("serve", made.them, str(PORT), "0.001", inside=made.name) as (server,),
        work("ask", made.them, str(PORT), "0.02"),
    ):
        time.sleep(2.5)
        os.kill(server.pid, signal.SIGSTOP)
        yield f"{made.them}:{PORT}"


@contextmanager
def bulk_write(directory: Path) -> Iterator[str]:
    file = directory / "bulk"
    try:
        with work("write", str(file), "64"):
            yield ""
    finally:
        file.unlink(missing_ok=True)


@contextmanager
def full_speed(_: Path) -> Iterator[str]:
    """As much as a connection takes."""
    with (
        net() as made,
        work("swallow", made.them, str(PORT), inside=made.name),
        work("send", made.them, str(PORT), str(50 * MB)),
    ):
        yield ""


@contextmanager
def within_quota(_: Path) -> Iterator[str]:
    with group("within", "cpu") as own:
        own.limit("cpu", {"cpu.cfs_quota_us": "60000"}, {"cpu.max": "60000 100000"})
        with work("hog", "0.3", into=own):
            yield ""


@contextmanager
def busy(_: Path) -> Iterator[str]:
    """One CPU kept busy: nobody waits."""
    with ExitStack() as stack:
        own = stack.enter_context(group("busy"))
        stack.enter_context(work("hog", into=own))
        yield ""


MORE = {
    "short_processes": Fault(short_processes, "cpu_saturation"),
    "kernel_time": Fault(kernel_time, "cpu_saturation"),
    "quota_above": Fault(quota_above, "cpu_quota"),
    "light_victim": Fault(light_victim, "noisy_neighbour"),
    "killed": Fault(killed, "memory_pressure"),
    "write_limit": Fault(write_limit, "slow_disk"),
    "scattered_loss": Fault(scattered_loss, "network"),
    "gone": Fault(gone, "network"),
    "now_and_then": Fault(now_and_then, "remote_slowness"),
    "stopped": Fault(stopped, "remote_slowness"),
    "bulk_write": Fault(bulk_write, "nothing_wrong"),
    "full_speed": Fault(full_speed, "nothing_wrong"),
    "within_quota": Fault(within_quota, "nothing_wrong"),
    "busy": Fault(busy, "nothing_wrong"),
}
