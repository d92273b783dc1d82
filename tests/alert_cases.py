"""For each alert rule: rows at which it must fire and for whom, and rows at which it must not.

A row is (stream, seconds before now, columns). What a row leaves out is the column's default.
"""

from typing import Any

Row = tuple[str, float, dict[str, Any]]


def each_minute(stream: str, first: float, last: float, **columns: Any) -> list[Row]:
    """A row a minute from ``first`` to ``last`` seconds ago."""
    return [(stream, ago, columns) for ago in range(int(first), int(last), -60)]


def verdict(ago: float, what: str, score: float, host: str = "a", rank: int = 1) -> Row:
    return "verdict", ago, {"target_host": host, "verdict": what, "score": score, "rank": rank}


def attack(ago: float, revision: int, state: str, after: int, dropped: int, detected: float = 300) -> Row:
    columns = {"id": "x1", "revision": revision, "state": state, "target": "192.0.2.1", "after": after,
               "after_dropped": dropped, "peak_pps": 9_000, "detected": -detected}  # fmt: skip
    return "attack", ago, columns


def health(ago: float, state: str, real: str = "10.0.0.1") -> Row:
    return "lb_event", ago, {"event": "health", "vip": "shop", "real": real, "state": state}


def ring(ago: float, slots: int, real: str = "10.0.0.1") -> Row:
    return "lb_event", ago, {"event": "ring", "vip": "shop", "real": real, "slots": slots}


def segments(first: float, last: float, again: int) -> list[Row]:
    return each_minute("pressure", first, last, tcp_segments=1_000, tcp_retransmits=again)


def drops(first: float, last: float, packets: int) -> list[Row]:
    return [
        row
        for reason in ("NO_SOCKET", "FULL_RING")
        for row in each_minute(
            "packet_drop_count", first, last, interval_us=1_000_000, reason=reason, packets=packets
        )
    ]


# rule → (rows that must fire, the labels it fires for), rows that must not
CASES: dict[str, tuple[list[Row], list[dict[str, str]], list[list[Row]]]] = {
    "host-verdict": (
        [
            verdict(200, "nothing_wrong", 0.1),
            verdict(60, "slow_disk", 0.8),
            verdict(60, "network", 0.6, rank=2),
        ],
        [{"host": "a", "cause": "slow_disk"}],
        [
            [verdict(200, "slow_disk", 0.8), verdict(60, "nothing_wrong", 0.1)],
            [verdict(60, "no_data", 0.9)],
            [verdict(60, "network", 0.45)],
            [verdict(60, "nothing_wrong", 0.9), verdict(60, "network", 0.8, rank=2)],
            [verdict(400, "slow_disk", 0.9)],
        ],
    ),
    "oom": (
        [("oom_kill", 100, {"cgroup": "shop"}), ("oom_kill", 90, {"cgroup": "shop"})],
        [{"host": "a", "cgroup": "shop"}],
        [[("oom_kill", 700, {"cgroup": "shop"})], []],
    ),
    "retransmits": (
        segments(3_500, 400, 5) + segments(290, 0, 60),
        [{"host": "a"}],
        [
            segments(3_500, 0, 5),
            segments(3_500, 400, 30) + segments(290, 0, 60),  # three times the past would be 90
            segments(3_500, 400, 60) + segments(290, 0, 5),
            segments(290, 0, 9),  # below the floor of 1 %
        ],
    ),
    "drops": (
        drops(3_500, 400, 2) + drops(290, 0, 900),
        [{"host": "a"}],
        [drops(3_500, 0, 900), drops(3_500, 400, 2) + drops(290, 0, 20), drops(3_500, 400, 900)],
    ),
    "attack-started": (
        [attack(300, 1, "active", 0, 0)],
        [{"attack": "x1", "target": "192.0.2.1"}],
        [[attack(300, 1, "active", 0, 0), attack(100, 2, "over", 9, 9)], []],
    ),
    "attack-mitigated": (
        [attack(300, 1, "active", 0, 0), attack(100, 2, "active", 1_000, 999)],
        [{"attack": "x1", "target": "192.0.2.1"}],
        [
            [attack(100, 2, "active", 1_000, 980)],
            [attack(300, 1, "active", 0, 0)],
            [attack(100, 2, "active", 1_000, 999), attack(90, 3, "over", 1_000, 999)],
        ],
    ),
    "attack-not-mitigated": (
        [attack(300, 1, "active", 0, 0), attack(100, 2, "active", 1_000, 500)],
        [{"attack": "x1", "target": "192.0.2.1"}],
        [
            [attack(30, 1, "active", 0, 0, detected=30)],  # it has a minute
            [attack(100, 2, "active", 1_000, 970)],
            [attack(100, 2, "active", 1_000, 500), attack(90, 3, "over", 1_000, 500)],
        ],
    ),
    "rule-rolled-back": (
        [("filter_event", 300, {"rule": "r1", "event": "rolled_back"})],
        [{"host": "a", "rule": "r1"}],
        [
            [("filter_event", 300, {"rule": "r1", "event": "enforced"})],
            [("filter_event", 700, {"rule": "r1", "event": "rolled_back"})],
        ],
    ),
    "real-down": (
        [health(90_000, "up"), health(500, "down"), health(400, "up", "10.0.0.2")],
        [{"host": "a", "vip": "shop", "real": "10.0.0.1"}],
        [[health(500, "down"), health(100, "up")], [ring(100, 0)]],
    ),
    "vip-without-reals": (
        [ring(9_000, 30_000), ring(9_000, 35_537, "10.0.0.2"), ring(100, 0), ring(90, 0, "10.0.0.2")],
        [{"host": "a", "vip": "shop"}],
        [[ring(9_000, 65_537), ring(100, 0), ring(90, 65_537, "10.0.0.2")], [health(100, "down")]],
    ),
    "collector-silent": (
        [("host", 150, {}), ("host", 500, {})],
        [{"host": "a"}],
        [[("host", 500, {}), ("host", 20, {})], [("host", 90_000, {}), ("host", 5, {"host": "b"})]],
    ),
    "losses": (
        [
            ("collector_health", 100, {"stream": "tcp_flow", "shed": 3}),
            ("collector_health", 90, {"stream": "host"}),
        ],
        [{"host": "a", "stream": "tcp_flow"}],
        [
            [("collector_health", 100, {"stream": "tcp_flow", "sampled_out": 900, "shipped": 9})],
            [("collector_health", 400, {"stream": "tcp_flow", "lost": 3})],
        ],
    ),
    "sink-lag": (
        [("sink_health", 100, {"sink": "s", "lag": 5}), ("sink_health", 10, {"sink": "s", "lag": 20_000})],
        [{"sink": "s"}],
        [[("sink_health", 100, {"sink": "s", "lag": 20_000}), ("sink_health", 10, {"sink": "s", "lag": 5})]],
    ),
    "dead-letters": (
        [("sink_health", 300, {"sink": "s", "dead": 1}), ("sink_health", 10, {"sink": "s"})],
        [{"sink": "s"}],
        [
            [("sink_health", 10, {"sink": "s"})],
            [("sink_health", 10, {"sink": "s"}), ("sink_health", 700, {"dead": 1})],
        ],
    ),
    "overhead": (
        [("overhead_event", 300, {"probe": "p", "action": "slowed"})],
        [{"host": "a", "probe": "p", "action": "slowed"}],
        [
            [("overhead_event", 300, {"probe": "p", "action": "restored"})],
            [("overhead_event", 700, {"probe": "p", "action": "slowed"})],
        ],
    ),
}
