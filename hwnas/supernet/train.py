"""Training a supernet, and reading one back.

Which paths a step trains and how the architecture learns, if it does, is the method's (`methods.py`); here a run is put
together: supernet, method, data, folder. A differentiable method leaves `architecture_parameters.json` beside the weights.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hwnas.data import Dataset
from hwnas.errors import InputError
from hwnas.files import write_json
from hwnas.ir.cells import CellSpace
from hwnas.ir.costs import CostModel
from hwnas.ir.documents import space_from_dict
from hwnas.ir.shape import TensorShape
from hwnas.ir.steps import Space
from hwnas.supernet.build import build_supernet
from hwnas.supernet.cell_search import CellArchitectureParameters, prepare_cell_search
from hwnas.supernet.cells import CellSupernet
from hwnas.supernet.checkpoint import load_state
from hwnas.supernet.config import TrainConfig
from hwnas.supernet.differentiable import Differentiable
from hwnas.supernet.distribution import ArchitectureParameters, probabilities_to_dict
from hwnas.supernet.evaluate import check_dataset
from hwnas.supernet.loop import ProgressCallback
from hwnas.supernet.methods import Budget, Settings, find_method, is_differentiable, make_settings, make_task, settings_to_dict
from hwnas.supernet.run import Run, TrainResult, data_identity, read_run_weights
from hwnas.supernet.supernet import Supernet

ARCHITECTURE_FILE = "architecture_parameters.json"
_KIND = "supernet"
_LOGITS = "architecture.logits"


def train_supernet(space: Space, dataset: Dataset, output_dir: str | os.PathLike[str], config: TrainConfig, *,
                   settings: Settings | None = None, budget: Budget | None = None,
                   data_source: Mapping[str, Any] | None = None, overwrite: bool = False,
                   progress: ProgressCallback | None = None) -> TrainResult:
    """Trains a supernet into a folder; a folder with an unfinished run is continued, a finished one is reported.

    Leaves `supernet.safetensors` and `supernet.json`, which `load_supernet` reads, and after a differentiable method
    `architecture_parameters.json`: the probability of every option.

    Args:
        space: Ends in a classifier with an output for each class.
        dataset: Its training images are used, no others.
        output_dir: The run's folder.
        config: How to train.
        settings: Of the method; None for its defaults.
        budget: What networks should cost, for the methods that know one.
        data_source: Arguments with which `load_dataset` made the dataset, kept so that a search can load it again.
        overwrite: Delete an earlier run in that folder first.
        progress: Told about every step.

    Raises:
        InputError: Space, method, budget and dataset do not fit, or the folder holds another run (the message names what
            differs) or damaged files.
        InfeasibleError: No network fits the budget.
        UnavailableError: The device is not usable here.
        VerificationError: The loss or the weights are no longer finite; the message names step, path and layer.
        KeyboardInterrupt: Passed on, after a checkpoint was written.
    """
    find_method(config.method)
    settings = make_settings(config.method, {}) if settings is None else settings
    check_dataset(dataset, space.input_shape, _classes(space))
    supernet = build_supernet(space, config.seed, config.sharing)
    task = make_task(config.method, supernet, settings, config, budget, _steps(len(dataset.train), config, settings))
    identity = {"space_hash": space.hash, "data": data_identity(dataset), "config": config.identity(),
                "settings": settings_to_dict(settings), "budget": budget and budget.identity(space)}
    header = {"space": space.to_dict(), "data_source": None if data_source is None else dict(data_source)}
    folder = Path(output_dir)
    run = Run(folder, _KIND, identity, header, derived=(ARCHITECTURE_FILE,))
    result = run.execute(task, dataset, config, overwrite, progress)
    if is_differentiable(config.method) and not (result.already_trained and (folder / ARCHITECTURE_FILE).exists()):
        document = {"space": space.name, "space_hash": space.hash, "probabilities": _shown(load_architecture(folder, space))}
        write_json(folder / ARCHITECTURE_FILE, document)
    return result


def load_supernet(directory: str | os.PathLike[str], space: Space | None = None) -> tuple[Supernet, dict[str, Any]]:
    """Reads a trained supernet.

    Args:
        directory: Where `train_supernet` left it.
        space: The space it should be of; None takes the one that is stored with it.

    Returns:
        The supernet in evaluation mode on the CPU, and its document (`supernet.json`).

    Raises:
        InputError: A file is missing, truncated or edited, or the supernet is of another space.
    """
    folder = Path(directory)
    document, tensors = read_run_weights(folder, _KIND)
    stored = space_from_dict(document.get("space"))
    if stored.hash != document.get("space_hash"):
        raise InputError(f"The space in {folder / 'supernet.json'} must have the hash stored beside it, but does not: it was "
                         "edited; train again.")
    if space is not None and space.hash != stored.hash:
        raise InputError(f"A supernet is used with the space it was trained for, {stored.name!r} ({stored.hash[:12]}), but the "
                         f"space given is {space.name!r} ({space.hash[:12]}): use that space or train one for this.")
    config = document.get("config")
    sharing = config.get("sharing", "options") if isinstance(config, Mapping) else "options"
    supernet = build_supernet(space or stored, sharing=str(sharing))
    if _LOGITS in tensors and isinstance(supernet, CellSupernet):
        prepare_cell_search(supernet)  # whose batch norms do not scale
    elif _LOGITS in tensors:
        supernet.architecture = ArchitectureParameters(supernet.space)
    supernet = supernet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    load_state(supernet, tensors, folder)
    return supernet.eval(), document


def load_architecture(directory: str | os.PathLike[str], space: Space, costs: CostModel | None = None
                      ) -> ArchitectureParameters | CellArchitectureParameters:
    """Reads the architecture parameters that a differentiable method left.

    Args:
        directory: Where `train_supernet` left them.
        space: That of the supernet.
        costs: What edges cost where they will be used; need not be what they were trained with.

    Raises:
        InputError: There are none, or a file is missing, truncated or edited.
        InfeasibleError: Every path has an edge of infinite cost.
    """
    _, tensors = read_run_weights(Path(directory), _KIND)
    if _LOGITS not in tensors:
        raise InputError(f"Architecture parameters are what a differentiable method learns, but the supernet in {directory} was "
                         "trained without: train it with darts, fbnet or proxyless, or search it with another method.")
    architecture: ArchitectureParameters | CellArchitectureParameters = (
        CellArchitectureParameters(space, costs) if isinstance(space, CellSpace) else ArchitectureParameters(space, costs))
    load_state(architecture, {"logits": tensors[_LOGITS]}, Path(directory))
    return architecture


def _shown(architecture: ArchitectureParameters | CellArchitectureParameters) -> dict[str, Any]:
    """Probabilities for a person to read: of each option of each decision, or for cells of each operation on each edge."""
    if isinstance(architecture, CellArchitectureParameters):
        weights = architecture.weights()
        return {kind: {f"{source}-{state}": dict(zip(architecture.operations, map(float, row), strict=True))
                       for (state, source), row in zip(edges, weights[kind], strict=True)}
                for kind, edges in architecture.edges.items()}
    return probabilities_to_dict(architecture.space, architecture.probabilities())


def _steps(images: int, config: TrainConfig, settings: Settings) -> int:
    """Steps of the whole run, as the loop's feed will count them."""
    kept = int(settings.share * images) if isinstance(settings, Differentiable) else 0
    return max(1, (images - kept) // config.batch_size) * config.epochs


def _classes(space: Space) -> int:
    outputs = space.steps[-1].outputs
    vectors = [shape for shape in outputs if isinstance(shape, TensorShape) and shape[1:] == (1, 1)]
    if len(outputs) > 1 or not vectors:
        raise InputError(f"A space that is trained ends in one vector of class scores, but {space.name!r} ends in "
                         f"{' or '.join(map(str, outputs))}: end it with a fixed head.")
    return vectors[0].channels
