"""Servers that are slow to answer: most of the time, now and then, or never."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from fleet.diagnose import limits
from fleet.diagnose.finding import LOOPBACK, MOST, Figure, Finding
from fleet.diagnose.rules_network import is_not_accepting
from fleet.diagnose.view import View

LONG_POLLS = tuple(f":{port}" for port in limits.LONG_POLLS)
SHORT = ("cpu_saturation", "noisy_neighbour", "memory_pressure", "slow_disk")


def servers(view: View, found: list[Finding], own: frozenset[str]) -> list[Finding]:
    """A server that takes long to answer, with the network's part taken off."""
    short = any(each.verdict in SHORT for each in found)
    lossy = {each.culprit for each in found if each.verdict == "network"}
    made: dict[str, Finding] = {}
    for each in (*_silent(view, lossy), *_slow(view, lossy), *_sometimes_slow(view, lossy)):
        server = each.culprit
        explained = short and server.startswith(LOOPBACK)  # it suffers from the same as its clients
        if server not in own and not server.endswith(LONG_POLLS) and not explained:
            made.setdefault(server, each)
    slow = {server.rpartition(":")[0] for server in made}
    for each in _not_accepting(view):
        if each.culprit not in slow and not each.culprit.startswith(LOOPBACK):
            made[each.culprit] = each
    return list(made.values())[:MOST]


def _slow(view: View, lossy: set[str]) -> Iterable[Finding]:
    """Most of its answers; given-up questions count where it is known to answer, and can be reached."""
    for worst in view.past("server.answer"):
        server = worst.thing
        slow, answers, given_up = (
            view.beside(worst, f"server.{name}", server) for name in ("slow", "answers", "unanswered")
        )
        waited = worst.value * (answers.value + given_up.value)
        if not answers.value and (
            _known(view, server) < limits.ANSWERED or server.rpartition(":")[0] in lossy
        ):
            continue
        if slow.value < limits.SLOW_SHARE or waited < limits.WAITED_MS:
            continue
        summary = (
            f"{server} takes {worst.value:.0f} ms to answer beyond the round trip (usually"
            f" {worst.baseline:.1f} ms); {slow.value:.0f} % of {answers.value:.1f} answers/s are slow"
        )
        if given_up.value > 0:
            summary += f", and {given_up.value:.1f} questions/s are given up"
        yield _of(view, worst, summary, (slow, answers, given_up))


def _sometimes_slow(view: View, lossy: set[str]) -> Iterable[Finding]:
    """A part of its answers; a lost segment delays single ones, and a long way all."""
    for worst in view.past("server.long"):
        server = worst.thing
        remote = server.rpartition(":")[0]
        answers = view.beside(worst, "server.answers", server)
        long = worst.value / 100 * answers.value
        if remote in lossy or view.value(worst, "tcp.rtt", remote) > limits.LONG_RTT_MS:
            continue
        if long < limits.LONG_ANSWERS or long * limits.LONG_MS < limits.WAITED_MS:
            continue
        mean = view.beside(worst, "server.answer", server)
        summary = (
            f"{server} takes over {limits.LONG_MS:.0f} ms for {worst.value:.0f} % of its {answers.value:.1f}"
            f" answers/s (usually {worst.baseline:.1f} %), {mean.value:.0f} ms on average"
        )
        yield _of(view, worst, summary, (mean, answers))


def _not_accepting(view: View) -> Iterable[Finding]:
    """It answers what is open, and leaves new connections waiting."""
    for remote in view.host.things("tcp.openings"):
        openings = view.worst("tcp.openings", remote)
        again, back = (view.beside(openings, f"tcp.{name}", remote) for name in ("retransmits", "segments"))
        if openings.ratio < 1 or not is_not_accepting(again, openings, back):
            continue
        summary = (
            f"{remote} does not accept connections: {openings.value:.1f} openings/s are sent again, while"
            " what is open gets through"
        )
        yield view.finding("remote_slowness", openings, summary, "remote", remote, others=(again, back))


def _known(view: View, server: str) -> float:
    """Answers that it gave in the window and shortly before."""
    return float(view.host.asked.get(server, (0.0, 0.0))[0] + view.host.answers(server).sum())


def _silent(view: View, lossy: set[str]) -> Iterable[Finding]:
    """It answered all the time, and all at once does no longer, though it is asked."""
    limit = limits.LIMITS["server.silence"]
    for server in view.host.servers():
        if server.rpartition(":")[0] in lossy:
            continue
        answers, waiting = view.host.answers(server), view.host.open_questions(server)
        first, last = silence(answers, waiting)
        usual = view.host.history("server.answer", server)
        threshold = max(limit.floor, limit.times * (usual.median if usual else 0.0) / 1000)
        if last - first < threshold or not _was_busy(view, server, answers[:first]):
            continue
        silent = Figure("server.silence", "s", last - first, threshold, thing=server, first=first, last=last)
        left = Figure("server.open", "questions", float(waiting[last - 1]), thing=server)
        said = "a question waits" if left.value < 2 else f"{left.value:.0f} questions wait"
        summary = f"{server} answered steadily, and then not at all for {last - first} s; {said}"
        yield _of(view, silent, summary, (left,))


def _was_busy(view: View, server: str, before: NDArray[np.float64]) -> bool:
    """Whether it was asked without a pause just before: who asks now and then may have nothing to ask."""
    lately = before[-limits.BUSY_S :]
    if len(lately) >= limits.STEADY_S:
        return bool(lately.sum() >= limits.ANSWERED and (lately[-limits.STEADY_S :] > 0).all())
    return _known(view, server) >= 3 * limits.ANSWERED


def silence(answers: NDArray[np.float64], waiting: NDArray[np.float64]) -> tuple[int, int]:
    """The longest run of seconds (first, after the last) without an answer though one was waited for."""
    silent = np.concatenate(([False], (answers == 0) & (waiting >= 1), [False])).astype(np.int8)
    edges = np.diff(silent)
    begins, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    if not len(begins):
        return 0, 0
    longest = int((ends - begins).argmax())
    return int(begins[longest]), int(ends[longest])


def _of(view: View, deciding: Figure, summary: str, others: tuple[Figure, ...]) -> Finding:
    server = deciding.thing
    others = (*others, view.beside(deciding, "tcp.rtt", server.rpartition(":")[0]))
    return view.finding("remote_slowness", deciding, summary, "remote", server, others=others)
