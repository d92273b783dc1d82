"""The rules on figures made up by hand: what a fault cannot show at will, or not on every kernel."""

import json
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from collector.pressure_controllers import READERS
from collector.pressure_tasks import JOINED_NS, TaskTimes
from fleet.diagnose import rules
from fleet.diagnose.command import window
from fleet.diagnose.finding import Finding
from fleet.diagnose.judge import merged
from fleet.diagnose.metrics import METRICS
from fleet.diagnose.question import question
from fleet.diagnose.rules_servers import silence
from fleet.diagnose.series import HostFigures, Past, Series
from fleet.diagnose.show import in_shell
from fleet.diagnose.view import View
from schemas.errors import UsageError

SECONDS = 20
SERVER = "192.0.2.7:5432"
Given = dict[tuple[str, str], tuple[float, float] | float | list[float]]


def host(given: Given, past: dict[tuple[str, str], Past] | None = None) -> HostFigures:
    """Each figure the same every second: an amount, (amount, per), or one value for each second."""
    made = HostFigures("a", 1_000_000, SECONDS, 2)
    for (metric, thing), value in given.items():
        amount, per = value if isinstance(value, tuple) else (value, 1.0)
        series = Series(np.zeros(SECONDS) + amount, np.full(SECONDS, per) if METRICS[metric].per else None)
        made.series.setdefault(metric, {})[thing] = series
    for (metric, thing), known in (past or {}).items():
        made.past.setdefault(metric, {})[thing] = known
    return made


def judge(figures: HostFigures) -> list[Finding]:
    return rules.judge(View(figures, {"a": figures}))


def disk(mb_s: float, await_ms: float, read_ms: float) -> Given:
    return {
        ("block.await", "sda"): (await_ms * 200, 200), ("block.read_await", "sda"): (read_ms * 10, 10),
        ("block.bytes", "sda"): mb_s * 1e6, ("block.requests", "sda"): 200,
        ("pressure.io_some", ""): 60,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("mb_s", "await_ms", "read_ms", "said"),
    [(2, 80, 0, True), (200, 80, 1, False), (200, 80, 80, True), (2, 8, 8, False)],
)
def test_a_queue_of_ones_own_bulk_is_no_slow_disk(
    mb_s: float, await_ms: float, read_ms: float, said: bool
) -> None:
    assert [each.verdict for each in judge(host(disk(mb_s, await_ms, read_ms)))] == ["slow_disk"] * said


def test_a_device_that_manages_one_request_in_two_seconds_is_slow() -> None:
    few: Given = {
        ("block.await", "sda"): (1_000, 0.5), ("block.requests", "sda"): 0.5, ("block.bytes", "sda"): 5e5,
        ("pressure.io_some", ""): 50,
    }  # fmt: skip
    assert [each.culprit for each in judge(host(few))] == ["sda"]
    few["block.requests", "sda"] = [1.0] + [0.0] * (SECONDS - 1)
    few["block.await", "sda"] = (0, 0)
    assert not judge(host(few | {("pressure.io_some", ""): 20}))


def test_waits_that_no_device_explains_are_told_of() -> None:
    held: Given = {
        ("pressure.io_some", ""): 95,
        ("block.requests", "sda"): 15,
        ("block.await", "sda"): (3, 15),
    }
    (found,) = judge(host(held))
    assert found.verdict == "slow_disk"
    (found,) = judge(host(held | {("cgroup.io_some", "/reader"): 95}))
    assert (found.culprit_kind, found.culprit) == ("cgroup", "/reader")
    assert not judge(host(held | {("block.requests", "sda"): 400})), "flushes of a good disk"


def test_a_history_that_is_the_trouble_s_own_beginning_makes_it_not_usual() -> None:
    slow = answers({"answer": 400, "slow": 100})
    for buckets, said in ((2, ["remote_slowness"]), (300, [])):
        past = {("server.answer", SERVER): Past(400.0, 20.0, buckets)}
        assert [each.verdict for each in judge(host(slow, past))] == said


