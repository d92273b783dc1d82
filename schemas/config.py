"""Settings: one YAML file plus ``BPFLEET_*`` environment, checked whole before anything starts.

Every setting is a field of :class:`Config`; the environment name of ``collector.spool_mb`` is
``BPFLEET_COLLECTOR_SPOOL_MB``. An unknown key is an error that names it and the nearest valid one.
"""

import difflib
import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

import msgspec
import yaml
from msgspec import Meta, Struct, field

from schemas import yaml_tree
from schemas.errors import UsageError
from schemas.refusal import Heard

DEFAULT_FILE = Path("/etc/bpfleet/bpfleet.yaml")

# Short names that operators type often.
ALIASES = {"BPFLEET_KAFKA": "kafka.servers", "BPFLEET_CLICKHOUSE": "clickhouse.url"}
# Not settings: the file's own name, and how long the kill tests go on.
RESERVED = {"BPFLEET_CONFIG", "BPFLEET_SOAK"}


class Kafka(Struct, forbid_unknown_fields=True):
    """How to reach Kafka."""

    servers: Annotated[str, Meta(description="bootstrap servers, `host:port,host:port`")] = "127.0.0.1:9092"
    options: Annotated[dict[str, str], Meta(description="passed to librdkafka as they are: TLS, SASL")] = {}
    password_file: Annotated[
        str, Meta(description="its content becomes sasl.password; a secret stands on no command line")
    ] = ""
    partitions: Annotated[int, Meta(description="of topics that bpfleet makes", ge=1)] = 4
    replication: Annotated[int, Meta(description="of topics that bpfleet makes", ge=1)] = 1
    retention_hours: Annotated[int, Meta(description="of topics that bpfleet makes", ge=1)] = 168


class Clickhouse(Struct, forbid_unknown_fields=True):
    """How to reach ClickHouse, or the embedded store, over HTTP."""

    url: Annotated[str, Meta(description="http:// or https://, host and port")] = "http://127.0.0.1:8123"
    user: Annotated[str, Meta(description="who we are there")] = "default"
    password_file: Annotated[str, Meta(description="its content is the password")] = ""
    database: Annotated[str, Meta(description="where the tables are")] = "bpfleet"
    cluster: Annotated[
        str, Meta(description="when named: ReplicatedMergeTree and Distributed tables, ON CLUSTER")
    ] = ""
    ca_file: Annotated[str, Meta(description="trust this certificate authority with https://")] = ""
    retention_days: Annotated[
        dict[str, Annotated[int, Meta(ge=1, le=36_500)]],
        Meta(description="stream: days, where they are other than declared; of tables made from now on"),
    ] = {}
    storage_policy: Annotated[
        str, Meta(description="of the server's, for tables made from now on", pattern=r"^[\w-]{0,60}$")
    ] = ""
    cold_volume: Annotated[
        str, Meta(description="volume of that policy that old parts move to", pattern=r"^[\w-]{1,60}$")
    ] = "cold"
    cold_days: Annotated[
        int, Meta(description="at this age they move; 0: never, or as the policy itself says", ge=0)
    ] = 0


class Store(Struct, forbid_unknown_fields=True):
    """The embedded ClickHouse endpoint."""

    listen: Annotated[str, Meta(description="address to listen on; beyond loopback it needs a password")] = (
        "127.0.0.1"
    )
    port: Annotated[int, Meta(description="HTTP port", ge=0, le=65535)] = 8123
    user: Annotated[str, Meta(description="the one user")] = "default"
    password_file: Annotated[str, Meta(description="its content is that user's password")] = ""
    max_memory_mb: Annotated[int, Meta(description="what all queries together may use", ge=64)] = 2048
    threads: Annotated[int, Meta(description="of one query", ge=1)] = 2
    fsync: Annotated[
        bool, Meta(description="survive a power cut too; small inserts take about three times as long")
    ] = False


class Sink(Struct, forbid_unknown_fields=True):
    """Kafka into ClickHouse."""

    group: Annotated[str, Meta(description="consumer group; sinks of one group share the work")] = (
        "bpfleet-sink"
    )
    flush_rows: Annotated[int, Meta(description="insert when so many rows of a partition wait", ge=1)] = (
        50_000
    )
    flush_ms: Annotated[int, Meta(description="or when the first of them waited so long", ge=1)] = 250
    session_timeout_ms: Annotated[
        int, Meta(description="a sink silent for so long loses its partitions", ge=1_000)
    ] = 10_000
    buffer_mb: Annotated[int, Meta(description="past it, nothing is read", ge=1)] = 128
    dead_share: Annotated[
        float, Meta(description="stop when more than this share of recent messages is unreadable", ge=0, le=1)
    ] = 0.5
    metrics_port: Annotated[
        int, Meta(description="Prometheus metrics on loopback; 0 picks a free one", ge=0, le=65535)
    ] = 9436


