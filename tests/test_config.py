"""Settings: every fault ends in one line that names it; nothing wrong is swallowed."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import config
from schemas.errors import UsageError


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
        ("colector: {}", "unknown setting `colector`"),
        ("kafka: 3", "Expected `object`, got `int` - at `kafka`"),
        ("- a", "must be a mapping"),
        ("kafka: {servers: [", "not valid YAML"),
        ("store: {port: 70000}", "<= 65535"),
        ("sink: {dead_share: 2}", "<= 1"),
        ("collector: {spool_mb: many}", "Expected `int`"),
        ("collector: {labels: {a: {b: c}}}", "Expected `str`"),
    ],
)
def test_a_wrong_file_is_named(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load(text, tmp_path)
    assert says in str(caught.value) and "\n" not in str(caught.value)


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
