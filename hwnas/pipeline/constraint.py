"""Budgets: what a user allows, turned into what a search may use. Needs no torch: an impossible budget is told at once."""

from dataclasses import dataclass

from hwnas.ir.costs import CostModel
from hwnas.ir.steps import Space
from hwnas.ir.trellis import Trellis
from hwnas.latency.seams import LatencyModel


@dataclass(frozen=True)
class Constraint:
    """What the searched networks must stay within.

    Attributes:
        costs: Gives the cost of a network: a latency table, or a count of MACs, parameters or bit operations.
        limit: The user's limit, in the cost's unit.
        search_limit: The predicted cost that the search may use; lower than `limit` where a promise needs a margin.
        promised: The upper end of the prediction stays within `limit`. False when only the prediction itself can.
    """

    costs: CostModel
    limit: float
    search_limit: float
    promised: bool

    @property
    def name(self) -> str:
        """The option that sets it: `max_latency_ms`, `max_macs`, `max_parameters`, `max_bitops`."""
        return {"ms": "max_latency_ms"}.get(self.costs.unit, f"max_{self.costs.unit.lower()}")


def latency_constraint(table: LatencyModel, max_latency_ms: float) -> Constraint:
    """Turns a latency budget into what the search may use.

    A promise is made on the upper end of the prediction. Where no network can promise that much but the fastest is
    predicted within the budget, the prediction itself is the limit, and the constraint says so.

    Raises:
        InfeasibleError: Even the fastest network is predicted above the budget.
        InputError: The budget is not a number.
    """
    trellis = Trellis(table.search_space, table)
    promise = table.promise_budget(max_latency_ms)
    if promise >= trellis.min_cost():
        return Constraint(table, max_latency_ms, promise, True)
    trellis.sample(1, max_cost=max_latency_ms)  # raises, naming the achievable range, where no network fits
    return Constraint(table, max_latency_ms, max_latency_ms, False)


def count_constraint(space: Space, costs: CostModel, limit: float) -> Constraint:
    """A limit on MACs, parameters or bit operations, which are exact.

    Raises:
        InfeasibleError: Even the smallest network exceeds it.
    """
    Trellis(space, costs).sample(1, max_cost=limit)
    return Constraint(costs, limit, limit, True)
