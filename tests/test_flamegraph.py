"""bpfleet flamegraph: the tree, the drawing, the statement; and all of it on rows that a collector made."""

import os
import re
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from collecting import CollectorProcess
from profiled import C
from sinking import Place, eventually

from fleet.flamegraph_question import Question, Window, earlier, literal, moment, window
from fleet.flamegraph_svg import boxes, draw
from fleet.flamegraph_tree import fold, lines, tree
from schemas.errors import UsageError

ROWS = [
    ("app;main;a", 1_000_000, 3_000_000),
    ("app;main;b", 1_000_000, 1_000_000),
    ("app;sys_[k]", 0, 4_000_000),
]
SVG = "{http://www.w3.org/2000/svg}"


def command(*words: str, environment: dict[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    clean = {name: text for name, text in os.environ.items() if not name.startswith("BPFLEET_")}
    return subprocess.run(
        [sys.executable, "-m", "fleet", *words],
        capture_output=True, text=True, env=clean | (environment or {}), timeout=60, check=False,
    )  # fmt: skip


def test_times_add_up_the_tree() -> None:
    root = tree(fold(ROWS))
    assert (root.after, root.before) == (8000, 2000)
    main = root.children["app"].children["main"]
    assert (main.after, main.before) == (4000, 2000)
    assert root.children["app"].children["sys_[k]"].is_kernel
    placed = {box.node.name: box for box in boxes(root)}
    assert placed["b"].left == pytest.approx(placed["a"].left + placed["a"].width)
    assert placed["a"].width == pytest.approx(3 / 8) and placed["a"].level == 3


def test_folded_lines_are_what_other_tools_read() -> None:
    assert lines(fold(ROWS)) == ["app;main;a 3000", "app;main;b 1000", "app;sys_[k] 4000"]
    assert lines(fold(ROWS, 2.0), differential=True)[0] == "app;main;a 2000 3000"


def test_the_drawing_is_sound_xml_whatever_the_names_are() -> None:
    names = ['<script>alert("x")</script>', "a&b", "]]>", "\x01\x1b[2J", "операция", "x" * 5000, "'\"", "-->"]
    root = tree(fold([(f"app;{name};leaf_[k]", 10**6, 10**6) for name in names]))
    text = draw(root, "<title>", "]]>&", differential=True)
    drawn = ET.fromstring(text)
    titles = [each.text or "" for each in drawn.iter(f"{SVG}title")]
    assert any(title.startswith('<script>alert("x")</script>: ') for title in titles)
    assert any("\N{REPLACEMENT CHARACTER}" in title for title in titles)
    assert sum("leaf (kernel): " in title for title in titles) == len(names)
    assert len(list(drawn.iter(f"{SVG}script"))) == 1
    assert not re.search(
        r"(?:href|src)=|url\(|@import|https?://(?!www\.w3\.org/2000/svg)", text
    )  # self-contained


def test_narrow_frames_are_left_out_and_deep_stacks_cut() -> None:
    many = [(f"app;f{n}", 0, 1000) for n in range(20_000)] + [("app;" + ";".join("d" * 3000), 0, 10**9)]
    text = draw(tree(fold(many)), "t", "s")
    assert len(text) < 400_000
    assert 'data-l="400"' in text and 'data-l="600"' not in text


def test_a_difference_is_red_or_blue() -> None:
    root = tree(
        fold([("app;more", 10**6, 3 * 10**6), ("app;less", 3 * 10**6, 10**6), ("app;same", 10**6, 10**6)])
    )
    drawn = ET.fromstring(draw(root, "t", "s", differential=True))
    fills = {}
    for frame in drawn.iter(f"{SVG}g"):
        title, rect = frame.find(f"{SVG}title"), frame.find(f"{SVG}rect")
        if title is not None and rect is not None:
            fills[(title.text or "").partition(":")[0]] = rect.get("fill", "")
    assert fills["more"].startswith("hsl(8 ") and fills["less"].startswith("hsl(220 ")
    assert " 0%" in fills["same"]


def test_moments_and_windows() -> None:
    now = 1_700_000_000.0
    assert moment("5m", now) == now - 300
    assert moment("2023-11-14T22:13:20", 0) == now == moment("2023-11-14T23:13:20+01:00", 0)
    assert window("1h", "30m", now) == Window(now - 3600, now - 1800)
    assert earlier("1d", window("5m", "now", now)) == Window(now - 300 - 86400, now - 86400)
    assert earlier("2h..1h", window("5m", "now", now), now) == Window(now - 7200, now - 3600)
    for wrong in ("yesterday", "5 parsecs", "", "5m; DROP TABLE stack"):
        with pytest.raises(UsageError):
            moment(wrong, now)
    with pytest.raises(UsageError, match="before"):
        window("1m", "5m", now)


def test_what_is_asked_for_travels_as_parameters() -> None:
    span = Window(1.0, 2.0)
    hostile = "x' OR 1=1 --"
    statement, given = Question(span, span, True, (hostile,), (hostile,), (hostile, "12"), ("blocked",)).sql()
    assert hostile not in statement and hostile in given["hosts"] and given["pids"] == [12]
    assert literal([hostile, "back\\slash"]) == r"['x\' OR 1=1 --', 'back\\slash']"
    assert "{" not in Question(span, None, False, (hostile,)).text()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "-o FILE.svg"),
        (("--since", "never", "--folded"), "is no time"),
        (("--since", "1m", "--until", "5m", "--folded"), "--since comes before --until"),
        (("--diff", "x", "--folded"), "not a time"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_do(words: tuple[str, ...], told: str) -> None:
    done = command("flamegraph", *words)
    assert done.returncode != 0 and told in done.stderr and done.stderr.count("\n") == 1


# ── On what a collector saw ──────────────────────────────────────────────────────────────────────


def test_from_the_kernel_to_the_picture(place: Place, tmp_path: Path) -> None:
    program = tmp_path / "known_c"
    source = tmp_path / "known.c"
    source.write_text(C)
    subprocess.run(["gcc", "-O1", "-fno-omit-frame-pointer", str(source), "-o", str(program)], check=True)
    collector = CollectorProcess(
        tmp_path / "collector", place.servers, "drawn", probes=["cpu_profile", "off_cpu"], kinds=[],
        budget_percent=100,
        profile_ms=1000, profile_hz=199,
    )  # fmt: skip
    asked = {"BPFLEET_CLICKHOUSE": place.url, "BPFLEET_CLICKHOUSE_DATABASE": place.database}
    busy: Any = None
    try:
        collector.start()
        place.sink()
        busy = subprocess.Popen([str(program), "60"])
        eventually(
            lambda: (
                (place.ask("SELECT sum(samples) FROM DB.cpu_profile WHERE comm = 'known_c'") or [(0,)])[0][0]
                > 60
            ),
            60,
        )
        eventually(lambda: (place.ask("SELECT count() FROM DB.off_cpu") or [(0,)])[0][0], 20)
        busy.kill()
        busy.wait()
        time.sleep(1.5)
    finally:
        if busy:
            busy.kill()
            busy.wait()
        collector.stop()
    eventually(lambda: place.ask("SELECT count() FROM DB.stack")[0][0] > 5, 20)
    time.sleep(1)
    _check_folded(asked)
    _check_drawn(asked, tmp_path)
    missing = place.ask(
        "SELECT count() FROM (SELECT arrayJoin([user_stack, kernel_stack]) AS s FROM DB.cpu_profile) "
        "WHERE s != 0 AND s NOT IN (SELECT stack FROM DB.stack)"
    )
    assert missing == [(0,)]


def _check_folded(asked: dict[str, str]) -> None:
    done = command("flamegraph", "--folded", "--host", "drawn", "--process", "known_c", environment=asked)
    assert done.returncode == 0, done.stderr
    folded = {line.rpartition(" ")[0]: int(line.rpartition(" ")[2]) for line in done.stdout.splitlines()}
    assert all(stack.startswith("known_c;") for stack in folded)
    total = sum(folded.values())
    seventy = sum(micros for stack, micros in folded.items() if ";seventy;" in stack)
    assert seventy / total == pytest.approx(0.7, abs=3 * (0.21 / (total / 5025)) ** 0.5 + 0.01)
    waits = command("flamegraph", "--folded", "--off-cpu", "--state", "sleeping", environment=asked)
    assert "_[k]" in waits.stdout and "schedule_[k]" not in waits.stdout.split(";")[-1]
    inside = command("flamegraph", "--folded", "--cgroup", "/", environment=asked)
    assert inside.stdout.count("\n") >= len(folded)
    none = command("flamegraph", "--folded", "--host", "nobody", environment=asked)
    assert none.returncode == 1 and "no samples" in none.stderr


def _check_drawn(asked: dict[str, str], directory: Path) -> None:
    file = directory / "out.svg"
    words = ("flamegraph", "--process", "known_c", "-o", str(file))
    done = command(*words, environment=asked)
    assert done.returncode == 0, done.stderr
    titles = [each.text or "" for each in ET.parse(file).iter(f"{SVG}title")]
    assert any(each.startswith("seventy: ") for each in titles)
    done = command(*words, "--diff", "1h", environment=asked)
    assert done.returncode == 0 and "before 0 µs" in file.read_text()
    text = command("flamegraph", "--process", "known_c", "--show-sql", environment=asked).stdout
    pasted = command("sql", "--csv", text, environment=asked)
    assert pasted.returncode == 0 and "seventy" in pasted.stdout, pasted.stderr
    refused = command("flamegraph", "-o", "/proc/nothing.svg", environment=asked)
    assert refused.returncode != 0 and "cannot write" in refused.stderr
