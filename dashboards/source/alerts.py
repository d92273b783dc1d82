"""Alert rules: a question of :mod:`.firing`, what to do, and the panel that shows it.

Grafana's server evaluates them each minute: only the data source's own macros may be used, no variables. The
window of a rule is far longer than the seconds that a row takes to its table. Labels stand in texts as
``{{ .Labels.host }}``: a dollar would be taken for a variable of the environment.
"""

from typing import Any

from dashboards.source import attacks, balancer, fleet, host, network, pipeline
from dashboards.source import firing as asked
from dashboards.source.firing import Firing
from dashboards.source.panels import TABLE, target
from dashboards.source.provisioning import FOLDER, UID

BOARDS = {
    module.DASHBOARD["uid"]: module.DASHBOARD
    for module in (attacks, balancer, fleet, host, network, pipeline)
}


def rule(
    name: str, title: str, question: Firing, *, what: str, do: str, panel: tuple[str, str],
    lasting: str = "0s", silence: str = "OK",
) -> dict[str, Any]:  # fmt: skip
    """One rule: it fires for each row of the question whose value is above its limit.

    ``lasting``: for how long it must be so; ``silence``: the state when there is no row at all; ``panel``:
    dashboard and title of the panel that shows it.
    """
    uid = f"bpfleet-{panel[0]}"
    number = next(each["id"] for each in BOARDS[uid]["panels"] if each["title"] == panel[1])
    known = {each["name"] for each in BOARDS[uid]["templating"]["list"]}
    chosen = "".join(f"&var-{each}={{{{ .Labels.{each} }}}}" for each in question.labels if each in known)
    query = {**target(question.alert, TABLE), "intervalMs": 60_000, "maxDataPoints": 1_000}
    query["datasource"] = {"type": "grafana-clickhouse-datasource", "uid": UID}
    span = {"from": question.window, "to": 0}
    threshold = {
        "refId": "B", "type": "threshold", "expression": "A",
        "datasource": {"type": "__expr__", "uid": "__expr__"},
        "conditions": [{"type": "query", "evaluator": {"type": "gt", "params": [question.above]}}],
    }  # fmt: skip
    return {
        "uid": f"bpfleet-{name}",
        "title": title,
        "condition": "B",
        "data": [
            {"refId": "A", "relativeTimeRange": span, "datasourceUid": UID, "model": query},
            {"refId": "B", "relativeTimeRange": dict(span), "datasourceUid": "__expr__", "model": threshold},
        ],
        "dashboardUid": uid,
        "panelId": number,
        "noDataState": silence,
        "execErrState": "Error",
        "for": lasting,
        "labels": {"severity": question.severity, "source": "bpfleet"},
        "annotations": {
            "summary": what,
            "description": " ".join(do.split()),
            "panel": f"/d/{uid}?viewPanel={number}&from=now-1h&to=now{chosen}",
            "__dashboardUid__": uid,
            "__panelId__": str(number),
        },
    }


HOSTS = [
    rule(
        "host-verdict",
        "Host in trouble",
        asked.VERDICT,
        panel=("fleet", "Verdict of each host"),
        what="{{ .Labels.host }}: {{ .Labels.cause }}",
        do="Open the panel: it names the culprit and the figures. For a noisy neighbour limit or move the "
        "culprit; for a slow disk see Latency; for memory raise the limit of the cgroup or find what grew.",
    ),
    rule(
        "oom",
        "Process killed for want of memory",
        asked.OOM,
        panel=("host", "Killed for want of memory"),
        what="{{ .Labels.host }}: the kernel killed a process of {{ .Labels.cgroup }}",
        do="Cause cgroup: raise its memory limit, or see why it grew. Cause host: move work away.",
    ),
    rule(
        "retransmits",
        "Many TCP segments sent again",
        asked.RETRANSMITS,
        lasting="2m",
        panel=("host", "Segments sent again"),
        what="{{ .Labels.host }} sends far more TCP segments again than in the hour before",
        do="See Network: one remote far ahead means its way is sick; all of them: this host's own link, or "
        "its switch.",
    ),
    rule(
        "drops",
        "Many packets dropped",
        asked.DROPS,
        lasting="1m",
        panel=("network", "Dropped, by reason"),
        what="{{ .Labels.host }} drops far more packets than in the hour before",
        do="The reason names the layer: SOCKET_RCVBUFF: the program is too slow; NO_SOCKET: a scan or a "
        "dead service; NETFILTER_DROP: a rule of the host's firewall.",
    ),
]

