"""One module a dashboard, each with its ``DASHBOARD``; :mod:`.panels` and :mod:`.parts` have the words."""

from typing import Any

from dashboards.source import (
    attacks,
    balancer,
    fleet,
    host,
    latency,
    network,
    pipeline,
    probes,
    profiles,
)

DASHBOARDS: dict[str, dict[str, Any]] = {
    module.__name__.rpartition(".")[2]: module.DASHBOARD
    for module in (fleet, host, latency, profiles, network, balancer, attacks, probes, pipeline)
}
