"""Architectures that were not proposed before: bounded attempts, and all of them when there are only few."""

import math
from collections.abc import Callable

from hwnas.ir.architecture import Architecture
from hwnas.ir.trellis import Trellis

ATTEMPTS = 10  # the bound of the released code of arXiv 1904.00420


def novel(propose: Callable[[int], list[Architecture]], wanted: int, seen: set[Architecture]) -> list[Architecture]:
    """Collects proposals that are not in `seen`, and adds them to it.

    Args:
        propose: Gives as many proposals as it is asked for, or fewer.
        wanted: How many to collect; fewer come back when ten rounds of proposals do not suffice.
        seen: What was proposed before.
    """
    found: list[Architecture] = []
    for _ in range(ATTEMPTS):
        for architecture in propose(wanted - len(found)):
            if architecture not in seen:
                seen.add(architecture)
                found.append(architecture)
        if len(found) >= wanted:
            break
    return found


def all_within(trellis: Trellis, max_cost: float | None, limit: int) -> list[Architecture] | None:
    """Every architecture within the budget, or None when there are more than `limit`.

    Raises:
        InfeasibleError: There is none.
    """
    indices = trellis.indices_within(max_cost, limit)
    return None if indices is None else trellis.space.architectures(indices)


def finite_budget(max_cost: float | None) -> float | None:
    """The budget as a file holds it: no limit, which may be given as infinity, is None."""
    return None if max_cost is None or math.isinf(max_cost) else float(max_cost)
