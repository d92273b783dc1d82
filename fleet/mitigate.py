"""``bpfleet mitigate``: find attacks in the fleet's samples, and answer each with the narrowest rule.

    found (fleet.mitigate_watch) → judged (mitigate_judge) → distilled, backtested (mitigate_distill)
    → published in shadow → confirmed by shadow samples → enforced → renewed while it lasts → over

Every step is an `attack_event`. What is learned is lost with the process, what is in force is not: rules
carry their time to live, and an attack that goes on is found again.
"""

import logging
import time
from collections.abc import Callable
from ipaddress import IPv6Network
from typing import Any

from fleet.attacks import ask
from fleet.mitigate_answer import Answers
from fleet.mitigate_baseline import learn
from fleet.mitigate_case import SECOND, Case, Rule
from fleet.mitigate_distill import Pattern, common_prefix, distill
from fleet.mitigate_evidence import MOST, Evidence, began, gather
from fleet.mitigate_judge import Opinion, judge, talking
from fleet.mitigate_resume import orphans
from fleet.mitigate_tally import LATE_S, count, sources
from fleet.mitigate_vectors import BY_NAME, CARPET
from fleet.mitigate_watch import Finding, Watch, rising
from fleet.mitigate_words import command
from schemas.clickhouse import explain
from schemas.config import Config
from schemas.errors import BpfleetError

log = logging.getLogger("bpfleet.mitigate")
ADOPT_S = 10  # how often attacks are looked for that nobody minds any more
LEARN_S = 600  # how often what is usual is asked for anew
SETTLING_S = 4  # samples from before a rule was enforced are still seen for so long
PENDING_S = 15  # a rule that no sample confirms in that time answers nothing
RECORD_S = 5  # how often the record of an attack is written while it lasts
PATIENCE_S = {"shadow": PENDING_S, "suggested": 600, "removed": 3600}  # before a rule more; else a minute
MOST_RULES = 16  # for one attack
MOST_GOOD = 2_000  # sources known to be legitimate
JUDGED = 8  # findings looked into in one round


