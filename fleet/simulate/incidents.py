"""The catalogue of incidents."""

from fleet.simulate import edge_incidents, host_incidents
from fleet.simulate.plan import Fleet, Incident
from schemas.errors import UsageError

CATALOGUE = {each.__name__.replace("_", "-"): each for each in (*host_incidents.ALL, *edge_incidents.ALL)}


def planned(fleet: Fleet, names: str = "all") -> list[Incident]:
    """Those of the names (``all``, ``none``, or a list with commas). Raises :class:`UsageError`."""
    chosen = list(CATALOGUE) if names == "all" else [] if names == "none" else names.split(",")
    for each in chosen:
        if each not in CATALOGUE:
            raise UsageError(
                f"there is no incident `{each}`; take all, none, or some of {', '.join(CATALOGUE)}"
            )
    return [CATALOGUE[each](fleet) for each in chosen]
