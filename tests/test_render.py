"""`bpfleet render`, seen by a headless Chromium: all is drawn, nothing complained of, nothing fetched."""

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import msgspec
import pytest
from boards import BOARDS, Filled
from browser import Browser
from click.testing import CliRunner, Result

from fleet.render import flame, graph, units
from fleet.render.command import render
from schemas.config import Config
from schemas.errors import BpfleetError, UsageError

# What a drawn figure of each kind has at least one of.
MARKS = {
    "timeseries": ".scatterlayer .trace path, .barlayer .point path",
    "heatmap": ".heatmaplayer image, .hm image",
    "bargauge": ".barlayer .point path",
    "state-timeline": ".barlayer .point path",
    "flamegraph": ".iciclelayer .slice path",
    "nodeGraph": ".scatterlayer .points path",
}
LOOK = """
[...document.querySelectorAll("main section[data-kind]")].map(section => ({
  title: section.querySelector("h3").innerText,
  kind: section.dataset.kind,
  drawn: section.querySelectorAll(%s[section.dataset.kind] || "td").length,
  text: section.innerText,
  high: section.getBoundingClientRect().height,
  figure: (section.querySelector(".figure") || section).getBoundingClientRect().height,
}))"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    made = Browser(tmp_path_factory.mktemp("chromium"))
    try:
        yield made
    finally:
        made.close()


def draw(rows: Filled, *arguments: str) -> Result:
    config = Config(clickhouse=rows.config)
    window = ["--since", "3h", "--until", str(rows.end)]
    return CliRunner().invoke(render, [*arguments, *window], obj=config, catch_exceptions=True)


def look(browser: Browser, file: Path) -> list[dict[str, Any]]:
    browser.open(file)
    seen: list[dict[str, Any]] = browser.run(LOOK % msgspec.json.encode(MARKS).decode())
    return seen


@pytest.mark.parametrize("name", BOARDS)
def test_every_panel_is_drawn_and_nothing_is_complained_of(
    rows: Filled, browser: Browser, tmp_path: Path, name: str
) -> None:
    file = tmp_path / f"{name}.html"
    done = draw(rows, name, "-o", str(file))
    assert done.exit_code == 0, done.output
    seen = look(browser, file)
    assert browser.faults == []
    panels = [each for each in BOARDS[name].panels if each.queries]
    assert [each["title"] for each in seen] == [each.title for each in panels]
    for each, panel in zip(seen, panels, strict=True):
        assert "nothing in this window" not in each["text"], each["title"]
        assert panel.description[:40] in each["text"]
        if each["kind"] in MARKS:
            assert each["drawn"] and each["figure"] > 60, f"{each['title']} is empty"
        elif each["kind"] == "table":
            assert each["drawn"] > 1 and each["high"] > 100, each["title"]
        else:
            assert len(each["text"]) > len(panel.title) + len(panel.description), each["title"]
    headings = browser.run("[...document.querySelectorAll('h2')].map(each => each.innerText)")
    assert headings[:-1] == [each.title for each in BOARDS[name].panels if each.kind == "row"]
    assert browser.run("document.title") == f"{BOARDS[name].title} · bpfleet"


def test_texts_of_the_data_stay_text(rows: Filled, browser: Browser, tmp_path: Path) -> None:
    hostile = '</script><script>window.hurt=1</script><img src=x onerror="window.hurt=2">\''
    hostile += ' <a href="https://example.org">here</a> <b>now</b> &lt; ' + "x" * 2_000
    host = "sly"
    others = {"runq_latency": ["cgroup"], "process_exit": ["comm", "cgroup"], "applied": ["id", "author"],
              "cpu_time": ["cgroup"]}  # fmt: skip
    needed = {"runq_latency": ("count, sum_ns", "9, 9000"), "process_exit": ("signal", "9"),
              "cpu_time": ("usage_us", "9"), "applied": ("revision", "1")}  # fmt: skip
    for (table, columns), end in product(others.items(), "xy"):
        names, values = needed[table]
        texts = ", ".join(["{name:String}"] * len(columns))
        rows.client.command(
            f"INSERT INTO {table} (ts, host, {', '.join(columns)}, {names}) "
            f"SELECT fromUnixTimestamp64Milli({{ts:Int64}}), {{host:String}}, {texts}, {values}",
            parameters={"ts": int(rows.end * 1000) - 90_000, "host": host, "name": hostile + end},
        )
    file = tmp_path / "host.html"
    done = draw(rows, "host", "--var", f"host={host}", "-o", str(file))
    assert done.exit_code == 0, done.output
    browser.open(file)
    assert browser.run("window.hurt") is None and browser.faults == []
    assert hostile in browser.run("document.body.textContent")
    assert browser.run("document.querySelectorAll('main a, svg a').length") == 0
    assert (
        browser.run("[...document.querySelectorAll('svg tspan')].filter(e => e.style.fontWeight).length") == 0
    )
    widest = browser.run(
        "Math.max(...[...document.querySelectorAll('.legend .legendtext')].map(e => e.getBBox().width))"
    )
    assert 100 < widest < 400, "a name covers its figure"


def test_an_empty_window_says_so(rows: Filled, browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "empty.html"
    config = Config(clickhouse=rows.config)
    done = CliRunner().invoke(render, ["network", "--until", "1000000000", "-o", str(file)], obj=config)
    assert done.exit_code == 0, done.output
    seen = look(browser, file)
    assert browser.faults == []
    assert sum("nothing in this window" in each["text"] for each in seen) > 5


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere"], "there is no dashboard `nowhere`; try one of attacks"),
        (["fleet", "--since", "yesterday"], "`yesterday` is no length of time"),
        (["fleet", "--var", "colour"], "--var takes NAME=VALUE"),
        (["fleet", "--var", "colour=red"], "has no variable colour"),
        (["fleet", "-o", "/proc/nowhere/x.html"], "cannot write /proc/nowhere/x.html"),
        (["pyproject.json"], "there is no dashboard `pyproject.json`"),
    ],
)
def test_mistakes_are_named(rows: Filled, arguments: list[str], says: str) -> None:
    done = CliRunner().invoke(render, arguments, obj=Config(clickhouse=rows.config))
    assert isinstance(done.exception, UsageError | BpfleetError)
    assert says in str(done.exception)


def test_a_file_that_is_no_dashboard_is_refused(rows: Filled, tmp_path: Path) -> None:
    for number, text in enumerate(["", "{", "[]", "{}", '{"title": 1, "uid": 2, "panels": [{}]}', "\udcff"]):
        file = tmp_path / f"{number}.json"
        file.write_bytes(text.encode("utf-8", "surrogateescape"))
        done = CliRunner().invoke(render, [str(file)], obj=Config(clickhouse=rows.config))
        assert isinstance(done.exception, BpfleetError) and "is no Grafana dashboard" in str(done.exception)


def test_one_panels_fault_is_not_its_neighbours(rows: Filled, tmp_path: Path) -> None:
    tree = dict(BOARDS["network"].tree)
    panels = [dict(each) for each in tree["panels"]]
    broken = next(each for each in panels if each["title"] == "Resets")
    broken["targets"] = [{**broken["targets"][0], "rawSql": "SELECT nonsense"}]
    file = tmp_path / "broken.json"
    file.write_bytes(msgspec.json.encode(tree | {"panels": panels}))
    out = tmp_path / "broken.html"
    done = draw(rows, str(file), "-o", str(out))
    assert done.exit_code == 0 and "Resets:" in done.output
    page = out.read_text()
    assert page.count('class="fault"') == 1 and page.count('class="figure"') > 5


def test_parents_and_places() -> None:
    assert flame.parents_of([0, 1, 2, 2, 1, 2, 3]) == [-1, 0, 1, 1, 0, 4, 5]
    at = graph.place(4, [(0, 2), (1, 3), (0, 3)])
    assert [x for x, _ in at] == [0, 0, 1, 1] and len(set(at)) == 4
    assert graph.place(1, []) == [(1.0, 0.5)]


def test_units_read_well() -> None:
    shown = [("ns", 1_500_000, "1.5 ms"), ("µs", 2_000_000, "2 s"), ("bytes", 1_234_567, "1.23 MB"),
             ("s", 90, "1.5 min"), ("percentunit", 0.043, "4.3 %"), ("pps", 12, "12 p/s"), ("short", 0, "0"),
             ("none", 443, "443"), ("none", "x", "x"), ("short", None, "—")]  # fmt: skip
    assert [units.show(value, unit) for unit, value, _ in shown] == [text for _, _, text in shown]
