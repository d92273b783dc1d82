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


def attack(ago: float, revision: int, state: str, seen: int, dropped: int, detected: float = 300) -> Row:
    columns = {"id": "x1", "revision": revision, "state": state, "target": "192.0.2.1", "packets": seen,
               "dropped": dropped, "detected": -detected}  # fmt: skip
    return "attack", ago, columns


def lasting(per_minute: int, let_through: int, since: float = 3_600) -> list[Row]:
    """An attack for an hour, all of it dropped until ``since``: so much of each minute came through then."""
    made, seen, dropped = [], 0, 0
    for number, ago in enumerate(range(3_600, 0, -5)):
        seen += per_minute // 12
        dropped += (per_minute - (let_through if ago <= since else 0)) // 12
        made.append(attack(ago, number, "active", seen, dropped, detected=3_600))
    return made


ONE, OTHER = "10.0.0.1", "10.0.0.2"
ALIVE: Row = ("host", 30, {})  # what a balancer said counts while it is heard of


def health(ago: float, state: str, real: str = ONE) -> Row:
    return "lb_event", ago, {"event": "health", "vip": "shop", "real": real, "state": state}


def ring(ago: float, slots: int, real: str = ONE, state: str = "added") -> Row:
    return "lb_event", ago, {"event": "ring", "vip": "shop", "real": real, "slots": slots, "state": state}


