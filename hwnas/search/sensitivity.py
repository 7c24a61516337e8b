"""The front of score over cost, from how much each choice alone changes the score: few evaluations where effects add up.

The way of HAWQ-V2 (Dong et al., arXiv 1911.03852, sec. 3.2), which chooses precisions by a sum of per-layer sensitivities under a
budget. Departures: sensitivities are measured on the network itself, one choice changed at a time, instead of estimated from
Hessians; the sum is optimised exactly on the trellis; and what the chosen networks really score refines the sensitivities,
round by round, until the optima are all known.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from hwnas.errors import InputError
from hwnas.ir.architecture import Architecture
from hwnas.ir.trellis import Trellis
from hwnas.search.journal import Journal
from hwnas.search.result import Candidate, Evaluate, Progress, SearchResult
from hwnas.search.scorer import Scorer

_RIDGE = 1e-3  # of the largest count: only what the scores leave open is drawn towards no effect


@dataclass(frozen=True)
class FrontConfig:
    """How much a search of the front evaluates.

    Attributes:
        budgets: Costs, evenly spaced over what is possible, at each of which the best network is sought.
        rounds: How often the best networks are sought anew, at most.

    Raises:
        InputError: A value is below 1.
    """

    budgets: int = 24
    rounds: int = 4

    def __post_init__(self) -> None:
        for name in ("budgets", "rounds"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise InputError(f"A search of the front needs {name} to be a whole number of at least 1, but it is {value!r}.")


def search_front(trellis: Trellis, evaluate: Evaluate, references: Sequence[Architecture], config: FrontConfig | None = None,
                 journal: Journal | None = None, progress: Progress | None = None) -> SearchResult:
    """Finds networks of which none is beaten in both score and cost; `pareto_front` of the history has them.

    Args:
        trellis: The space and its costs.
        evaluate: Scores architectures; higher is better. A score of which effects add up (a mean loss or divergence, negated)
            is understood from fewer evaluations than one that counts (accuracy).
        references: Architectures from which one choice at a time is changed; all of one kind, for example.
        config: Constants.
        journal: Where scores are kept, so that an interrupted search resumes.
        progress: Called after each evaluation.

    Raises:
        InputError: There is no reference, or one is of another space.
        VerificationError: The evaluator gave something else than one finite number.
    """
    config = config or FrontConfig()
    if not references:
        raise InputError("A search of the front starts from at least one architecture, but got none: give a reference.")
    space = trellis.space
    references = [space.check(one) for one in references]
    proposals = list(dict.fromkeys([*references, *(one for reference in references for one in _changed(trellis, reference))]))
    planned = min(len(proposals) + config.budgets * config.rounds, trellis.count())
    search = {"method": "front", "config": asdict(config), "references": [dict(one.choices) for one in references]}
    score = Scorer(trellis, evaluate, search, planned, journal, progress)
    budgets = np.linspace(trellis.min_cost(), trellis.max_cost(), config.budgets).tolist()
    known: dict[Architecture, Candidate] = {}
    for generation in range(config.rounds + 1):
        known |= {one.architecture: one for one in score(proposals, generation)}
        if generation == config.rounds:
            break
        effects = fit_effects(trellis, list(known.values()))
        proposals = [one for one in dict.fromkeys(trellis.best(effects, budget) for budget in budgets) if one not in known]
        if not proposals:
            break
    return score.result(exhaustive=len(known) == trellis.count())


def pareto_front(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that no other beats in one of score and cost without losing in the other, the cheapest first."""
    front: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda one: (one.cost, -one.score)):
        if not front or candidate.score > front[-1].score:
            front.append(candidate)
    return front


def fit_effects(trellis: Trellis, candidates: Sequence[Candidate]) -> dict[str, NDArray[np.float64]]:
    """What each option adds to the score, by least squares: one number for each option of each decision.

    Options that no candidate has are taken to add nothing.
    """
    decisions = trellis.space.decisions
    indices = trellis.space.indices(one.architecture for one in candidates)
    sizes = [len(decision.options) for decision in decisions]
    columns = indices + np.cumsum([0, *sizes[:-1]])
    present = np.zeros((len(candidates), sum(sizes)))
    np.put_along_axis(present, columns, 1.0, axis=1)
    scores = np.array([one.score for one in candidates])
    centred = present - present.mean(axis=0)
    gram = centred.T @ centred
    penalty = _RIDGE * max(float(gram.diagonal().max()), 1e-12)
    effects = np.linalg.solve(gram + penalty * np.eye(len(gram)), centred.T @ (scores - scores.mean()))
    return dict(zip((decision.name for decision in decisions), np.split(effects, np.cumsum(sizes[:-1])), strict=True))


def _changed(trellis: Trellis, reference: Architecture) -> Iterator[Architecture]:
    """A reference with one decision changed, for every other option of every decision that may stand there."""
    space = trellis.space
    for decision in space.decisions:
        for option in decision.options:
            if option != reference.choices[decision.name]:
                try:
                    changed = space.architecture({**reference.choices, decision.name: option})
                    trellis.cost(changed)
                except InputError:
                    continue  # excluded by the choices around it, or refused by the device
                yield changed
