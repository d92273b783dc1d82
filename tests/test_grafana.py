"""Dashboards, rules and data source in a running Grafana: ``GRAFANA_URL=http://… pytest -m grafana``.

``GRAFANA_CLICKHOUSE`` is the store's URL as that Grafana reaches it; default: the store of the tests.
Everything made here is removed again, except a data source that was there before.
"""

import base64
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from boards import BOARDS, Filled
from test_dashboards_lint import PROVISIONED, RULES

from fleet.render.variables import interpolate

pytestmark = pytest.mark.grafana
FOLDER = "bpfleet-check"


class Grafana:
    """Its HTTP API (https://grafana.com/docs/grafana/latest/developers/http_api/)."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.url = f"{parts.scheme}://{parts.hostname}:{parts.port or 3000}{parts.path.rstrip('/')}"
        secret = f"{parts.username or 'admin'}:{parts.password or 'admin'}"
        self.headers = {
            "Authorization": "Basic " + base64.b64encode(secret.encode()).decode(),
            "Content-Type": "application/json",
            "X-Disable-Provenance": "true",
        }

    def call(self, method: str, path: str, body: Any = None, missing: bool = False) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, self.headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                text = answer.read()
                return json.loads(text) if text else None
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")[:600]
            if missing and error.code == 404:
                return None
            raise AssertionError(f"{method} {path}: {error.code} {said}") from None


@pytest.fixture(scope="module")
def grafana(rows: Filled) -> Iterator[Grafana]:
    """With our data source (pointed at the filled database), folder and dashboards in it."""
    api = Grafana(os.environ["GRAFANA_URL"])
    store = urlsplit(os.environ.get("GRAFANA_CLICKHOUSE", rows.config.url))
    (declared,) = PROVISIONED["datasources/bpfleet.yaml"]["datasources"]
    settings = declared["jsonData"] | {
        "host": store.hostname, "port": store.port, "username": "default", "defaultDatabase": rows.database,
    }  # fmt: skip
    before = api.call("GET", "/api/datasources/uid/bpfleet", missing=True)
    if before is None:
        api.call(
            "POST",
            "/api/datasources",
            declared | {"jsonData": settings, "secureJsonData": {}, "isDefault": False},
        )
    else:
        api.call("PUT", "/api/datasources/uid/bpfleet", before | {"jsonData": before["jsonData"] | settings})
    api.call("POST", "/api/folders", {"uid": FOLDER, "title": FOLDER})
    try:
        for board in BOARDS.values():
            api.call(
                "POST",
                "/api/dashboards/db",
                {"dashboard": board.tree, "folderUid": FOLDER, "overwrite": True},
            )
        yield api
    finally:
        api.call("DELETE", f"/api/folders/{FOLDER}?forceDeleteRules=true", missing=True)
        if before is None:
            api.call("DELETE", "/api/datasources/uid/bpfleet", missing=True)
        else:
            api.call("PUT", "/api/datasources/uid/bpfleet", before)


def test_it_is_new_enough(grafana: Grafana) -> None:
    version = grafana.call("GET", "/api/health")["version"]
    assert int(version.split(".")[0]) >= 10, version


def test_the_data_source_is_healthy(grafana: Grafana) -> None:
    assert grafana.call("GET", "/api/datasources/uid/bpfleet/health")["status"] == "OK"


@pytest.mark.parametrize("name", BOARDS)
def test_every_panel_gets_data(grafana: Grafana, rows: Filled, name: str) -> None:
    board = BOARDS[name]
    kept = grafana.call("GET", f"/api/dashboards/uid/{board.uid}")["dashboard"]
    assert [each["title"] for each in kept["panels"]] == [each.title for each in board.panels]
    choices = rows.choices(board)
    for panel in board.panels:
        for target in panel.tree.get("targets", []):
            window = panel.window(rows.window)
            query = target | {
                "datasource": {"type": "grafana-clickhouse-datasource", "uid": "bpfleet"},
                "rawSql": interpolate(target["rawSql"], choices, window),
                "intervalMs": window.interval * 1000, "maxDataPoints": 300,
            }  # fmt: skip
            span = {"from": str(int(window.begin * 1000)), "to": str(int(window.end * 1000))}
            answer = grafana.call("POST", "/api/ds/query", {"queries": [query], **span})
            result = answer["results"][target["refId"]]
            assert "error" not in result, f"{panel.title}: {result['error']}"
            frames = result["frames"]
            assert frames and any(len(each["data"]["values"][0]) for each in frames), (
                f"{panel.title} is empty"
            )


def test_every_rule_is_taken_and_evaluated(grafana: Grafana) -> None:
    made = []
    try:
        for rule in RULES:
            body = rule | {
                "uid": f"{rule['uid']}-check"[:40],
                "folderUID": FOLDER,
                "ruleGroup": "check",
                "orgID": 1,
            }
            body["notification_settings"] = None
            for key in ("dashboardUid", "panelId"):
                body.pop(key)
            made.append(grafana.call("POST", "/api/v1/provisioning/alert-rules", body)["uid"])
        grafana.call("PUT", f"/api/v1/provisioning/folder/{FOLDER}/rule-groups/check", {
            "title": "check", "folderUid": FOLDER, "interval": 10,
            "rules": [grafana.call("GET", f"/api/v1/provisioning/alert-rules/{uid}") for uid in made],
        })  # fmt: skip
        deadline = time.monotonic() + 90
        while True:
            groups = grafana.call("GET", "/api/prometheus/grafana/api/v1/rules")["data"]["groups"]
            rules = [each for group in groups if group["name"] == "check" for each in group["rules"]]
            if len(rules) == len(RULES) and all(each["health"] != "unknown" for each in rules):
                break
            assert time.monotonic() < deadline, "the rules were not evaluated"
            time.sleep(2)
        assert [each for each in rules if each["health"] == "error"] == []
    finally:
        for uid in made:
            grafana.call("DELETE", f"/api/v1/provisioning/alert-rules/{uid}", missing=True)
