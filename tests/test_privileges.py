"""What a collector may do before and after it gave its privileges up. Each test in a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

from collector import privileges
from collector.privileges import KEPT, Capability, effective, has
from schemas.errors import BpfleetError


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def status(text: str) -> dict[str, str]:
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


DROPPED = """
from pathlib import Path
from collector import privileges
privileges.drop()
"""


def test_only_what_is_needed_stays() -> None:
    seen = status(run(DROPPED + "print(Path('/proc/self/status').read_text())"))
    kept = sum(1 << each for each in KEPT) & effective()
    assert int(seen["CapEff"], 16) == int(seen["CapPrm"], 16) == kept
    assert int(seen["CapInh"], 16) == int(seen["CapAmb"], 16) == kept
    assert int(seen["CapBnd"], 16) & ~sum(1 << each for each in KEPT) == 0
    assert seen["NoNewPrivs"] == "1"


def test_what_is_dropped_no_longer_works() -> None:
    code = """
import os
try:
    os.mount if hasattr(os, "mount") else None
    os.chown("/proc/self/status", 1, 1)
except OSError as error:
    print(type(error).__name__)
"""
    assert run(DROPPED + code).strip() == "PermissionError"


def test_what_is_kept_still_works() -> None:
    code = """
from collector.bpf_map import Map, MapType
from collector.cgroup import Cgroups
from collector.ksym import Symbols
table = Map.create(MapType.HASH, 4, 8, 4, "kept")
table.update(b"1234", b"12345678")
print(table.read()[2], Cgroups().name(1), Symbols().read() > 10_000)
"""
    assert run(DROPPED + code).split() == ["1", "/", "True"]


def test_a_child_gets_nothing_back() -> None:
    code = "import subprocess; print(subprocess.check_output(['cat', '/proc/self/status'], text=True))"
    seen = status(run(DROPPED + code))
    assert int(seen["CapEff"], 16) & ~sum(1 << each for each in KEPT) == 0


@pytest.mark.parametrize("user", [0, 65534])
def test_a_probe_can_still_be_loaded_later(user: int) -> None:
    become = f"""
import ctypes, os
from collector import privileges, loader
from schemas import declare
from schemas.errors import BpfleetError
libc = ctypes.CDLL(None)
libc.prctl(8, 1, 0, 0, 0)  # PR_SET_KEEPCAPS
os.setgid({user}); os.setuid({user})
"""
    raised = """
from struct import pack
header = ctypes.create_string_buffer(pack("=Ii", 0x20080522, 0), 8)
mask = sum(1 << each for each in privileges.KEPT)
low, high = mask & 0xFFFFFFFF, mask >> 32
libc.capset(header, ctypes.create_string_buffer(pack("=6I", low, low, 0, high, high, 0), 24))
privileges.drop()
probe = declare.load()["runq_latency"]
result = loader.load([loader.probe_source(probe)])
print(result.failed, [each.link_fd is not None for each in result.loaded["runq_latency"].programs])
"""
    assert run(become + raised).startswith("{} [True")


def test_without_capabilities_the_reason_is_one_line() -> None:
    code = """
from collector import privileges
from schemas.errors import BpfleetError
privileges.drop(frozenset())
try:
    privileges.require()
except BpfleetError as error:
    print(error)
"""
    said = run(code).strip()
    assert said.startswith("loading probes needs CAP_BPF and CAP_PERFMON; run as root")
    assert "\n" not in said


def test_without_btf_the_reason_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(privileges, "BTF", tmp_path / "vmlinux")
    with pytest.raises(BpfleetError, match="CONFIG_DEBUG_INFO_BTF=y"):
        privileges.require()


def test_this_test_runs_privileged() -> None:
    assert has(Capability.BPF) and has(Capability.PERFMON)
