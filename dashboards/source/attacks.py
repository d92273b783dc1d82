"""Attacks: how many, how well they were met, which rule dropped what, and one attack in depth."""

from dashboards.source.board import dashboard, many, one
from dashboards.source.panels import (
    ANY_IS_BAD,
    bars,
    link,
    row,
    row_link,
    stat,
    states,
    table,
    thresholds,
    timeseries,
)
from dashboards.source.parts import (
    BY_MINUTE,
    EVER,
    FROM_BEFORE,
    HERE,
    HERE_BY_MINUTE,
    HOSTS,
    MARKS,
    TIME,
    WHERE,
    address,
    share,
)

RULES = "$__conditionalAll(rule IN (${rule:singlequote}), $rule)"
RULE = many(
    "rule",
    "Rule",
    f"SELECT rule FROM filter_stats WHERE {HERE_BY_MINUTE} AND rule != '' GROUP BY rule ORDER BY rule",
)
ATTACK = one(
    "attack", "Attack", f"SELECT id FROM attack WHERE {TIME} GROUP BY id ORDER BY max(began) DESC LIMIT 200"
)
FIELDS = (
    "target",
    "vectors",
    "state",
    "began",
    "detected",
    "ended",
    "first_drop",
    "peak_pps",
    "peak_bps",
    "packets",
    "dropped",
    "after",
    "after_dropped",
    "legitimate",
    "legitimate_lost",
    "hosts",
    "source_count",
    "rules",
    "policy",
)
LAST = f"""
SELECT id, {", ".join(f"argMax({name}, revision) AS {name}" for name in FIELDS)}
FROM (SELECT id, revision, {", ".join(FIELDS)} FROM attack WHERE {TIME}) GROUP BY id"""
TO_FIRST_DROP = "if(first_drop < began, NULL, dateDiff('millisecond', began, first_drop) / 1000)"
# An attack's target is an address or a prefix; as a range of IPv6 addresses either prunes the table's key.
TARGET = f"""
WITH assumeNotNull((SELECT (argMax(target, revision), argMax(began, revision), argMax(ended, revision))
  FROM attack WHERE {TIME} AND id = ${{attack:singlequote}})) AS one,
one.1 AS text,
splitByChar('/', text) AS parts,
if(length(parts) > 1, toUInt8OrZero(parts[2]) + if(position(text, ':') > 0, 0, 96), 128) AS bits,
IPv6CIDRToRange(toIPv6OrDefault(parts[1]), toUInt8(bits)) AS attacked"""
TO_IT = f"{HERE} AND destination BETWEEN attacked.1 AND attacked.2"
# While it lasts: an attack that is not over ended in 1970.
OF_IT = f"{TO_IT} AND ts >= one.2 AND ts <= if(one.3 < one.2, toDateTime64($__toTime, 6), one.3)"
STATED = f"{HERE_BY_MINUTE} AND {RULES}"

