"""The rules: which figures, together, mean what. Each is a function View → findings, short enough to read.

Troubles explain each other: a cgroup at its quota waits for CPUs, one that thrashes waits for its disk, a
segment sent again delays an answer. So rules run in order, and those further down see what was found.
"""

from collections.abc import Iterable

from fleet.diagnose import limits
from fleet.diagnose.finding import Figure, Finding
from fleet.diagnose.view import View

ROOT = "/"
MOST = 3  # findings of one rule: more say no more
LOOPBACK = ("127.", "::1")
LONG_POLLS = tuple(f":{port}" for port in limits.LONG_POLLS)


def judge(view: View, own_servers: frozenset[str] = frozenset()) -> list[Finding]:
    """Every finding on a host, highest score first. ``own_servers``: ``address:port`` that make one wait."""
    found = [*quota(view), *memory(view)]
    found += disk(view, found)
    found += cpu(view, found)
    found += network(view)
    found += servers(view, found, own_servers)
    return sorted(found, key=lambda each: -each.deciding.score)


def quota(view: View) -> list[Finding]:
    """A cgroup that its own CPU quota stops, though the host may be idle."""
    found: list[Finding] = []
    for worst in view.past("cgroup.throttled"):
        cgroup = worst.thing
        held = view.beside(worst, "cgroup.throttled_time", cgroup)
        granted = view.value(worst, "cgroup.quota", cgroup)
        if held.value < limits.THROTTLED_S or _has_child(view, "cgroup.throttled", cgroup):
            continue
        used = view.beside(worst, "cgroup.cpu", cgroup)
        summary = (
            f"{cgroup} is stopped by its CPU quota in {worst.value:.0f} % of its periods: it has "
            f"{used.value:.2f} CPUs of {granted:.2f} granted and was held for {held.value:.2f} s each second"
        )
        busy = view.beside(worst, "pressure.cpu_busy")
        others = (held, used, busy)
        found.append(_finding(view, "cpu_quota", worst, summary, "cgroup", cgroup, others=others))
    return found[:MOST]


def memory(view: View) -> list[Finding]:
    """Tasks that wait for memory, of a cgroup at its limit or of the host; or that were killed for it."""
    kills = view.past("cgroup.oom_kills") or view.past("pressure.oom_kills")
    stalls = [*view.past("cgroup.memory_some"), *view.past("pressure.memory_some")]
    # The kernel calls a wait one for memory only where the page was in much use. Where a cgroup is far too
    # small for its work no page ever is, and all that is seen is that it reads the same pages again.
    rereads = [each for each in view.past("cgroup.refaults") if _waits_for_pages(view, each)]
    for worst in [*kills, *stalls, *rereads]:
        cgroup = (
            worst.thing or view.top(worst, "cgroup.refaults")[0] or view.top(worst, "cgroup.limit_hits")[0]
        )
        cgroup = _deepest(view, cgroup, "cgroup.refaults", worst)
        refaults = view.beside(worst, "cgroup.refaults" if cgroup else "pressure.refaults", cgroup)
        hits = view.beside(worst, "cgroup.limit_hits", cgroup)
        if "oom_kills" not in worst.metric and refaults.value < 1 and hits.value < 1:
            continue  # without reclaim: a neighbour's
        share = view.beside(worst, "cgroup.memory_share", cgroup)
        waits = view.beside(worst, "cgroup.memory_some" if cgroup else "pressure.memory_some", cgroup)
        summary = (
            f"{cgroup or 'the host'} is short of memory: {_short(worst)}; {refaults.value:.0f} pages/s come"
            f" back right after reclaim, its limit is hit {hits.value:.0f} times/s"
        )
        kind, others = "cgroup" if cgroup else "", (refaults, hits, share, waits)
        return [_finding(view, "memory_pressure", worst, summary, kind, cgroup, others=others)]
    return []


def _waits_for_pages(view: View, at: Figure) -> bool:
    full = view.value(at, "cgroup.memory_share", at.thing) >= limits.FULL
    waits = [view.value(at, name, at.thing) for name in ("cgroup.memory_some", "cgroup.io_some")]
    if at.thing not in view.host.things("cgroup.io_some"):
        waits = [view.value(at, "pressure.io_some")]
    return full and max(waits) >= limits.REFAULT_WAIT


def _short(worst: Figure) -> str:
    if "oom_kills" in worst.metric:
        return f"{worst.value * (worst.last - worst.first):.0f} processes were killed for it"
    if worst.metric == "cgroup.refaults":
        return "its tasks wait for pages that were just thrown out"
    return f"tasks wait for it {worst.value:.0f} % of the time"


def disk(view: View, found: list[Finding]) -> list[Finding]:
    """A device whose requests take long while somebody waits, or a cgroup at its I/O limit."""
    return _io_limit(view) + _slow_device(view, found)