class Collector(Struct, forbid_unknown_fields=True):
    """The agent of a host."""

    probes: Annotated[list[str], Meta(description="names or patterns; `!name` leaves one out")] = field(
        default_factory=lambda: ["*"]
    )
    batch_ms: Annotated[
        int, Meta(description="a batch is cut at this age; a handful of events at three times that", ge=1)
    ] = 150
    batch_rows: Annotated[int, Meta(description="or at this size", ge=1)] = 10_000
    aggregate_ms: Annotated[int, Meta(description="how often histograms and counters are read", ge=10)] = (
        1_000
    )
    ring_kb: Annotated[int, Meta(description="memory of each ring, a power of two", ge=4)] = 1_024
    spool_mb: Annotated[int, Meta(description="what the disk keeps while Kafka is away", ge=1)] = 256
    slow_io_us: Annotated[
        int, Meta(description="a block request slower than this is an event of its own", ge=0)
    ] = 20_000
    slow_file_us: Annotated[
        int, Meta(description="a system call on a file slower than this is an event of its own", ge=0)
    ] = 20_000
    drop_samples_per_second: Annotated[
        int, Meta(description="dropped packets shipped one by one; all are counted", ge=1)
    ] = 1_000
    profile_hz: Annotated[
        int, Meta(description="on-CPU samples a second and CPU; 0: none", ge=0, le=1_000)
    ] = 49
    off_cpu_samples: Annotated[
        int,
        Meta(
            description="waits a second and CPU whose stacks are taken, at most; the others are estimated",
            ge=1,
        ),
    ] = 100
    profile_ms: Annotated[int, Meta(description="how often profiles are shipped", ge=100)] = 5_000
    budget_percent: Annotated[
        float,
        Meta(
            description="of this host's CPUs that programs and collector may take; past it probes are slowed",
            gt=0,
            le=100,
        ),
    ] = 1.0
    labels: Annotated[dict[str, str], Meta(description="of this host, for scopes and dashboards")] = {}
    trusted_keys: Annotated[
        list[str],
        Meta(description="whose desired state is believed: `ed25519:… name`, or files of such lines"),
    ] = field(default_factory=list)
    signed_kinds: Annotated[
        list[str], Meta(description="kinds of desired state that need a signature, once a key is trusted")
    ] = field(default_factory=lambda: ["filter", "lb"])
    kinds: Annotated[
        list[str],
        Meta(
            description="kinds of desired state this host takes; `filter` and `lb` make it keep the right to "
            "change interfaces"
        ),
    ] = field(default_factory=lambda: ["filter", "lb", "probe"])
    filter_pins: Annotated[
        str,
        Meta(description="name of the filter's pins in bpffs; empty: one for each network namespace",
             pattern="^[a-z0-9_-]{0,60}$"),
    ] = ""  # fmt: skip
    lb_pins: Annotated[
        str,
        Meta(
            description="the balancer's directory of pins; a second collector of one kernel needs another",
            pattern="^[a-z0-9_-]{1,60}$",
        ),
    ] = "lb"
    probe_max_cpu: Annotated[
        float, Meta(description="share of the host's CPU that one on-demand probe may cost", gt=0, le=1)
    ] = 0.02
    probe_dir: Annotated[
        str, Meta(description="where this host's own C sources of on-demand probes are; none by default")
    ] = ""
    desired_dir: Annotated[
        str, Meta(description="file or directory of desired state of this host's own, YAML or JSON")
    ] = ""
    metrics_port: Annotated[
        int, Meta(description="Prometheus metrics on loopback; 0 picks a free one", ge=0, le=65535)
    ] = 9435


class Operator(Struct, forbid_unknown_fields=True):
    """Who publishes desired state from here."""

    author: Annotated[str, Meta(description="named in what is published; default: user@host")] = ""
    key_file: Annotated[str, Meta(description="private key of `bpfleet key new` that signs it")] = ""


class Mitigate(Struct, forbid_unknown_fields=True):
    """Finding attacks and answering them."""

    policy: Annotated[
        Literal["suggest", "shadow", "enforce"],
        Meta(description="how far `bpfleet mitigate` goes: name a rule, count what it would drop, or drop"),
    ] = "enforce"
    floor_pps: Annotated[
        int, Meta(description="fewer suspicious packets per second to a target are no attack", ge=10)
    ] = 1_000
    factor: Annotated[float, Meta(description="so many times the usual is too much", gt=1)] = 5.0
    baseline_days: Annotated[int, Meta(description="days whose same hour says what is usual", ge=1)] = 7
    max_legitimate: Annotated[
        float, Meta(description="share of legitimate samples a rule may match, at most", ge=0, le=1)
    ] = 0.001
    rule_ttl_s: Annotated[int, Meta(description="time to live of its rules; renewed half-way", ge=10)] = 120
    quiet_s: Annotated[int, Meta(description="an attack silent for so long is over", ge=5)] = 30


