"""One cgroup's files: what each kind of hierarchy says of it, in the words of `cgroup_pressure`.

``READERS[controller](directory)``: counters since the cgroup was made, and limits as they are now.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

Numbers = dict[str, int]
Said = Mapping[str, int | str]
UNLIMITED = 1 << 60  # v1's "no limit" is just below 2⁶³


def read(file: Path | str) -> str:
    """The whole of a small file of the kernel's; nothing where there is none."""
    try:
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        parts = []
        while part := os.read(fd, 65536):
            parts.append(part)
        return b"".join(parts).decode(errors="replace")
    except OSError:
        return ""  # the cgroup went away, or the controller will not say
    finally:
        os.close(fd)


def table(text: str) -> Numbers:
    """Lines of a name and a number."""
    words = (line.split() for line in text.splitlines())
    return {each[0]: int(each[1]) for each in words if len(each) > 1 and each[1].isdigit()}


def psi(text: str) -> Numbers:
    """Total µs by kind (``some``, ``full``) of a pressure file."""
    found = {}
    for line in text.splitlines():
        kind, _, rest = line.partition(" ")
        total = rest.rpartition("total=")[2]
        if total.isdigit():
            found[kind] = int(total)
    return found


def _unified(directory: str) -> Said:
    stat = table(read(f"{directory}/cpu.stat"))
    memory = table(read(f"{directory}/memory.stat"))
    events = table(read(f"{directory}/memory.events"))
    pressure = {
        f"{name}_{kind}_us": value
        for name in ("cpu", "memory", "io")
        for kind, value in psi(read(f"{directory}/{name}.pressure")).items()
        if (name, kind) != ("cpu", "full")
    }
    return {
        **pressure,
        "periods": stat.get("nr_periods", 0),
        "throttled_periods": stat.get("nr_throttled", 0),
        "throttled_us": stat.get("throttled_usec", 0),
        "quota_us": _quota(*(read(f"{directory}/cpu.max").split() or ["max", "0"])),
        "memory_bytes": int(read(f"{directory}/memory.current") or 0),
        "memory_limit_bytes": _narrowest(read(f"{directory}/memory.{name}") for name in ("high", "max")),
        "limit_hits": events.get("max", 0) + events.get("high", 0),
        "oom_kills": events.get("oom_kill", 0),
        "refaults": memory.get("workingset_refault_file", 0) + memory.get("workingset_refault_anon", 0),
        "major_faults": memory.get("pgmajfault", 0),
        **_unified_io(directory),
    }


def _unified_io(directory: str) -> Said:
    done = dict.fromkeys(("rbytes", "wbytes", "rios", "wios"), 0)
    for line in read(f"{directory}/io.stat").splitlines():
        for name, _, value in (word.partition("=") for word in line.split()[1:]):
            if name in done:
                done[name] += int(value)
    limits = {}
    for line in read(f"{directory}/io.max").splitlines():
        number, *words = line.split()
        pairs = (word.split("=") for word in words)
        limits[number] = {name: int(value) for name, value in pairs if value.isdigit()}
    requests = [limit[name] for limit in limits.values() for name in ("riops", "wiops") if name in limit]
    sizes = [limit[name] for limit in limits.values() for name in ("rbps", "wbps") if name in limit]
    return {
        "read_bytes": done["rbytes"],
        "written_bytes": done["wbytes"],
        "requests": done["rios"] + done["wios"],
        **_limits(list(limits), requests, sizes),
    }


def _limits(numbers: list[str], requests: list[int], sizes: list[int]) -> Said:
    """The narrowest limits, and the device that they are on."""
    named = device_name(numbers[0]) if numbers and (requests or sizes) else ""
    return {
        "io_limit_requests": min(requests, default=0),
        "io_limit_bytes": min(sizes, default=0),
        "io_device": named,
    }


def device_name(number: str) -> str:
    """``7:0`` → ``loop0``; the number where the kernel has no name for it."""
    target = os.path.realpath(f"/sys/dev/block/{number}")
    return Path(target).name


def _quota(quota: str, period: str) -> int:
    """CPU time in µs that a quota grants each second; 0: no quota."""
    if not quota.strip().isdigit() or not period.strip().isdigit() or not int(period):
        return 0
    return int(quota) * 1_000_000 // int(period)


def _limit(text: str) -> int:
    value = int(text) if text.strip().isdigit() else 0
    return value if value < UNLIMITED else 0


def _narrowest(texts: Iterable[str]) -> int:
    """``memory.high`` slows who is past it, ``memory.max`` stops them: the lower one is what is felt."""
    return min(filter(None, map(_limit, texts)), default=0)


def _v1_cpu(directory: str) -> Said:
    stat = table(read(f"{directory}/cpu.stat"))
    return {
        "periods": stat.get("nr_periods", 0),
        "throttled_periods": stat.get("nr_throttled", 0),
        "throttled_us": stat.get("throttled_time", 0) // 1000,
        "quota_us": _quota(read(f"{directory}/cpu.cfs_quota_us"), read(f"{directory}/cpu.cfs_period_us")),
    }


def _v1_memory(directory: str) -> Said:
    stat = table(read(f"{directory}/memory.stat"))
    return {
        "memory_bytes": int(read(f"{directory}/memory.usage_in_bytes") or 0),
        "memory_limit_bytes": _limit(read(f"{directory}/memory.limit_in_bytes")),
        "limit_hits": int(read(f"{directory}/memory.failcnt") or 0),
        "oom_kills": table(read(f"{directory}/memory.oom_control")).get("oom_kill", 0),
        "refaults": stat.get("total_workingset_refault_file", 0)
        + stat.get("total_workingset_refault_anon", 0),
        "major_faults": stat.get("total_pgmajfault", 0),
    }


def _v1_blkio(directory: str) -> Said:
    def done(name: str, kind: str) -> int:
        lines = [line.split() for line in read(f"{directory}/blkio.throttle.{name}_recursive").splitlines()]
        return sum(int(line[2]) for line in lines if len(line) == 3 and line[1] == kind)

    limits: dict[str, list[int]] = {"iops": [], "bps": []}
    devices: list[str] = []
    for way in ("read", "write"):
        for unit, found in limits.items():
            for number, value in table(read(f"{directory}/blkio.throttle.{way}_{unit}_device")).items():
                devices.append(number)
                found.append(value)
    return {
        "read_bytes": done("io_service_bytes", "Read"),
        "written_bytes": done("io_service_bytes", "Write"),
        "requests": done("io_serviced", "Read") + done("io_serviced", "Write"),
        **_limits(devices, limits["iops"], limits["bps"]),
    }


READERS: dict[str, Callable[[str], Said]] = {
    "": _unified,
    "cpu": _v1_cpu,
    "cpuacct": lambda _: {},
    "memory": _v1_memory,
    "blkio": _v1_blkio,
}