class Mitigator:
    """The service, a round at a time. For one thread."""

    def __init__(
        self, config: Config, client: Any, answers: Answers, clock: Callable[[], float] = time.time
    ) -> None:
        self.config, self._client, self._answers, self._clock = config, client, answers, clock
        self.watch = Watch(config.mitigate)
        self.cases: list[Case] = []
        self.refusals: dict[tuple[str, IPv6Network], str] = {}  # why what is much is no attack
        self._learned = self._adopted = 0.0

    @property
    def urgent(self) -> bool:
        """Whether a rule waits to be confirmed or to arrive: the next round should come soon."""
        return any(
            each.stage == "shadow" or (each.stage == "enforced" and not each.arrived)
            for case in self.cases
            if case.policy == "enforce"
            for each in case.rules
        )

    def step(self) -> None:
        """One round. Raises :class:`BpfleetError` when ClickHouse or Kafka does not answer."""
        from clickhouse_connect.driver.exceptions import ClickHouseError

        try:
            self._step()
        except (ClickHouseError, OSError) as error:
            raise explain(error, self.config.clickhouse) from None

    def _step(self) -> None:
        now = self._clock()
        if now - self._learned >= LEARN_S or not self._learned:
            days = self.config.mitigate.baseline_days
            self.watch.baseline = learn(self._client, self.config.clickhouse, days, int(now))
            self._learned = now
        self.watch.read(self._client, self.config.clickhouse, int(now))
        if now - self._adopted >= ADOPT_S:
            mine = {each.id for each in self.cases}
            found = orphans(
                self._client, self.config.clickhouse, self._answers.published, mine, int(now * SECOND)
            )
            for case in found:
                self._answers.note(case.event("resumed", self._now_us(), hosts=len(case.tally.hosts)))
            self.cases += found
            self._adopted = now
        self.refusals.clear()
        for finding in self.watch.findings()[:JUDGED]:
            self._consider(finding)
        self.quick()
        for case in self.cases:
            self._go_on(case)
        self.cases = [each for each in self.cases if not each.ended]

    def quick(self) -> None:
        """The part of a round that cannot wait: confirmations and acknowledgements."""
        now_us = self._now_us()
        self._answers.listen(self.cases, now_us)
        for case in self.cases:
            for rule in case.rules:
                if rule.stage == "shadow" and case.policy == "enforce":
                    self._confirm(case, rule)

    def _now_us(self) -> int:
        return int(self._clock() * SECOND)

    # ── A finding ────────────────────────────────────────────────────────────────────────────────

    def _consider(self, finding: Finding) -> None:
        now_us = self._now_us()
        case = next((each for each in self.cases if each.target.overlaps(finding.target)), None)
        since = finding.since * SECOND - SECOND
        threshold = self.watch.threshold(0.0)
        begun: int | None = finding.since
        if case is not None:
            rules = [each for each in case.rules if each.vector == finding.vector]
            if self._answered(rules, self.watch.present * SECOND) or len(case.rules) >= MOST_RULES:
                return
            since = max([since, *(each.enforced + SECOND for each in rules)])
            begun = case.began // SECOND
        elif finding.since <= self.watch.first + 1:  # it was there when we began to look
            begun = began(
                self._client, self.config.clickhouse, finding.vector, finding.target, finding.since,
                rising(threshold, finding.pps),
            )  # fmt: skip
        evidence = gather(
            self._client, self.config.clickhouse, finding.vector, finding.target, since,
            None if begun is None else begun * SECOND, now_us, self.config.mitigate.baseline_days,
            max(1, finding.samples // MOST),
        )  # fmt: skip
        vector = BY_NAME[finding.vector]
        # A slow ramp is found by the sum of its seconds, none of which need be above the threshold.
        threshold = min(threshold, finding.pps / 2)
        opinion = judge(vector, evidence.some, evidence.others, finding.pps, threshold)
        if not opinion.is_attack:
            self.refusals[finding.vector, finding.target] = opinion.reason
            return
        doubt = opinion.doubt
        if begun is None and vector.how in ("any", "answers", "tunnel"):
            doubt = doubt or "nobody saw it begin: it may be usual here"
        self._answer(finding, case, evidence, opinion, begun, doubt)

    def _answered(self, rules: list[Rule], now_us: int) -> bool:
        """Whether rules of this vector have not had the time to show what they do, by the samples' clock."""
        for rule in rules:
            if rule.stage == "enforced":
                begin, patience = rule.enforced, SETTLING_S
                if not rule.arrived and now_us - begin < PENDING_S * SECOND:
                    return True
            else:
                begin, patience = rule.published, PATIENCE_S.get(rule.stage, 60)
            if now_us - begin < patience * SECOND:
                return True
        return False

    def _answer(
        self, finding: Finding, case: Case | None, evidence: Evidence, opinion: Opinion, begun: int | None,
        doubt: str,
    ) -> None:  # fmt: skip
        import numpy as np

        now_us = self._now_us()
        vector, attack = BY_NAME[finding.vector], evidence.some[opinion.mask]
        target = finding.target
        if CARPET in finding.shapes:
            target = common_prefix(np.unique(attack["destination"])) or target
        if case is None:
            case = Case(target, (begun or finding.since) * SECOND, now_us, self.config.mitigate.policy)
            self.cases.append(case)
        elif not target.subnet_of(case.target):
            case.target = target.supernet(new_prefix=min(target.prefixlen, case.target.prefixlen))
        fresh = [each for each in (finding.vector, *finding.shapes) if each not in case.vectors]
        case.vectors += fresh
        good = talking(evidence.others)
        # What came after it began and is of no known connection may be its own: it proves nothing.
        others = evidence.others
        others = others[(others["ts"] < (begun or 0) * SECOND) | (others["established"] != 0)
                        | np.isin(others["source"], good)]  # fmt: skip
        case.good = sorted({*case.good, *_texts(good)})[:MOST_GOOD]
        note = self._answers.note
        if fresh:
            usual = self.watch.baseline.of(finding.vector, str(target.network_address))
            note(case.event("detected", now_us, pps=finding.pps, packets=int(attack["weight"].sum()),
                            reason=f"{finding.pps} pps, usual is {usual:.0f}"))  # fmt: skip
        legitimate = np.concatenate([others, evidence.some[opinion.good], evidence.before])
        pattern = distill(vector, attack, legitimate, target, self.config.mitigate.max_legitimate)
        rule = Rule(case.next_rule(), finding.vector, pattern, "suggested", now_us)
        case.rules.append(rule)
        covers = f"{pattern.covers:.2%} of {len(attack)} samples"
        note(case.event("distilled", self._now_us(), rule, pps=finding.pps,
                        reason=f"{pattern.words}: {covers}"))  # fmt: skip
        self._publish(case, rule, pattern, doubt)
        self._record(case)

    def _publish(self, case: Case, rule: Rule, pattern: Pattern, doubt: str) -> None:
        most, note = self.config.mitigate.max_legitimate, self._answers.note
        fits, by_hand = pattern.legitimate <= most, command(pattern.fields, rule.name)
        tried = f"matches {pattern.legitimate:.3%} of what is legitimate there, at most {most:.3%}"
        if not pattern.judged:
            tried = "nothing legitimate was seen there to try it on"
        if not fits:
            tried += f"; to enforce it all the same: {by_hand}"
        note(case.event("backtested" if fits else "refused", self._now_us(), rule, packets=pattern.judged,
                        legitimate=pattern.matched, reason=tried))  # fmt: skip
        if not fits:
            rule.stage = "held"
        elif case.policy == "suggest" or doubt:
            why = doubt or "policy is suggest"
            note(case.event("suggested", self._now_us(), rule, reason=f"{why}; to enforce it: {by_hand}"))
        else:
            self._answers.publish(case, rule, "shadow")

    # ── A rule ───────────────────────────────────────────────────────────────────────────────────

    def _confirm(self, case: Case, rule: Rule) -> None:
        """Put a rule in force once its shadow samples show that it hits the attack alone."""
        asked = {"since": rule.published, "rule": rule.name, "good": case.good}
        rows = ask(self._client, self.config.clickhouse, CONFIRM, asked)
        samples, packets, legitimate, hosts = rows[0] if rows else (0, 0, 0, 0)
        now_us = self._now_us()
        if samples < ENOUGH:
            if self.watch.present * SECOND - rule.published > PENDING_S * SECOND:
                rule.stage = "lapsed"
                self._answers.note(case.event("lapsed", now_us, rule, reason="no shadow sample: it is over"))
            return
        told = {"packets": int(packets), "legitimate": int(legitimate), "hosts": int(hosts)}
        if legitimate > self.config.mitigate.max_legitimate * packets:
            rule.stage = "held"
            self._answers.note(case.event("held", now_us, rule, reason="its samples look legitimate", **told))
            return
        self._answers.note(case.event("confirmed", now_us, rule, **told))
        self._answers.publish(case, rule, "enforce")

    def _go_on(self, case: Case) -> None:
        """Count, renew, record; end what is over."""
        now_us = self._now_us()
        before = case.tally.first_drop
        present = self.watch.present
        count(self._client, self.config.clickhouse, case, present)
        if case.tally.first_drop and not before:
            self._answers.note(case.event("first_drop", case.tally.first_drop))
        for rule in case.rules:
            left = rule.expires - now_us
            if rule.stage in ("enforced", "shadow") and left < self.config.mitigate.rule_ttl_s * SECOND / 2:
                self._answers.renew(case, rule)
        seen = max(case.last_seen, case.detected // SECOND)
        if present - LATE_S - seen >= self.config.mitigate.quiet_s:
            case.ended = max(case.last_seen * SECOND, case.detected)
            for rule in case.rules:
                rule.stage = "lapsed"
            self._answers.note(case.event("over", now_us, packets=case.tally.packets,
                                          legitimate=case.tally.legitimate_lost,
                                          reason="its rules end with their time to live"))  # fmt: skip
        if case.ended or now_us - case.written >= RECORD_S * SECOND:
            self._record(case)
        self._answers.flush()

    def _record(self, case: Case) -> None:
        now_us = self._now_us()
        if now_us - case.detected > SECOND:
            sources(self._client, self.config.clickhouse, case)
        case.written = now_us
        self._answers.record(case.row(now_us))


ENOUGH = 10  # shadow samples
CONFIRM = """
SELECT count(), toInt64(sum(weight)),
       toInt64(sumIf(weight, established OR has({good:Array(String)}, toString(source)))), uniqExact(host)
FROM packet_sample WHERE ts >= fromUnixTimestamp64Micro({since:Int64}) AND verdict = 'shadow'
AND rule = {rule:String}
"""


def _texts(addresses: Any) -> list[str]:
    """Addresses (S16) as ClickHouse prints IPv6."""
    from ipaddress import IPv6Address

    found = []
    for each in addresses.tolist():
        address = IPv6Address(each.ljust(16, b"\0"))
        found.append(f"::ffff:{address.ipv4_mapped}" if address.ipv4_mapped else str(address))
    return found


def run(mitigator: Mitigator, stopping: Callable[[float], bool], tick_s: float = 1.0) -> None:
    """Rounds until ``stopping`` (which waits so many seconds) says so; an outage is waited out."""
    silent = False
    while True:
        begun = time.monotonic()
        try:
            mitigator.step()
            silent = False
            while mitigator.urgent and time.monotonic() - begun < tick_s:
                if stopping(0.15):
                    return
                mitigator.quick()
        except BpfleetError as error:
            if not silent:
                log.warning("%s; trying again", error)
            silent = True
        except Exception:  # whatever one round met: the next may be well, and rules stay in force
            log.exception("a fault of our own")
        if stopping(max(0.02, tick_s - (time.monotonic() - begun))):
            return
