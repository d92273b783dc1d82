"""The kind `lb` on a host: documents of desired state become this host's balancer.

Several documents may be for one host: their VIPs are put together, their other settings must agree. One that
cannot be brought into force keeps what it had there, and touches no other. With the last document the
balancer goes; one that commands of the host made is left alone until a document comes.
"""

import logging
from typing import TYPE_CHECKING, Any

from collector import xdp, xdp_chain
from collector.balancer.checker import Checker
from collector.balancer.reporter import Reporter
from collector.balancer.state import State
from collector.desired import DesiredState
from collector.desired_worker import APPLIED, Outcome
from collector.passage import Way
from schemas import lb
from schemas.config import Config
from schemas.desired import Document
from schemas.errors import BpfleetError, UsageError
from schemas.lb import Balancer

if TYPE_CHECKING:
    from collector.agent import Agent

log = logging.getLogger("bpfleet.collector")
Specs = dict[str, Any]  # by the id of the document


def for_host(document: Document) -> Any:
    """Its spec, of whose interfaces only those in scope count."""
    spec = dict(document.spec)
    names = spec.get("interfaces", [])
    spec["interfaces"] = [each for each in names if document.scope.covers_interface(each)]
    if names and not spec["interfaces"]:
        raise UsageError("its scope leaves out every interface that it names")
    return spec


def merge(specs: Specs) -> Balancer:
    """All as one. Raises :class:`UsageError` where they contradict each other."""
    whole: dict[str, Any] = {"vips": {}, "interfaces": []}
    for name, spec in specs.items():
        for key, value in spec.items():
            if key == "vips":
                twice = sorted({*whole["vips"]} & {*value})
                if twice:
                    raise UsageError(f"VIP {twice[0]} is in two documents; {name} is one of them")
                whole["vips"] |= value
            elif key == "interfaces":
                whole["interfaces"] += [each for each in value if each not in whole["interfaces"]]
            elif whole.setdefault(key, value) != value:
                raise UsageError(f"{key} differs from that of another document for this host; {name} is one")
    return lb.parse(whole, "documents of kind lb")


class Balancers:
    """The handler: desired state into the kernel."""

    kind = lb.LB

    def __init__(self, config: Config, claim: xdp.Claim) -> None:
        self._config, self._claim = config, claim
        self._place = xdp.PINS / config.collector.lb_pins
        self._told: set[tuple[str, str]] = set()  # (document, reason) of refusals in the journal

    def apply(self, documents: list[Document]) -> dict[str, Outcome]:
        """See :class:`collector.desired_worker.Handler`."""
        if not documents:
            self._end()
            return {}
        if not self._claim.holds():
            return {each.id: Outcome("refused", self._claim.refusal) for each in documents}
        outcomes: dict[str, Outcome] = {}
        with self._open(documents) as state:
            former = state.ledger.documents
            specs = self._gather(documents, former, outcomes)
            self._bring(state, specs, outcomes)
            for name, outcome in outcomes.items():
                self._tell(state, name, outcome)
        return {each.id: outcomes.get(each.id, APPLIED) for each in documents}

    def _open(self, documents: list[Document]) -> State:
        limits = None
        if not (self._place / "lb_rings").exists():
            for each in documents:
                limits = lb.parse(each.spec).limits
        return State.open(self._config, self._place, limits)

    def _end(self) -> None:
        """No document: take down what documents made."""
        if not (self._place / "lb_rings").exists() or not self._claim.holds():
            return
        with State.open(self._config, self._place) as state:
            if state.ledger.documents:
                state.remove()

    def _gather(self, documents: list[Document], former: Specs, outcomes: dict[str, Outcome]) -> Specs:
        """What each document wants, as far as they go together; those in force come first."""
        specs: Specs = {}
        for document in sorted(documents, key=lambda each: (each.id not in former, each.id)):
            try:
                spec = for_host(document)
                merge({**specs, document.id: spec})
                specs[document.id] = spec
            except UsageError as error:
                outcomes[document.id] = Outcome("refused", str(error))
                if document.id in former:
                    specs[document.id] = former[document.id]
        return specs

    def _bring(self, state: State, specs: Specs, outcomes: dict[str, Outcome]) -> None:
        """All at once; if that cannot be, one after the other."""
        former = state.ledger.documents
        fresh = [name for name, spec in specs.items() if former.get(name) != spec]
        reason = self._try(state, specs)
        if reason is None:
            return
        if not fresh:
            outcomes.update(dict.fromkeys(specs, reason))
            return
        settled = {name: former[name] for name in specs if name in former}
        for name in fresh:
            one = self._try(state, {**settled, name: specs[name]}) if len(fresh) > 1 else reason
            if one is None:
                settled[name] = specs[name]
            else:
                outcomes[name] = one
        if len(fresh) == 1 and set(former) - set(specs):  # others were withdrawn meanwhile
            self._try(state, settled)

    def _try(self, state: State, specs: Specs) -> Outcome | None:
        """None: these are in force now; else nothing has changed."""
        try:
            state.apply(merge(specs), specs)
        except UsageError as error:
            return Outcome("refused", str(error))
        except BpfleetError as error:
            return Outcome("failed", str(error))
        return None

    def _tell(self, state: State, name: str, outcome: Outcome) -> None:
        if (name, outcome.reason) not in self._told:
            self._told.add((name, outcome.reason))
            row = {"event": "refused", "state": "desired", "document": name}
            state.journal.add(row | {"reason": outcome.reason[:1000]})


def handler(agent: "Agent") -> Balancers:
    """The handler, and beside it what reports on the balancer and checks its reals."""
    xdp.pin_directory(xdp_chain.FOLDER)  # mounts bpffs, while that may still be done

    def again() -> None:
        for each in agent.companions:
            if isinstance(each, DesiredState):
                each.again(lb.LB.name)

    claim = xdp.Claim(agent.config.collector.lb_pins)
    reporter = Reporter(agent.config, Way.of(agent, "lb_stats"), again, claim)
    agent.companions += [reporter, Checker(agent.config)]
    agent.costs["balancer"] = reporter.run_times
    return Balancers(agent.config, claim)
