"""Rows of filter_stats add up to the kernel's counters, whenever a collector is killed."""

from pathlib import Path

import pytest
from test_filter_program import Bench, rule, udp

from collector.filter import figures
from collector.filter.host import Filter
from collector.filter.stats import Stats
from collector.passage import Way


class Agent:
    """Numbers batches, and says what became of them."""

    def __init__(self) -> None:
        self.number, self.rows, self.fates = 0, 0, {}  # type: ignore[var-annotated]
        self.shipped = 0

    def way(self) -> Way:
        self.rows = 0
        return Way(lambda: self.number, lambda number: self.fates.get(number, True), lambda: self.rows)

    def ship(self, rows: list[dict[str, int]], arrives: bool | None = True) -> None:
        self.fates[self.number] = arrives
        self.number, self.rows = self.number + 1, self.rows + len(rows)
        self.shipped += sum(each["packets"] for each in rows if each["rule"] == "dns") if arrives else 0


@pytest.mark.parametrize("moment", ["before it is numbered", "lost", "in Kafka"])
def test_rows_add_up_over_kills(tmp_path: Path, moment: str) -> None:
    with Filter(tmp_path / "filter") as host:
        bench, agent = Bench(host), Agent()
        bench.apply(rule("dns", "udp dst port 53"))

        def look(stats: Stats) -> list[dict[str, int]]:
            bench.send(udp(port=53), 1000)
            return stats.rows(host.maps, figures.figures(host.maps, host.state.slots))

        def successor() -> Stats:
            made = Stats(tmp_path / "shipped.json", agent.way())
            made.start()
            return made

        stats = successor()
        assert look(stats) == []
        begun = 1000
        for _ in range(3):
            agent.ship(look(stats))
        rows = look(stats)
        if moment != "before it is numbered":
            agent.ship(rows, arrives=moment == "in Kafka")
        del stats  # killed
        bench.send(udp(port=53), 5000)
        stats = successor()
        agent.ship(look(stats))
        assert agent.shipped == bench.count("dns", "drop") - begun == 10_000
        assert look(stats)[0]["interval_us"] < 1_000_000


def test_rows_wait_until_it_is_known_what_became_of_the_last(tmp_path: Path) -> None:
    with Filter(tmp_path / "filter") as host:
        bench, agent = Bench(host), Agent()
        bench.apply(rule("dns", "udp dst port 53"))
        stats = Stats(tmp_path / "shipped.json", agent.way())
        for _ in range(2):
            rows = stats.rows(host.maps, figures.figures(host.maps, host.state.slots))
            bench.send(udp(port=53), 1000)
        agent.ship(rows, arrives=None)
        stats = Stats(tmp_path / "shipped.json", agent.way())
        stats.start()
        assert stats.rows(host.maps, figures.figures(host.maps, host.state.slots)) == []
        agent.fates[0] = False
        assert [
            each["packets"]
            for each in stats.rows(host.maps, figures.figures(host.maps, host.state.slots))
            if each["rule"]
        ] == [2000]
