"""A latency budget as training takes it."""

from collections.abc import Callable

from hwnas.latency.seams import SeamTable, cost_model
from hwnas.latency.table import LatencyTable
from hwnas.supernet.methods import Budget, is_differentiable


def latency_budget(table: LatencyTable, max_latency_ms: float, method: str, say: Callable[[str], None]) -> Budget:
    """What networks should cost in training.

    Differentiable methods mix what reaches a layer, whichever precision it came in, so they know no seams; their search does.

    Args:
        table: Of the space that is trained.
        max_latency_ms: The budget.
        method: The training method.
        say: Is told where changes of precision are not counted though they cost something.
    """
    costs = cost_model(table)
    if not isinstance(costs, SeamTable):
        return Budget(table, max_latency_ms)
    if is_differentiable(method):
        say(f"Note: training with {method} does not count what a change of precision between neighbouring layers costs; a search "
            "does.")
        return Budget(table, max_latency_ms)
    return Budget(costs, max_latency_ms, costs.search_space)
