"""Where a host's filter keeps itself: a directory of state, and pins in bpffs."""

from pathlib import Path

DIRECTORY = "filter"  # under state_dir


def instance() -> str:
    """The name of this network namespace's filter among the pins: hosts of one kernel have one each."""
    own = Path("/proc/thread-self/ns/net").stat().st_ino
    try:
        first = Path("/proc/1/ns/net").stat().st_ino
    except OSError:
        first = own
    return DIRECTORY if own == first else f"{DIRECTORY}_{own}"
