"""Hosts to verdicts: rows of the stream `verdict`."""

import json
import socket
import time
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from fleet.diagnose import rules
from fleet.diagnose.finding import ROOT, Figure, Finding
from fleet.diagnose.question import question
from fleet.diagnose.series import HostFigures, Reader
from fleet.diagnose.view import View
from schemas.config import Config

HISTORY_S = 3600
PIECE_S = 600.0  # a longer window is judged in pieces, so that memory does not grow with it
LEARN_S = 60.0  # a history is as good a minute later
SILENT_S = 600  # a host heard of since then, and not now, is silent
Row = dict[str, Any]


def judge(client: Any, config: Config, last_us: int, window_s: float, host: str = "") -> list[Row]:
    """Verdicts over the ``window_s`` before ``last_us`` (µs); all hosts, or one."""
    return Judge(client, config).rows(last_us, window_s, host)


class Judge:
    """Keeps histories between judgements; for one thread. ``client``: of clickhouse-connect."""

    def __init__(self, client: Any, config: Config) -> None:
        self._client = client
        self._reader: Reader | None = None
        self._learnt_at = 0.0
        self._own = _own_servers(config)

    def rows(self, last_us: int, window_s: float, host: str = "") -> list[Row]:
        """A row for each finding, ranked; a host in order, or silent, has one row too."""
        first_us = last_us - int(window_s * 1e6)
        if self._reader is None:
            self._learn(first_us, host)
        if window_s <= PIECE_S:
            return self._piece(first_us, last_us, host)
        pieces, begin = [], first_us
        while begin < last_us:
            end = min(begin + int(PIECE_S * 1e6), last_us)
            end = last_us if last_us - end < PIECE_S * 1e5 else end  # no crumbs
            pieces.append(self._piece(begin, end, host))
            begin = end
        return merged(pieces, first_us, last_us)

    def refresh(self, first_us: int) -> None:
        """Learn the hour before ``first_us`` anew when that was long ago.

        To be called between judgements: on a host whose CPUs are full no verdict can wait for it.
        """
        if self._reader is not None and time.monotonic() - self._learnt_at > LEARN_S:
            self._learn(first_us, "")

    def _learn(self, first_us: int, host: str) -> None:
        reader = Reader(self._client)
        reader.learn(first_us - HISTORY_S * 1_000_000, first_us, host)
        self._reader, self._learnt_at = reader, time.monotonic()

    def _piece(self, first_us: int, last_us: int, host: str) -> list[Row]:
        assert self._reader
        fleet = self._reader.window(first_us, last_us)  # peers too
        made: list[Row] = []
        for name in sorted({host} & set(fleet) if host else set(fleet)):
            view = View(fleet[name], fleet)
            found = [self._named(each, view, fleet[name]) for each in rules.judge(view, self._own)]
            made += _rows(view, fleet[name], found, first_us, last_us)
        for name in sorted(self._reader.known(last_us - SILENT_S * 1_000_000, last_us, host) - set(fleet)):
            made.append(_silent(name, first_us, last_us))
        return made

    def _named(self, found: Finding, view: View, figures: HostFigures) -> Finding:
        """Tasks without a cgroup of their own are named by the process that has most of the CPU."""
        assert self._reader
        if found.culprit != ROOT or "cpu_profile" not in self._reader.streams:
            return found
        first = (figures.begin + found.deciding.first) * 1_000_000
        rows = self._reader.rows(
            "SELECT comm, pid, sum(cpu_ns) / 1e9 AS cpu_s FROM cpu_profile WHERE host = {host:String}"
            " AND cgroup = '/' AND ts >= fromUnixTimestamp64Micro({from:Int64})"
            " AND ts <= fromUnixTimestamp64Micro({to:Int64}) GROUP BY comm, pid ORDER BY cpu_s DESC LIMIT 1",
            **{"host": view.host.name, "from": first, "to": first + 8_000_000},
        )
        if not rows:
            return found
        comm, pid, cpu_s = rows[0]
        said = f"{found.summary}; of processes, {comm} ({pid}) has most: {cpu_s:.1f} s"
        return replace(found, culprit_kind="process", culprit=f"{comm} ({pid})", summary=said)


