"""Alert rules: a query of one number and its labels, a threshold, what to do, and the panel that shows it.

Grafana's server evaluates them each minute: only the data source's own macros may be used, no variables. The
window of a rule is far longer than the seconds that a row takes to its table. Labels stand in texts as
``{{ .Labels.host }}``: a dollar would be taken for a variable of the environment.
"""

from typing import Any

from dashboards.source import attacks, balancer, fleet, host, network, pipeline
from dashboards.source.firing import against_past, drops
from dashboards.source.panels import TABLE, target
from dashboards.source.provisioning import FOLDER, UID

TIME = "$__timeFilter(ts)"
BOARDS = {
    module.DASHBOARD["uid"]: module.DASHBOARD
    for module in (attacks, balancer, fleet, host, network, pipeline)
}


def rule(
    name: str, title: str, sql: str, *, above: float, window: int, severity: str, what: str, do: str,
    panel: tuple[str, str], lasting: str = "0s", silence: str = "OK",
) -> dict[str, Any]:  # fmt: skip
    """One rule: it fires for each row of ``sql`` whose number is above ``above``.

    ``window``: seconds the query looks back; ``lasting``: for how long it must be so; ``silence``: the state
    when there is no row at all; ``panel``: dashboard and title of the panel that shows it.
    """
    uid = f"bpfleet-{panel[0]}"
    number = next(each["id"] for each in BOARDS[uid]["panels"] if each["title"] == panel[1])
    query = {**target(sql, TABLE), "intervalMs": 60_000, "maxDataPoints": 1_000}
    query["datasource"] = {"type": "grafana-clickhouse-datasource", "uid": UID}
    span = {"from": window, "to": 0}
    threshold = {
        "refId": "B", "type": "threshold", "expression": "A",
        "datasource": {"type": "__expr__", "uid": "__expr__"},
        "conditions": [{"type": "query", "evaluator": {"type": "gt", "params": [above]}}],
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
        "labels": {"severity": severity, "source": "bpfleet"},
        "annotations": {
            "summary": what,
            "description": " ".join(do.split()),
            "panel": f"/d/{uid}?viewPanel={number}&from=now-1h&to=now&var-host={{{{ .Labels.host }}}}",
            "__dashboardUid__": uid,
            "__panelId__": str(number),
        },
    }


LAST_ATTACK = f"""
SELECT id, argMax(target, revision) AS target, argMax(state, revision) AS state,
  argMax(detected, revision) AS detected, argMax(after, revision) AS after,
  argMax(after_dropped, revision) AS after_dropped, argMax(peak_pps, revision) AS peak
FROM (SELECT id, revision, target, state, detected, after, after_dropped, peak_pps FROM attack WHERE {TIME})
GROUP BY id"""
MITIGATED = "if(after = 0, 0, after_dropped / after)"


HOSTS = [
    rule(
        "host-verdict",
        "Host in trouble",
        f"""
SELECT target_host AS host, argMax(verdict, ts) AS cause, argMax(score, ts) AS value
FROM verdict WHERE {TIME} AND rank = 1
GROUP BY target_host HAVING cause NOT IN ('nothing_wrong', 'no_data')""",
        above=0.5,
        window=300,
        lasting="2m",
        severity="warning",
        panel=("fleet", "Verdict of each host"),
        what="{{ .Labels.host }}: {{ .Labels.cause }}",
        do="Open the panel: it names the culprit and the figures. For a noisy neighbour limit or move the "
        "culprit; for a slow disk see Latency; for memory raise the limit of the cgroup or find what grew.",
    ),
    rule(
        "oom",
        "Process killed for want of memory",
        f"""
SELECT host, cgroup, count() AS value FROM oom_kill WHERE {TIME} GROUP BY host, cgroup""",
        above=0,
        window=600,
        severity="warning",
        panel=("host", "Killed for want of memory"),
        what="{{ .Labels.host }}: the kernel killed a process of {{ .Labels.cgroup }}",
        do="Cause cgroup: raise its memory limit, or see why it grew. Cause host: move work away.",
    ),
    rule(
        "retransmits",
        "Many TCP segments sent again",
        against_past("tcp_retransmits", "tcp_segments", "pressure", 0.01),
        above=1,
        window=3_600,
        lasting="2m",
        severity="warning",
        panel=("host", "Segments sent again"),
        what="{{ .Labels.host }} sends far more TCP segments again than in the hour before",
        do="See Network: one remote far ahead means its way is sick; all of them: this host's own link, or "
        "its switch.",
    ),
    rule(
        "drops",
        "Many packets dropped",
        against_past("packets", "interval_us / 1e6", drops(), 100),
        above=1,
        window=3_600,
        lasting="1m",
        severity="warning",
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
        f"""
SELECT id AS attack, target, peak AS value FROM ({LAST_ATTACK}) WHERE state = 'active'""",
        above=0,
        window=86_400,
        severity="warning",
        panel=("attacks", "Attacks"),
        what="Attack {{ .Labels.attack }} on {{ .Labels.target }}",
        do="Open the attack in depth. With policy suggest or shadow a person must publish the rule it "
        "proposes.",
    ),
    rule(
        "attack-mitigated",
        "Attack mitigated",
        f"""
SELECT id AS attack, target, {MITIGATED} AS value FROM ({LAST_ATTACK}) WHERE state = 'active'""",
        above=0.99,
        window=86_400,
        severity="info",
        panel=("attacks", "Attacks"),
        what="Attack {{ .Labels.attack }} on {{ .Labels.target }} is met: 99 % and more of it is dropped",
        do="Nothing to do; check the share of legitimate packets lost.",
    ),
    rule(
        "attack-not-mitigated",
        "Attack not mitigated",
        f"""
SELECT id AS attack, target, 1 - {MITIGATED} AS value FROM ({LAST_ATTACK})
WHERE state = 'active' AND detected < $__toTime - 60""",
        above=0.05,
        window=86_400,
        severity="critical",
        panel=("attacks", "Mitigated"),
        what="A minute after it was found, attack {{ .Labels.attack }} on {{ .Labels.target }} still comes "
        "through",
        do="See its steps: refused or held rules say why. Write a rule by hand with `bpfleet drop`, or "
        "call upstream.",
    ),
    rule(
        "rule-rolled-back",
        "Rule rolled back",
        f"""
SELECT host, rule, count() AS value FROM filter_event WHERE {TIME} AND event = 'rolled_back'
GROUP BY host, rule""",
        above=0,
        window=600,
        severity="warning",
        panel=("attacks", "What happened to rules"),
        what="{{ .Labels.host }} took rule {{ .Labels.rule }} out of force: it hit legitimate packets",
        do="Look at the samples it matched, narrow its expression, publish it in shadow first.",
    ),
]

