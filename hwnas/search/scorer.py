"""Scores candidates one by one: consults the journal, checks what the evaluator returns, reports progress."""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from hwnas.errors import VerificationError
from hwnas.ir.architecture import Architecture
from hwnas.ir.trellis import Trellis
from hwnas.search.journal import Journal
from hwnas.search.result import Candidate, Evaluate, Progress, SearchResult


class Scorer:
    """What every search calls to score architectures; it keeps the history and the best.

    Architectures are handed to the evaluator one at a time, so that a killed search loses at most one evaluation.

    Args:
        trellis: Gives the space and the costs.
        evaluate: The score of architectures; higher is better.
        search: What defines the search, for the journal: `method`, `seed`, `config`, `max_cost`.
        planned: How many evaluations the search makes at most.
        journal: Where scores are kept; None keeps none.
        progress: Called after each evaluation.
    """

    def __init__(self, trellis: Trellis, evaluate: Evaluate, search: Mapping[str, Any], planned: int,
                 journal: Journal | None = None, progress: Progress | None = None) -> None:
        self._started = time.perf_counter()
        self._trellis = trellis
        self._evaluate = evaluate
        self._method = str(search["method"])
        self._range = (trellis.min_cost(), trellis.max_cost())
        self._planned = planned
        self._journal = journal
        self._progress = progress
        self._known = journal.begin(trellis.space, {**search, "cost_range": self._range}) if journal else {}
        self._history: list[Candidate] = []

    def __call__(self, architectures: Sequence[Architecture], generation: int) -> list[Candidate]:
        """Scores architectures in order.

        Raises:
            VerificationError: The evaluator gave something else than one finite number.
        """
        costs = self._trellis.costs_of(self._trellis.space.indices(architectures))
        candidates = []
        for architecture, cost in zip(architectures, costs.tolist(), strict=True):
            known = architecture in self._known
            score = self._known[architecture] if known else self._score(architecture)
            candidate = Candidate(architecture, score, cost, generation)
            if self._journal and not known:
                self._journal.record([candidate])
            candidates.append(candidate)
            self._history.append(candidate)
            if self._progress:
                self._progress(len(self._history), self._planned, self._best())
        return candidates

    def result(self, exhaustive: bool = False) -> SearchResult:
        """The outcome so far."""
        seconds = time.perf_counter() - self._started
        return SearchResult(self._method, self._best(), tuple(self._history), seconds, self._range, exhaustive)

    def _best(self) -> Candidate:
        return min(self._history, key=lambda candidate: candidate.rank)

    def _score(self, architecture: Architecture) -> float:
        scores = [float(score) for score in self._evaluate([architecture])]
        if len(scores) != 1 or not math.isfinite(scores[0]):
            raise VerificationError(f"An evaluator gives one finite score for each architecture, but gave {scores} for "
                                    f"{architecture}: check the weights and the data that it scores with.")
        return scores[0]