def _own_servers(config: Config) -> frozenset[str]:
    """Kafka and ClickHouse as this installation uses them: the first keeps questions open on purpose."""
    url = urlsplit(config.clickhouse.url)
    named = [*config.kafka.servers.split(","), f"{url.hostname}:{url.port or 8123}"]
    found = set()
    for each in named:
        name, _, port = each.strip().rpartition(":")
        try:
            infos = socket.getaddrinfo(name, int(port), type=socket.SOCK_STREAM)
        except (OSError, ValueError):
            continue
        found |= {f"{info[4][0]}:{port}" for info in infos}
    return frozenset(found)


def _rows(view: View, figures: HostFigures, found: list[Finding], first_us: int, last_us: int) -> list[Row]:
    shared = {"ts": last_us, "target_host": view.host.name, "window_from": first_us, "window_to": last_us}
    if not found:
        return [shared | _in_order(view, first_us, last_us)]
    made = []
    for rank, each in enumerate(found, 1):
        made.append(shared | {
            "verdict": each.verdict, "rank": rank, "score": each.deciding.score,
            "culprit_kind": each.culprit_kind, "culprit": each.culprit, "victim": each.victim,
            **_deciding(each.deciding),
            "began": min(max((figures.begin + each.began) * 1_000_000, first_us), last_us),
            "ended": min((figures.begin + each.ended) * 1_000_000, last_us), "lasted_s": float(each.lasted),
            "summary": each.summary,
            "evidence": json.dumps([figure.tree() for figure in (each.deciding, *each.others)]),
            "question": question(each, view.host.name, first_us, last_us),
        })  # fmt: skip
    return made


def _in_order(view: View, first_us: int, last_us: int) -> Row:
    figures = [view.worst(name) for name in ("pressure.cpu_some", "pressure.memory_some", "pressure.io_some")]
    busy = view.worst("pressure.cpu_busy")
    top = max(figures, key=lambda each: each.ratio)
    said = ", ".join(
        f"{each.metric.partition('.')[2].partition('_')[0]} {each.value:.0f} %" for each in figures
    )
    return {
        "verdict": "nothing_wrong", "rank": 1, "score": 1 - min(top.score, 0.5),
        **_deciding(top),
        "summary": f"nothing is past its threshold; CPUs {busy.value:.0f} % busy, waits: {said}",
        "evidence": json.dumps([each.tree() for each in (*figures, busy)]),
        "question": question(None, view.host.name, first_us, last_us),
    }  # fmt: skip


def merged(pieces: list[list[Row]], first_us: int, last_us: int) -> list[Row]:
    """Verdicts of a long window from those of its pieces: each finding once, as it was at its worst."""
    hosts: dict[str, dict[tuple[str, str, str], Row]] = {}
    for row in (row for piece in pieces for row in piece):
        what = row["verdict"], row.get("culprit", ""), row.get("victim", "")
        known = hosts.setdefault(row["target_host"], {}).get(what)
        hosts[row["target_host"]][what] = _both(known, row) if known else row
    made: list[Row] = []
    for found in hosts.values():
        ill = [row for row in found.values() if row["verdict"] not in ("nothing_wrong", "no_data")]
        # Of a host in order: how far below its thresholds it was at its worst.
        calm = sorted(found.values(), key=lambda row: (row["verdict"] == "no_data", row.get("score", 0)))
        ranked = sorted(ill, key=lambda row: -row["score"]) or calm[:1]
        shared = {"ts": last_us, "window_from": first_us, "window_to": last_us}
        made += [row | shared | {"rank": rank} for rank, row in enumerate(ranked, 1)]
    return made


def _both(one: Row, other: Row) -> Row:
    if "began" not in one or "began" not in other:
        return min(one, other, key=lambda row: float(row.get("score", 0)))
    return max(one, other, key=lambda row: float(row["score"])) | {
        "began": min(one["began"], other["began"]), "ended": max(one["ended"], other["ended"]),
        "lasted_s": one["lasted_s"] + other["lasted_s"],
    }  # fmt: skip


def _deciding(figure: Figure) -> Row:
    return {
        "metric": figure.metric, "unit": figure.unit, "value": figure.value, "threshold": figure.threshold,
        "baseline": figure.baseline, "spread": figure.spread, "peers": figure.peers,
    }  # fmt: skip


def _silent(name: str, first_us: int, last_us: int) -> Row:
    return {
        "ts": last_us, "target_host": name, "window_from": first_us, "window_to": last_us, "rank": 1,
        "verdict": "no_data", "evidence": "[]", "peers": -1.0,
        "summary": "its collector sent nothing in this window; `bpfleet status` shows when it was last heard",
        "question": f"SELECT max(ts) FROM host WHERE host = '{name}'",
    }  # fmt: skip
