"""Settings: one YAML file plus ``BPFLEET_*`` environment, checked whole before anything starts.

Every setting is a field of :class:`Config`; the environment name of ``collector.spool_mb`` is
``BPFLEET_COLLECTOR_SPOOL_MB``. An unknown key is an error that names it and the nearest valid one.
"""

import difflib
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import yaml
from msgspec import Meta, Struct, field

from schemas.errors import UsageError

DEFAULT_FILE = Path("/etc/bpfleet/bpfleet.yaml")

Positive = Annotated[int, Meta(ge=1)]
Share = Annotated[float, Meta(ge=0, le=1)]
# Short names that operators type often.
ALIASES = {"BPFLEET_KAFKA": "kafka.servers", "BPFLEET_CLICKHOUSE": "clickhouse.url"}
# The file's own name is not a setting.
RESERVED = {"BPFLEET_CONFIG"}


class Kafka(Struct, forbid_unknown_fields=True):
    """How to reach Kafka; ``options`` go to librdkafka as they are (TLS, SASL)."""

    servers: str = "127.0.0.1:9092"
    options: dict[str, str] = {}
    password_file: str = ""  # read into sasl.password: a secret never stands on a command line
    partitions: Positive = 4  # of topics made by bpfleet
    replication: Positive = 1
    retention_hours: Positive = 168


class Clickhouse(Struct, forbid_unknown_fields=True):
    """How to reach ClickHouse (or the embedded store) over HTTP."""

    url: str = "http://127.0.0.1:8123"
    user: str = "default"
    password_file: str = ""
    database: str = "bpfleet"
    cluster: str = ""  # named: ReplicatedMergeTree + Distributed, ON CLUSTER
    ca_file: str = ""  # trust this certificate authority with https://


class Store(Struct, forbid_unknown_fields=True):
    """The embedded ClickHouse endpoint."""

    listen: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 8123
    user: str = "default"
    password_file: str = ""  # must be set when `listen` is not loopback
    max_memory_mb: Positive = 2048
    threads: Positive = 2
    fsync: bool = False  # survive a power cut too; small inserts take about three times as long


class Sink(Struct, forbid_unknown_fields=True):
    """Kafka to ClickHouse."""

    group: str = "bpfleet-sink"
    flush_rows: Positive = 50_000
    flush_ms: Positive = 250
    session_timeout_ms: Positive = 10_000
    buffer_mb: Positive = 64  # past it, partitions are paused
    dead_share: Share = 0.5  # more unreadable than this among the last hundreds: stop, don't drain
    metrics_port: Annotated[int, Meta(ge=0, le=65535)] = 9436


class Collector(Struct, forbid_unknown_fields=True):
    """The host agent."""

    probes: list[str] = field(default_factory=lambda: ["*"])  # names or patterns; `!name` leaves one out
    batch_ms: Positive = 250
    batch_rows: Positive = 10_000
    aggregate_ms: Positive = 1_000  # how often histograms and counters are read
    ring_kb: Positive = 1_024
    spool_mb: Positive = 256
    slow_io_us: Positive = 20_000  # a block request slower than this is an event of its own
    drop_samples_per_second: Positive = 1_000
    labels: dict[str, str] = {}
    metrics_port: Annotated[int, Meta(ge=0, le=65535)] = 9435


class Config(Struct, forbid_unknown_fields=True):
    """Everything that can be set."""

    host: str = field(default_factory=socket.gethostname)
    state_dir: str = "/var/lib/bpfleet"
    kafka: Kafka = field(default_factory=Kafka)
    clickhouse: Clickhouse = field(default_factory=Clickhouse)
    store: Store = field(default_factory=Store)
    sink: Sink = field(default_factory=Sink)
    collector: Collector = field(default_factory=Collector)


