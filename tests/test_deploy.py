"""What is shipped for production: units, compose file and Dockerfile agree with what exists."""

import importlib.metadata
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from collector import privileges
from schemas import config

ROOT = Path(__file__).parents[1]
UNITS = sorted((ROOT / "deploy").glob("*.service"))
TIMING = ROOT / "deploy/bpfleet-timing.service"  # does one thing, for a collector that must not
COMMANDS = {each.name for each in importlib.metadata.entry_points(group="bpfleet.commands")}


def compose() -> dict[str, Any]:
    tree: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return tree


def test_compose_names_only_what_it_declares() -> None:
    tree = compose()
    for name, service in tree["services"].items():
        assert set(service.get("depends_on", ())) <= set(tree["services"]), name
        assert set(service.get("secrets", ())) <= set(tree["secrets"]), name
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            known = source in tree["volumes"] or source.startswith("/") or (ROOT / source).exists()
            assert known or source.startswith("./dashboards"), f"{name}: {volume}"
        for other, how in dict(service.get("depends_on", {})).items():
            assert how["condition"] != "service_healthy" or "healthcheck" in tree["services"][other]


def test_images_are_pinned_and_ports_on_loopback() -> None:
    for name, service in compose()["services"].items():
        assert re.search(r":\d+\.\d+\.\d+$", service["image"]), f"{name}: {service['image']}"
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), f"{name} listens beyond loopback: {port}"


def test_our_services_start_commands_and_settings_that_exist() -> None:
    for name, service in compose()["services"].items():
        if "build" not in service:
            continue
        assert service["command"][0] in COMMANDS, name
        given = {key: str(value) for key, value in service["environment"].items()}
        config.load(None, given)  # refuses an unknown setting
        assert (ROOT / service["build"]["dockerfile"]).exists()
    collector = compose()["services"]["collector"]
    assert collector["privileged"] and collector["pid"] == "host" and collector["network_mode"] == "host"


def test_dockerfile_copies_what_exists() -> None:
    for line in (ROOT / "deploy/Dockerfile").read_text().splitlines():
        if line.startswith("COPY"):
            for source in line.split()[1:-1]:
                assert (ROOT / source).exists(), line


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_units_start_commands_that_exist_with_limits(unit: Path) -> None:
    text = unit.read_text()
    if unit != TIMING:
        (command,) = re.findall(r"^ExecStart=\S+/bpfleet (\w+)(?: --watch)?$", text, re.MULTILINE)
        assert command in COMMANDS
    for limit in (
        "MemoryMax=",
        "CPUQuota=",
        "NoNewPrivileges=yes",
        "CapabilityBoundingSet=",
        "Restart=always",
    ):
        assert limit in text, f"{unit.name} lacks {limit}"
    assert ("CAP_SYS_ADMIN" in text) == (unit == TIMING) and "@" not in text.replace("@system-service", "")


def test_the_collectors_unit_grants_what_its_default_settings_use() -> None:
    text = (ROOT / "deploy/bpfleet-collector.service").read_text()
    used = {*privileges.NEEDED, *privileges.kept_for(config.Collector().kinds, symbols=True)}
    for setting in ("CapabilityBoundingSet", "AmbientCapabilities"):
        (granted,) = re.findall(rf"^{setting}=(.*)$", text, re.MULTILINE)
        assert set(granted.split()) == {f"CAP_{each.name}" for each in used}


def test_sample_settings_are_valid() -> None:
    config.load(str(ROOT / "deploy/bpfleet.yaml"), {})


def test_a_collector_is_installed_alone_and_light(tmp_path: Path) -> None:
    """`make install ONLY=collector` into a folder: its probes run from there; what it has not, it says."""
    environment = {**os.environ, "DESTDIR": str(tmp_path)}
    subprocess.run([ROOT / "deploy/install.sh", "collector"], check=True, env=environment, timeout=170)
    command = tmp_path / "opt/bpfleet/venv/bin/bpfleet"

    def ask(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([command, *words], check=False, capture_output=True, text=True, cwd="/")

    shown = ask("check", "runq_latency")
    assert shown.returncode == 0 and "runq_latency" in shown.stdout, shown.stderr
    for words, lacks in ((["sql", "SELECT 1"], "clickhouse_connect"), (["cat", "tcp_flow"], "fastavro")):
        refused = ask(*words)
        assert refused.returncode == 1 and refused.stderr.count("\n") == 1 and lacks in refused.stderr
    installed = sorted(each.name for each in (tmp_path / "etc/systemd/system").iterdir())
    assert installed == ["bpfleet-collector.service", "bpfleet-timing.service"]
    subprocess.run([command.with_name("python"), "-I", "-c", "import collector.timing_keeper"], check=True)
    assert (tmp_path / "etc/bpfleet/bpfleet.yaml").exists()
    size = sum(each.stat().st_size for each in (tmp_path / "opt").rglob("*") if not each.is_symlink())
    assert size < 200e6, f"{size / 1e6:.0f} MB"


def test_packages_are_copied_whole_wherever_they_are_copied() -> None:
    """The stages find each other beside them; one that is missing is missed only by whoever needs it."""
    made = {each.parent.name for each in ROOT.glob("*/__init__.py")} - {"tests", "bench"}
    patterns = {"install.sh": r"^for part in (.*) bpf pyproject", "Dockerfile": r"^COPY (\w+) \1$"}
    for file, pattern in patterns.items():
        text = (ROOT / "deploy" / file).read_text()
        copied = " ".join(re.findall(pattern, text, re.MULTILINE)).split()
        assert made <= set(copied), file
