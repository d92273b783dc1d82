"""The embedded Kafka's artifacts: resolved once by Maven from ``kafka/pom.xml``, shared by every broker."""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from schemas.errors import BpfleetError

POM = Path(__file__).parent / "kafka" / "pom.xml"
STAMP = ".installed"
OLDEST_JAVA = 17  # Kafka 4 brokers do not start on less


def libs_dir() -> Path:
    """Where the jars live: beside a checkout, or in the system's state directory once installed."""
    checkout = POM.parents[2]
    if (checkout / "pyproject.toml").exists():
        return checkout / ".state" / "kafka-libs"
    return Path("/var/lib/bpfleet/kafka-libs")


def installed(libs: Path) -> bool:
    """Whether ``libs`` holds exactly what the pom asks for."""
    try:
        return (libs / STAMP).read_text() == _pom_hash()
    except OSError:
        return False


def install(libs: Path | None = None, say: Callable[[str], None] = print) -> Path:
    """Fetch the jars with Maven unless they are there already; safe to call from several processes.

    Returns the directory; raises :class:`BpfleetError` when Maven is missing or fails.
    """
    libs = libs or libs_dir()
    if installed(libs):
        return libs
    if not shutil.which("mvn"):
        raise BpfleetError("`mvn` is missing and Kafka's artifacts are not here; apt install maven")
    try:
        libs.parent.mkdir(parents=True, exist_ok=True)
        with _only_one(libs.with_name(libs.name + ".lock")):
            if not installed(libs):
                say(f"kafka: fetching its artifacts into {libs} (about 45 MB, once)")
                _fetch(libs)
                say(f"kafka: {len(list(libs.glob('*.jar')))} artifacts in place")
    except OSError as error:
        raise BpfleetError(f"cannot write {libs}: {error.strerror}; give bpfleet a writable place") from None
    return libs


def java() -> str:
    """The Java runtime to use; raises :class:`BpfleetError` when there is none or it is too old."""
    home = os.environ.get("JAVA_HOME")
    found = shutil.which("java", path=f"{home}/bin") if home else None
    found = found or shutil.which("java")
    advice = f"apt install openjdk-{OLDEST_JAVA}-jre-headless, or set JAVA_HOME"
    if not found:
        raise BpfleetError(f"no Java runtime found and Kafka needs one; {advice}")
    answer = subprocess.run([found, "-version"], capture_output=True, text=True, check=False).stderr
    version = re.search(r'version "(?:1\.)?(\d+)', answer)
    if not version or int(version[1]) < OLDEST_JAVA:
        have = version[1] if version else "unknown"
        raise BpfleetError(f"{found} is Java {have} and Kafka needs {OLDEST_JAVA} or newer; {advice}")
    return found


def _fetch(libs: Path) -> None:
    fresh = libs.with_name(libs.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    command = ["mvn", "-q", "-B", "-f", str(POM), "dependency:copy-dependencies"]
    command += ["-DincludeScope=runtime", f"-DoutputDirectory={fresh}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        wrong = next((line for line in done.stdout.splitlines() if "ERROR" in line), "no reason given")
        wrong = re.sub(r"\x1b\[[0-9;]*m", "", wrong).strip()
        raise BpfleetError(f"Maven could not fetch Kafka: {wrong}; check the network and Maven's settings")
    (fresh / STAMP).write_text(_pom_hash())
    shutil.rmtree(libs, ignore_errors=True)
    fresh.rename(libs)


def _pom_hash() -> str:
    return hashlib.sha256(POM.read_bytes()).hexdigest()


@contextmanager
def _only_one(lock: Path) -> Iterator[None]:
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
