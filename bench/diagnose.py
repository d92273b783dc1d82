"""Verdicts on real faults, alone and in pairs: how often right, and how soon.

Each run makes its faults on this host, under a whole bpfleet, and judges twice a second for ten seconds.
Right is a run whose last judgement has exactly the verdicts of its faults, first said within ten seconds. A
run in which other programs took more than 0.4 CPUs is about them too: it is made again, at most twice.
"""

import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from bench.common import Row, free_port, percentile

sys.path.append(str(Path(__file__).parents[1] / "tests"))

ROUNDS = 2  # of every single fault; of the others of their kinds, one
QUIET = 4  # runs without a fault, besides other ordinary work
QUIET_VERDICT = frozenset(("nothing_wrong",))
PAUSE_S = 4.0  # after a run, so that its last seconds are not the next one's first
TRIES = 3


def run() -> list[Row]:
    """All runs; prints the confusion matrix."""
    import diagnosing
    from faults import FAULTS, PAIRS
    from faults_more import MORE

    names = [(name,) for name in FAULTS if name != "nothing"] * ROUNDS
    plan = [*names, *[(name,) for name in MORE], *PAIRS, *[("nothing",)] * QUIET]
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="bpfleet-bench-", dir="/var/tmp") as directory:
        ports = {name: free_port() for name in ("kafka", "store", "sink", "collector")}
        config = diagnosing.settings(Path(directory) / "state", ports)
        with diagnosing.rig(config) as judge:
            time.sleep(2 * PAUSE_S)
            for faults in plan:
                for _ in range(TRIES):
                    outcome = diagnosing.observe(judge, config.host, faults, Path(directory))
                    time.sleep(PAUSE_S)
                    if not outcome.disturbed:
                        break
                outcomes.append(outcome)
                print(f"  {describe(outcome)}", flush=True)
    print(matrix(outcomes), flush=True)
    return figures(outcomes)


def describe(outcome: "object") -> str:
    from diagnosing import Outcome

    assert isinstance(outcome, Outcome)
    what = " + ".join(outcome.faults)
    said = ", ".join(sorted(outcome.verdicts))
    mark = "right" if outcome.right else "WRONG"
    noise = f", disturbed: {outcome.background:.1f} CPUs" if outcome.disturbed else ""
    return f"{mark}  {what}: {said} after {outcome.seconds:.1f} s{noise}"


def matrix(outcomes: list) -> str:  # type: ignore[type-arg]
    """Rows: what was made; columns: what was said of it. A pair counts in the rows of both its faults."""
    counted: Counter[tuple[str, str]] = Counter()
    for outcome in outcomes:
        for made in outcome.expected:
            others = outcome.expected - {made}
            for said in (outcome.verdicts - others) or {"(missed)"}:
                counted[made, said] += 1
    rows = sorted({made for made, _ in counted})
    columns = [*rows, *sorted({said for _, said in counted} - set(rows))]
    width = max(map(len, [*rows, *columns])) + 1
    lines = [" " * width + "".join(each.rjust(width) for each in columns)]
    lines += [made.ljust(width) + "".join(str(counted[made, said] or "·").rjust(width) for said in columns)
              for made in rows]  # fmt: skip
    return "\n".join(lines)


def figures(outcomes: list) -> list[Row]:  # type: ignore[type-arg]
    """What the issue asks for."""
    right = sum(each.right for each in outcomes)
    faulty = [each for each in outcomes if each.expected != QUIET_VERDICT]
    quiet = [each for each in outcomes if each.expected == QUIET_VERDICT]
    alarms = sum(not each.right for each in quiet)
    named = sum(each.named for each in faulty)
    times = [min(each.seconds, 99.0) for each in faulty]
    disturbed = sum(each.disturbed for each in outcomes)
    pairs = [each for each in faulty if len(each.faults) > 1]
    share = right / len(outcomes)
    return [
        Row("runs judged right", f"{right} of {len(outcomes)}", "", f"{share:.3f}", "≥ 0.95 of ≥ 40",
            share >= 0.95 and len(outcomes) >= 40),
        Row("of them pairs", f"{sum(each.right for each in pairs)} of {len(pairs)}", "", "", "", None),
        Row("false alarms on quiet runs", str(alarms), f"{len(quiet)} runs", "", "0", alarms == 0),
        Row("culprit named", f"{named} of {len(faulty)}", "", f"{named / len(faulty):.3f}", "", None),
        Row("from fault to verdict, median/p95",
            f"{percentile(times, 0.5):.1f}/{percentile(times, 0.95):.1f} s",
            "", "", "≤ 10 s", percentile(times, 0.95) <= 10),
        Row("runs disturbed by other programs", str(disturbed), "", "", "", None),
    ]  # fmt: skip
