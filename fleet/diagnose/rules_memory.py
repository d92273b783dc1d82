"""Memory: tasks that wait for it, or that were killed for it."""

from fleet.diagnose import limits
from fleet.diagnose.finding import Figure, Finding
from fleet.diagnose.view import View


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
        cgroup = view.deepest(cgroup, "cgroup.refaults", worst)
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
        return [view.finding("memory_pressure", worst, summary, kind, cgroup, others=others)]
    return []


def _waits_for_pages(view: View, at: Figure) -> bool:
    full = view.value(at, "cgroup.memory_share", at.thing) >= limits.FULL
    return full and max(_waits(view, at)) >= limits.REFAULT_WAIT


def _waits(view: View, at: Figure) -> list[float]:
    """% of the time for memory and for I/O; of a cgroup that only v1 has, and has no PSI, the host's."""
    kinds = ("cpu_some", "memory_some", "io_some")
    own = [view.value(at, f"cgroup.{kind}", at.thing) for kind in kinds]
    return own[1:] if any(own) else [view.value(at, f"pressure.{kind}") for kind in kinds[1:]]


def _short(worst: Figure) -> str:
    if "oom_kills" in worst.metric:
        return f"{worst.value * (worst.last - worst.first):.0f} processes were killed for it"
    if worst.metric == "cgroup.refaults":
        return "its tasks wait for pages that were just thrown out"
    return f"tasks wait for it {worst.value:.0f} % of the time"