def test_loss_is_a_share_of_the_segments_that_were_sent_not_of_the_few_acknowledgements() -> None:
    remote = "192.0.2.7"
    bulk: Given = {("tcp.retransmits", remote): 20, ("tcp.segments", remote): 400}
    assert not judge(host(bulk | {("tcp.delivered", remote): 40_000}))
    (found,) = judge(host(bulk | {("tcp.delivered", remote): 400}))
    assert (found.verdict, found.culprit) == ("network", remote)
    left: Given = {("tcp.retransmits", remote): [3.0, 1, 0, 1] + [0.0] * 16}
    assert not judge(host(left)), "a client that went away"
    asked: Given = {("server.answers", f"{remote}:80"): 0}
    assert judge(host(left | asked)), "one that we ask"
    assert not judge(host({("tcp.retransmits", remote): [1.0] + [0.0] * 19} | asked))
    local: Given = {("tcp.retransmits", "127.0.0.1"): 20, ("tcp.delivered", "127.0.0.1"): 400,
                    ("tcp.segments", "127.0.0.1"): 400}  # fmt: skip
    assert not judge(host(local)), "a queue for accept() that is full"
    assert judge(host(local | {("drops", "TC_EGRESS"): 20}))


def test_a_server_that_does_not_accept_is_no_loss() -> None:
    remote = "192.0.2.7"
    full: Given = {
        ("tcp.retransmits", remote): 4,
        ("tcp.openings", remote): 3.8,
        ("tcp.segments", remote): 16,
    }
    (found,) = judge(host(full))
    assert (found.verdict, found.culprit) == ("remote_slowness", remote)
    (found,) = judge(host(full | {("tcp.segments", remote): 0}))
    assert found.verdict == "network", "nothing comes back"


def test_what_this_host_s_own_queue_drops_is_lost_though_tcp_does_not_call_it_so() -> None:
    remote = "192.0.2.7"
    own: Given = {("tcp.dropped", remote): 50, ("tcp.delivered", remote): 600, ("tcp.segments", remote): 600}
    (found,) = judge(host(own | {("drops", "TC_EGRESS"): 50}))
    assert found.verdict == "network" and "TC_EGRESS" in found.summary
    assert not judge(host(own | {("tcp.dropped", remote): 5})), "a queue's usual signal"


def answers(times: dict[str, float]) -> Given:
    """Of 50 answers a second: their mean in ms, and the % that is slow (65 ms) and long (262 ms)."""
    given: Given = {
        (f"server.{name}", SERVER): (value * 50, 50)
        for name, value in ({"answer": 0.0, "slow": 0.0, "long": 0.0} | times).items()
    }
    return given | {("server.answers", SERVER): 50}


def test_a_server_that_is_slow_now_and_then_makes_people_wait() -> None:
    now_and_then = answers({"answer": 60, "slow": 10, "long": 10})
    (found,) = judge(host(now_and_then))
    assert (found.verdict, found.culprit) == ("remote_slowness", SERVER)
    assert not judge(host(answers({"answer": 25, "slow": 4, "long": 2})))
    assert not judge(host(now_and_then, {("server.long", SERVER): Past(9.0, 1.0)})), "it always does"
    far: Given = {("tcp.rtt", "192.0.2.7"): (300 * 10, 10)}
    assert not judge(host(now_and_then | far, {("tcp.rtt", "192.0.2.7"): Past(300.0, 1.0)}))
    lossy: Given = {
        ("tcp.retransmits", "192.0.2.7"): 10,
        ("tcp.segments", "192.0.2.7"): 9,
        ("tcp.delivered", "192.0.2.7"): 50,
    }
    assert [each.verdict for each in judge(host(now_and_then | lossy))] == ["network"]


def stopped(at: int, opened: float = 1.0) -> Given:
    alive = [30.0] * at + [0.0] * (SECONDS - at)
    asked = [0.0] * SECONDS
    if at < SECONDS:
        asked[at] = opened
    return {("server.answers", SERVER): alive, ("server.opened", SERVER): asked,
            ("server.answer", SERVER): (1.0, 1.0)}  # fmt: skip


def test_a_server_that_stopped_answering_is_seen_though_nobody_is_left_to_ask() -> None:
    (found,) = judge(host(stopped(10, opened=3)))
    assert found.verdict == "remote_slowness" and "3 questions wait" in found.summary
    now_and_then = stopped(10)
    now_and_then["server.answers", SERVER] = [30.0] * 5 + [0.0] * 15
    assert not judge(host(now_and_then)), "whoever asked had a pause before"
    assert (found.began, found.ended) == (10, SECONDS)
    assert not judge(host(stopped(18))), "a breath"
    assert not judge(host(stopped(10, opened=0))), "nobody asks"
    assert not judge(host(stopped(0))), "it never answered: it may only ever listen"
    before = host({("server.answers", SERVER): 0.0})
    before.asked[SERVER] = (500.0, 2.0)  # before the window
    (found,) = judge(before)
    assert "2 questions wait" in found.summary


