"""Where a host's filter keeps itself: a directory of state, and pins in bpffs."""

from pathlib import Path

DIRECTORY = "filter"  # under state_dir
FIRST_ALONE = Path("/proc/sys/net/core/netdev_max_backlog")  # only the host's own network namespace has it


def instance() -> str:
    """The name of this network namespace's filter among the pins: hosts of one kernel have one each."""
    own = Path("/proc/thread-self/ns/net").stat().st_ino
    return DIRECTORY if FIRST_ALONE.exists() else f"{DIRECTORY}_{own}"
