"""Would a host take this rule? Asked where rules are written, before they reach any: `bpfleet drop add`."""

import os

from collector import bpf_sys, privileges
from collector.bpf_map import Map, MapType
from collector.bpf_sys import ProgType
from collector.filter import matcher
from collector.filter.assembler import R0, R2, Assembler
from collector.filter.emit import HITS
from collector.filter.language import bound, check
from collector.filter.link import Piece, bind, link
from schemas.errors import BpfleetError, UsageError
from schemas.filter import RuleSpec, expression_of
from schemas.filter_expression import compile_expression
from schemas.filter_file import Rule

SCRATCH_BYTES = HITS + 512
STUBS = ("source_sets", "destination_sets", "established")


def trial(rule: RuleSpec) -> None:
    """Compile it, and load it where that is allowed. Raises :class:`UsageError` with the reason."""
    names = sorted(compile_expression(expression_of(rule)).sets())
    test = check(Rule("rule", "1m", rule.match, rule.fields, rule.action), names)
    if test.expression is None:
        return
    flags = bound(test.expression, {name: number + 1 for number, name in enumerate(names)})
    pieces = dict(matcher.match([(test.expression.instructions, flags)]))
    if privileges.has(privileges.Capability.BPF):
        _load(pieces)


def _load(pieces: dict[str, Piece]) -> None:
    """Let the verifier see the code, with stand-ins for what it calls; nothing is attached."""
    main = Assembler()
    main.emit(0x18, R2, 2)  # the map's value itself
    main.emit(0x00)
    main.call("match")
    main.constant(R0, 2)
    main.leave()
    stub = Assembler()
    stub.constant(R0, 0)
    stub.leave()
    pieces |= {name: Piece(stub.finish()) for name in STUBS}
    linked = link(pieces | {"main": Piece(main.finish(), tuple(main.calls))}, "main")
    scratch = Map.create(MapType.ARRAY, 4, SCRATCH_BYTES, 1, "scratch")
    try:
        code = bind(linked.code, [scratch.fd])
        fd = bpf_sys.prog_load(ProgType.XDP, code, "trial")
    except BpfleetError as error:
        raise UsageError(f"no host could run it: {error}") from None
    finally:
        scratch.close()
    os.close(fd)