def settings(struct: type[Struct] = Config, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Every setting as ``dotted.name`` → (type, default)."""
    found: dict[str, tuple[Any, Any]] = {}
    for each in msgspec.structs.fields(struct):
        name = prefix + each.name
        if isinstance(each.type, type) and issubclass(each.type, Struct):
            found |= settings(each.type, name + ".")
        else:
            default = each.default
            if default is msgspec.NODEFAULT and each.default_factory is not msgspec.NODEFAULT:
                default = each.default_factory()
            found[name] = (each.type, default)
    return found


def environment_name(setting: str) -> str:
    """``collector.spool_mb`` → ``BPFLEET_COLLECTOR_SPOOL_MB``."""
    return "BPFLEET_" + setting.upper().replace(".", "_")


def load(path: str | None = None, environment: Mapping[str, str] = os.environ) -> Config:
    """Read the settings: defaults, then the file, then the environment.

    ``path`` None means ``$BPFLEET_CONFIG`` or, if it exists, /etc/bpfleet/bpfleet.yaml.
    Raises :class:`UsageError` naming the wrong key or value.
    """
    named = path or environment.get("BPFLEET_CONFIG")
    file = Path(named) if named else DEFAULT_FILE
    tree: dict[str, Any] = _read(file) if named or file.exists() else {}
    _reject_unknown(tree, Config, "", str(file))
    _overlay(tree, environment)
    try:
        return msgspec.convert(tree, Config, strict=False)
    except msgspec.ValidationError as error:
        hint = "see docs/operating.md for what each setting takes"
        raise UsageError(f"configuration: {error}; {hint}") from None


def _read(file: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(file.read_text()) or {}
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read configuration {file}: {error}; check --config") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise UsageError(f"{file} must be a mapping of settings, like `kafka: {{servers: …}}`")
    return tree


def _reject_unknown(tree: dict[str, Any], struct: type[Struct], prefix: str, source: str) -> None:
    known = {each.name: each.type for each in msgspec.structs.fields(struct)}
    for key, value in tree.items():
        if key not in known:
            name = f"{prefix}{key}"
            raise UsageError(f"{source}: unknown setting `{name}`{_nearest(name, settings())}")
        kind = known[key]
        if isinstance(kind, type) and issubclass(kind, Struct) and isinstance(value, dict):
            _reject_unknown(value, kind, f"{prefix}{key}.", source)


def _nearest(wrong: str, known: Any) -> str:
    close = difflib.get_close_matches(wrong, list(known), n=1, cutoff=0.5)
    return f"; did you mean `{close[0]}`?" if close else "; see docs/operating.md for the settings"


def _overlay(tree: dict[str, Any], environment: Mapping[str, str]) -> None:
    names = {environment_name(each): each for each in settings()} | ALIASES
    types = settings()
    for name, text in environment.items():
        if not name.startswith("BPFLEET_") or name in RESERVED:
            continue
        if name not in names:
            raise UsageError(f"environment: unknown setting `{name}`{_nearest(name, names)}")
        *parents, leaf = names[name].split(".")
        node = tree
        for parent in parents:
            child = node.setdefault(parent, {})
            if not isinstance(child, dict):
                raise UsageError(f"configuration: `{parent}` must be a mapping")
            node = child
        container = str(types[names[name]][0]).startswith(("dict", "list"))
        try:
            node[leaf] = yaml.safe_load(text) if container else text
        except yaml.YAMLError:
            raise UsageError(f"environment: {name} is not valid YAML: {text!r}") from None


def secret(path: str) -> str:
    """A password from a file, without the newline that editors add. Empty path: no password."""
    if not path:
        return ""
    try:
        return Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the password file {path}: {error}") from None


def kafka_options(config: Kafka) -> dict[str, Any]:
    """What librdkafka needs to reach the cluster; callers add their own side's options."""
    options: dict[str, Any] = {"bootstrap.servers": config.servers, **config.options}
    if config.password_file:
        options["sasl.password"] = secret(config.password_file)
    return options
