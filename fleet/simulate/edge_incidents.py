"""Incidents at the edge: an attack and its rules, a rule that hit a customer, servers that went down."""

from fleet.simulate.plan import Ask, Effect, Event, Fleet, Incident, Look, micros
from fleet.simulate.values import VIP, address, mapped

ATTACK = "simulated-flood"
AMPLIFIER, CUSTOMER, CLIENT = "198.51.100.200", "192.0.2.201", "192.0.2.202"
SYN, DNS = "mitigate-simulated-syn", "mitigate-simulated-dns"
RECORDS = 20  # seconds from one record of an attack to the next
STEPS = (("detected", 3.0), ("distilled", 3.4), ("published", 4.0), ("in_force", 5.4), ("first_drop", 6.0))
EXPRESSIONS = {SYN: f"dst host {VIP} and tcp[tcpflags] = tcp-syn", DNS: f"dst host {VIP} and udp src port 53"}


def _documents(fleet: Fleet, rule: str, match: str, author: str, comment: str, at: float) -> list[Event]:
    """A rule on its way: published, applied and enforced on every edge."""
    named = {"kind": "filter", "id": rule, "revision": 1, "author": author}
    spec = {"comment": comment, "spec": match, "scope": "{}", "expires": micros(at + 600)}
    made = [Event("desired", f"{fleet.prefix}ops", at, named | spec)]
    for host in fleet.edges():
        made.append(Event("applied", host, at + 0.4, named | {"state": "applied", "duration_us": 21_000}))
        made.append(
            happened(host, at + 0.4, rule, "enforced", "enforce", match, author, "as its document says")
        )
    return made


def happened(
    host: str, at: float, rule: str, event: str, mode: str, match: str, author: str, reason: str
) -> Event:
    """A row of the filter's own trail."""
    return Event("filter_event", host, at, {"rule": rule, "event": event, "action": "drop", "mode": mode,
                 "match": match, "author": author, "source": "desired", "reason": reason})  # fmt: skip


def _flood(fleet: Fleet, begin: float, end: float, met: float) -> tuple[Effect, ...]:
    """Half SYNs of spoofed sources, a quarter large DNS answers; dropped from ``met`` on."""
    edges, lot = tuple(fleet.edges()), "cityHash64(ts, 1) % 4"
    common = {"destination": mapped(VIP), "weight": "40000"}
    syn = common | {"source": address(2, "100.64.0.0", 60000).replace("number", "ts").replace("seed", "1"),
                    "length": "60", "tcp_flags": "2", "protocol": "6"}  # fmt: skip
    dns = common | {"source": mapped(AMPLIFIER), "length": "1400", "protocol": "17", "source_port": "53",
                    "tcp_flags": "0"}  # fmt: skip
    seen = [Effect("packet_sample", edges, begin, end, syn, f"{lot} IN (0, 1)"),
            Effect("packet_sample", edges, begin, end, dns, f"{lot} = 2")]  # fmt: skip
    for rule, which in ((SYN, f"{lot} IN (0, 1)"), (DNS, f"{lot} = 2")):
        dropped = {"verdict": "'drop'", "rule": f"'{rule}'", "slot": "3"}
        seen.append(Effect("packet_sample", edges, met, end, dropped, which))
    counted = {"rule": f"'{SYN}'", "verdict": "'drop'", "packets": "packets * 30000", "bytes": "packets * 60"}
    return (*seen, Effect("filter_stats", edges, met, end, counted, "verdict = 'drop'"))


