"""A rule means what libpcap says: generated expressions and frames, many expressions in one program."""

import os
import random

import pytest
from filtering import compilable, expressions, frames, matching
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

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


def test_random_bytes_never_abort() -> None:
    dice = random.Random(7)
    texts = compilable([shapes(dice) for _ in range(80)])
    with matching(texts) as matcher:
        for _ in range(2000):
            frame = dice.randbytes(dice.randrange(14, 1500))
            assert matcher.hits(frame) == matcher.judged(frame), frame.hex()