def test_who_never_answers_is_no_slow_server() -> None:
    given_up: Given = {("server.answer", SERVER): (10_000, 1), ("server.slow", SERVER): (100, 1),
                       ("server.unanswered", SERVER): 1}  # fmt: skip
    assert not judge(host(given_up)), "a protocol of one way"
    known = host(given_up)
    known.asked[SERVER] = (50.0, 0.0)
    (found,) = judge(known)
    assert found.verdict == "remote_slowness" and "given up" in found.summary


def test_answers_to_what_nobody_saw_asked_do_not_count_against_later_questions() -> None:
    figures = host({("server.opened", SERVER): [-5.0, 2.0, 0.0, -1.0] + [0.0] * (SECONDS - 4)})
    assert figures.open_questions(SERVER)[:4].tolist() == [0, 2, 2, 1]
    assert silence(np.array([1.0, 0, 0, 0, 3]), np.array([1.0, 1, 1, 0, 1])) == (1, 3)
    assert silence(np.array([1.0]), np.array([5.0])) == (0, 0)


def thrash(pressure: float) -> Given:
    """A cgroup of v1's memory controller alone: it has no pressure files."""
    return {
        ("cgroup.refaults", "/v1"): 3000, ("cgroup.memory_share", "/v1"): (9900, 100),
        ("cgroup.cpu_some", "/v1"): 0, ("cgroup.io_some", "/v1"): 0, ("pressure.io_some", ""): pressure,
    }  # fmt: skip


def test_of_a_cgroup_without_pressure_files_the_host_s_count() -> None:
    (found,) = judge(host(thrash(40)))
    assert (found.verdict, found.culprit) == ("memory_pressure", "/v1")
    assert not judge(host(thrash(0)))


def test_a_victim_that_only_v1_knows_has_a_neighbour() -> None:
    given: Given = {
        ("cgroup.waited", "/victim"): 70, ("cgroup.cpu", "/victim"): 0.2, ("cgroup.cpu", "/loud"): 1.7,
        ("pressure.cpu_busy", ""): (100, 1), ("pressure.cpu_used", ""): 2, ("pressure.cpu_some", ""): 90,
    }  # fmt: skip
    (found,) = judge(host(given))
    assert (found.verdict, found.culprit, found.victim) == ("noisy_neighbour", "/loud", "/victim")


def test_a_neighbour_on_the_same_cpu_is_one_though_another_cpu_is_idle() -> None:
    given: Given = {
        ("runq.wait", "/victim"): 60, ("kept.waiting", "/victim\n/loud"): 55,
        ("pressure.cpu_busy", ""): (50, 1),
        ("cgroup.cpu", "/victim"): 0.2, ("cgroup.cpu", "/loud"): 0.8, ("cgroup.cpu", "/elsewhere"): 0.9,
    }  # fmt: skip
    (found,) = judge(host(given))
    assert (found.verdict, found.culprit, found.victim) == ("noisy_neighbour", "/loud", "/victim")
    given["kept.waiting", "/victim\n/loud"] = 20
    assert not judge(host(given)), "it waits for itself"


def test_who_ran_last_is_not_to_blame_beside_who_runs_most() -> None:
    given: Given = {
        ("runq.wait", "/victim"): 70, ("kept.waiting", "/victim\n/often"): 45,
        ("kept.waiting", "/victim\n/loud"): 25, ("pressure.cpu_busy", ""): (100, 1),
        ("pressure.cpu_some", ""): 100, ("pressure.cpu_used", ""): 2,
        ("cgroup.cpu", "/victim"): 0.17, ("cgroup.cpu", "/often"): 0.4, ("cgroup.cpu", "/loud"): 1.4,
    }  # fmt: skip
    (found,) = judge(host(given))
    assert (found.verdict, found.culprit, found.victim) == ("noisy_neighbour", "/loud", "/victim")
    given["cgroup.cpu", "/often"] = 0.3  # less than twice its victim's
    (found,) = judge(host(given))
    assert (found.verdict, found.culprit) == ("noisy_neighbour", "/loud")


