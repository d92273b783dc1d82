"""What can be said of the dashboards' JSON and the alert rules without running a query."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from boards import BOARDS, IDS, PANELS

from fleet.render import macros, variables
from fleet.render.window import Window, seconds
from schemas import declare
from schemas.errors import BpfleetError, UsageError

ROOT = Path(__file__).parents[1] / "dashboards"
TREES = {file.stem: json.loads(file.read_text()) for file in sorted(ROOT.glob("*.json"))}
UIDS = {tree["uid"] for tree in TREES.values()}
UNITS = {
    "none",
    "short",
    "s",
    "µs",
    "ns",
    "bytes",
    "Bps",
    "bps",
    "pps",
    "cps",
    "ops",
    "percent",
    "percentunit",
}
KEPT = ("${__url_time_range}", "${__all_variables}")
PROVISIONED = {
    file.relative_to(ROOT / "provisioning").as_posix(): yaml.safe_load(file.read_text())
    for file in (ROOT / "provisioning").rglob("*.yaml")
}
RULES = [rule for group in PROVISIONED["alerting/rules.yaml"]["groups"] for rule in group["rules"]]
WINDOW = Window.of(1_000_000, 1_003_600)


def test_the_committed_files_are_what_the_sources_say() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dashboards", "check"],
        cwd=ROOT.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert set(TREES) == {
        "fleet",
        "host",
        "latency",
        "profiles",
        "network",
        "balancer",
        "attacks",
        "probes",
        "pipeline",
    }


def test_a_drift_is_refused(tmp_path: Path) -> None:
    file = ROOT / "fleet.json"
    text = file.read_text()
    try:
        file.write_text(text.replace("Hosts in trouble", "Hosts in joy"))
        done = subprocess.run(
            [sys.executable, "-m", "dashboards", "check"],
            cwd=ROOT.parent,
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        file.write_text(text)
    assert done.returncode == 1 and "dashboards/fleet.json is not what" in done.stderr


@pytest.mark.parametrize("name", TREES)
def test_a_dashboard_keeps_the_conventions(name: str) -> None:
    tree = TREES[name]
    assert tree["id"] is None and tree["schemaVersion"] == 39 and tree["uid"] == f"bpfleet-{name}"
    names = [each["name"] for each in tree["templating"]["list"]]
    assert names[0] == "datasource" and {"region", "role", "host"} <= set(names)
    for each in tree["templating"]["list"]:
        if each["name"] in ("region", "role", "host", "cgroup"):
            assert each["multi"] and each["includeAll"]
    numbers = [each["id"] for each in tree["panels"]]
    assert len(set(numbers)) == len(numbers)
    cells = set()
    for panel in tree["panels"]:
        grid = panel["gridPos"]
        assert grid["x"] + grid["w"] <= 24
        own = {
            (x, y)
            for x in range(grid["x"], grid["x"] + grid["w"])
            for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert not own & cells, f"{panel['title']} lies over another panel"
        cells |= own
    titles = [each["title"] for each in tree["panels"]]
    assert len(set(titles)) == len(titles)


@pytest.mark.parametrize(("name", "panel"), PANELS, ids=IDS)
def test_a_panel_says_what_a_person_needs(name: str, panel: Any) -> None:
    tree = panel.tree
    assert panel.unit in UNITS, f"unit {panel.unit!r}"
    assert len(panel.description) > 30
    assert re.search(r"\b[Bb]ad:", panel.description), "what does a bad value look like?"
    (link,) = tree["links"]
    found = re.fullmatch(r"/d/([\w-]+)\?(.*)", link["url"])
    assert found and found[1] in UIDS and all(part in found[2] for part in KEPT), link
    assert found[1] != f"bpfleet-{name}", "a link to itself leads nowhere"
    for url in re.findall(r'"url": "(/d/[^"]*)"', json.dumps(tree["fieldConfig"])):
        assert url.split("?")[0].removeprefix("/d/") in UIDS
        assert "${__url_time_range}" in url and "${region:queryparam}" in url


@pytest.mark.parametrize(("name", "panel"), PANELS, ids=IDS)
def test_a_query_is_one_that_the_data_source_can_run(name: str, panel: Any) -> None:
    board = BOARDS[name]
    known = {each["name"] for each in board.variables}
    for target in panel.tree["targets"]:
        sql = target["rawSql"]
        assert target["format"] in (0, 1) and target["editorType"] == "sql"
        assert target["datasource"] == {"type": "grafana-clickhouse-datasource", "uid": "${datasource}"}
        assert (target["format"] == 0) == (panel.kind in ("timeseries", "state-timeline"))
        assert variables.used(sql) <= known
        assert macros.names(sql) <= {*macros.OF_COLUMN, *macros.PLAIN, "conditionalAll"}
        assert "$__timeFilter(" in sql or "$__fromTime" in sql or "ts > $__toTime - " in sql, (
            "it would read the whole table"
        )
        assert "--" not in sql and "/*" not in sql, "the data source strips comments"
    if panel.kind == "flamegraph":
        assert "LIMIT" not in panel.queries["A"] and "HAVING value" in panel.queries["A"]


def test_every_stream_that_is_shown_exists() -> None:
    streams = set(declare.streams())
    for _, panel in PANELS:
        for sql in panel.queries.values():
            named = set(re.findall(r"\b(?:FROM|JOIN) ([a-z_]+)\b(?!\()", sql)) - {
                "totals",
                "stacks",
                "names",
                "edges",
            }
            assert named <= streams, f"{panel.title}: {named - streams}"


@pytest.mark.parametrize("rule", RULES, ids=[each["uid"] for each in RULES])
def test_an_alert_rule_is_complete(rule: dict[str, Any]) -> None:
    query, threshold = rule["data"]
    sql = query["model"]["rawSql"]
    assert not macros.names(sql) & macros.FRONT_END, "the server knows no macro of the browser"
    assert not variables.used(sql), "the server knows no variable"
    macros.expand(sql, WINDOW)
    assert query["datasourceUid"] == "bpfleet" and threshold["datasourceUid"] == "__expr__"
    assert query["relativeTimeRange"]["from"] >= 300, "rows take seconds to their table; leave them time"
    assert query["relativeTimeRange"]["to"] == 0 and query["model"]["format"] == 1
    assert threshold["model"]["type"] == "threshold" and threshold["model"]["expression"] == query["refId"]
    assert rule["condition"] == threshold["refId"]
    assert rule["noDataState"] in ("OK", "Alerting") and rule["labels"]["severity"] in (
        "info",
        "warning",
        "critical",
    )
    texts = rule["annotations"]
    assert len(texts["description"]) > 30 and texts["summary"]
    assert "$" not in json.dumps(texts), "a dollar would be taken for a variable of the environment"
    board = TREES[rule["dashboardUid"].removeprefix("bpfleet-")]
    panel = next(each for each in board["panels"] if each["id"] == rule["panelId"])
    assert panel["type"] != "row" and f"viewPanel={panel['id']}" in texts["panel"]
    assert texts["__dashboardUid__"] == rule["dashboardUid"] and texts["__panelId__"] == str(rule["panelId"])
    labels = set(re.findall(r"\{\{ \.Labels\.(\w+) \}\}", texts["summary"]))
    assert labels <= set(re.findall(r"\b\w+\b", sql)), "a label that the query does not give"


def test_rules_have_own_uids_and_somebody_to_tell() -> None:
    uids = [each["uid"] for each in RULES]
    assert len(set(uids)) == len(uids) and all(len(each) <= 40 for each in uids)
    receivers = {each["name"] for each in PROVISIONED["alerting/contact_points.yaml"]["contactPoints"]}
    (policy,) = PROVISIONED["alerting/policies.yaml"]["policies"]
    assert {policy["receiver"], *(each["receiver"] for each in policy["routes"])} <= receivers
    (source,) = PROVISIONED["datasources/bpfleet.yaml"]["datasources"]
    assert source["jsonData"]["protocol"] == "http" and source["uid"] == "bpfleet"
    assert source["type"] == "grafana-clickhouse-datasource"


# The fields that Grafana reads of these files, by its types (pkg/services/provisioning); it ignores others.
FIELDS = {
    "groups": "orgId name folder interval rules",
    "rules": "uid title condition data dashboardUid panelId noDataState execErrState for keepFiringFor "
    "labels annotations isPaused notification_settings record missing_series_evals_to_resolve",
    "data": "refId queryType relativeTimeRange datasourceUid model",
    "relativeTimeRange": "from to",
    "contactPoints": "orgId name receivers",
    "receivers": "uid type settings disableResolveMessage",
    "policies": "orgId receiver group_by group_wait group_interval repeat_interval routes",
    "routes": "receiver object_matchers group_by group_wait group_interval repeat_interval continue routes",
    "providers": "name orgId folder folderUid type disableDeletion updateIntervalSeconds allowUiUpdates "
    "options",
    "options": "path foldersFromFilesStructure",
    "datasources": "orgId name uid type access url isDefault editable jsonData secureJsonData version",
    "jsonData": "host port protocol secure path username defaultDatabase dialTimeout queryTimeout "
    "validateSql",
    "secureJsonData": "password",
    "settings": "url httpMethod",
}
DURATION = re.compile(r"(\d+(ms|[smhdwy]))+")


def _records(tree: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every record of a file under the name of its field; what only the data source reads is left out."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            if name != "model":
                for each in value if isinstance(value, list) else [value]:
                    if isinstance(each, dict):
                        yield name, each
                        yield from _records(each)


@pytest.mark.parametrize("file", PROVISIONED)
def test_grafana_knows_every_field_of_what_it_is_provisioned_with(file: str) -> None:
    tree = PROVISIONED[file]
    assert tree["apiVersion"] == 1
    for name, record in _records(tree):
        if name in ("labels", "annotations"):
            assert all(isinstance(each, str) for each in record.values())
            continue
        assert set(record) <= set(FIELDS[name].split()), f"{name}: {set(record) - set(FIELDS[name].split())}"
        for key in ("for", "interval", "group_wait", "group_interval", "repeat_interval"):
            assert DURATION.fullmatch(record.get(key, "1s")), f"{key}: {record[key]}"
        for key in ("uid", "folderUid", "dashboardUid"):
            assert re.fullmatch(r"[\w-]{1,40}", record.get(key, "x"))
        for label, operator, _ in record.get("object_matchers", []):
            assert label in ("severity", "source") and operator in ("=", "!=", "=~", "!~")


def test_rules_and_dashboards_share_a_folder() -> None:
    """Rules come first and can name it by its title only; a uid would make another of the same title."""
    (provider,) = PROVISIONED["dashboards/bpfleet.yaml"]["providers"]
    groups = PROVISIONED["alerting/rules.yaml"]["groups"]
    assert {each["folder"] for each in groups} == {provider["folder"]} and "folderUid" not in provider
    titles = [each["title"] for each in RULES]
    assert len(set(titles)) == len(titles), "titles are unique in a folder"


def test_macros_expand_as_the_data_source_documents() -> None:
    sql = "SELECT $__timeInterval(ts) AS time, count() / $__interval_s FROM t "
    sql += "WHERE $__timeFilter(toStartOfMinute(ts))"
    assert macros.expand(sql, WINDOW) == (
        "SELECT toStartOfInterval(toDateTime(ts), INTERVAL 15 second) AS time, count() / 15 FROM t "
        "WHERE toStartOfMinute(ts) >= toDateTime(1000000) AND toStartOfMinute(ts) <= toDateTime(1003600)"
    )
    assert macros.expand("$__fromTime $__toTime_ms", WINDOW) == (
        "toDateTime(1000000) fromUnixTimestamp64Milli(1003600000)"
    )


@pytest.mark.parametrize("sql", ["$__timeFilter", "$__timeFilter(a, b)", "$__timeFilter(ts", "$__unknown(ts)",
                                 "$__conditionalAll(a, $b)", "$__timeInterval()"])  # fmt: skip
def test_a_macro_nobody_expands_is_refused(sql: str) -> None:
    with pytest.raises(BpfleetError):
        macros.expand(sql, WINDOW)


def test_variables_expand_as_the_browser_does() -> None:
    choices = {
        "host": variables.Choice(("a", "o'b"), multi=True),
        "all": variables.Choice(("x", "y"), every=True, multi=True),
        "one": variables.Choice(("7",)),
        "none": variables.Choice(()),
    }

    def expand(sql: str) -> str:
        return variables.interpolate(sql, choices, WINDOW)

    assert expand("h IN (${host:singlequote})") == "h IN ('a','o\\'b')"
    assert expand("h = ${none:singlequote}") == "h = ''"
    assert expand("h IN ($host) AND n = $one") == "h IN ('a','o'b') AND n = 7"
    assert expand("$__conditionalAll(f(h, 1) IN (${all:singlequote}), $all)") == "1=1"
    assert (
        expand("$__conditionalAll(f(h, 1) IN (${host:singlequote}), $host)")
        == " f(h, 1) IN ('a','o\\'b')".strip()
    )
    nested = "$__conditionalAll(h IN (SELECT h FROM t WHERE $__conditionalAll(r = 1, $all)), $host)"
    assert expand(nested) == "h IN (SELECT h FROM t WHERE 1=1)"
    assert expand("${__from} ${host:pipe}") == "1000000000 a|o'b"
    for wrong in ("$nobody", "${host:nothing}", "$__conditionalAll(a)", "$__conditionalAll(a, ${host:raw})"):
        with pytest.raises(BpfleetError):
            expand(wrong)


def test_windows_are_read_and_refused() -> None:
    assert seconds("90s") == 90 and seconds("2w") == 1_209_600
    assert Window.of(0, 3_600).interval == 15 and Window.of(0, 3_600, "1m").interval == 60
    for wrong in ("", "h", "0h", "-1h", "1.5h", "1 h", "99999999d"):
        with pytest.raises(UsageError):
            seconds(wrong)
