"""Settings: every fault ends in one line that names it; nothing wrong is swallowed."""

from pathlib import Path

import pytest
from conftest import free_port
from hypothesis import given
from hypothesis import strategies as st

from fleet import supervise
from schemas import config
from schemas.errors import BpfleetError, UsageError


def load(text: str, tmp_path: Path, **environment: str) -> config.Config:
    file = tmp_path / "bpfleet.yaml"
    file.write_text(text)
    return config.load(str(file), environment)


def test_environment_wins_over_file_wins_over_default(tmp_path: Path) -> None:
    text = "kafka: {servers: 'a:1'}\ncollector: {spool_mb: 7, batch_ms: 9}"
    read = load(text, tmp_path, BPFLEET_COLLECTOR_SPOOL_MB="8", BPFLEET_CLICKHOUSE="http://c:1")
    assert (read.kafka.servers, read.collector.spool_mb, read.collector.batch_ms) == ("a:1", 8, 9)
    assert read.clickhouse.url == "http://c:1"
    assert read.collector.ring_kb == 1024


def test_mappings_and_lists_come_from_the_environment_as_yaml(tmp_path: Path) -> None:
    environment = {"BPFLEET_COLLECTOR_LABELS": "{role: web}", "BPFLEET_COLLECTOR_PROBES": "[tcp_*, '!tcp_x']"}
    read = load("", tmp_path, **environment)
    assert read.collector.labels == {"role": "web"} and read.collector.probes == ["tcp_*", "!tcp_x"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("kafka: {server: x}", "unknown setting `kafka.server`; did you mean `kafka.servers`"),
        ("colector: {}", "unknown setting `colector`; did you mean `collector`?"),
        ("sink: {flush_ms: 5}\nsink: {flush_rows: 5}", "`sink` is there twice, again in line 2"),
        ("kafka: 3", "Expected `object`, got `int` - at `kafka`"),
        ("- a", "must be a mapping"),
        ("kafka: {servers: [", "not valid YAML"),
        ("store: {port: 70000}", "<= 65535"),
        ("sink: {dead_share: 2}", "<= 1"),
        ("collector: {spool_mb: many}", "Expected `int`"),
        ("collector: {labels: {a: {b: c}}}", "Expected `str`"),
        ("kafka: {servers: ''}", "kafka.servers is ''; write it like"),
        ("kafka: {servers: 'kafka1:9092,kafka2'}", "write it like"),
        ("kafka: {servers: 'localhost:abc'}", "write it like"),
        ("kafka: {servers: 'localhost:99999'}", "write it like"),
        ("clickhouse: {url: 'ftp://x'}", "write it like"),
        ("clickhouse: {url: '127.0.0.1:8123'}", "write it like"),
        ("clickhouse: {url: 'http://127.0.0.1:99999'}", "write it like"),
        ("clickhouse: {url: 'http://u:p@server'}", "write it like"),
    ],
)
def test_a_wrong_file_is_named(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load(text, tmp_path)
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "servers", ["a:1", "kafka-1.example.com:9092, b_c:2", "[::1]:9092", "10.0.0.1:65535"]
)
@pytest.mark.parametrize("url", ["http://a", "https://a.b:8443/", "http://[::1]:8123", "http://10.0.0.1:1"])
def test_right_addresses(servers: str, url: str, tmp_path: Path) -> None:
    read = load("", tmp_path, BPFLEET_KAFKA=servers, BPFLEET_CLICKHOUSE=url)
    assert (read.kafka.servers, read.clickhouse.url) == (servers, url)


def test_a_wrong_environment_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean `BPFLEET_STORE_PORT`"):
        load("", tmp_path, BPFLEET_STOR_PORT="1")
    with pytest.raises(UsageError, match="cannot read configuration"):
        config.load(str(tmp_path / "absent.yaml"), {})
    with pytest.raises(UsageError, match="must be a mapping"):
        load("kafka: 3", tmp_path, BPFLEET_KAFKA_SERVERS="x:1")


@given(text=st.text(max_size=200))
def test_any_file_is_read_or_refused_in_one_line(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("config") / "c.yaml"
    file.write_text(text, errors="replace")
    try:
        config.load(str(file), {})
    except UsageError as error:
        assert "\n" not in str(error)


def test_secrets_are_read_from_files(tmp_path: Path) -> None:
    (tmp_path / "p").write_text("s3cret\n")
    kafka = config.Kafka(password_file=str(tmp_path / "p"), options={"sasl.username": "u"})
    assert config.kafka_options(kafka)["sasl.password"] == "s3cret"
    with pytest.raises(UsageError, match="cannot read the password file"):
        config.secret(str(tmp_path / "absent"))


def test_a_run_says_what_it_cannot_have(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    apart = load("", tmp_path, BPFLEET_CLICKHOUSE="http://127.0.0.1:5", BPFLEET_STORE_PORT="6")
    with pytest.raises(UsageError, match="give both the same port"):
        supervise.parts_of(apart)
    part = supervise.Part("sink", ("127.0.0.1", free_port()), tmp_path / "file" / "logs" / "sink.log")
    with pytest.raises(BpfleetError, match=r"cannot write .*sink.log: Not a directory"):
        part.start()
