"""Training with every operation on, of which a growing share is dropped: one-shot with path dropout.

"Understanding and Simplifying One-Shot Architecture Search" (Bender et al., ICML 2018, sec. 3). What several options could
make is the plain sum of all of them, without learned weights. Paths are dropped at a rate that rises linearly from 0 over the
run. A batch is computed in ghost batches, each with paths of its own, and so with batch-norm statistics of its own. The L2
term is that of the weights on retained paths alone.

We do not have the paper's code. That a path among k that lead to one sum is dropped with probability r^(1/k), so that all k are
gone with probability r however many they are, and r = 0.05 and ghost batches of 32, are as we remember the paper; so is that
all cells drop the same. Where a draw would leave a sum without any path, one of them, all equally likely, is kept here: a layer
that computes nothing teaches nothing. A path is then dropped with probability r^(1/k) - r/k.

What the paper does at evaluation is `SupernetEvaluator(..., batch_statistics=True)`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from hwnas.errors import InputError
from hwnas.supernet.cells import CellSupernet, WeighedTerm
from hwnas.supernet.config import LoopConfig
from hwnas.supernet.layered import LayeredSupernet, Weighed
from hwnas.supernet.loop import Task
from hwnas.supernet.precision import LossScale
from hwnas.supernet.streams import stream_seed
from hwnas.supernet.supernet import Supernet

Sums = Sequence[Sequence[tuple[Any, int]]]
"""The paths that lead to each sum of a supernet: terms of a cell's state, or edges of a layer."""


@dataclass(frozen=True)
class OneShot:
    """Settings of path dropout.

    Attributes:
        final_dropout_rate: r, at the end of the run: a path among k that lead to one sum is then dropped with probability
            r^(1/k).
        ghost_batch_size: Images that share their paths and their batch-norm statistics.
    """

    final_dropout_rate: float = 0.05
    ghost_batch_size: int = 32

    def __post_init__(self) -> None:
        """Refuses values that cannot train.

        Raises:
            InputError: Naming the field, its bounds and the value.
        """
        if not 0 <= self.final_dropout_rate < 1:
            raise InputError(f"final_dropout_rate must be at least 0 and below 1, but is {self.final_dropout_rate}: change it.")
        if self.ghost_batch_size < 2:
            raise InputError(f"ghost_batch_size must be at least 2, as batch norm needs, but is {self.ghost_batch_size}: "
                             "change it.")

    def dropout_rate(self, paths: int, step: int, steps_in_all: int) -> float:
        """The probability with which each of the paths that lead to one sum is dropped, in a step counted from 0."""
        return self.final_dropout_rate ** (1 / paths) * step / max(1, steps_in_all - 1)


def one_shot_task(supernet: Supernet, settings: OneShot, config: LoopConfig, steps_in_all: int) -> Task:
    """The loss of a step: cross-entropy of all operations that are not dropped, the mean over its ghost batches.

    Weight decay is a part of the gradients that `backward` adds, in proportion to the images whose paths use a weight, so
    the optimiser must add none; a limit on the gradient's norm counts it. Micro-batches and ranks of a step draw the same
    paths for their first ghost batches, their second ones, and so on.

    Args:
        supernet: Of cells, or of layers whose options all give the same shape.
        settings: Of path dropout.
        config: Whose seed, weight decay and label smoothing are used.
        steps_in_all: After how many steps the dropout rate is at its end.

    Raises:
        InputError: Options of a layer differ in the shape that they give, so they cannot be added up.
    """
    sums = summed_paths(supernet)
    parameters = [parameter for parameter in supernet.parameters() if parameter.requires_grad]
    scale = LossScale()

    def backward(step: int, images: Tensor, labels: Tensor) -> Tensor:
        total = torch.zeros((), device=images.device)
        for number, ghost in enumerate(ghost_batches(len(images), settings.ghost_batch_size)):
            kept = retained_paths(sums, settings, config.seed, step, steps_in_all, number)
            logits = mix_retained(supernet, images[ghost], kept)
            share = (ghost.stop - ghost.start) / len(images)
            loss = functional.cross_entropy(logits, labels[ghost], label_smoothing=config.label_smoothing) * share
            _add_gradients(loss, scale, parameters, config.weight_decay * share)
            total += loss.detach()
        return total

    def describe(step: int) -> str:
        return f"all operations, {step / max(1, steps_in_all - 1):.0%} of the final path dropout"

    return Task(supernet, backward, describe, decays_weights=False, loss_scale=scale)


def summed_paths(supernet: Supernet) -> Sums:
    """Which paths lead to each sum of a supernet with all operations on.

    Raises:
        InputError: Options of a layer differ in the shape that they give.
    """
    if isinstance(supernet, CellSupernet):
        return [terms for kind in supernet.space.kinds.values() for terms in kind.possible_terms]
    assert isinstance(supernet, LayeredSupernet)
    for step in supernet.space.steps:
        if len(step.outputs) > 1:
            raise InputError(f"One-shot training adds up the options of a layer, so they must all give one shape, but those of "
                             f"{step.name!r} give {' and '.join(map(str, step.outputs))}: use another method for "
                             f"{supernet.space.name!r}.")
    return [[(edge.source, edge.option) for edge in step.edges] for step in supernet.space.steps]


def retained_paths(sums: Sums, settings: OneShot, seed: int, step: int, steps_in_all: int, ghost: int) -> Sums:
    """The paths that one ghost batch uses, at least one to each sum; a pure function of its arguments."""
    rng = np.random.default_rng(stream_seed(seed, f"path dropout of ghost batch {ghost}", step))
    kept = []
    for paths in sums:
        survives = rng.random(len(paths)) >= settings.dropout_rate(len(paths), step, steps_in_all)
        survivor = rng.integers(len(paths))
        if not survives.any():
            survives[survivor] = True
        kept.append([path for path, is_kept in zip(paths, survives, strict=True) if is_kept])
    return kept


def mix_retained(supernet: Supernet, images: Tensor, kept: Sums) -> Tensor:
    """What a supernet computes with these paths alone, each with weight 1; the others cost nothing."""
    if isinstance(supernet, LayeredSupernet):
        return supernet.mix(images, [dict.fromkeys(paths, Weighed(1.0)) for paths in kept])
    assert isinstance(supernet, CellSupernet)
    states = iter([dict.fromkeys(paths, WeighedTerm()) for paths in kept])
    return supernet.mix(images, {name: [next(states) for _ in kind.possible_terms]
                                 for name, kind in supernet.space.kinds.items()})


def ghost_batches(images: int, size: int) -> Iterator[slice]:
    """Cuts a batch up; the last ghost batch may be smaller, and takes in a single image that would be left over."""
    starts = list(range(0, images, size))
    if len(starts) > 1 and images - starts[-1] == 1:
        starts.pop()
    for start, stop in zip(starts, [*starts[1:], images], strict=True):
        yield slice(start, stop)


def _add_gradients(loss: Tensor, scale: LossScale, parameters: Sequence[nn.Parameter], weight_decay: float) -> None:
    """Adds the scaled gradients of a loss, and of the L2 term of the weight matrices that took part in it."""
    earlier = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None  # so that those which take part are told from those which do not
    scale.backward(loss)
    with torch.no_grad():
        for parameter, gradient in zip(parameters, earlier, strict=True):
            if parameter.grad is None:
                parameter.grad = gradient
                continue
            if parameter.ndim > 1:
                parameter.grad.add_(parameter, alpha=weight_decay * scale.factor)
            if gradient is not None:
                parameter.grad.add_(gradient)
