"""A rule means what libpcap says: generated expressions and frames, many expressions in one program."""

import os
import random

import pytest
from filtering import compilable, expressions, frames, matching
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from collector.filter.decision import Graph
from collector.filter.pcap import Program
from collector.filter.symbolic import decide

SOAK = int(os.environ.get("BPFLEET_SOAK", "1"))
# A failure names its expression and frame: shrinking a list of fifty would take minutes and say no more.
UNSHRUNK = settings(
    deadline=None, suppress_health_check=list(HealthCheck), database=None, phases=[Phase.generate]
)


@settings(UNSHRUNK, max_examples=80 * SOAK)
@given(st.lists(expressions(), min_size=30, max_size=50), st.integers(0, 2**32))
def test_verdicts_are_those_of_libpcap(texts: list[str], seed: int) -> None:
    texts = compilable(texts)
    with matching(texts) as matcher:
        for frame in frames(random.Random(seed), 60):
            ours, theirs = matcher.hits(frame), matcher.judged(frame)
            wrong = [texts[at] for at in ours ^ theirs]
            assert not wrong, f"{frame.hex()}: {wrong[0]!r} is {not theirs & {texts.index(wrong[0])}}"


@settings(UNSHRUNK, max_examples=60 * SOAK)
@given(st.lists(expressions(), min_size=1, max_size=4), st.integers(0, 2**32))
def test_few_rules_too(texts: list[str], seed: int) -> None:
    texts = compilable(texts)
    with matching(texts) as matcher:
        for frame in frames(random.Random(seed), 40):
            assert matcher.hits(frame) == matcher.judged(frame), frame.hex()


def undone(dice: random.Random) -> str:
    """Arithmetic with constants, undone to ask of the field itself; edges as likely as the rest."""
    value = dice.choice(["udp[10:2]", "ip[8]", "len", "udp[8:4]", "ip[4:2]", "(ip[8] << 2)"])
    for _ in range(dice.randrange(1, 4)):
        number = dice.choice(
            [1, 2, 3, 5, 255, 256, 65_535, 65_536, 2**31, 2**32 - 1, dice.randrange(1, 2**32)]
        )
        value = f"({value} {dice.choice('+-^*/')} {number})"
    sign = dice.choice(["=", "!=", ">", "<", ">=", "<="])
    return f"{value} {sign} {dice.choice([0, 1, 255, 256, 65_535, 2**32 - 1, dice.randrange(2**32)])}"


def test_arithmetic_that_is_undone_means_the_same() -> None:
    dice = random.Random(5)
    texts = compilable([undone(dice) for _ in range(400)])
    seen: set[int] = set()
    with matching(texts) as matcher:
        for frame in frames(dice, 150):
            hits = matcher.hits(frame)
            assert hits == matcher.judged(frame), frame.hex()
            seen |= hits
    assert len(seen) > len(texts) // 4


def test_a_thousand_sums_are_found_like_a_thousand_values() -> None:
    """One look at the field for all of them."""
    programs = [Program(f"udp[10:2] ^ {n} = {7 * n % 65_536} and ip[4:2] + {n} = 9000") for n in range(1000)]
    graph = Graph()
    nodes = [decide(graph, each.instructions, ()) for each in programs]
    asked = frozenset().union(*(graph.tested(each) for each in nodes))
    assert len(asked) < 20


def shapes(dice: random.Random) -> str:
    """One of the shapes that operators write by the hundred."""
    start = f"{dice.choice([10, 192, 198])}.{dice.randrange(256)}.{dice.randrange(256)}"
    net = dice.choice([f"{start}.0/24", f"{start}.0/30", f"10.0.0.0/{dice.choice([8, 9, 12])}"])
    return dice.choice([
        f"udp and dst port {dice.randrange(1, 2000)} and len > {dice.randrange(1400)}",
        f"src net {net} and tcp", f"host 10.1.{dice.randrange(4)}.{dice.randrange(8)}",
        f"ip[8] < {dice.randrange(256)} and udp", f"port {dice.randrange(1, 500)}",
        f"udp[8:4] = {dice.randrange(1 << 32)}",
        f"tcp portrange {dice.randrange(1, 900)}-{dice.randrange(900, 60000)}",
        f"len > {dice.randrange(60, 1500)} and ip[1] = {dice.randrange(3)}",
        f"not net {net} and icmp", f"ip6 and udp dst port {dice.randrange(1, 100)}",
    ])  # fmt: skip


@pytest.mark.parametrize("count", [100, 1000])
def test_hundreds_of_rules_in_one_program(count: int) -> None:
    dice = random.Random(count)
    texts = compilable([shapes(dice) for _ in range(count)])
    with matching(texts) as matcher:
        assert matcher.instructions < 200_000
        for frame in frames(dice, 60):
            assert matcher.hits(frame) == matcher.judged(frame), frame.hex()


def test_a_rule_that_contradicts_itself_harms_no_other() -> None:
    """libpcap does not see that it can never match."""
    never = "(tcp port 80 or udp dst port 0) and (ip proto 6 or less 1008) and ip6 proto 17 and len >= 1500"
    texts = [never, "not udp port 80", "len < 100 and len > 200 and udp", "less 99 and greater 200"]
    with matching(texts) as matcher:
        for frame in frames(random.Random(9), 200):
            assert matcher.hits(frame) == matcher.judged(frame), frame.hex()


def test_random_bytes_never_abort() -> None:
    dice = random.Random(7)
    texts = compilable([shapes(dice) for _ in range(80)])
    with matching(texts) as matcher:
        for _ in range(2000):
            frame = dice.randbytes(dice.randrange(14, 1500))
            assert matcher.hits(frame) == matcher.judged(frame), frame.hex()