BALANCER = [
    rule(
        "real-down",
        "Real down",
        f"""
SELECT host, vip, real, toUInt8(argMax(state, ts) = 'down') AS value
FROM lb_event WHERE {TIME} AND event = 'health' GROUP BY host, vip, real""",
        above=0,
        window=2_592_000,
        lasting="30s",
        severity="warning",
        panel=("balancer", "Health of reals"),
        what="{{ .Labels.host }} finds {{ .Labels.real }} of {{ .Labels.vip }} down",
        do="If several balancers say so, the real is down: look at it. If one does: the way between the two.",
    ),
    rule(
        "vip-without-reals",
        "VIP without reals",
        f"""
SELECT host, vip, toUInt8(sum(slots) = 0) AS value FROM (
  SELECT host, vip, real, argMax(slots, ts) AS slots FROM lb_event
  WHERE {TIME} AND event = 'ring' GROUP BY host, vip, real)
GROUP BY host, vip""",
        above=0,
        window=2_592_000,
        severity="critical",
        panel=("balancer", "VIPs without reals"),
        what="{{ .Labels.vip }} on {{ .Labels.host }} has no real: nobody answers there",
        do="Bring a real back, or set one that works with `bpfleet lb`. If the checks are at fault, mend "
        "them first.",
    ),
]

PIPELINE = [
    rule(
        "collector-silent",
        "Collector silent",
        f"""
SELECT host, dateDiff('second', max(ts), $__toTime) AS value FROM host WHERE {TIME} GROUP BY host""",
        above=120,
        window=86_400,
        silence="Alerting",
        severity="critical",
        panel=("fleet", "Seconds since the last sign of life"),
        what="Nothing was heard of {{ .Labels.host }} for two minutes",
        do="Is the host up? Then `systemctl status bpfleet-collector` there. All hosts silent: Kafka or "
        "the sink. A host that was taken away is forgotten after a day.",
    ),
    rule(
        "losses",
        "Events lost",
        f"""
SELECT host, stream, sum(lost) + sum(shed) + sum(refused) + sum(invalid) AS value
FROM collector_health WHERE {TIME} GROUP BY host, stream""",
        above=0,
        window=300,
        lasting="1m",
        severity="warning",
        panel=("pipeline", "Who is behind"),
        what="{{ .Labels.host }} loses events of {{ .Labels.stream }}",
        do="lost: raise collector.ring_kb or sample; shed: Kafka is away for too long; refused, invalid: "
        "see the collector's log.",
    ),
    rule(
        "sink-lag",
        "Sink behind",
        f"""
SELECT sink, argMax(lag, ts) AS value FROM sink_health WHERE {TIME} GROUP BY sink""",
        above=10_000,
        window=300,
        lasting="2m",
        silence="Alerting",
        severity="critical",
        panel=("pipeline", "Lag of the sinks"),
        what="{{ .Labels.sink }} is behind, or no sink runs",
        do="`bpfleet status`. No data: start the sink. Lag: see whether the store answers; start a second "
        "sink.",
    ),
    rule(
        "dead-letters",
        "Dead letters",
        f"""
SELECT sink, sum(dead) AS value FROM sink_health WHERE {TIME} GROUP BY sink""",
        above=0,
        window=600,
        severity="warning",
        panel=("pipeline", "Dead letters and retries"),
        what="{{ .Labels.sink }} could not read a message",
        do="`bpfleet cat bpfleet.dead.v1` names topic, offset and reason. Mend it, then `bpfleet replay`.",
    ),
    rule(
        "overhead",
        "Overhead budget hit",
        f"""
SELECT host, probe, action, count() AS value FROM overhead_event
WHERE {TIME} AND action IN ('slowed', 'detached', 'over_budget', 'failed') GROUP BY host, probe, action""",
        above=0,
        window=600,
        severity="warning",
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
