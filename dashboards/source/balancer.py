"""Load balancer: rates of VIPs and reals, changes of the ring, health,
and why packets went where they went."""

from dashboards.source.board import dashboard, many
from dashboards.source.firing import reals, vips
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
    WHERE,
    address,
    share,
)

VIPS = "$__conditionalAll(vip IN (${vip:singlequote}), $vip)"
VIP = many(
    "vip", "VIP", f"SELECT vip FROM lb_stats WHERE {HERE_BY_MINUTE} AND vip != '' GROUP BY vip ORDER BY vip"
)
SENT = f"{HERE_BY_MINUTE} AND {VIPS} AND real != ''"
REASONS = f"{HERE_BY_MINUTE} AND {VIPS} AND reason != ''"
EVENTS = f"{HERE} AND {VIPS}"
LASTING = f"{EVER} AND {HOSTS} AND {VIPS}"
STANDING = f"{HOSTS} AND {VIPS}"


def rate(by: str, of: str, where: str) -> str:
    """A counter of ``lb_stats`` a second, by a column."""
    return f"""
SELECT {BY_MINUTE}, {by}, sum({of}) / $__interval_s AS {of}
FROM lb_stats WHERE {where} GROUP BY time, {by} ORDER BY time, {by}"""


PANELS = [
    row("Is it well?"),
    stat(
        "Packets a second",
        f"SELECT sum(packets) / ($__toTime - $__fromTime) AS packets FROM lb_stats WHERE {SENT}",
        "pps",
        "Mean rate of packets sent on to reals. Bad: far below what this time of day usually has.",
        link("Network", "network"),
    ),
    stat(
        "New flows a second",
        f"SELECT sum(flows) / ($__toTime - $__fromTime) AS flows FROM lb_stats WHERE {SENT}",
        "cps",
        "Mean rate of new TCP connections. Bad: a surge without its packets: a SYN flood.",
        link("Attacks", "attacks"),
    ),
    stat(
        "Reals down",
        f"SELECT countIf(health = 'down') AS reals FROM ({reals(STANDING)})",
        "short",
        "Reals whose last transition was to down, once per balancer. Bad: any.",
        link("Host", "host"),
        steps=ANY_IS_BAD,
    ),
    stat(
        "VIPs without reals",
        f"SELECT countIf(down > 0 AND serving = 0) AS vips FROM ({vips(STANDING)})",
        "short",
        "VIPs without a real that is up and gets flows, once per balancer. Bad: any: nobody answers there.",
        link("Host", "host"),
        steps=ANY_IS_BAD,
    ),
    stat(
        "Packets dropped",
        f"SELECT sum(packets) AS packets FROM lb_stats WHERE {REASONS} AND verdict = 'drop'",
        "short",
        "Packets the balancer itself dropped, with a named reason below. Bad: any but malformed ones.",
        link("Attacks", "attacks"),
        steps=thresholds((None, "green"), (1, "orange"), (10_000, "red")),
    ),
    stat(
        "Configurations refused",
        f"SELECT countIf(event = 'refused') AS times FROM lb_event WHERE {HERE}",
        "short",
        "Times that a configuration did not come into force; the former one stays. Bad: any.",
        link("Fleet", "fleet"),
        steps=ANY_IS_BAD,
    ),
    row("Rates"),
    timeseries(
        "Packets by VIP",
        rate("vip", "packets", SENT),
        "pps",
        "Packets sent on, by VIP. Bad: a VIP at zero, or one that leaps.",
        link("Network", "network"),
        stack=True,
        least="1m",
    ),
    timeseries(
        "Bytes by VIP",
        rate("vip", "bytes", SENT),
        "Bps",
        "IP bytes as they came, by VIP. Bad: flat at the line's rate.",
        link("Network", "network"),
        stack=True,
        least="1m",
    ),
    timeseries(
        "Packets by real",
        rate("real", "packets", SENT),
        "pps",
        "Packets by the server that got them. Bad: one far above or below its share of the ring.",
        link("Network", "network"),
        least="1m",
    ),
    timeseries(
        "New flows by real",
        rate("real", "flows", SENT),
        "cps",
        "New connections by server. Bad: a real without new ones while it is up.",
        link("Network", "network"),
        least="1m",
    ),
    bars(
        "Share of each real",
        f"""
SELECT real, sum(packets) / (SELECT greatest(sum(packets), 1) FROM lb_stats WHERE {SENT}) AS share
FROM lb_stats WHERE {SENT} GROUP BY real ORDER BY share DESC LIMIT 20""",
        "percentunit",
        "Share of all packets that each real "
        "got. Bad: uneven while weights are equal: a few heavy flows, or a ring that is not balanced.",
        link("Network", "network"),
        size=(12, 8),
    ),
    timeseries(
        "Named reasons",
        rate("reason", "packets", REASONS),
        "pps",
        "Why packets went where they went, or ended: "
        "remembered flows, tables, drops. Bad: a drop's reason that grows.",
        link("Attacks", "attacks"),
        least="1m",
    ),
    row("Tables and rings"),
    timeseries(
        "Who decided: ring or table",
        f"""
SELECT $__timeInterval(ts) AS time, reason, sum(weight) / $__interval_s AS packets
FROM lb_flow WHERE {EVENTS} GROUP BY time, reason ORDER BY time, reason""",
        "pps",
        "Packets by what chose their real, estimated from samples: the ring's slot alone, or a table that "
        "remembers. Bad: tables grow without a change of the ring: they fill.",
        link("Network", "network"),
        stack=True,
    ),
    table(
        "Changes of the ring",
        f"""
SELECT ts AS time, host, vip, real, state, slots_before, slots, slots - slots_before AS change, reason,
  document
FROM lb_event WHERE {EVENTS} AND event IN ('ring', 'drained') ORDER BY ts DESC LIMIT 200""",
        "Slots of 65537 that reals gained and lost, and why. Bad: the same real comes and goes: it flaps.",
        link("Host", "host"),
        units={"time": "dateTimeAsIso", "change": "short"},
        links={"host": row_link("Host", "host", "host")},
        size=(12, 8),
    ),
    row("Health"),
    states(
        "Health of reals",
        f"""
SELECT {FROM_BEFORE}, concat(vip, ' ', real) AS server, argMax(if(state = 'up', 1, 2), ts) AS health
FROM lb_event WHERE {LASTING} AND event = 'health' GROUP BY time, server ORDER BY time, server""",
        {1: ("up", "green"), 2: ("down", "red")},
        "Transitions of each real as its balancers judge it; the colour holds until "
        "the next. Bad: red, or stripes: it flaps.",
        link("Host", "host"),
        size=(12, 8),
        held=True,
    ),
    table(
        "Transitions",
        f"""
SELECT ts AS time, host, vip, real, state, reason, duration_us
FROM lb_event WHERE {EVENTS} AND event = 'health' ORDER BY ts DESC LIMIT 200""",
        "Every transition, and how long the checks took to agree on it. Bad: down without up.",
        link("Host", "host"),
        units={"time": "dateTimeAsIso", "duration_us": "µs"},
        size=(12, 8),
    ),
    table(
        "Configurations and programs",
        f"""
SELECT ts AS time, host, event, state, document, reason, duration_us
FROM lb_event WHERE {HERE} AND event IN ('reload', 'refused', 'program', 'removed')
  ORDER BY ts DESC LIMIT 100""",
        "What came into force, when, how long it took. Bad: refused; a reload above a second.",
        link("Fleet", "fleet"),
        units={"time": "dateTimeAsIso", "duration_us": "µs"},
        size=(12, 8),
    ),
    table(
        "Clients of the balancer",
        f"""
SELECT {address("source_address")} AS client, vip, {address("real_address")} AS real, sum(weight) AS packets,
  {share("sum(weight * bytes)", "sum(weight)")} AS mean_bytes
FROM lb_flow WHERE {EVENTS} GROUP BY source_address, vip, real_address ORDER BY packets DESC LIMIT 50""",
        "Who sends most, and to which real it goes, estimated. Bad: one client far ahead of all.",
        link("Attacks", "attacks"),
        units={"packets": "short", "mean_bytes": "bytes"},
        size=(12, 8),
    ),
]

DASHBOARD = dashboard(
    "balancer",
    "Load balancer",
    "Rates, rings, health and reasons of the layer-4 load balancer.",
    PANELS,
    variables=[*WHERE, VIP],
    annotations=MARKS,
)