def flood(fleet: Fleet) -> Incident:
    """A SYN flood with amplified DNS answers; two rules answer within seconds, then it ends."""
    begin, met, end, ops = fleet.ago(40), fleet.ago(40) + 6, fleet.ago(28), f"{fleet.prefix}ops"
    hosts = fleet.edges()
    totals = {"packets": 130_000_000 * len(hosts), "dropped": 128_700_000 * len(hosts),
              "after": 128_900_000 * len(hosts), "after_dropped": 128_700_000 * len(hosts)}  # fmt: skip
    attack = {
        "id": ATTACK, "target": VIP, "vectors": "syn flood, dns amplification", "began": micros(begin),
        "detected": micros(begin + 3), "first_drop": micros(met), "peak_pps": 240_000 * len(hosts),
        "peak_bps": 900_000_000 * len(hosts), "legitimate": 9_000_000, "legitimate_lost": 310, **totals,
        "hosts": ",".join(hosts), "sources": f'{{"{AMPLIFIER}": 32000000}}', "source_count": 58_213,
        "rules": f"{SYN},{DNS}", "expression": "\nor\n".join(EXPRESSIONS.values()), "policy": "enforce",
    }  # fmt: skip
    nothing = {"first_drop": 0, "after": 0, "after_dropped": 0, "dropped": 0}
    over = {"revision": 1_000, "state": "over", "ended": micros(end)}
    events = [Event("attack", ops, begin + 3, attack | {"revision": 1, "state": "active"} | nothing)]
    for n in range(1, int(end - begin) // RECORDS):
        at = begin + n * RECORDS
        parts = {"packets": (at - begin) / (end - begin)}
        parts |= dict.fromkeys(("dropped", "after", "after_dropped"), (at - met) / (end - met))
        so_far = {name: int(totals[name] * part) for name, part in parts.items()}
        events.append(Event("attack", ops, at, attack | so_far | {"revision": n + 1, "state": "active"}))
    events.append(Event("attack", ops, end + 30, attack | over))
    for vector, rule in (("syn flood", SYN), ("dns amplification", DNS)):
        events += _documents(fleet, rule, EXPRESSIONS[rule], "mitigate", f"{vector} against {VIP}", begin + 4)
        events += [
            Event("attack_event", ops, begin + after, {"attack": ATTACK, "event": step, "target": VIP,
                  "vector": vector, "rule": rule, "expression": EXPRESSIONS[rule],
                  "pps": 120_000 * len(hosts), "packets": 600_000, "legitimate": 12, "hosts": len(hosts),
                  "after_us": micros(max(after - 3, 0)), "reason": "far above the usual of this hour"})
            for step, after in (*STEPS, ("over", end + 30 - begin))
        ]  # fmt: skip
        events += [happened(host, end + 90, rule, "expired", "none", EXPRESSIONS[rule], "mitigate",
                            "its time to live ended") for host in hosts]  # fmt: skip
    return Incident(
        "flood", f"SYN flood and DNS amplification against {VIP}; two rules answered", begin, end,
        _flood(fleet, begin, end, met), tuple(events),
        looks=(
            Look("attacks", "Attacks", (ATTACK, VIP, "over", SYN)),
            Look("attacks", "Packet samples with their bytes", (VIP, "drop"), {"attack": ATTACK}),
            Look("attacks", "Its sources", (AMPLIFIER,), {"attack": ATTACK}),
            Look("attacks", "Steps", ("first_drop", SYN), {"attack": ATTACK}),
        ),
        asks=(
            Ask(("replay", ATTACK, "--since", "3h"), ("in_force",)),
            Ask(("address", AMPLIFIER, "--since", "3h"), ("frames", "drop", DNS)),
            Ask(("sources", "--since", "3h", "--verdict", "drop"), (AMPLIFIER,)),
        ),
    )  # fmt: skip


def bad_rule(fleet: Fleet) -> Incident:
    """Somebody's rule drops a customer; the guard rolls it back."""
    rule, match, begin, end = "block-partners", "net 192.0.2.192/26", fleet.ago(125), fleet.ago(121)
    edges, theirs = tuple(fleet.edges()), "cityHash64(ts, 2) % 8 = 0"
    effects = (
        Effect("packet_sample", edges, begin - 600, end + 600, {"source": mapped(CUSTOMER)}, theirs),
        Effect("packet_sample", edges, begin, end,
               {"verdict": "'drop'", "rule": f"'{rule}'", "established": "true"}, theirs),
        Effect("filter_stats", edges, begin, end, {"rule": f"'{rule}'", "packets": "packets * 40"},
               "verdict = 'drop'"),
    )  # fmt: skip
    events = _documents(fleet, rule, match, "bob@ops", "scanners of this morning", begin)
    events += [
        happened(host, end, rule, "rolled_back", "shadow", match, "bob@ops",
                 "42 % of the packets it drops belong to connections of this host")
        for host in edges
    ]  # fmt: skip
    return Incident(
        "bad-rule", f"rule {rule} of bob@ops dropped customer {CUSTOMER}; the guard rolled it back",
        begin, end, effects, tuple(events),
        looks=(Look("attacks", "What happened to rules", (rule, "rolled_back", "bob@ops")),
               Look("attacks", "Dropped, by rule", (rule,))),
        asks=(
            Ask(("dropped", CUSTOMER, "--since", "3h"), (rule, "bob@ops", "scanners of this morning")),
            Ask(("changes", "--since", "3h"), (rule, "rolled_back", "bob@ops")),
        ),
    )  # fmt: skip


SLOTS = 65_537
REALS = {"shop": ("10.1.0.1", "10.1.0.2", "10.1.0.3"), "api": ("10.1.0.4", "10.1.0.5", "10.1.0.6")}


def rings(fleet: Fleet, at: float, vip: str, up: tuple[str, ...], state: str, reason: str) -> list[Event]:
    """The ring of a VIP as it is from then on: its slots are those of the reals that are up."""
    return [
        Event("lb_event", host, at, {"event": "ring", "vip": vip, "real": real, "state": state,
              "slots_before": SLOTS // 3, "slots": SLOTS // len(up) if real in up else 0, "reason": reason})
        for host in fleet.edges()
        for real in REALS[vip]
    ]  # fmt: skip


def health(fleet: Fleet, at: float, vip: str, real: str, state: str, reason: str) -> list[Event]:
    """Every balancer's judgement of a real."""
    told = {"event": "health", "vip": vip, "real": real, "state": state, "reason": reason,
            "duration_us": 3_000_000}  # fmt: skip
    return [Event("lb_event", host, at + n / 10, told) for n, host in enumerate(fleet.edges())]


def real_down(fleet: Fleet) -> Incident:
    """One server of a VIP is away for an hour."""
    begin, end, gone = fleet.ago(80), fleet.ago(20), REALS["shop"][1]
    others = tuple(real for real in REALS["shop"] if real != gone)
    events = health(fleet, begin, "shop", gone, "down", "connection refused")
    events += rings(fleet, begin + 0.5, "shop", others, "down", f"{gone} is down")
    events += health(fleet, end, "shop", gone, "up", "three checks in a row")
    events += rings(fleet, end + 0.5, "shop", REALS["shop"], "up", f"{gone} is up")
    moved = Effect("lb_stats", tuple(fleet.edges()), begin, end, {"packets": "0", "bytes": "0", "flows": "0"},
                   f"real = '{gone}'")  # fmt: skip
    return Incident(
        "real-down", f"{gone} of shop was down", begin, end, (moved,), tuple(events),
        looks=(Look("balancer", "Transitions", ("shop", gone, "down", "connection refused")),
               Look("balancer", "Changes of the ring", ("shop", gone, "down"))),
        asks=(Ask(("changes", "--since", "3h"), ("balancer", gone, "health")),),
    )  # fmt: skip


def vip_without_reals(fleet: Fleet) -> Incident:
    """Every server of a VIP is down, still."""
    begin = fleet.ago(15)
    events = [event for n, real in enumerate(REALS["api"])
              for event in health(fleet, begin + n, "api", real, "down", "timeout")]  # fmt: skip
    events += rings(fleet, begin + 3, "api", REALS["api"], "share", "none is up: all get flows again")
    gone = Effect("lb_stats", tuple(fleet.edges()), begin, fleet.end,
                  {"packets": "0", "bytes": "0", "flows": "0"}, "vip = 'api' AND real != ''")  # fmt: skip
    return Incident(
        "vip-without-reals", "no server of api is up", begin, fleet.end, (gone,), tuple(events),
        looks=(Look("balancer", "VIPs without reals", (str(len(fleet.edges())),)),
               Look("balancer", "Reals down", (str(3 * len(fleet.edges())),))),
    )  # fmt: skip


def slow_customer(fleet: Fleet) -> Incident:
    """One connection from the filter to the process: it was slow since its server's CPUs were taken."""
    at, server, edge, port = fleet.ago(45), fleet.host(1), fleet.edges()[0], 40_001
    client, vip, real = mapped(CLIENT), mapped(VIP), mapped("10.1.0.1")
    moment = (at - 4, at + 4)
    same = {"source_port": str(port), "destination_port": "443"}
    effects = (
        Effect("packet_sample", (edge,), *moment, {"source": client, "destination": vip, "protocol": "6",
               "tcp_flags": "16", "verdict": "'pass'", "rule": "''", "length": "90", **same}),
        Effect("lb_flow", (edge,), at - 10, at + 10, {"source_address": client, "destination_address": vip,
               "real_address": real, "vip": "'shop'", "reason": "'ring'", **same}),
        Effect("tcp_flow", (server,), at, at + 7, {"remote_address": client, "remote_port": str(port),
               "local_address": vip, "local_port": "443", "direction": "'accepted'", "duration_us": "3900000",
               "srtt_us": "900", "comm": "'nginx'", "cgroup": "'nginx.service'", "ended": "'fin'"}),
    )  # fmt: skip
    question = ("flow", CLIENT, str(port), VIP, "443", "--since", "3h")
    return Incident(
        "slow-customer", f"{CLIENT}:{port} waited 3.9 s: the run queue of {server}", at - 4, at + 4, effects,
        asks=(
            Ask(question, ("balancer", "shop → 10.1.0.1")),
            Ask(question, (server, "run queue", "nginx.service")),
        ),
    )  # fmt: skip


def usual(fleet: Fleet) -> list[Event]:
    """What is there before anything goes wrong: full rings and servers that are up."""
    made = []
    for vip, reals in REALS.items():
        made += rings(fleet, fleet.begin + 1, vip, reals, "added", "as its document says")
        for real in reals:
            made += health(fleet, fleet.begin + 2, vip, real, "up", "first check")
    return made


ALL = (flood, bad_rule, real_down, vip_without_reals, slow_customer)
