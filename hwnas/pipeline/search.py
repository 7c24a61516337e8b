"""Searches a trained supernet under a budget: joins supernet, data, table and search method."""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hwnas.data import Dataset, load_dataset
from hwnas.errors import InputError
from hwnas.ir.architecture import Architecture
from hwnas.ir.costs import CostModel
from hwnas.ir.documents import space_from_dict
from hwnas.ir.steps import Space
from hwnas.ir.trellis import Trellis
from hwnas.latency.seams import SeamTable
from hwnas.latency.table import LatencyTable
from hwnas.pipeline.constraint import Constraint
from hwnas.search.evolution import EvolutionConfig, search_evolution
from hwnas.search.journal import Journal, load_scores
from hwnas.search.most_probable import search_most_probable
from hwnas.search.novelty import finite_budget
from hwnas.search.random import search_random
from hwnas.search.result import BEST_FILE, JOURNAL_FILE, RESULT_FILE, Evaluate, Progress, SearchResult, save_result
from hwnas.supernet.distributed import Group
from hwnas.supernet.evaluate import SupernetEvaluator
from hwnas.supernet.run import read_run_document, require_same_data
from hwnas.supernet.train import load_architecture, load_supernet

BATCH_NORM = ("recalibrated", "batches")


@dataclass(frozen=True)
class SearchSettings:
    """How to search, whatever the method.

    Attributes:
        method: A key of `METHODS`.
        evolution: Constants of evolution; random search draws as many samples as evolution would score.
        validation_images: Images that score a candidate; None for all.
        calibration_images: Images that recalibrate a candidate's batch norm, at most.
        batch_norm: Which statistics score a candidate, one of `BATCH_NORM`: those of the network, recalibrated on training
            images, or those of each batch of validation images. None for the latter after one-shot training, whose paper
            scores so, and for recalibration after all other methods.
        device: A PyTorch device that scores. Another kind of device may round an accuracy differently, so its scores are its own.
    """

    method: str = "evolution"
    evolution: EvolutionConfig = field(default_factory=EvolutionConfig)
    validation_images: int | None = None
    calibration_images: int = 1024
    batch_norm: str | None = None
    device: str = "cpu"


@dataclass(frozen=True)
class _Question:
    """What every search method is asked.

    Attributes:
        trellis: The space and its costs.
        evaluate: Scores architectures.
        limit: What the cost must stay within.
        settings: How to search.
        supernet_dir: Where the supernet is, and what else training left.
        costs: What the trellis was made with.
        journal: Where scores are kept.
        progress: Called after every evaluation.
    """

    trellis: Trellis
    evaluate: Evaluate
    limit: float
    settings: SearchSettings
    supernet_dir: str | os.PathLike[str]
    costs: CostModel
    journal: Journal
    progress: Progress | None


def _evolution(asked: _Question) -> SearchResult:
    return search_evolution(asked.trellis, asked.evaluate, asked.limit, asked.settings.evolution, asked.journal, asked.progress)


def _random(asked: _Question) -> SearchResult:
    config = asked.settings.evolution
    return search_random(asked.trellis, asked.evaluate, asked.limit, config.evaluations, config.seed, asked.journal,
                         asked.progress)


def _dnas(asked: _Question) -> SearchResult:
    architecture = load_architecture(asked.supernet_dir, asked.trellis.space, asked.costs)
    return search_most_probable(asked.trellis, asked.evaluate, asked.limit, architecture.most_probable, asked.journal,
                                asked.progress)


METHODS: dict[str, Callable[[_Question], SearchResult]] = {"evolution": _evolution, "random": _random, "dnas": _dnas}


