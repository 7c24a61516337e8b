"""What every search returns, and the files that it leaves.

A search takes the score as a callable (higher is better) and the cost from a trellis, usually predicted milliseconds.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hwnas.files import write_json
from hwnas.ir.architecture import Architecture

SCHEMA = "hwnas.search_result/1"  # 1: 2026-11, first
RESULT_FILE = "result.json"
BEST_FILE = "best.json"
JOURNAL_FILE = "history.jsonl"


@dataclass(frozen=True)
class Candidate:
    """An architecture that was scored.

    Attributes:
        architecture: What was scored.
        score: What the evaluator gave; higher is better.
        cost: Its cost on the trellis, in the trellis's unit (milliseconds for a latency table).
        generation: The round of the search that proposed it.
    """

    architecture: Architecture
    score: float
    cost: float
    generation: int

    @property
    def rank(self) -> tuple[float, float]:
        """Sorts the best first: the highest score, and among equals the cheapest."""
        return -self.score, self.cost


@dataclass(frozen=True)
class SearchResult:
    """The outcome of a search.

    Attributes:
        method: Name of the search.
        best: The candidate with the highest score, the cheapest among equals.
        history: Every candidate in the order of evaluation.
        seconds: Wall time of this run; evaluations that a journal remembered cost nothing.
        feasible_range: Lowest and highest cost of any network of the space.
        exhaustive: Every network within the budget was scored, so that `best` is the optimum.
    """

    method: str
    best: Candidate
    history: tuple[Candidate, ...]
    seconds: float
    feasible_range: tuple[float, float]
    exhaustive: bool = False

    @property
    def evaluations(self) -> int:
        """How many architectures were scored."""
        return len(self.history)


Evaluate = Callable[[Sequence[Architecture]], Sequence[float]]
Progress = Callable[[int, int, Candidate], None]  # evaluations done, evaluations planned, best so far


def save_result(result: SearchResult, directory: str | os.PathLike[str], constraints: Mapping[str, Any]) -> Path:
    """Writes `result.json` and `best.json` (an architecture file); the journal beside them is the history.

    Args:
        result: What the search returned.
        directory: Where to write; made when missing.
        constraints: What the search had to meet, as the user gave it, for example `{"max_latency_ms": 5.0}`.

    Returns:
        The path of `result.json`.
    """
    folder = Path(directory)
    best = result.best
    best.architecture.save(folder / BEST_FILE)
    return write_json(folder / RESULT_FILE, {
        "schema": SCHEMA,
        "method": result.method,
        "constraints": dict(constraints),
        "feasible_range_ms": list(result.feasible_range),
        "evaluations": result.evaluations,
        "exhaustive": result.exhaustive,
        "seconds": result.seconds,
        "best": {"space": best.architecture.space, "space_hash": best.architecture.space_hash,
                 "choices": dict(best.architecture.choices), "score": best.score, "cost": best.cost,
                 "generation": best.generation},
    })