def _io_limit(view: View) -> list[Finding]:
    found: list[Finding] = []
    for worst in view.past("io_limit.used"):
        cgroup, _, device = worst.thing.partition("\n")
        own = view.beside(worst, "cgroup.io_some", cgroup)
        host = view.beside(worst, "pressure.io_some")
        waits = own if cgroup in view.host.things("cgroup.io_some") and own.value else host
        if waits.value < limits.LIMIT_WAIT or _has_child(view, "io_limit.used", worst.thing):
            continue
        summary = (
            f"{cgroup} is held at its I/O limit on {device}: {worst.value:.0f} % of what it grants is"
            f" used, and its tasks wait for I/O {waits.value:.0f} % of the time"
        )
        others = (waits, host)
        found.append(_finding(view, "slow_disk", worst, summary, "cgroup", cgroup, others=others))
    return found[:MOST]


def _slow_device(view: View, found: list[Finding]) -> list[Finding]:
    made: list[Finding] = []
    thrashing = any(each.verdict == "memory_pressure" for each in found)
    for worst in view.past("block.await"):
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
        made.append(_finding(view, "slow_disk", worst, summary, "device", worst.thing, others=others))
    return made[:MOST]


def cpu(view: View, found: list[Finding]) -> list[Finding]:
    """CPUs that are full: by one cgroup at the expense of another, or altogether."""
    return _noisy_neighbour(view, found) or _saturation(view)


def _noisy_neighbour(view: View, found: list[Finding]) -> list[Finding]:
    ill = {each.culprit for each in found}  # waits for reasons of its own
    for worst in view.past("runq.wait"):
        victim = worst.thing
        if victim in (ROOT, "") or victim in ill:
            continue
        busy = view.beside(worst, "pressure.cpu_busy")
        has = view.value(worst, "cgroup.cpu", victim)
        slowed = 100 * worst.value / max(worst.value + 100 * has, 1e-9)
        neighbour, taken = _neighbour(view, worst, victim)
        share = 100 * taken / view.host.cores
        if (busy.value < limits.NOISY_BUSY or slowed < limits.SLOWED or share < limits.NEIGHBOUR
                or taken < limits.NEIGHBOUR_TIMES * has):  # fmt: skip
            continue
        delay = Figure("cgroup.slowed", "%", slowed, limits.SLOWED, thing=victim)
        other = Figure("cgroup.cpu_share", "%", share, limits.NEIGHBOUR, thing=neighbour)
        summary = (
            f"{victim} waits {slowed:.0f} % of its time for a CPU and has {has:.2f} CPUs, while {neighbour}"
            f" has {taken:.2f} of {view.host.cores}"
        )
        others = (delay, other, busy)
        return [_finding(view, "noisy_neighbour", worst, summary, "cgroup", neighbour, victim, others)]
    return []


def _neighbour(view: View, at: Figure, victim: str) -> tuple[str, float]:
    """Who has most CPUs beside the victim and its kin; ``/`` are the tasks of no cgroup of their own."""
    kin = frozenset(each for each in view.host.things("cgroup.cpu") if _related(each, victim))
    name, taken = view.top(at, "cgroup.cpu", but=kin)
    name = _deepest(view, name, "cgroup.cpu", at)
    outside = view.value(at, "pressure.cpu_used") - sum(
        view.value(at, "cgroup.cpu", each) for each in view.host.things("cgroup.cpu") if each.count("/") == 1
    )
    return (ROOT, outside) if outside > taken else (name, taken)


def _saturation(view: View) -> list[Finding]:
    deciding = view.worst("pressure.cpu_some")
    if deciding.value <= 0:  # a kernel without PSI
        waiting = view.worst("runq.waiting")
        deciding = _per_cpu(view, waiting)
    busy = view.beside(deciding, "pressure.cpu_busy")
    if deciding.ratio < 1 or busy.value < limits.BUSY:
        return []
    waiting = _per_cpu(view, view.beside(deciding, "runq.waiting"))
    outside = _neighbour(view, deciding, "")
    steal = view.beside(deciding, "pressure.steal")
    summary = (
        f"all {view.host.cores} CPUs are {busy.value:.0f} % busy and tasks wait for one"
        f" {deciding.value:.0f} % of the time, {waiting.value:.1f} per CPU on average; most CPU time goes to"
        f" {outside[0]} ({outside[1]:.2f} CPUs)"
    )
    others = (busy, waiting, steal)
    return [_finding(view, "cpu_saturation", deciding, summary, "cgroup", outside[0], others=others)]


def _per_cpu(view: View, waiting: Figure) -> Figure:
    cores = view.host.cores
    return Figure(
        waiting.metric, "tasks per CPU", waiting.value / cores, waiting.threshold, waiting.baseline / cores,
        waiting.spread / cores, waiting.peers, "", waiting.first, waiting.last,
    )  # fmt: skip


def network(view: View) -> list[Finding]:
    """Remotes to which segments are lost or late: those with most lost segments, and the latest."""
    lost = sorted(_loss(view), key=lambda each: -each.others[0].value)[:MOST]
    lossy = {each.culprit for each in lost}
    late = [each for each in _latency(view) if each.culprit not in lossy]
    return lost + sorted(late, key=lambda each: -each.deciding.ratio)[:MOST]


