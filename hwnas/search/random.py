"""Random search under a budget: uniform samples without repetition, the baseline that any search must beat."""

import numpy as np

from hwnas.errors import InputError
from hwnas.ir.architecture import Architecture
from hwnas.ir.trellis import Trellis
from hwnas.search.journal import Journal
from hwnas.search.novelty import all_within, finite_budget, novel
from hwnas.search.result import Evaluate, Progress, SearchResult
from hwnas.search.scorer import Scorer


def search_random(trellis: Trellis, evaluate: Evaluate, max_cost: float | None, samples: int, seed: int = 0,
                  journal: Journal | None = None, progress: Progress | None = None) -> SearchResult:
    """Scores networks drawn uniformly within a budget.

    Args:
        trellis: The space and its costs.
        evaluate: Scores architectures; higher is better.
        max_cost: The budget in the trellis's unit; None for none.
        samples: How many to score; all of them when there are no more.
        seed: The search is a function of it.
        journal: Where scores are kept, so that an interrupted search resumes.
        progress: Called after each evaluation.

    Raises:
        InputError: `samples` is below 1.
        InfeasibleError: No network is within the budget.
        VerificationError: The evaluator gave something else than one finite number.
    """
    if samples < 1:
        raise InputError(f"Random search needs at least 1 sample, but samples is {samples}.")
    rng = np.random.default_rng(seed)
    architectures, exhaustive = _draw(trellis, max_cost, samples, rng)
    search = {"method": "random", "seed": seed, "config": {"samples": samples}, "max_cost": finite_budget(max_cost)}
    score = Scorer(trellis, evaluate, search, len(architectures), journal, progress)
    score(architectures, generation=0)
    return score.result(exhaustive)


def _draw(trellis: Trellis, max_cost: float | None, samples: int, rng: np.random.Generator) -> tuple[list[Architecture], bool]:
    # Where a sample would often repeat an earlier one, all are listed and shuffled instead.
    everything = all_within(trellis, max_cost, 4 * samples)
    if everything is None:
        return novel(lambda wanted: trellis.sample(wanted, max_cost, rng), samples, set()), False
    order = rng.permutation(len(everything))[:samples]
    return [everything[index] for index in order], len(everything) <= samples
