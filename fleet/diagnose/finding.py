"""What a rule hands over: figures with their thresholds, and the verdict they carry."""

from dataclasses import asdict, dataclass, field
from typing import Any

VERDICTS = (
    "cpu_saturation", "cpu_quota", "noisy_neighbour", "memory_pressure", "slow_disk", "network",
    "remote_slowness", "nothing_wrong", "no_data",
)  # fmt: skip
ROOT = "/"  # tasks of no cgroup of their own
LOOPBACK = ("127.", "::1")
MOST = 3  # findings of one rule: more say no more


@dataclass(frozen=True)
class Figure:
    """A metric of one thing over a few seconds, against its threshold, the host's past and its peers."""

    metric: str
    unit: str
    value: float
    threshold: float = 0.0  # 0: shown, not judged
    baseline: float = 0.0
    spread: float = 0.0
    peers: float = -1.0
    thing: str = ""
    first: int = 0  # the seconds it is of, from the window's begin
    last: int = 0

    @property
    def ratio(self) -> float:
        """The value to its threshold."""
        return self.value / self.threshold if self.threshold > 0 else 0.0

    @property
    def score(self) -> float:
        """0 to 1; 0.5 at the threshold."""
        return self.ratio / (1 + self.ratio)

    def tree(self) -> dict[str, Any]:
        """For the column `evidence`."""
        shown = {name: value for name, value in asdict(self).items() if name not in ("first", "last")}
        return {name: round(value, 3) if isinstance(value, float) else value for name, value in shown.items()}


@dataclass(frozen=True)
class Finding:
    """A verdict on one host."""

    verdict: str
    deciding: Figure
    summary: str
    culprit_kind: str = ""
    culprit: str = ""
    victim: str = ""
    others: tuple[Figure, ...] = field(default=())
    began: int = 0  # seconds from the window's begin
    ended: int = 0  # after the last second past the threshold
    lasted: int = 0  # seconds past it
