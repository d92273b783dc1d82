"""CPUs: a quota that stops a cgroup, a neighbour that has what another needs, or too few for all."""

from fleet.diagnose import limits
from fleet.diagnose.finding import MOST, ROOT, Figure, Finding
from fleet.diagnose.view import View, related


def quota(view: View) -> list[Finding]:
    """A cgroup that its own CPU quota stops, though the host may be idle."""
    found: list[Finding] = []
    for worst in view.past("cgroup.throttled"):
        cgroup = worst.thing
        held = view.beside(worst, "cgroup.throttled_time", cgroup)
        granted = view.value(worst, "cgroup.quota", cgroup)
        if held.value < limits.THROTTLED_S or view.has_child("cgroup.throttled", cgroup):
            continue
        used = view.beside(worst, "cgroup.cpu", cgroup)
        summary = (
            f"{cgroup} is stopped by its CPU quota in {worst.value:.0f} % of its periods: it has "
            f"{used.value:.2f} CPUs of {granted:.2f} granted and was held for {held.value:.2f} s each second"
        )
        busy = view.beside(worst, "pressure.cpu_busy")
        others = (held, used, busy)
        found.append(view.finding("cpu_quota", worst, summary, "cgroup", cgroup, others=others))
    return found[:MOST]


def cpu(view: View, found: list[Finding]) -> list[Finding]:
    """CPUs that are full: by one cgroup at the expense of another, or altogether."""
    return _noisy_neighbour(view, found) or _saturation(view)


def _noisy_neighbour(view: View, found: list[Finding]) -> list[Finding]:
    ill = {each.culprit for each in found}  # waits for reasons of its own
    victims = [*view.past("runq.wait"), *view.past("cgroup.waited")]
    for worst in sorted(victims, key=lambda each: -each.ratio):
        victim = worst.thing
        if victim in (ROOT, "") or victim in ill:
            continue
        busy = view.beside(worst, "pressure.cpu_busy")
        has = view.value(worst, "cgroup.cpu", victim)
        slowed = 100 * worst.value / max(worst.value + 100 * has, 1e-9)
        neighbour, taken = _neighbour(view, worst, victim)
        behind_whom, kept = _kept_by(view, worst)
        of_that = _taken(view, worst, behind_whom)
        # A wait is put down to who had the CPU last: among many that is often somebody who had it briefly.
        by_it = kept >= limits.KEPT and of_that >= taken / limits.NEIGHBOUR_TIMES
        if by_it:
            neighbour, taken = behind_whom, of_that
        share = 100 * taken / view.host.cores
        to_blame = by_it or (busy.value >= limits.NOISY_BUSY and share >= limits.NEIGHBOUR)
        if not to_blame or slowed < limits.SLOWED or taken < limits.NEIGHBOUR_TIMES * has:
            continue
        delay = Figure("cgroup.slowed", "%", slowed, limits.SLOWED, thing=victim)
        other = Figure("cgroup.cpu_share", "%", share, limits.NEIGHBOUR, thing=neighbour)
        behind = Figure("runq.kept_by", "%", kept, limits.KEPT, thing=behind_whom)
        summary = (
            f"{victim} waits {slowed:.0f} % of its time for a CPU and has {has:.2f} CPUs, while {neighbour}"
            f" has {taken:.2f} of {view.host.cores}"
        )
        others = (delay, other, behind, busy)
        return [view.finding("noisy_neighbour", worst, summary, "cgroup", neighbour, victim, others)]
    return []


def _neighbour(view: View, at: Figure, victim: str) -> tuple[str, float]:
    """Who has most CPUs beside the victim and its kin; ``/`` are the tasks of no cgroup of their own."""
    kin = frozenset(each for each in view.host.things("cgroup.cpu") if related(each, victim))
    name, taken = view.top(at, "cgroup.cpu", but=kin)
    name = view.deepest(name, "cgroup.cpu", at)
    outside = _taken(view, at, ROOT)
    return (ROOT, outside) if outside > taken else (name, taken)


def _taken(view: View, at: Figure, cgroup: str) -> float:
    """CPUs that a cgroup has; ``/``: those of tasks in none of their own."""
    if cgroup != ROOT:
        return view.value(at, "cgroup.cpu", cgroup)
    tops = [each for each in view.host.things("cgroup.cpu") if each.count("/") == 1]
    return view.value(at, "pressure.cpu_used") - sum(view.value(at, "cgroup.cpu", each) for each in tops)


def _kept_by(view: View, waits: Figure) -> tuple[str, float]:
    """Behind which other cgroup a victim's waits ended most, and the % of them."""
    of_victim = f"{waits.thing}\n"
    pairs = frozenset(each for each in view.host.things("kept.waiting") if not each.startswith(of_victim))
    pair, waited = view.top(waits, "kept.waiting", but=pairs)
    return pair.removeprefix(of_victim), 100 * waited / waits.value


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
    return [view.finding("cpu_saturation", deciding, summary, "cgroup", outside[0], others=others)]


def _per_cpu(view: View, waiting: Figure) -> Figure:
    cores = view.host.cores
    return Figure(
        waiting.metric, "tasks per CPU", waiting.value / cores, waiting.threshold, waiting.baseline / cores,
        waiting.spread / cores, waiting.peers, "", waiting.first, waiting.last,
    )  # fmt: skip