def _loss(view: View) -> Iterable[Finding]:
    for remote in view.host.things("tcp.retransmits"):
        again = view.worst("tcp.retransmits", remote)
        seen = view.beside(again, "tcp.segments", remote)
        value = 100 * again.value / max(again.value + seen.value, 1e-9)
        limit = limits.LIMITS["tcp.loss"]
        usual = again.baseline / max(again.baseline + seen.baseline, 1e-9) * 100
        threshold = limit.threshold(usual, 0.0)
        if again.value < limits.RETRANSMITS or value < threshold:
            continue
        loss = Figure("tcp.loss", "%", value, threshold, usual, 0.0, -1.0, remote, again.first, again.last)
        drops = _drops(view, again)
        summary = (
            f"{value:.1f} % of the segments to {remote} are sent again ({again.value:.1f} a second)"
            + (f"; this host drops {drops.value:.1f} packets/s itself: {drops.thing}" if drops.value else "")
        )  # fmt: skip
        yield _finding(view, "network", loss, summary, "remote", remote, others=(again, seen, drops))


def _drops(view: View, at: Figure) -> Figure:
    reason, _ = view.top(at, "drops")
    return view.beside(at, "drops", reason)


def _latency(view: View) -> Iterable[Finding]:
    """A rise over what is usual for that remote, or, of a new one, over its best second lately."""
    for remote in view.host.things("tcp.rtt"):
        worst = view.worst("tcp.rtt", remote)
        known = view.host.history("tcp.rtt", remote)
        usual = known[0] if known else view.host.best_rtt.get(remote, worst.value)
        limit = limits.LIMITS["tcp.rtt"]
        threshold = max(usual + limits.RTT_RISE_MS, limit.times * usual + limit.spreads * worst.spread)
        threshold = threshold if known else min(threshold, limit.fresh)
        if worst.value < threshold:
            continue
        rtt = Figure("tcp.rtt", "ms", worst.value, threshold, usual, worst.spread, worst.peers, remote,
                     worst.first, worst.last)  # fmt: skip
        segments = view.beside(rtt, "tcp.segments", remote)
        summary = f"the round trip to {remote} takes {rtt.value:.0f} ms, usually {usual:.1f} ms"
        yield _finding(view, "network", rtt, summary, "remote", remote, others=(segments,))


def servers(view: View, found: list[Finding], own: frozenset[str]) -> list[Finding]:
    """A server that takes long to answer, with the network's part taken off."""
    short = any(each.verdict in ("cpu_saturation", "noisy_neighbour", "memory_pressure", "slow_disk")
                for each in found)  # fmt: skip
    made: list[Finding] = []
    for worst in view.past("server.answer"):
        server = worst.thing
        slow = view.beside(worst, "server.slow", server)
        answers = view.beside(worst, "server.answers", server)
        local = short and server.startswith(LOOPBACK)
        waited = worst.value * answers.value
        if server in own or server.endswith(LONG_POLLS) or (local and worst.ratio < limits.LOCAL_TIMES):
            continue
        if slow.value < limits.SLOW_SHARE or waited < limits.WAITED_MS:
            continue
        summary = (
            f"{server} takes {worst.value:.0f} ms to answer beyond the round trip (usually"
            f" {worst.baseline:.1f} ms); {slow.value:.0f} % of {answers.value:.1f} answers/s are slow"
        )
        others = (slow, answers, view.beside(worst, "tcp.rtt", server.rpartition(":")[0]))
        made.append(_finding(view, "remote_slowness", worst, summary, "remote", server, others=others))
    return made[:MOST]


def _finding(view: View, verdict: str, deciding: Figure, summary: str, kind: str, culprit: str,
             victim: str = "", others: tuple[Figure, ...] = ()) -> Finding:  # fmt: skip
    return Finding(verdict, deciding, summary, kind, culprit, victim, others, view.began(deciding))


def _related(one: str, other: str) -> bool:
    """Whether one cgroup is the other, or above or below it."""
    return bool(other) and (f"{one}/".startswith(f"{other}/") or f"{other}/".startswith(f"{one}/"))


def _has_child(view: View, metric: str, thing: str) -> bool:
    """Whether a cgroup below it shows the same: that one is meant."""
    return any(each != thing and each.startswith(f"{thing}/") for each in
               (figure.thing for figure in view.past(metric)))  # fmt: skip


def _deepest(view: View, cgroup: str, metric: str, at: Figure) -> str:
    """The lowest cgroup below it that has four fifths of its metric."""
    while cgroup:
        below = [
            (view.value(at, metric, each), each)
            for each in view.host.things(metric)
            if each.startswith(f"{cgroup}/")
        ]
        value, name = max(below, default=(0.0, ""))
        if value < 0.8 * view.value(at, metric, cgroup) or not value:
            return cgroup
        cgroup = name
    return cgroup
