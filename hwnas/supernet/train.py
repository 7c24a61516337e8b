"""Training a supernet, and reading one back.

Single Path One-Shot (Guo et al., arXiv 1904.00420): each step trains one uniformly drawn path, SGD with a learning rate that
falls linearly to 0, label smoothing, weight decay on weight matrices alone.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hwnas.data import Dataset
from hwnas.errors import InputError
from hwnas.ir.documents import space_from_dict
from hwnas.ir.shape import TensorShape
from hwnas.ir.steps import Space
from hwnas.supernet.build import build_supernet
from hwnas.supernet.checkpoint import load_state
from hwnas.supernet.config import TrainConfig
from hwnas.supernet.evaluate import check_dataset
from hwnas.supernet.loop import ProgressCallback, Task
from hwnas.supernet.paths import METHODS, PathSampler
from hwnas.supernet.run import Run, TrainResult, data_identity, read_run_weights
from hwnas.supernet.supernet import Supernet

_KIND = "supernet"


def train_supernet(space: Space, dataset: Dataset, output_dir: str | os.PathLike[str], config: TrainConfig, *,
                   data_source: Mapping[str, Any] | None = None, overwrite: bool = False,
                   progress: ProgressCallback | None = None) -> TrainResult:
    """Trains a supernet into a folder; a folder with an unfinished run is continued, a finished one is reported.

    Leaves `supernet.safetensors` and `supernet.json`, which `load_supernet` reads.

    Args:
        space: Ends in a classifier with an output for each class.
        dataset: Its training images are used, no others.
        output_dir: The run's folder.
        config: How to train.
        data_source: Arguments with which `load_dataset` made the dataset, kept so that a search can load it again.
        overwrite: Delete an earlier run in that folder first.
        progress: Told about every step.

    Raises:
        InputError: Space and dataset do not fit, or the folder holds another run (the message names what differs) or
            damaged files.
        UnavailableError: The device is not usable here.
        VerificationError: The loss or the weights are no longer finite; the message names step and path.
        KeyboardInterrupt: Passed on, after a checkpoint was written.
    """
    check_dataset(dataset, space.input_shape, _classes(space))
    paths = METHODS[config.method](space, config.seed)
    supernet = build_supernet(space, config.seed)
    identity = {"space_hash": space.hash, "data": data_identity(dataset), "config": config.identity()}
    header = {"space": space.to_dict(), "data_source": None if data_source is None else dict(data_source)}
    run = Run(Path(output_dir), _KIND, identity, header)
    return run.execute(supernet_task(supernet, paths, config.label_smoothing), dataset, config, overwrite, progress)


def supernet_task(supernet: Supernet, paths: PathSampler, label_smoothing: float) -> Task:
    """The loss of a step: the mean cross-entropy of its paths."""

    def backward(step: int, images: Tensor, labels: Tensor) -> Tensor:
        rows = paths(step)
        total = torch.zeros((), device=images.device)
        for row in rows:
            logits = supernet(images, row)
            loss = functional.cross_entropy(logits, labels, label_smoothing=label_smoothing) / len(rows)
            loss.backward()
            total += loss.detach()
        return total

    def describe(step: int) -> str:
        return "path " + ", ".join(map(str, supernet.space.architectures(paths(step))))

    return Task(supernet, backward, describe)


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
    supernet = build_supernet(space or stored).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    load_state(supernet, tensors, folder)
    return supernet.eval(), document


def _classes(space: Space) -> int:
    outputs = space.steps[-1].outputs
    vectors = [shape for shape in outputs if isinstance(shape, TensorShape) and shape[1:] == (1, 1)]
    if len(outputs) > 1 or not vectors:
        raise InputError(f"A space that is trained ends in one vector of class scores, but {space.name!r} ends in "
                         f"{' or '.join(map(str, outputs))}: end it with a fixed head.")
    return vectors[0].channels