def search_supernet(supernet_dir: str | os.PathLike[str], space: Space | None, constraint: Constraint,
                    output: str | os.PathLike[str], settings: SearchSettings, *, dataset: Dataset | None = None,
                    earlier: Sequence[Path] = (), overwrite: bool = False, progress: Progress | None = None) -> SearchResult:
    """Searches with accuracies of inherited weights and leaves result.json, best.json and history.jsonl.

    Args:
        supernet_dir: What `train_supernet` left.
        space: The space that the search is meant for; None for the table's, or without one the supernet's own.
        constraint: The budget, already known to be feasible.
        output: Folder of the search; an unfinished search in it is continued.
        settings: How to search.
        dataset: The supernet's dataset, if it is loaded already.
        earlier: Journals of earlier searches of this supernet, under whatever budget: their scores are not computed again.
        overwrite: Discard an earlier search in that folder.
        progress: Called after every evaluation.

    Raises:
        InputError: Supernet, space, data or folder do not fit together.
        InfeasibleError: No network is within the constraint.
        UnavailableError: The device that is to score is not usable here.
    """
    if settings.method not in METHODS:
        raise InputError(f"The search method must be one of {', '.join(METHODS)}, but is {settings.method!r}.")
    if settings.batch_norm not in (None, *BATCH_NORM):
        raise InputError(f"The batch_norm of a search must be one of {', '.join(BATCH_NORM)}, but is {settings.batch_norm!r}.")
    costs = constraint.costs
    table = costs.table if isinstance(costs, SeamTable) else costs
    if isinstance(table, LatencyTable):
        space = table.search_space  # shared blocks would let another space's table pass, calibration and all
    device = Group().device(settings.device)
    supernet, info = load_supernet(supernet_dir, space)
    trellis = Trellis(costs.search_space if isinstance(costs, SeamTable) else supernet.space, costs)
    dataset = dataset or load_training_data(info)
    require_same_data(info, dataset)
    batch_statistics = _uses_batch_statistics(settings, info)
    evaluator = SupernetEvaluator(supernet.to(device), dataset, validation_images=settings.validation_images,
                                  calibration_images=settings.calibration_images, batch_statistics=batch_statistics)
    context = {"supernet_sha256": info["sha256"], "validation_images": settings.validation_images,
               "validation_sha256": _validation_sha256(dataset),
               "calibration_images": None if batch_statistics else settings.calibration_images,
               "batch_statistics_of": evaluator.batch_size if batch_statistics else None}
    if device.type != "cpu":
        context["device"] = device.type
    known = _known_scores(earlier, supernet.space, context)
    folder = Path(output)
    journal = Journal(folder / JOURNAL_FILE, context, overwrite)
    if overwrite:  # a search that is interrupted must not look like the finished one that it replaces
        for name in (RESULT_FILE, BEST_FILE):
            (folder / name).unlink(missing_ok=True)
    result = METHODS[settings.method](_Question(trellis, _remembering(evaluator, known), constraint.search_limit, settings,
                                                supernet_dir, costs, journal, progress))
    limits: dict[str, Any] = {constraint.name: finite_budget(constraint.limit),
                              "search_limit": finite_budget(constraint.search_limit), "promised": constraint.promised}
    save_result(result, folder, limits)
    return result


def _uses_batch_statistics(settings: SearchSettings, info: Mapping[str, Any]) -> bool:
    if settings.batch_norm is not None:
        return settings.batch_norm == "batches"
    config = info.get("config")
    return isinstance(config, Mapping) and config.get("method") == "one-shot"


def space_of_supernet(directory: str | os.PathLike[str]) -> Space:
    """The space that a supernet was trained for, without reading its weights.

    Raises:
        InputError: The folder holds no trained supernet.
    """
    return space_from_dict(read_run_document(Path(directory), "supernet").get("space"))


def load_training_data(info: Mapping[str, Any]) -> Dataset:
    """Loads the dataset that a supernet was trained on, from what its document says.

    Raises:
        InputError: The document does not say, or the data are no longer there.
    """
    source = info.get("data_source")
    spec, seed = (source.get("spec"), source.get("seed", 0)) if isinstance(source, dict) else (None, None)
    if not isinstance(spec, str) or not isinstance(seed, int):
        raise InputError("The supernet's document must say which data it was trained on, but does not: train it with "
                         "'hwnas train --data ...'.")
    return load_dataset(spec, seed=seed)


def _validation_sha256(dataset: Dataset) -> str:
    """Identity of the images that score a candidate; the training images are part of the supernet's own."""
    digest = hashlib.sha256(np.ascontiguousarray(dataset.validation.images).data)
    digest.update(np.ascontiguousarray(dataset.validation.labels).data)
    return digest.hexdigest()


def _known_scores(journals: Sequence[Path], space: Space, context: Mapping[str, Any]) -> dict[Architecture, float]:
    known: dict[Architecture, float] = {}
    for path in journals:
        try:
            known |= load_scores(path, space, context)
        except InputError:
            continue  # of another supernet or evaluator: its scores do not count, and it is not needed either
    return known


def _remembering(evaluate: Evaluate, known: Mapping[Architecture, float]) -> Evaluate:
    """An evaluator that looks up what is known; the score of an architecture is a pure function of it, so both agree."""
    def score(architectures: Sequence[Architecture]) -> list[float]:
        return [known[one] if one in known else float(evaluate([one])[0]) for one in architectures]
    return score
