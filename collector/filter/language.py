"""What a rule asks of a frame, checked as far as that can be without loading it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from collector.filter.decision import Graph
from collector.filter.matcher import Flag
from collector.filter.symbolic import decide
from schemas import filter_fields
from schemas.errors import UsageError
from schemas.filter import Action, Limit, action_of
from schemas.filter_expression import Expression, compile_expression
from schemas.filter_fields import Fields
from schemas.filter_file import Document, Rule, Scope

__all__ = ["Document", "Rule", "Scope", "Test", "action", "bound", "check"]


@dataclass(frozen=True)
class Test:
    """What a rule asks of a frame: an expression, or fields."""

    expression: Expression | None = None
    fields: Fields | None = None

    def sets(self) -> set[str]:
        """The address sets it names."""
        asked = self.expression or self.fields
        return asked.sets() if asked else set()

    @property
    def asks_state(self) -> bool:
        """Whether connections must be followed for it."""
        if self.fields is not None:
            return self.fields.established is not None
        return self.expression is not None and ("established", "") in self.expression.flags


def bound(expression: Expression, numbers: Mapping[str, int]) -> tuple[Flag, ...]:
    """The flags of an expression with the numbers that sets have in the kernel."""
    return tuple(Flag(name, numbers.get(argument, 0)) for name, argument in expression.flags)


def action(rule: Rule) -> tuple[Action, Limit | None]:
    """What a rule does. Raises :class:`UsageError`."""
    try:
        return action_of(rule.action)
    except UsageError as error:
        raise UsageError(f"rule {rule.id}: {error}") from None


def check(rule: Rule, sets: Sequence[str] = ()) -> Test:
    """Everything that can be wrong with a rule by itself; what it asks of a frame.

    Raises :class:`UsageError` naming the rule and the reason.
    """
    action(rule)
    _ = rule.expires
    if (rule.fields is None) == (not rule.match.strip()):
        raise UsageError(f"rule {rule.id}: give it either `match` (an expression) or `fields`")
    try:
        if rule.fields is not None:
            test = Test(fields=filter_fields.parse(rule.fields))
            filter_fields.check_possible(filter_fields.parse(rule.fields))
        else:
            test = Test(expression=compile_expression(rule.match))
        if test.expression is not None:
            decide(Graph(), test.expression.instructions, [0] * len(test.expression.flags))
    except UsageError as error:
        raise UsageError(f"rule {rule.id}: {error}") from None
    missing = test.sets() - set(sets)
    if missing:
        raise UsageError(
            f"rule {rule.id}: there is no address set @{min(missing)}; define it or correct the name"
        )
    return test
