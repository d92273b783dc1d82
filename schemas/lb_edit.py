"""Small changes of a configuration, and what differs between two: pure functions.

``set_vip`` and its like return the changed balancer, checked whole; :func:`changes` makes lines for people.
"""

import copy
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from schemas import lb as model
from schemas import yaml_tree
from schemas.errors import UsageError
from schemas.lb import Balancer, Vip

Tree = dict[str, Any]


def _changed(balancer: Balancer, change: Callable[[Tree], None]) -> Balancer:
    tree = copy.deepcopy(model.dump(balancer))
    tree.setdefault("vips", {})
    change(tree)
    return model.parse(tree, "balancer")


def fields(pairs: Iterable[str]) -> Tree:
    """``weight=50 drain=true`` as a tree. Raises :class:`UsageError`."""
    found = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise UsageError(f"not a setting: {pair!r}; write it like weight=50")
        found[name] = yaml_tree.parse(text, f"the value of {name}")
    return found


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


def changes(before: Balancer, after: Balancer) -> list[str]:
    """What differs, a line each for people: ``+`` added, ``-`` removed, ``~`` changed."""
    lines = []
    for name in sorted({*before.vips, *after.vips}):
        old, new = before.vips.get(name), after.vips.get(name)
        if old is None or new is None:
            lines.append(f"{'-' if new is None else '+'} vip {name}")
        else:
            lines += _vip_changes(name, old, new)
    for field in before.__struct_fields__:
        if field != "vips" and getattr(before, field) != getattr(after, field):
            lines.append(f"~ {field}: {getattr(before, field)} -> {getattr(after, field)}")
    return lines


def _vip_changes(name: str, old: Vip, new: Vip) -> list[str]:
    lines = []
    before, after = ({real.address: real for real in vip.reals} for vip in (old, new))
    for address in sorted({*before, *after}):
        was, will = before.get(address), after.get(address)
        if was is None or will is None:
            lines.append(f"{'-' if will is None else '+'} real {address} of vip {name}")
        elif was != will:
            lines.append(f"~ real {address} of vip {name}: {_differences(was, will)}")
    rest = _differences(msgspec.structs.replace(old, reals=[]), msgspec.structs.replace(new, reals=[]))
    return lines + ([f"~ vip {name}: {rest}"] if rest else [])


def _differences(old: msgspec.Struct, new: msgspec.Struct) -> str:
    return ", ".join(
        f"{each} {getattr(old, each)} -> {getattr(new, each)}"
        for each in old.__struct_fields__
        if getattr(old, each) != getattr(new, each)
    )
