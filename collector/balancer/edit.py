"""Small changes of a configuration: one VIP or one real added, set, drained or removed; pure functions.

Each takes the tree of :func:`collector.balancer.model.dump` and returns the changed balancer, checked whole.
"""

import copy
from collections.abc import Callable
from typing import Any

from collector.balancer import model
from collector.balancer.model import Balancer
from schemas.errors import UsageError

Tree = dict[str, Any]


def _changed(balancer: Balancer, change: Callable[[Tree], None]) -> Balancer:
    tree = copy.deepcopy(model.dump(balancer))
    change(tree)
    return model.parse(tree, "balancer")


def set_vip(balancer: Balancer, name: str, fields: Tree, *, new: bool) -> Balancer:
    """Add a VIP (with its first reals among ``fields``), or change one."""

    def change(tree: Tree) -> None:
        if new == (name in tree["vips"]):
            raise UsageError(f"there is {'already a' if new else 'no'} VIP {name}; see `bpfleet lb show`")
        tree["vips"][name] = {**tree["vips"].get(name, {}), **fields}

    return _changed(balancer, change)


def remove_vip(balancer: Balancer, name: str) -> Balancer:
    """Without that VIP."""
    return _changed(balancer, lambda tree: tree["vips"].pop(_known(tree, name)))


def set_real(balancer: Balancer, name: str, address: str, fields: Tree, *, new: bool) -> Balancer:
    """Add a real to a VIP, or change one."""

    def change(tree: Tree) -> None:
        reals = tree["vips"][_known(tree, name)]["reals"]
        found = [each for each in reals if each["address"] == address]
        if new == bool(found):
            raise UsageError(f"VIP {name} has {'already a' if new else 'no'} real {address}")
        if new:
            reals.append({"address": address, **fields})
        else:
            found[0].update(fields)

    return _changed(balancer, change)


def remove_real(balancer: Balancer, name: str, address: str) -> Balancer:
    """Without that real: its flows end. Drain it first to let them finish."""

    def change(tree: Tree) -> None:
        vip = tree["vips"][_known(tree, name)]
        kept = [each for each in vip["reals"] if each["address"] != address]
        if len(kept) == len(vip["reals"]):
            raise UsageError(f"VIP {name} has no real {address}")
        vip["reals"] = kept

    return _changed(balancer, change)


def _known(tree: Tree, name: str) -> str:
    if name not in tree["vips"]:
        raise UsageError(f"there is no VIP {name}; there are: {', '.join(tree['vips']) or 'none'}")
    return name
