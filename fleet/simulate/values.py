"""Expressions that plausible columns are made of: SQL over a row's ``number``.

Beside it, :func:`fleet.simulate.generate.statement` gives them ``place`` (of the row's host), ``part``
(counts the rows of one host: what repeats with a small period gives each cgroup, device … its own series),
``half``, ``seed``, ``prefix``, ``seconds`` (that an aggregate stands for), ``wave`` (the time of day: 0.6 to
1.4, times the size of the host) and ``begin``.
"""

ROLES = ("edge", "web", "db", "web")  # of hosts in turn; edges have the filter and the balancer
EDGE = len(ROLES)  # every so many hosts there is one
HOST = f"concat(prefix, {list(ROLES)!r}[place % {EDGE} + 1], '-', toString(place))"


def mixed(salt: int) -> str:
    """A number that looks random, the same in each run of one seed."""
    return f"cityHash64(number, {salt}, seed)"


def one_of(salt: int, *values: str) -> str:
    """One of a few texts; the first ones more often."""
    listed = ", ".join(f"'{each}'" for each in values)
    return f"[{listed}][toUInt32(pow({mixed(salt)} % 1000 / 1000, 2) * {len(values)}) + 1]"


def in_turn(*values: str, after: int = 1) -> str:
    """Each of a few texts in turn, so that each is a series of its own; ``after``: once others had theirs."""
    listed = ", ".join(f"'{each}'" for each in values)
    return f"[{listed}][intDiv(part, {after}) % {len(values)} + 1]"


def about(salt: int, middle: float, spread: float = 1.0) -> str:
    """Log-normal around ``middle``: most near it, few far above."""
    unit = f"({mixed(salt)} % 4096 + {mixed(salt + 500)} % 4096 + {mixed(salt + 900)} % 4096 - 6144) / 2048"
    return f"toUInt64({middle} * exp({unit} * {spread}))"


def count(salt: int, middle: float, spread: float = 0.3) -> str:
    """A counter of an interval: ``middle`` a second, by the time of day and the size of the host."""
    return f"toUInt64({about(salt, middle * 100, spread)} / 100 * seconds * wave)"


def histogram(salt: int, middle: float, many: int = 100) -> str:
    """27 log₂ buckets with their cloud around bucket ``middle``."""
    centre = f"({middle} + ({mixed(salt)} % 100) / 80)"
    tall = f"{many} * seconds * wave"
    return f"arrayMap(each -> toUInt64({tall} * exp(-pow(each - {centre}, 2) / 4)), range(27))"


def address(salt: int, net: str, many: int) -> str:
    """One of ``many`` IPv4 addresses, mapped; the first ones more often."""
    place = f"toUInt32(pow({mixed(salt)} % 9973 / 9973, 4) * {many})"
    return f"IPv4ToIPv6(toIPv4(toUInt32(toIPv4('{net}')) + {place}))"


def mapped(text: str) -> str:
    """One IPv4 address as the tables have it."""
    return f"IPv4ToIPv6(toIPv4('{text}'))"


CLIENT_PORT = f"32768 + {mixed(5)} % 28000"
CGROUPS = ("nginx.service", "app.service", "postgres.service", "cron.service", "batch.service")
CGROUP, COMM = in_turn(*CGROUPS), in_turn("nginx", "app", "postgres", "cron", "batch")
PEER = address(7, "203.0.113.0", 5000)
STACKS = 40
USER_STACK, KERNEL_STACK = f"toUInt64({mixed(30)} % {STACKS} + 1)", f"toUInt64({mixed(31)} % 10 + 1001)"
VIP = "192.0.2.10"
