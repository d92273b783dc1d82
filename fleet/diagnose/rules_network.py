"""The network: segments that are lost or late, per remote."""

from collections.abc import Iterable

from fleet.diagnose import limits
from fleet.diagnose.finding import LOOPBACK, MOST, Figure, Finding
from fleet.diagnose.view import View


def network(view: View) -> list[Finding]:
    """Remotes to which segments are lost or late: those with most lost segments, and the latest."""
    lost = sorted(_loss(view), key=lambda each: -each.others[0].value)[:MOST]
    lossy = {each.culprit for each in lost}
    late = [each for each in _latency(view) if each.culprit not in lossy]
    dropped = [each for each in _datagrams(view) if each.culprit not in lossy]
    return lost + sorted(late, key=lambda each: -each.deciding.ratio)[:MOST] + dropped[:MOST]


def _loss(view: View) -> Iterable[Finding]:
    asked = {server.rpartition(":")[0] for server in view.host.servers()}
    for remote in sorted({*view.host.things("tcp.retransmits"), *view.host.things("tcp.dropped")}):
        # What this host's own queue refuses, TCP sends again without calling it so.
        again = max((view.worst(f"tcp.{name}", remote) for name in ("retransmits", "dropped")),
                    key=lambda each: each.value)  # fmt: skip
        arrived, openings, back = (
            view.beside(again, f"tcp.{name}", remote) for name in ("delivered", "openings", "segments")
        )
        value, usual = _share(again.value, arrived.value), _share(again.baseline, arrived.baseline)
        threshold = limits.LIMITS["tcp.loss"].threshold(usual, 0.0)
        few = again.value < limits.RETRANSMITS and not _is_gone(view, again)
        drops = _drops(view, again)
        if few or value < threshold or is_not_accepting(again, openings, back):
            continue
        if not back.value and not openings.value and remote not in asked:
            continue  # a client that went away
        if remote.startswith(LOOPBACK) and drops.value < again.value / 2:
            continue  # no network is in between: a server that is too slow to accept
        loss = Figure("tcp.loss", "%", value, threshold, usual, 0.0, -1.0, remote, again.first, again.last)
        summary = f"{value:.1f} % of the segments to {remote} are sent again ({again.value:.1f} a second)"
        if openings.value >= 0.5 * again.value:
            summary += ", most of them to open a connection"
        if drops.value:
            summary += f"; this host drops {drops.value:.1f} packets/s itself: {drops.thing}"
        others = (again, arrived, openings, drops)
        yield view.finding("network", loss, summary, "remote", remote, others=others)


def is_not_accepting(again: Figure, openings: Figure, back: Figure) -> bool:
    """Whether only openings go unanswered while all else gets through: the server's queue of them is full."""
    return bool(back.value and openings.value >= limits.OPENINGS * again.value)


def _is_gone(view: View, again: Figure) -> bool:
    """Whether nothing at all has come back since segments are sent again, ever more seldom."""
    sent = view.host.get(again.metric, again.thing).amount
    begun = int((sent > 0).argmax())
    back = view.host.get("tcp.segments", again.thing).amount[begun:].sum()
    return bool(sent.sum() >= limits.GONE and not back)


def _share(again: float, arrived: float) -> float:
    """Of the segments that were sent, in %."""
    return 100 * again / max(again + arrived, 1e-9)


def _drops(view: View, at: Figure) -> Figure:
    reason, _ = view.top(at, "drops")
    return view.beside(at, "drops", reason)


def _latency(view: View) -> Iterable[Finding]:
    """A rise over what is usual for that remote, or, of one not known long, over its best second lately."""
    for remote in view.host.things("tcp.rtt"):
        worst = view.worst("tcp.rtt", remote)
        known = view.host.history("tcp.rtt", remote)
        mature = known is not None and known.buckets >= limits.MATURE
        best = view.host.best_rtt.get(remote, worst.value)
        usual = known.median if known and mature else min(best, known.median if known else best)
        limit = limits.LIMITS["tcp.rtt"]
        threshold = max(usual + limits.RTT_RISE_MS, limit.times * usual + limit.spreads * worst.spread)
        threshold = threshold if mature else min(threshold, limit.fresh)
        if worst.value < threshold:
            continue
        rtt = Figure("tcp.rtt", "ms", worst.value, threshold, usual, worst.spread, worst.peers, remote,
                     worst.first, worst.last)  # fmt: skip
        segments = view.beside(rtt, "tcp.segments", remote)
        summary = f"the round trip to {remote} takes {rtt.value:.0f} ms, usually {usual:.1f} ms"
        yield view.finding("network", rtt, summary, "remote", remote, others=(segments,))


def _datagrams(view: View) -> Iterable[Finding]:
    """Datagrams that this host's own queues and policers throw away: nobody sends them again."""
    for worst in view.past("udp.dropped"):
        drops = _drops(view, worst)
        summary = (
            f"this host drops {worst.value:.0f} datagrams/s on their way to {worst.thing}: {drops.thing}"
        )
        yield view.finding("network", worst, summary, "remote", worst.thing, others=(drops,))