ATTACKS = [
    rule(
        "attack-started",
        "Attack started",
        asked.ATTACK_STARTED,
        panel=("attacks", "Attacks"),
        what="Attack {{ .Labels.attack }} on {{ .Labels.target }}",
        do="Open the attack in depth. With policy suggest or shadow a person must publish the rule it "
        "proposes.",
    ),
    rule(
        "attack-mitigated",
        "Attack mitigated",
        asked.ATTACK_MITIGATED,
        panel=("attacks", "Attacks"),
        what="Attack {{ .Labels.attack }} on {{ .Labels.target }} is met: 99 % and more of it is dropped",
        do="Nothing to do; check the share of legitimate packets lost.",
    ),
    rule(
        "attack-not-mitigated",
        "Attack not mitigated",
        asked.NOT_MITIGATED,
        panel=("attacks", "Mitigated"),
        what="Attack {{ .Labels.attack }} on {{ .Labels.target }} comes through, or nobody answers it",
        do="See its steps: refused or held rules say why. None for two minutes: `bpfleet mitigate` is gone "
        "and its rules will end; start it. Write a rule by hand with `bpfleet drop`, or call upstream.",
    ),
    rule(
        "rule-rolled-back",
        "Rule rolled back",
        asked.ROLLED_BACK,
        panel=("attacks", "What happened to rules"),
        what="{{ .Labels.host }} took rule {{ .Labels.rule }} out of force: it hit legitimate packets",
        do="Look at the samples it matched, narrow its expression, publish it in shadow first.",
    ),
]

BALANCER = [
    rule(
        "real-down",
        "Real down",
        asked.REAL_DOWN,
        lasting="30s",
        panel=("balancer", "Health of reals"),
        what="{{ .Labels.host }} finds {{ .Labels.real }} of {{ .Labels.vip }} down",
        do="If several balancers say so, the real is down: look at it. If one does: the way between the two.",
    ),
    rule(
        "vip-without-reals",
        "VIP without reals",
        asked.NO_REALS,
        panel=("balancer", "VIPs without reals"),
        what="{{ .Labels.vip }} on {{ .Labels.host }} has no real that is up: nobody answers there",
        do="Bring a real back, or set one that works with `bpfleet lb`. If the checks are at fault, mend "
        "them first.",
    ),
]

PIPELINE = [
    rule(
        "collector-silent",
        "Collector silent",
        asked.SILENT,
        silence="Alerting",
        panel=("fleet", "Seconds since the last sign of life"),
        what="Nothing was heard of {{ .Labels.host }} for two minutes",
        do="Is the host up? Then `systemctl status bpfleet-collector` there. All hosts silent: Kafka or "
        "the sink. Heard of late: its clock is behind. A host that was taken away is forgotten after a day.",
    ),
    rule(
        "losses",
        "Events lost",
        asked.LOSSES,
        panel=("pipeline", "Who is behind"),
        what="{{ .Labels.host }} loses events of {{ .Labels.stream }}",
        do="lost: raise collector.ring_kb or sample; shed: Kafka is away for too long; refused, invalid: "
        "see the collector's log.",
    ),
    rule(
        "sink-lag",
        "Sink behind",
        asked.SINK_LAG,
        lasting="2m",
        silence="Alerting",
        panel=("pipeline", "Lag of the sinks"),
        what="{{ .Labels.sink }} is behind, or no sink runs",
        do="`bpfleet status`. No data: start the sink. Lag: see whether the store answers; start a second "
        "sink.",
    ),
    rule(
        "dead-letters",
        "Dead letters",
        asked.DEAD_LETTERS,
        panel=("pipeline", "Dead letters and retries"),
        what="{{ .Labels.sink }} could not read a message",
        do="`bpfleet cat bpfleet.dead.v1` names topic, offset and reason. Mend it, then `bpfleet replay`.",
    ),
    rule(
        "overhead",
        "Overhead budget hit",
        asked.OVERHEAD,
        panel=("pipeline", "What the overhead budget did"),
        what="{{ .Labels.host }}: probes cost more than they may; {{ .Labels.probe }} {{ .Labels.action }}",
        do="See which program costs most; raise collector.budget_percent, or leave the probe out.",
    ),
]

RULES: dict[str, Any] = {
    "apiVersion": 1,
    "groups": [
        {"orgId": 1, "name": name, "folder": FOLDER, "interval": "1m", "rules": rules}
        for name, rules in (
            ("hosts", HOSTS),
            ("attacks", ATTACKS),
            ("balancer", BALANCER),
            ("pipeline", PIPELINE),
        )
    ],
}
