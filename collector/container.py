"""What runs in a cgroup, read from its path: container, pod, runtime, systemd unit.

The paths are conventions of the runtimes, not an interface; each line of :data:`RUNTIMES` names one, for the
systemd driver (``docker-<id>.scope``) and the cgroupfs driver (``/docker/<id>``).
"""

import re
from dataclasses import dataclass

ID = r"(?P<id>[0-9a-f]{64})"
# runtime → what a path component of its containers looks like, or two components
RUNTIMES = {
    "docker": rf"(?:docker-{ID}\.scope|docker/(?P<id2>[0-9a-f]{{64}}))",
    "containerd": rf"(?:cri-containerd-{ID}\.scope|nerdctl-(?P<id2>[0-9a-f]{{64}})\.scope"
    r"|[^/]*:(?:cri-containerd|nerdctl):(?P<id3>[0-9a-f]{64}))",
    "crio": rf"crio-{ID}(?:\.scope)?",
    "podman": rf"libpod-{ID}(?:\.scope)?",
    "ecs": rf"ecs/[^/]+/(?:[^/]+/)?{ID}",
    "lxc": r"(?:lxc\.payload\.(?P<id>[^/]+)|lxc/(?P<id2>[^/]+))",
    "nspawn": r"(?:machine\.slice/machine-(?P<id>[^/]+)\.scope|systemd-nspawn@(?P<id2>[^/]+)\.service)",
}
PATTERNS = {name: re.compile(rf"(?:^|/){text}(?=/|$)") for name, text in RUNTIMES.items()}
ANY = re.compile(rf"(?:^|/){ID}(?=/|$)")
POD = re.compile(r"(?:^|[/-])pod([0-9a-f]{8}[-_][0-9a-f_-]{27}|[0-9a-f]{32})(?=/|\.slice|$)")
UNIT = re.compile(r"[^/]+\.(?:service|scope|socket|mount|swap|timer)")
SLICE = re.compile(r"[^/]+\.slice")


@dataclass(frozen=True)
class Tenant:
    """What a cgroup belongs to; an empty string where the path does not say."""

    container: str  # its full id, or its name where the runtime has only that
    runtime: str
    pod: str  # Kubernetes' uid of the pod, with dashes
    unit: str  # the innermost systemd unit; a slice only where there is no other


def tenant(path: str) -> Tenant:
    """Read a cgroup's path (from the root of its hierarchy)."""
    container, runtime = _container(path)
    pod = POD.search(path)
    units = UNIT.findall(path) or SLICE.findall(path)
    unit = _unescape(units[-1]) if units else ""
    return Tenant(container, runtime, pod[1].replace("_", "-") if pod else "", unit)


def _container(path: str) -> tuple[str, str]:
    for runtime, pattern in PATTERNS.items():
        match = pattern.search(path)
        if match:
            return _unescape(next(each for each in match.groups() if each)), runtime
    match = ANY.search(path)
    if match is None:
        return "", ""
    # The cgroupfs driver under Kubernetes names only the pod and the id.
    return match["id"], "kubernetes" if "kubepods" in path else "unknown"


def _unescape(unit: str) -> str:
    r"""systemd writes odd characters of a name as ``\x2d``."""
    return re.sub(r"\\x([0-9a-f]{2})", lambda each: chr(int(each[1], 16)), unit)
