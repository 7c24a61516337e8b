"""The network that a differentiable search ends with: the most probable one within the budget, scored once."""

from collections.abc import Callable

from hwnas.ir.architecture import Architecture
from hwnas.ir.trellis import Trellis
from hwnas.search.journal import Journal
from hwnas.search.novelty import finite_budget
from hwnas.search.result import Evaluate, Progress, SearchResult
from hwnas.search.scorer import Scorer


def search_most_probable(trellis: Trellis, evaluate: Evaluate, max_cost: float | None,
                         most_probable: Callable[[float | None], Architecture], journal: Journal | None = None,
                         progress: Progress | None = None) -> SearchResult:
    """Takes the most probable network; the search itself has taken place in training.

    Args:
        trellis: The space and its costs.
        evaluate: Scores architectures; higher is better.
        max_cost: The budget in the trellis's unit; None for none.
        most_probable: From the budget to the most probable network within it.
        journal: Where the score is kept.
        progress: Called after the evaluation.

    Raises:
        InfeasibleError: No network is within the budget.
        VerificationError: The evaluator gave something else than one finite number.
    """
    search: dict[str, object] = {"method": "dnas", "seed": None, "config": {}, "max_cost": finite_budget(max_cost)}
    score = Scorer(trellis, evaluate, search, 1, journal, progress)
    score([most_probable(max_cost)], generation=0)
    return score.result()