def test_datagrams_that_the_host_itself_throws_away() -> None:
    (found,) = judge(host({("udp.dropped", "192.0.2.7"): 100, ("drops", "QDISC_DROP"): 100}))
    assert found.verdict == "network" and "QDISC_DROP" in found.summary
    assert "packet_drop" in question(found, "a", 0, 1)


def row(verdict: str, began: int, score: float, culprit: str = "", host: str = "a") -> dict[str, object]:
    shared: dict[str, object] = {"target_host": host, "verdict": verdict, "score": score, "rank": 1}
    return shared if verdict == "nothing_wrong" else shared | {
        "culprit": culprit, "began": began, "ended": began + 10, "lasted_s": 4.0,
    }  # fmt: skip


def test_a_long_window_has_each_trouble_once_and_tells_when_it_was() -> None:
    pieces = [
        [row("nothing_wrong", 0, 0.9), row("nothing_wrong", 0, 0.9, host="b")],
        [row("cpu_quota", 100, 0.6, "/x"), row("nothing_wrong", 0, 0.8, host="b")],
        [
            row("cpu_quota", 200, 0.8, "/x"),
            row("network", 200, 0.9, "r"),
            row("nothing_wrong", 0, 1, host="b"),
        ],
    ]
    made = merged(pieces, 0, 300)
    assert [(each["target_host"], each["verdict"], each["rank"]) for each in made] == [
        ("a", "network", 1), ("a", "cpu_quota", 2), ("b", "nothing_wrong", 1),
    ]  # fmt: skip
    quota = made[1]
    assert (quota["began"], quota["ended"], quota["lasted_s"], quota["score"]) == (100, 210, 8.0, 0.8)
    assert made[2]["score"] == 0.8, "as it was when it was nearest to a trouble"
    json.dumps(made)


def test_a_window_ends_when_it_is_asked_to() -> None:
    now = time.time()
    assert window("5m").end == pytest.approx(now, abs=2)
    past = window("10m", "2h")
    assert past.end == pytest.approx(now - 7200, abs=2) and past.seconds == 600
    assert window("30s", "2026-01-31T12:30").begin == 1_769_862_570
    for bad in ("tomorrow", "2999-01-01"):
        with pytest.raises(UsageError):
            window("5m", bad)


def test_what_is_pasted_into_a_shell_arrives_as_it_is() -> None:
    nasty = "SELECT 'a\\\\x2d$(id)`id`\"\\'!' AS it"
    said = subprocess.run(
        ["sh", "-c", f"printf %s {in_shell(nasty)}"], capture_output=True, text=True, check=True
    )
    assert said.stdout == nasty


def test_the_lower_of_two_memory_limits_is_the_one_that_is_felt(tmp_path: Path) -> None:
    for name, text in {"memory.max": "4096000", "memory.high": "1024000", "memory.current": "1000000",
                       "memory.events": "low 0\nhigh 7\nmax 2\noom_kill 0\n"}.items():  # fmt: skip
        (tmp_path / name).write_text(text)
    said = READERS[""](str(tmp_path))
    assert (said["memory_limit_bytes"], said["limit_hits"]) == (1_024_000, 9)
    (tmp_path / "memory.high").write_text("max")
    assert READERS[""](str(tmp_path))["memory_limit_bytes"] == 4_096_000


def test_waits_of_tasks_add_up_though_tasks_come_and_go(tmp_path: Path) -> None:
    group = tmp_path / "group"
    group.mkdir()

    def tasks(**times: tuple[int, int]) -> tuple[int, int]:
        for name, (ran, waited) in times.items():
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / "schedstat").write_text(f"{ran} {waited} 5\n")
        (group / "tasks").write_text("\n".join(times))
        return reader.read("/group", str(group))

    reader = TaskTimes(tmp_path)
    assert tasks(t1=(5_000_000, 9_000_000)) == (0, 0), "what was before is not known"
    assert tasks(t1=(6_000_000, 12_000_000), t2=(1_000_000, 2_000_000)) == (2_000, 5_000)
    assert tasks(t2=(1_000_000, 3_000_000)) == (2_000, 6_000)
    joined = tasks(t2=(1_000_000, 3_000_000), t3=(900 * JOINED_NS, 1_000))
    assert joined == (2_000 + JOINED_NS // 1000, 6_001), "it lived elsewhere before"
    reader.keep(set())
    assert tasks(t2=(2_000_000, 4_000_000)) == (0, 0)
