"""A simulated fleet without incidents: what it says of itself holds together, so nothing is wrong."""

import json
import os
import subprocess
import sys
import time

from conftest import StoreProcess

from bench import fill
from fleet.simulate import generate
from schemas.clickhouse import connect
from schemas.config import Clickhouse


def test_a_fleet_in_which_nothing_was_planted_is_well(store: StoreProcess) -> None:
    target = Clickhouse(url=store.url, database=f"well{time.monotonic_ns()}")
    client = connect(target, database="")
    end = float(int(time.time()))
    begin = end - 3_600
    fleet = fill.fleet(begin, end)
    try:
        fill.make(client, target.database)
        for name in generate.STREAMS:
            fill.insert(client, target.database, name, generate.rows_of(name, fleet), begin, end)
        told = {"BPFLEET_CLICKHOUSE": store.url, "BPFLEET_CLICKHOUSE_DATABASE": target.database}
        asked = [sys.executable, "-m", "fleet", "diagnose", "--json", "--since", "15m", "--until"]
        asked.append(time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(end)))
        done = subprocess.run(
            asked, env=os.environ | told, capture_output=True, text=True, timeout=60, check=False
        )
        found = json.loads(done.stdout)
        wrong = [each for each in found if each["verdict"] != "nothing_wrong"]
        assert done.returncode == 0 and len(found) == fill.HOSTS and not wrong, done.stdout + done.stderr
    finally:
        client.command(f"DROP DATABASE IF EXISTS {target.database} SYNC")
        client.close()