PANELS = [
    row("Summary"),
    stat(
        "Attacks seen",
        f"SELECT count() AS attacks FROM ({LAST})",
        "short",
        "Attacks that were seen in this window. Bad: more than usual, or any that is not mitigated.",
        link("Network", "network"),
    ),
    stat(
        "Under way",
        f"SELECT countIf(state = 'active') AS attacks FROM ({LAST})",
        "short",
        "Attacks that are not over. Bad: any with a low mitigated share.",
        link("Fleet", "fleet"),
        steps=ANY_IS_BAD,
    ),
    stat(
        "Mitigated",
        f"SELECT {share('sum(after_dropped)', 'sum(after)')} AS share FROM ({LAST})",
        "percentunit",
        "Share of attack packets that were dropped once the rules were in force. Bad: below 99 %.",
        link("Load balancer", "balancer"),
        decimals=3,
        steps=thresholds((None, "red"), (0.95, "orange"), (0.99, "green")),
    ),
    stat(
        "Peak",
        f"SELECT max(peak_pps) AS packets FROM ({LAST})",
        "pps",
        "Packets in the worst second of any attack. Bad: near what the hosts' links or CPUs can take.",
        link("Network", "network"),
    ),
    stat(
        "Time to first drop",
        f"SELECT quantile(0.5)({TO_FIRST_DROP}) AS seconds FROM ({LAST})",
        "s",
        "Median time from the first second above the baseline to the first packet dropped. Bad: above 10 s.",
        link("Pipeline", "pipeline"),
        steps=thresholds((None, "green"), (10, "orange"), (30, "red")),
    ),
    stat(
        "Legitimate packets lost",
        f"SELECT {share('sum(legitimate_lost)', 'sum(legitimate)')} AS share FROM ({LAST})",
        "percentunit",
        "Share of legitimate packets to attacked targets that rules dropped. Bad: above 0.1 %.",
        link("Load balancer", "balancer"),
        decimals=3,
        steps=thresholds((None, "green"), (0.001, "orange"), (0.01, "red")),
    ),
    table(
        "Attacks",
        f"""
SELECT id, target, vectors, state, began, dateDiff('second', began, if(ended < began, $__toTime,
  ended)) AS lasted, peak_pps,
  peak_bps, {share("after_dropped", "after")} AS mitigated, {TO_FIRST_DROP} AS to_first_drop,
    source_count AS sources,
  {share("legitimate_lost", "legitimate")} AS harm, policy, rules
FROM ({LAST}) ORDER BY began DESC LIMIT 200""",
        "Every attack of this window; click its id for its depth. Bad: mitigated below "
        "99 %, harm above 0.1 %.",
        link("Fleet", "fleet"),
        units={
            "began": "dateTimeAsIso",
            "lasted": "s",
            "peak_pps": "pps",
            "peak_bps": "bps",
            "mitigated": "percentunit",
            "to_first_drop": "s",
            "sources": "short",
            "harm": "percentunit",
        },
        links={"id": row_link("In depth", "attacks", "attack")},
        size=(24, 8),
        colors={"mitigated": thresholds((None, "red"), (0.95, "orange"), (0.99, "green"))},
    ),
    row("Rules"),
    timeseries(
        "Passed and dropped",
        f"""
SELECT {BY_MINUTE}, verdict, sum(packets) / $__interval_s AS packets
FROM filter_stats WHERE {STATED} GROUP BY time, verdict ORDER BY time, verdict""",
        "pps",
        "Exact counters of the filter. Bad: passed leaps while dropped does not.",
        link("Network", "network"),
        stack=True,
        least="1m",
    ),
    timeseries(
        "Dropped, by rule",
        f"""
SELECT {BY_MINUTE}, rule, sum(packets) / $__interval_s AS packets
FROM filter_stats WHERE {STATED} AND verdict IN ('drop', 'shadow') AND rule != ''
GROUP BY time, rule ORDER BY time, rule""",
        "pps",
        "What each rule drops, or would drop in shadow. Bad: a rule that drops all day: "
        "it may hit customers.",
        link("Load balancer", "balancer"),
        stack=True,
        least="1m",
    ),
    states(
        "Rule timeline",
        f"""
SELECT time, rule_on_host, mode FROM (
  SELECT {FROM_BEFORE}, concat(rule, ' on ', host) AS rule_on_host,
    argMax(transform(mode, ['none', 'shadow', 'enforce'], [0, 1, 2], 0), ts) AS mode
  FROM filter_event WHERE {EVER} AND {HOSTS} AND {RULES} GROUP BY time, rule_on_host)
WHERE time > $__fromTime OR mode > 0
ORDER BY time, rule_on_host""",
        {0: ("none", "text"), 1: ("shadow", "blue"), 2: ("enforced", "orange")},
        "Which rule was in force when, on which host. Bad: enforced for days with nobody behind it.",
        link("Fleet", "fleet"),
        size=(12, 8),
        held=True,
    ),
    table(
        "What happened to rules",
        f"""
SELECT ts AS time, host, rule, event, mode, author, match, reason, dropped, shadowed, legitimate
FROM filter_event WHERE {HERE} AND {RULES} ORDER BY ts DESC LIMIT 200""",
        "Bad: rolled_back and held: a guard saw legitimate packets; refused: the host could not take it.",
        link("Host", "host"),
        units={"time": "dateTimeAsIso", "dropped": "short", "shadowed": "short", "legitimate": "percentunit"},
        links={"host": row_link("Host", "host", "host")},
        size=(12, 8),
    ),
    row("One attack in depth: choose it above"),
    table(
        "Steps",
        f"""
SELECT ts AS time, event, vector, rule, pps, legitimate, packets, hosts, after_us, reason, expression
FROM attack_event WHERE {TIME} AND attack = ${{attack:singlequote}} ORDER BY ts LIMIT 500""",
        "What was done about it, when, why. "
        "Bad: refused, held, rolled_back; a long time between detected and in_force.",
        link("Pipeline", "pipeline"),
        units={
            "time": "dateTimeAsIso",
            "pps": "pps",
            "after_us": "µs",
            "packets": "short",
            "legitimate": "short",
        },
        size=(24, 8),
    ),
    timeseries(
        "To its target: passed and dropped",
        f"""{TARGET}
SELECT $__timeInterval(ts) AS time, verdict, sum(weight) / $__interval_s AS packets
FROM packet_sample WHERE {TO_IT} GROUP BY time, verdict ORDER BY time, verdict""",
        "pps",
        "Packets to the attacked "
        "address, estimated from samples. Bad: passed stays high after the rule was in force.",
        link("Network", "network"),
        stack=True,
    ),
    bars(
        "Its sources",
        f"""{TARGET}
SELECT {address("source")} AS address, sum(weight) AS packets
FROM packet_sample WHERE {OF_IT} GROUP BY source ORDER BY packets DESC LIMIT 15""",
        "short",
        "Who sends most to the target while the attack lasts. Bad: few sources with all of it; spoofed "
        "ones are many and even.",
        link("Network", "network"),
        size=(12, 8),
    ),
    table(
        "Packet samples with their bytes",
        f"""{TARGET}
SELECT ts AS time, host, {address("source")} AS source_address,
  {address("destination")} AS destination_address, protocol,
  source_port, destination_port, length, ttl, tcp_flags, verdict, rule, weight,
    hex(substring(toString(raw), 1, captured)) AS bytes
FROM packet_sample WHERE {OF_IT} ORDER BY ts DESC LIMIT 100""",
        "The latest samples to the target while the attack lasted, with the first "
        "bytes of each frame. Bad: payloads that are all the same.",
        link("Host", "host"),
        units={"time": "dateTimeAsIso", "length": "bytes", "weight": "short"},
        size=(24, 9),
    ),
    table(
        "Heavy hitters",
        f"""
SELECT kind, verdict, item, sum(packets) AS packets, sum(bytes) AS bytes
FROM filter_top WHERE {TIME} AND {HOSTS} GROUP BY kind, verdict, item ORDER BY packets DESC LIMIT 200""",
        "Sources, networks, ports, lengths and TTLs with most packets, over all traffic of the filter. "
        "Bad: one TTL or length with nearly all.",
        link("Network", "network"),
        units={"packets": "short", "bytes": "bytes"},
        size=(24, 8),
    ),
]

DASHBOARD = dashboard(
    "attacks",
    "Attacks",
    "Attacks, how they were met, and what each rule did.",
    PANELS,
    since="now-6h",
    variables=[*WHERE, RULE, ATTACK],
    annotations=MARKS,
)
