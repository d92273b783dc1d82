"""Which files a point's binary is on this host: by path or name; also inside containers.

With a scope (a cgroup, a process) the files are looked for in the root directories of the processes it has,
so that a container's own libc is found, not the host's. Kernel and probe know files by their inode: however
many processes share one, it is named once.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from schemas.errors import BpfleetError

PROC = Path("/proc")
LIBRARIES = (
    "lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "lib/aarch64-linux-gnu", "usr/lib/aarch64-linux-gnu",
    "lib64", "usr/lib64", "lib", "usr/lib", "usr/local/lib", "usr/local/lib64",
)  # fmt: skip
ELSEWHERE = ("usr/lib/jvm/*/lib/server", "usr/lib/jvm/*/jre/lib/*/server", "opt/*/lib/server")
PROGRAMS = ("usr/local/sbin", "usr/local/bin", "usr/sbin", "usr/bin", "sbin", "bin")
MAX_FILES = 16  # of one point
NEEDS = "give the collector CAP_SYS_PTRACE"


def find(name: str, pids: Iterable[int] = ()) -> list[Path]:
    """The files. Raises :class:`BpfleetError` when there is none."""
    pids = list(pids)
    denied = False
    found: dict[tuple[int, int], Path] = {}
    for candidates in _candidates(name, pids):
        try:
            for file in candidates:
                seen = file.stat()
                found.setdefault((seen.st_dev, seen.st_ino), file)
                break
        except PermissionError:
            denied = True
        if len(found) == MAX_FILES:
            break
    if not found and denied:
        raise BpfleetError(f"may not look into the root directories of those processes; {NEEDS}")
    if not found and not pids and name.startswith("/") and Path(name).exists():
        raise BpfleetError(f"{name} is no program or library; name the one that runs, as its interpreter")
    if not found:
        where = "in the root directories of the processes in scope" if pids else "on this host"
        raise BpfleetError(f"there is no {name} {where}; give its absolute path")
    return list(found.values())


def _candidates(name: str, pids: list[int]) -> Iterator[Iterable[Path]]:
    """Places to look at, the first file of each counts: what processes have loaded, else what they would."""
    loaded = [files for pid in pids if (files := _loaded(pid, name))]
    if loaded:
        yield from loaded
    else:
        yield from (_in_root(root, name) for root in (_roots(pids) if pids else [Path("/")]))


def _loaded(pid: int, name: str) -> list[Path]:
    """Files of a name (not a path) that a process has mapped."""
    if "/" in name:
        return []
    try:
        lines = (PROC / str(pid) / "maps").read_text(errors="replace").splitlines()
    except OSError:
        return []
    paths = dict.fromkeys(line.split(None, 5)[5] for line in lines if line.count("/") and " r-x" in line)
    root = PROC / str(pid) / "root"
    fitting = [each for each in paths if _fits(each.rpartition("/")[2], name)]
    return [file for each in fitting if _is_program(file := _inside(root, each.lstrip("/")))]


def _fits(file: str, name: str) -> bool:
    """Whether a file is what a name means: ``libc`` is ``libc.so.6``, ``bash`` is ``bash``."""
    return file == name or file.startswith(name if ".so" in name else f"{name}.so")


def _roots(pids: list[int]) -> Iterator[Path]:
    """A process's root for each mount namespace among them."""
    namespaces = set()
    for pid in pids:
        try:
            namespace = str((PROC / str(pid) / "ns/mnt").readlink())
        except PermissionError:
            namespace = f"unknown {pid}"
        except OSError:
            continue  # it has ended
        if namespace not in namespaces:
            namespaces.add(namespace)
            yield PROC / str(pid) / "root"


def _in_root(root: Path, name: str) -> Iterator[Path]:
    """Candidates, the best first; only files that are there and programs by their first bytes."""
    if name.startswith("/"):
        candidates = [_inside(root, name.lstrip("/"))]
    else:
        candidates = [root / each / name for each in PROGRAMS]
        stem = name if ".so" in name else f"{name}.so"
        for directory in LIBRARIES:
            candidates += _named(root / directory, stem)
        for directory in _configured(root):
            candidates += _named(root / directory, stem)
        candidates += [each for place in ELSEWHERE for each in sorted(root.glob(f"{place}/{stem}"))]
    root.stat()  # PermissionError rather than nothing found
    for each in candidates:
        if _is_program(each):
            yield each


def _named(directory: Path, stem: str) -> list[Path]:
    """Files that begin so, the shortest name first."""
    try:
        found = [each for each in directory.iterdir() if each.name.startswith(stem)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(found, key=lambda each: (len(each.name), each.name))


def _configured(root: Path) -> list[str]:
    """Directories of /etc/ld.so.conf.d."""
    found = []
    for file in sorted((root / "etc/ld.so.conf.d").glob("*.conf")):
        lines = file.read_text(errors="replace").splitlines()
        found += [line.strip().lstrip("/") for line in lines if line.strip().startswith("/")]
    return found


def _inside(root: Path, path: str) -> Path:
    """A path below a root; absolute links on the way stay below it."""
    place, steps, parts = root, 0, path.split("/")
    while parts:
        part = parts.pop(0)
        if part in ("", "."):
            continue
        place = place.parent if part == ".." and place != root else place / part
        if place.is_symlink():
            steps += 1
            if steps > 40:
                raise BpfleetError(f"{path} is a circle of links")
            target = str(place.readlink())
            parts = [*target.split("/"), *parts]
            place = root if target.startswith("/") else place.parent
    return place


def _is_program(file: Path) -> bool:
    try:
        with file.open("rb") as opened:
            return opened.read(4) == b"\x7fELF"
    except PermissionError:
        raise
    except OSError:
        return False


def processes(directory: Path) -> list[int]:
    """Every process in a cgroup's directory and below it."""
    pids = []
    for file in [directory / "cgroup.procs", *directory.rglob("cgroup.procs")]:
        try:
            pids += [int(each) for each in file.read_text().split()]
        except OSError:
            continue  # gone, or one with threads of its own
    return list(dict.fromkeys(pids))
