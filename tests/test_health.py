"""Health rows, metrics and inventory: figures of an interval, totals, and what a scrape reads."""

import socket
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from collector import inventory, probes
from collector.agent import Agent, Every
from collector.health import Health, loss_row, restart_row
from collector.losses import Loss, Reason
from collector.metrics import Endpoint, exposition
from collector.output import Shipped
from collector.printer import Printer
from collector.timing import Timing
from schemas import declare, wire
from schemas.config import Collector, Config
from schemas.errors import BpfleetError, UsageError
from schemas.rows import columns

HEALTH = declare.streams()["collector_health"]


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    made = Endpoint(0)
    yield made
    made.close()


def test_a_row_holds_what_the_interval_added() -> None:
    shipped = {"s": Shipped(batches=2, shipped=30)}
    health = Health([], shipped, lambda: (77, 3), {}, Timing(None))
    first = {row["kind"]: row for row in health.rows(1_000_000)}
    assert first["stream"]["shipped"] == 30 and first["stream"]["interval_us"] == 0
    assert first["process"]["spool_bytes"] == 77 and first["process"]["rss_bytes"] > 10e6
    shipped["s"].shipped += 12
    second = {row["kind"]: row for row in health.rows(3_000_000)}
    assert second["stream"]["shipped"] == 12 and second["stream"]["batches"] == 0
    assert second["stream"]["interval_us"] == 2_000_000
    assert health.totals["stream", "s"]["shipped"] == 42
    assert {row["kind"] for row in health.rows(4_000_000)} == {"process"}, "nothing happened in the stream"


def test_every_kind_of_row_fits_its_declaration() -> None:
    rows: list[dict[str, Any]] = Health([], {"s": Shipped()}, lambda: (0, 0), {}, Timing(None)).rows(5)
    rows += [loss_row(Loss(Reason.SHED, "s", "00" * 16, 3, 9, 70, 1), 5), restart_row(2, 5)]
    names = {each.name for each in HEALTH.fields}
    for row in rows:
        assert row.keys() <= names, row
    message = wire.encode(HEALTH, wire.Envelope("h", bytes(16), 0), columns(HEALTH, rows))
    schemas = wire.Schemas()
    schemas.add(wire.batch_schema(HEALTH))
    batch = schemas.decode(message)
    assert batch.rows == 4
    assert batch.columns["seq_to"].tolist() == [0, 0, 9, 0]  # type: ignore[union-attr]
    assert batch.columns["blind_us"].tolist()[3] == 3  # type: ignore[union-attr]


def test_metrics_are_prometheus_text(endpoint: Endpoint) -> None:
    totals = {
        ("process", ""): {"cpu_us": 5, "rss_bytes": 7},
        ("stream", "tcp_flow"): {"made": 3, "lost": 1},
        ("program", "p", 'odd"\\'): {"runs": 9},
    }
    endpoint.text = exposition(totals)
    with urllib.request.urlopen(f"http://127.0.0.1:{endpoint.port}/metrics", timeout=5) as answer:
        text = answer.read().decode()
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    from prometheus_client.parser import text_string_to_metric_families

    samples = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples["bpfleet_stream_made_total", (("stream", "tcp_flow"),)] == 3
    assert samples["bpfleet_process_rss_bytes", ()] == 7
    assert samples["bpfleet_process_cpu_us_total", ()] == 5
    assert samples["bpfleet_program_runs_total", (("hook", 'odd"\\'), ("probe", "p"))] == 9


def test_a_client_that_hangs_up_hurts_nobody(endpoint: Endpoint) -> None:
    endpoint.text = "x"
    socket.create_connection(("127.0.0.1", endpoint.port)).close()
    with urllib.request.urlopen(f"http://127.0.0.1:{endpoint.port}/", timeout=5) as answer:
        assert answer.read() == b"x"


def test_a_taken_port_is_named(endpoint: Endpoint) -> None:
    with pytest.raises(BpfleetError, match=rf"127.0.0.1:{endpoint.port}.*collector.metrics_port"):
        Endpoint(endpoint.port)


def test_the_inventory_is_a_row_of_host() -> None:
    stream = declare.streams()["host"]
    row = inventory.describe({"a": "b"}, ["x", "y"], {"z": "why"}, 7)
    assert row.keys() <= {each.name for each in stream.fields}
    assert row["probes"] == "x,y" and row["labels"] == '{"a": "b"}' and row["memory_bytes"] > 1e8
    assert row["booted"] < row["ts"]


def test_probes_are_chosen_by_pattern() -> None:
    every = declare.load()

    def names(*patterns: str) -> list[str]:
        return [each.name for each in probes.chosen(every, patterns)]

    assert {"cgroup", "runq_latency"} <= set(names("*"))
    assert "collector_health" not in names("*"), "it has no kernel side"
    assert names("run*") == ["runq_latency"]
    assert "cgroup" not in names("*", "!cgroup") and names("cgroup", "!run*") == ["cgroup"]
    with pytest.raises(UsageError, match="no probe is called `x`"):
        names("x")
    with pytest.raises(UsageError, match="no probe is chosen"):
        names("cgroup", "!cgroup")


def test_a_due_time_does_not_pile_up() -> None:
    every = Every(1.0, 10.0)
    assert [every.due(at) for at in (9.9, 10.0, 10.5, 11.0, 15.3, 15.9, 16.4)] == [
        False, True, False, True, True, False, True,
    ]  # fmt: skip


def test_a_probe_whose_names_this_kernel_lacks_is_left_out() -> None:
    attached, failed, enums = probes.load(
        probes.chosen(declare.load(), ["packet_drop", "cgroup"]), Collector(ring_kb=64)
    )
    assert not failed and enums
    agent = Agent(Config(), Printer("h"))
    agent.attached = attached
    agent._begin_reading({})
    assert [each.probe.name for each in agent.attached] == ["cgroup"]
    assert "this kernel has no enum" in agent.failed["packet_drop"]
    for each in agent.attached:
        each.close()


def test_what_cannot_be_decoded_is_counted_and_the_rest_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    attached, _, enums = probes.load(probes.chosen(declare.load(), ["cgroup"]), Collector(ring_kb=64))
    agent = Agent(Config(), Printer("h"))
    agent.attached = attached
    agent._begin_reading(enums)
    (reader,) = agent.reading.rings
    import numpy as np

    agent.reading.decoders._made["cgroup_event", "change"] = lambda _: np.zeros(1)[5]
    for _ in range(2):
        agent.reading.decode(reader.stream, np.zeros(3, reader.ring.dtype))
    assert agent.output.streams["cgroup_event"].invalid == 6
    assert len([each for each in caplog.messages if "cannot be decoded" in each]) == 1
    for each in attached:
        each.close()
