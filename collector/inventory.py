"""The host's own description: a row of the `host` stream each half minute."""

import json
import os
import platform
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from collector.clock import now_us


def describe(
    labels: dict[str, str], probes: list[str], failed: dict[str, str], started_us: int
) -> dict[str, Any]:
    """A heartbeat."""
    return {
        "ts": now_us(),
        "kernel": platform.release(),
        "arch": platform.machine(),
        "os": distribution(),
        "cores": os.cpu_count() or 1,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "booted": (time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)) // 1000,
        "started": started_us,
        "version": metadata.version("bpfleet"),
        "labels": json.dumps(labels, sort_keys=True),
        "probes": ",".join(probes),
        "failed": json.dumps(failed, sort_keys=True),
    }


def distribution(file: Path = Path("/etc/os-release")) -> str:
    """``Debian GNU/Linux 12 (bookworm)``, or nothing where no file says so."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return ""
    pairs = dict(line.split("=", 1) for line in lines if "=" in line)
    return pairs.get("PRETTY_NAME", "").strip('"')
