"""What Grafana reads at its start: the data source, where the dashboards are, whom to tell."""

from typing import Any

UID = "bpfleet"
FOLDER = "bpfleet"

# `$…` is Grafana's own: from its environment, or a file.
DATASOURCE = {
    "name": "bpfleet",
    "uid": UID,
    "type": "grafana-clickhouse-datasource",
    "access": "proxy",
    "isDefault": True,
    "jsonData": {
        "host": "$BPFLEET_CLICKHOUSE_HOST",
        "port": "$BPFLEET_CLICKHOUSE_PORT",
        "protocol": "http",
        "secure": False,
        "username": "$BPFLEET_CLICKHOUSE_USER",
        "defaultDatabase": "bpfleet",
        "dialTimeout": "10",
        "queryTimeout": "60",
        "validateSql": False,
    },
    "secureJsonData": {"password": "$__file{/run/secrets/clickhouse_password}"},
}
# Grafana makes the rules' folder first, by its title and with a uid of its own choice: with a uid here, the
# dashboards' would be another folder of the same title, which it refuses.
PROVIDER = {
    "name": "bpfleet",
    "folder": FOLDER,
    "type": "file",
    "disableDeletion": True,
    "allowUiUpdates": False,
    "updateIntervalSeconds": 30,
    "options": {"path": "/var/lib/bpfleet/dashboards", "foldersFromFilesStructure": False},
}
# A pager for what is critical, a channel of the team's for the rest; their addresses are in the environment.
CONTACT_POINTS = [
    {"orgId": 1, "name": f"bpfleet-{name}", "receivers": [{
        "uid": f"bpfleet-{name}", "type": "webhook", "disableResolveMessage": False,
        "settings": {"url": url, "httpMethod": "POST"},
    }]}
    for name, url in (("pager", "$BPFLEET_ALERT_PAGER_URL"), ("team", "$BPFLEET_ALERT_TEAM_URL"))
]  # fmt: skip
POLICY = {
    "orgId": 1,
    "receiver": "bpfleet-team",
    "group_by": ["alertname", "host"],
    "group_wait": "10s",
    "group_interval": "1m",
    "repeat_interval": "4h",
    "routes": [
        {"receiver": "bpfleet-pager", "object_matchers": [["severity", "=", "critical"]],
         "group_by": ["alertname"], "group_wait": "5s", "repeat_interval": "1h"},
    ],
}  # fmt: skip

FILES: dict[str, dict[str, Any]] = {
    "datasources/bpfleet.yaml": {"apiVersion": 1, "datasources": [DATASOURCE]},
    "dashboards/bpfleet.yaml": {"apiVersion": 1, "providers": [PROVIDER]},
    "alerting/contact_points.yaml": {"apiVersion": 1, "contactPoints": CONTACT_POINTS},
    "alerting/policies.yaml": {"apiVersion": 1, "policies": [POLICY]},
}
