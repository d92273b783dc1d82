"""The rules: which figures, together, mean what. Each is a function View → findings, short enough to read.

Troubles explain each other: a cgroup at its quota waits for CPUs, one that thrashes waits for its disk, a
segment sent again delays an answer. So rules run in order, and those further down see what was found.
"""

from fleet.diagnose.finding import Finding
from fleet.diagnose.rules_cpu import cpu, quota
from fleet.diagnose.rules_disk import disk
from fleet.diagnose.rules_memory import memory
from fleet.diagnose.rules_network import network
from fleet.diagnose.rules_servers import servers
from fleet.diagnose.view import View


def judge(view: View, own_servers: frozenset[str] = frozenset()) -> list[Finding]:
    """Every finding on a host, highest score first. ``own_servers``: ``address:port`` that make one wait."""
    found = [*quota(view), *memory(view)]
    found += disk(view, found)
    found += cpu(view, found)
    found += network(view)
    found += servers(view, found, own_servers)
    return sorted(found, key=lambda each: -each.deciding.score)
