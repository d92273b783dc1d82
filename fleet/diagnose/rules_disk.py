"""Disks: slow devices, and cgroups held at their I/O limit."""

from fleet.diagnose import limits
from fleet.diagnose.finding import MOST, Figure, Finding
from fleet.diagnose.view import View


def disk(view: View, found: list[Finding]) -> list[Finding]:
    """A slow device that somebody waits for, a cgroup at its I/O limit, or waits that neither explains."""
    made = _io_limit(view) + _slow_device(view, found)
    thrashing = any(each.verdict == "memory_pressure" for each in found)
    return made or ([] if thrashing else _held_back(view))


def _io_limit(view: View) -> list[Finding]:
    found: list[Finding] = []
    for worst in view.past("io_limit.used"):
        cgroup, _, device = worst.thing.partition("\n")
        own = view.beside(worst, "cgroup.io_some", cgroup)
        host = view.beside(worst, "pressure.io_some")
        waits = own if cgroup in view.host.things("cgroup.io_some") and own.value else host
        if waits.value < limits.LIMIT_WAIT or view.has_child("io_limit.used", worst.thing):
            continue
        summary = (
            f"{cgroup} is held at its I/O limit on {device}: {worst.value:.0f} % of what it grants is"
            f" used, and its tasks wait for I/O {waits.value:.0f} % of the time"
        )
        others = (waits, host)
        found.append(view.finding("slow_disk", worst, summary, "cgroup", cgroup, others=others))
    return found[:MOST]


def _slow_device(view: View, found: list[Finding]) -> list[Finding]:
    made: list[Finding] = []
    thrashing = any(each.verdict == "memory_pressure" for each in found)
    for slow in view.past("block.await"):
        bulk = view.value(slow, "block.bytes", slow.thing) >= limits.BULK
        worst = view.beside(slow, "block.read_await", slow.thing) if bulk else slow
        if worst.ratio < 1:
            continue
        waits = view.beside(worst, "pressure.io_some")
        requests = view.beside(worst, "block.requests", worst.thing)
        explained = thrashing and worst.ratio < 2  # reading back what was reclaimed keeps a good disk busy
        if waits.value < limits.IO_WAIT or requests.value < limits.REQUESTS or explained:
            continue
        summary = (
            f"requests to {worst.thing} take {worst.value:.0f} ms (usually {worst.baseline:.1f} ms) at"
            f" {requests.value:.0f} requests/s, and tasks wait for I/O {waits.value:.0f} % of the time"
        )
        others = (requests, waits)
        made.append(view.finding("slow_disk", worst, summary, "device", worst.thing, others=others))
    return made[:MOST]


def _held_back(view: View) -> list[Finding]:
    """Tasks that wait for I/O though few requests reach a device, and those are quick."""
    host = view.worst("pressure.io_some")
    requests, moved = (
        sum(view.value(host, name, each) for each in view.host.things(name))
        for name in ("block.requests", "block.bytes")
    )
    limit = limits.LIMITS["io.wait_each"]
    each_ms = 10 * host.value / max(requests, limits.REQUESTS)
    if host.value < limits.IO_WAIT_ALONE or each_ms < limit.floor or moved >= limits.BULK:
        return []
    deciding = Figure(
        "io.wait_each", "ms", each_ms, limit.floor, peers=host.peers, first=host.first, last=host.last
    )
    cgroup, own = view.top(host, "cgroup.io_some")
    cgroup = view.deepest(cgroup, "cgroup.io_some", host) if own >= host.value / 2 else ""
    summary = (
        f"tasks wait for I/O {host.value:.0f} % of the time though only {requests:.1f} requests/s reach a"
        " device, and none is slow: an I/O limit, a remote file system or a layer above holds them back"
    )
    return [view.finding("slow_disk", deciding, summary, "cgroup" if cgroup else "", cgroup, others=(host,))]
