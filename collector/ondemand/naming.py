"""Stacks of on-demand probes by their names, those of the table `stack`: shared by all probes of a host."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collector.bpf_map import Map
from collector.ksym import Symbols as KernelSymbols
from collector.ondemand.rules import Rules
from collector.ring import Ring
from collector.stacks import RECORD, Names, told_columns
from collector.symbols import Symbols
from schemas.columns import Column


class Naming:
    """Symbols are read when the first stack comes. ``tell`` ships columns of the stream `stack`."""

    def __init__(self, tell: Callable[[Mapping[str, Column]], None]) -> None:
        self._tell = tell
        self._names: Names | None = None

    def learn(self, records: NDArray[Any], rules: Rules | None = None) -> bool:
        """Stacks that the kernel told; whether ``rules`` have grown, so that stacks will be longer."""
        contents = self.names.learn(records)
        if contents:
            self._tell(told_columns(contents))
        return rules is not None and sum(rules.learn(each, self.names.symbols) for each in records) > 0

    @property
    def names(self) -> Names:
        """Numbers of stacks to names."""
        if self._names is None:
            kernel = KernelSymbols()
            kernel.read()
            self._names = Names(Symbols(kernel))
        return self._names

    def close(self) -> None:
        """Give the files back."""
        if self._names is not None:
            self._names.symbols.close()
            self._names = None


class StackNames:
    """One probe's stacks."""

    def __init__(self, maps: Mapping[str, Map], naming: Naming) -> None:
        self._ring, self._told, self._naming = Ring(maps["stacks"], RECORD), maps["stacks_told"], naming
        self._rules = Rules(maps["frame_rules"]) if "frame_rules" in maps else None
        self.grown = 0  # how often stacks became longer

    def look(self) -> None:
        """Learn new stacks while their processes are there."""
        if self._ring.waiting:
            self.grown += self._naming.learn(self._ring.read(1 << 16), self._rules)

    def names(self, numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Names of stacks; those not known are told again when they come again."""
        self.look()
        found, again = self._naming.names.of(numbers)
        for number in again:
            self._told.delete(number.to_bytes(8, "little"))
        return found

    def close(self) -> None:
        """Unmap."""
        self._ring.close()
