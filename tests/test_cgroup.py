"""Cgroups by id: living, gone, and what runs in them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from collector.cgroup import Cgroups, find_mount, require_mount
from collector.container import Tenant, tenant
from schemas.errors import BpfleetError

ID = "0123456789abcdef" * 4
POD = "8f4c2a10-0f3e-4b6b-9d0a-1c2d3e4f5a6b"
POD_ = POD.replace("-", "_")

PATHS = {
    "/": Tenant("", "", "", ""),
    "/system.slice/ssh.service": Tenant("", "", "", "ssh.service"),
    "/user.slice/user-1000.slice/user@1000.service/app.slice/foo.service": Tenant("", "", "", "foo.service"),
    "/user.slice": Tenant("", "", "", "user.slice"),
    r"/system.slice/dev-disk-by\x2dlabel.swap": Tenant("", "", "", "dev-disk-by-label.swap"),
    f"/system.slice/docker-{ID}.scope": Tenant(ID, "docker", "", f"docker-{ID}.scope"),
    f"/docker/{ID}": Tenant(ID, "docker", "", ""),
    f"/docker/{ID}/init": Tenant(ID, "docker", "", ""),
    f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{POD_}.slice/cri-containerd-{ID}.scope":
        Tenant(ID, "containerd", POD, f"cri-containerd-{ID}.scope"),
    f"/kubepods/besteffort/pod{POD}/{ID}": Tenant(ID, "kubernetes", POD, ""),
    f"/kubepods.slice/kubepods-pod{POD_}.slice/crio-{ID}.scope": Tenant(ID, "crio", POD, f"crio-{ID}.scope"),
    f"/system.slice/kubelet.service/kubepods-pod{POD_}.slice:cri-containerd:{ID}":
        Tenant(ID, "containerd", POD, "kubelet.service"),
    f"/machine.slice/libpod-{ID}.scope/container": Tenant(ID, "podman", "", f"libpod-{ID}.scope"),
    f"/machine.slice/libpod-conmon-{ID}.scope": Tenant("", "", "", f"libpod-conmon-{ID}.scope"),
    f"/system.slice/nerdctl-{ID}.scope": Tenant(ID, "containerd", "", f"nerdctl-{ID}.scope"),
    f"/ecs/task-1/{ID}": Tenant(ID, "ecs", "", ""),
    "/lxc.payload.web": Tenant("web", "lxc", "", ""),
    "/machine.slice/machine-db.scope": Tenant("db", "nspawn", "", "machine-db.scope"),
}  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_a_path_tells_what_runs_there(path: str) -> None:
    assert tenant(path) == PATHS[path]


@pytest.fixture
def parent() -> Iterator[Path]:
    mount = require_mount(find_mount())
    directory = mount / "bpfleet-test"
    directory.mkdir(exist_ok=True)
    yield directory
    for child in sorted(directory.rglob("*/"), reverse=True):
        child.rmdir()
    directory.rmdir()


@pytest.fixture
def cgroups() -> Iterator[Cgroups]:
    made = Cgroups()
    yield made
    made.close()


def test_the_mount_is_found_on_unified_and_hybrid_hosts() -> None:
    unified = "31 23 0:28 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
    hybrid = (
        "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n"
        "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
        "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw"
    )
    assert find_mount(unified) == Path("/sys/fs/cgroup")
    assert find_mount(hybrid) == Path("/sys/fs/cgroup/unified")
    assert find_mount("31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw") is None
    with pytest.raises(BpfleetError, match="mount -t cgroup2"):
        require_mount(None)


def test_a_living_cgroup_is_found_without_a_scan(parent: Path, cgroups: Cgroups) -> None:
    made = parent / "alive.service"
    made.mkdir()
    assert cgroups.name(made.stat().st_ino) == "/bpfleet-test/alive.service"
    (fresh,) = cgroups.take_fresh()
    assert fresh.tenant.unit == "alive.service" and fresh.id == made.stat().st_ino
    assert cgroups.name(1) == "/" and cgroups.name(0) == ""


def test_a_cgroup_stays_known_when_it_is_gone(parent: Path, cgroups: Cgroups) -> None:
    made = parent / "short"
    made.mkdir()
    number = made.stat().st_ino
    cgroups.scan()
    made.rmdir()
    cgroups.removed(number)
    assert cgroups.name(number) == "/bpfleet-test/short"


def test_one_gone_before_anyone_asked_is_told_by_the_kernel(parent: Path, cgroups: Cgroups) -> None:
    made = parent / "brief"
    made.mkdir()
    number = made.stat().st_ino
    made.rmdir()
    assert cgroups.name(number) == f"id:{number}"
    changed: list[int] = []
    cgroups.changed = changed.append
    cgroups.refresh = lambda: cgroups.made(number, "/bpfleet-test/brief")
    assert cgroups.name(number) == "/bpfleet-test/brief"
    assert changed == [number]


def test_the_gone_make_room_first(parent: Path) -> None:
    cgroups = Cgroups(kept=4)
    for number in (11, 12, 13):
        cgroups.made(number, f"/{number}")
    cgroups.removed(12)
    cgroups.made(14, "/14")
    assert len(cgroups) == 4
    assert cgroups.name(11) == "/11" and cgroups.name(14) == "/14"
    assert cgroups.name(12) == "id:12"
    cgroups.close()