class Config(Struct, forbid_unknown_fields=True):
    """Everything that can be set."""

    host: Annotated[str, Meta(description="this host's name in every row; default: its host name")] = field(
        default_factory=socket.gethostname
    )
    state_dir: Annotated[str, Meta(description="spool, sequence numbers, embedded Kafka and store")] = (
        "/var/lib/bpfleet"
    )
    kafka: Kafka = field(default_factory=Kafka)
    clickhouse: Clickhouse = field(default_factory=Clickhouse)
    store: Store = field(default_factory=Store)
    sink: Sink = field(default_factory=Sink)
    collector: Collector = field(default_factory=Collector)
    operator: Operator = field(default_factory=Operator)
    mitigate: Mitigate = field(default_factory=Mitigate)


class Setting(NamedTuple):
    """One setting, taken apart."""

    kind: Any  # its plain type
    default: Any
    description: str


def settings(struct: type[Struct] = Config, prefix: str = "") -> dict[str, Setting]:
    """Every setting by its dotted name."""
    found: dict[str, Setting] = {}
    for each in msgspec.structs.fields(struct):
        name = prefix + each.name
        if get_origin(each.type) is not Annotated:
            found |= settings(each.type, name + ".")
            continue
        kind, meta = get_args(each.type)
        made = each.default_factory
        default = made() if made is not msgspec.NODEFAULT else each.default
        found[name] = Setting(kind, default, str(meta.description))
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
        config = msgspec.convert(tree, Config, strict=False)
    except msgspec.ValidationError as error:
        reason = str(error).replace("`$.", "`").replace("`$", "`settings")
        raise UsageError(f"configuration: {reason}; docs/settings.md says what each setting takes") from None
    _check_addresses(config)
    return config


def _read(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read configuration {file}: {error}; check --config") from None
    tree = yaml_tree.parse(text, str(file)) or {}
    if not isinstance(tree, dict):
        raise UsageError(f"{file} must be a mapping of settings, like `kafka: {{servers: …}}`")
    return tree


def _check_addresses(config: Config) -> None:
    if not all(map(_is_address, config.kafka.servers.split(","))):
        servers = config.kafka.servers
        raise UsageError(f"kafka.servers is {servers!r}; write it like 127.0.0.1:9092,kafka2:9092")
    scheme, _, place = config.clickhouse.url.partition("://")
    host = place.removesuffix("/")
    if scheme not in ("http", "https") or not (_is_address(host) or _is_address(f"{host}:1")):
        raise UsageError(f"clickhouse.url is {config.clickhouse.url!r}; write it like http://127.0.0.1:8123")


def _is_address(text: str) -> bool:
    """host:port, or [IPv6]:port."""
    host, _, port = text.strip().rpartition(":")
    name = host[1:-1] if host.startswith("[") and host.endswith("]") else host.replace(":", "/")
    return (
        bool(re.fullmatch(r"[\w.:%-]+", name))
        and port.isascii()
        and port.isdigit()
        and 0 < int(port) < 65_536
    )


def _reject_unknown(tree: dict[str, Any], struct: type[Struct], prefix: str, source: str) -> None:
    known = {each.name: each.type for each in msgspec.structs.fields(struct)}
    for key, value in tree.items():
        if key not in known:
            name = f"{prefix}{key}"
            valid = [*(prefix + each for each in known), *settings()]
            raise UsageError(f"{source}: unknown setting `{name}`{_nearest(name, valid)}")
        kind = known[key]
        if isinstance(kind, type) and issubclass(kind, Struct) and isinstance(value, dict):
            _reject_unknown(value, kind, f"{prefix}{key}.", source)


def _nearest(wrong: str, known: Any) -> str:
    close = difflib.get_close_matches(wrong, list(known), n=1, cutoff=0.5)
    return f"; did you mean `{close[0]}`?" if close else "; docs/settings.md lists them"


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
        container = get_origin(types[names[name]].kind) in (dict, list)
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
    # Our own lines say what is wrong; librdkafka's, one for each attempt, only when it is about to give up.
    options: dict[str, Any] = {"bootstrap.servers": config.servers, "log_level": 2, "error_cb": Heard()}
    options |= config.options
    if config.password_file:
        options["sasl.password"] = secret(config.password_file)
    return options
