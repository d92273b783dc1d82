"""Expressions that :mod:`bench.fill` makes plausible columns of: SQL over ``number``."""

HOSTS = 12
BAD = "(number % 12 = 3 AND late)"
ROLES = "['web', 'web', 'db']"
HOST = "concat(['web-', 'web-', 'db-'][number % 3 + 1], toString(number % 12))"


def mixed(salt: int) -> str:
    """A number that looks random, the same in each run."""
    return f"cityHash64(number, {salt})"


def one_of(salt: int, *values: str) -> str:
    """One of a few texts; the first ones more often."""
    listed = ", ".join(f"'{each}'" for each in values)
    return f"[{listed}][toUInt32(pow({mixed(salt)} % 1000 / 1000, 2) * {len(values)}) + 1]"


def about(salt: int, middle: float, spread: float = 1.0) -> str:
    """Log-normal around ``middle``: most near it, few far above."""
    unit = f"({mixed(salt)} % 4096 + {mixed(salt + 500)} % 4096 + {mixed(salt + 900)} % 4096 - 6144) / 2048"
    return f"toUInt64({middle} * exp({unit} * {spread}))"


def histogram(salt: int, middle: float, when_bad: float = 0.0) -> str:
    """27 log₂ buckets with their cloud around bucket ``middle``,
    ``when_bad`` higher on the host in trouble."""
    centre = f"({middle} + {when_bad} * {BAD} + ({mixed(salt)} % 100) / 50)"
    return f"arrayMap(each -> toUInt64(200 * exp(-pow(each - {centre}, 2) / 4)), range(27))"


def address(salt: int, net: str, many: int) -> str:
    """One of ``many`` IPv4 addresses, mapped; the first ones more often."""
    place = f"toUInt32(pow({mixed(salt)} % 9973 / 9973, 4) * {many})"
    return f"IPv4ToIPv6(toIPv4(toUInt32(toIPv4('{net}')) + {place}))"


CLIENT_PORT = f"32768 + {mixed(5)} % 28000"
CGROUP = one_of(1, "nginx.service", "app.service", "postgres.service", "cron.service", "batch.service")
COMM = one_of(1, "nginx", "app", "postgres", "cron", "batch")
PEER = address(7, "203.0.113.0", 5000)
SECOND = {"interval_us": "1000000"}
STACKS = 40
USER_STACK, KERNEL_STACK = f"toUInt64({mixed(30)} % {STACKS} + 1)", f"toUInt64({mixed(31)} % 10 + 1001)"
ATTACKED = "IPv4ToIPv6(toIPv4('192.0.2.10'))"
IN_ATTACK = f"(late AND {mixed(40)} % 3 > 0)"
EVENT_TIME = "ts + INTERVAL 7 SECOND"