# Two servers; one after the other fails. With none left, the balancer sends to both.
BEGUN = [ALIVE, ring(9_000, 32_768), ring(9_000, 32_769, OTHER)]
ONE_DOWN = [health(600, "down"), ring(600, 0, state="down"), ring(600, 65_537, OTHER, "share")]
BOTH_DOWN = [health(100, "down", OTHER), ring(100, 32_768, ONE, "share"), ring(100, 32_769, OTHER, "down")]
VIP_GONE = [ring(50, 0, state="removed"), ring(50, 0, OTHER, "removed")]
TAKEN_DOWN: Row = ("lb_event", 40, {"event": "removed"})


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
            verdict(250, "nothing_wrong", 0.1),
            *(verdict(ago, "slow_disk", 0.8) for ago in (180, 150, 90, 60)),
            verdict(120, "memory_pressure", 0.7),  # a cause that changes is one trouble
            verdict(30, "memory_pressure", 0.7),
            verdict(60, "network", 0.6, rank=2),
        ],
        [{"host": "a", "cause": "slow_disk"}],
        [
            [verdict(200, "slow_disk", 0.8), verdict(60, "nothing_wrong", 0.1)],
            [verdict(200, "no_data", 0.9), verdict(60, "no_data", 0.9)],
            [verdict(200, "network", 0.45), verdict(60, "network", 0.45)],
            [verdict(60, "nothing_wrong", 0.9), verdict(60, "network", 0.8, rank=2)],
            [verdict(400, "slow_disk", 0.9), verdict(310, "slow_disk", 0.9)],
            [verdict(100, "slow_disk", 0.9), verdict(10, "slow_disk", 0.9)],  # not yet for two minutes
            [
                verdict(200, "slow_disk", 0.9),
                verdict(90, "nothing_wrong", 0.1),
                verdict(10, "slow_disk", 0.9),
            ],
        ],
    ),
    "oom": (
        [("oom_kill", 100, {"cgroup": "shop"}), ("oom_kill", 90, {"cgroup": "shop"})],
        [{"host": "a", "cgroup": "shop"}],
        [[("oom_kill", 3_700, {"cgroup": "shop"})], []],
    ),
    "retransmits": (
        segments(3_500, 400, 5) + segments(290, 0, 60),
        [{"host": "a"}],
        [
            segments(3_500, 0, 5),
            segments(3_500, 400, 30) + segments(290, 0, 60),  # three times the past would be 90
            segments(3_500, 400, 60) + segments(290, 0, 5),
            segments(290, 0, 9),  # below the floor of 1 %
            each_minute("pressure", 290, 0, tcp_segments=20, tcp_retransmits=2),  # a handful tells nothing
        ],
    ),
    "drops": (
        drops(3_500, 400, 2) + drops(290, 0, 9_000),
        [{"host": "a"}],
        [
            drops(3_500, 0, 9_000),
            drops(3_500, 400, 2) + drops(290, 0, 2_000),
            drops(3_500, 400, 9_000),
            drops(100, 99, 900),  # a second of it, and rows are only of seconds with drops
        ],
    ),
    "attack-started": (
        [attack(300, 1, "active", 0, 0)],
        [{"attack": "x1", "target": "192.0.2.1"}],
        [[attack(300, 1, "active", 0, 0), attack(100, 2, "over", 9, 9)], []],
    ),
    "attack-mitigated": (
        [
            attack(300, 1, "active", 0, 0),
            attack(80, 2, "active", 900, 100),
            attack(9, 3, "active", 1_900, 1_099),
        ],
        [{"attack": "x1", "target": "192.0.2.1"}],
        [
            [attack(100, 2, "active", 1_000, 980)],
            [attack(300, 1, "active", 0, 0)],
            [attack(100, 2, "active", 1_000, 999), attack(90, 3, "over", 1_000, 999)],
        ],
    ),
    "attack-not-mitigated": (
        lasting(60_000, 60_000, since=60),  # all of it comes through for a minute, after an hour of none
        [{"attack": "x1", "target": "192.0.2.1"}],
        [
            [attack(30, 1, "active", 1_000, 0, detected=30)],  # it has a minute
            [attack(100, 2, "active", 1_000, 970)],
            [attack(100, 2, "active", 1_000, 500), attack(90, 3, "over", 1_000, 500)],
            lasting(60_000, 1_200),
            [attack(300, 1, "active", 0, 0), attack(5, 2, "active", 1_000, 950)],
            # Its first seconds came through, and then nothing did, nor does anything come any more.
            [
                attack(120, 1, "active", 900, 0, 120),
                attack(80, 2, "active", 9_900, 9_000, 120),
                attack(5, 3, "active", 9_900, 9_000, 120),
            ],
        ],
    ),
    "rule-rolled-back": (
        [("filter_event", 300, {"rule": "r1", "event": "rolled_back"})],
        [{"host": "a", "rule": "r1"}],
        [
            [("filter_event", 300, {"rule": "r1", "event": "enforced"})],
            [("filter_event", 3_700, {"rule": "r1", "event": "rolled_back"})],
        ],
    ),
    "real-down": (
        [*BEGUN, health(90_000, "up"), health(500, "down"), health(400, "up", OTHER)],
        [{"host": "a", "vip": "shop", "real": ONE}],
        [
            [ALIVE, health(500, "down"), health(100, "up")],
            BEGUN,
            [*BEGUN, *ONE_DOWN, ring(100, 0, state="removed")],
            [*BEGUN, *ONE_DOWN, ring(100, 32_768), ring(100, 32_769, OTHER)],  # the host was booted
            [*BEGUN, *ONE_DOWN, TAKEN_DOWN],
            [*ONE_DOWN, ("host", 90_000, {})],  # the balancer was taken away a day ago
        ],
    ),
    "vip-without-reals": (
        [*BEGUN, *ONE_DOWN, *BOTH_DOWN],
        [{"host": "a", "vip": "shop"}],
        [
            BEGUN,
            [*BEGUN, *ONE_DOWN],
            [*BEGUN, *ONE_DOWN, *BOTH_DOWN, health(20, "up")],
            [*BEGUN, *VIP_GONE],
            [*BEGUN, *ONE_DOWN, *BOTH_DOWN, *VIP_GONE],
            [*BEGUN, *ONE_DOWN, *BOTH_DOWN, TAKEN_DOWN],
        ],
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
            [("collector_health", 3_700, {"stream": "tcp_flow", "lost": 3})],
        ],
    ),
    "sink-lag": (
        [("sink_health", 100, {"sink": "s", "lag": 5}), ("sink_health", 10, {"sink": "s", "lag": 20_000})],
        [{"sink": "s"}],
        [
            [
                ("sink_health", 100, {"sink": "s", "lag": 20_000}),
                ("sink_health", 10, {"sink": "s", "lag": 5}),
            ],
            # It ended, another has its partitions.
            [
                ("sink_health", 200, {"sink": "old", "lag": 20_000}),
                ("sink_health", 10, {"sink": "s", "lag": 5}),
            ],
        ],
    ),
    "dead-letters": (
        [("sink_health", 300, {"sink": "s", "dead": 1}), ("sink_health", 10, {"sink": "s"})],
        [{"sink": "s"}],
        [
            [("sink_health", 10, {"sink": "s"})],
            [("sink_health", 10, {"sink": "s"}), ("sink_health", 3_700, {"dead": 1})],
        ],
    ),
    "overhead": (
        [("overhead_event", 300, {"probe": "p", "action": "slowed"})],
        [{"host": "a", "probe": "p", "action": "slowed"}],
        [
            [("overhead_event", 300, {"probe": "p", "action": "restored"})],
            [("overhead_event", 3_700, {"probe": "p", "action": "slowed"})],
        ],
    ),
}
