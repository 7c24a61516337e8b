"""The training loop: SGD over augmented batches, resumable to the bit, whatever is trained.

Everything random is a pure function of (seed, step), so a checkpoint is weights, momentum and a step number. On the CPU,
with the same number of threads, a run that was killed and resumed ends with the very weights of one that was not.
"""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hwnas.data import Dataset, batch_indices
from hwnas.data.augment import augment_batch
from hwnas.errors import InputError, UnavailableError, VerificationError
from hwnas.supernet.checkpoint import load_checkpoint, load_state, require_same, save_checkpoint
from hwnas.supernet.config import LoopConfig
from hwnas.supernet.streams import stream_seed

ProgressCallback = Callable[[int, int, float, float], None]
"""Called after every step with: steps done, steps in all, the step's loss, images per second of late."""


Batch = tuple[Tensor, Tensor]
"""Normalised and augmented images, (N, C, H, W), and their labels, (N,)."""


@dataclass(frozen=True)
class OuterUpdate:
    """The upper half of bi-level training: what moves the architecture parameters, before a step moves the weights.

    Attributes:
        optimizer: Of the parameters that the weights' optimiser leaves alone; they are parameters of the task's model.
        update: From step, a batch for the weights, one for the architecture and the weights' optimiser (its learning rate
            set for this step) to figures to log. Computes gradients and moves the parameters itself; leaves no gradient on
            the weights.
        share: Of the training images, the last ones, kept for the architecture.
        first_epoch: The epoch, counted from 0, in which updates begin.
    """

    optimizer: torch.optim.Optimizer
    update: Callable[[int, Batch, Batch, torch.optim.SGD], dict[str, float]]
    share: float = 0.5
    first_epoch: int = 0


@dataclass(frozen=True)
class Task:
    """What the loop trains.

    Attributes:
        model: Holds the parameters.
        backward: From step, images (N, C, H, W) and labels (N,) to the step's loss, without gradient; adds the loss's
            gradients to the parameters that took part, and leaves the others' gradients None.
        describe: What a step computes, for errors.
        outer: What else moves, before every step.
    """

    model: nn.Module
    backward: Callable[[int, Tensor, Tensor], Tensor]
    describe: Callable[[int], str]
    outer: OuterUpdate | None = None


@dataclass
class TrainState:
    """How far a run is.

    Attributes:
        step: Steps done.
        seconds: Time spent training, all sessions together.
        loss_sum: Sum of the losses of the epoch under way.
        epoch_losses: Mean loss of each finished epoch.
    """

    step: int = 0
    seconds: float = 0.0
    loss_sum: float = 0.0
    epoch_losses: list[float] = field(default_factory=list)


def run_loop(task: Task, dataset: Dataset, config: LoopConfig, identity: dict[str, Any], folder: Path,
             progress: ProgressCallback | None = None) -> TrainState:
    """Trains to the end, from the folder's checkpoint if it has one. The trained weights are then in `task.model`.

    Args:
        task: What to train.
        dataset: Of which the training images are used.
        config: How to train.
        identity: What a checkpoint must have been made with, JSON-able.
        folder: For checkpoints.
        progress: Told about every step.

    Raises:
        InputError: The checkpoint is damaged or of another run, or the batches are larger than the set.
        UnavailableError: The device is not usable here.
        VerificationError: Training diverged; the last checkpoint stays.
        KeyboardInterrupt: On the user's request, after a checkpoint was written.
    """
    device = _usable_device(config.device)
    with _torch_settings(config.threads, device), _deferred_interrupt() as interrupted:
        return _Loop(task, dataset, config, identity, folder, device).run(interrupted, progress)


class _Loop:
    """One session of a run."""

    def __init__(self, task: Task, dataset: Dataset, config: LoopConfig, identity: dict[str, Any], folder: Path,
                 device: torch.device) -> None:
        batch_indices(len(dataset.train), config.batch_size, 0, config.seed)  # refuses batches larger than the set
        self.task, self.dataset, self.config, self.identity, self.folder = task, dataset, config, identity, folder
        self.device = device
        self.steps_per_epoch = len(dataset.train) // config.batch_size
        self.total_steps = self.steps_per_epoch * config.epochs
        self.model = task.model.to(device=device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        self.optimizer = _sgd(self.model, config)
        self.state = self._restore()
        self.saved_step = self.state.step

    def run(self, interrupted: threading.Event, progress: ProgressCallback | None) -> TrainState:
        state = self.state
        saved_at = time.monotonic()
        seconds_per_step = 0.0
        for epoch in range(state.step // self.steps_per_epoch, self.config.epochs):
            order = batch_indices(len(self.dataset.train), self.config.batch_size, epoch, self.config.seed)
            for indices in islice(order, state.step % self.steps_per_epoch, None):
                began = time.monotonic()
                loss = self._step(indices)
                self._count(loss)
                seconds = time.monotonic() - began
                state.seconds += seconds
                seconds_per_step = 0.9 * seconds_per_step + 0.1 * seconds if seconds_per_step else seconds
                if progress is not None:
                    progress(state.step, self.total_steps, loss, len(indices) / max(seconds_per_step, 1e-9))
                if interrupted.is_set() or time.monotonic() - saved_at >= self.config.checkpoint_seconds:
                    self._save()
                    saved_at = time.monotonic()
                if interrupted.is_set():
                    raise KeyboardInterrupt
        self._save()
        return state

    def _step(self, indices: np.ndarray) -> float:
        """One update; returns its loss."""
        step, config = self.state.step, self.config
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate_at(step, self.total_steps)
        self.optimizer.zero_grad(set_to_none=True)  # what takes no part has no gradient: neither momentum nor decay moves it
        torch.manual_seed(stream_seed(config.seed, "dropout", step))
        loss = float(self.task.backward(step, *self._batch(indices)))
        if not math.isfinite(loss):
            raise self._diverged(f"the loss is {loss}")
        if config.gradient_clip is not None:
            norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), config.gradient_clip, foreach=True))
            if not math.isfinite(norm):
                raise self._diverged(f"the gradient's norm is {norm}")
        self.optimizer.step()
        return loss

    def _batch(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        """Normalised and augmented images, channels last, and their labels."""
        config, train = self.config, self.dataset.train
        generator = torch.Generator().manual_seed(stream_seed(config.seed, "augmentation", self.state.step))
        images = torch.from_numpy(self.dataset.normalise(train.images[indices])).to(self.device)
        images = augment_batch(images, generator, max_shift=config.max_shift, flip=config.flip, cutout=config.cutout)
        labels = torch.from_numpy(train.labels[indices]).to(self.device)
        return images.contiguous(memory_format=torch.channels_last), labels

    def _count(self, loss: float) -> None:
        state = self.state
        state.step += 1
        state.loss_sum += loss
        if state.step % self.steps_per_epoch == 0:
            state.epoch_losses.append(state.loss_sum / self.steps_per_epoch)
            state.loss_sum = 0.0

    def _save(self) -> None:
        """Writes a checkpoint of the present step, unless it is the one that is there."""
        state = self.state
        if state.step == self.saved_step:
            return
        weights = self.model.state_dict()
        if not all(tensor.isfinite().all() for tensor in weights.values()):
            raise self._diverged("the weights are not finite")
        momentum = {name: self.optimizer.state[parameter]["momentum_buffer"]
                    for name, parameter in self.model.named_parameters() if self._has_momentum(parameter)}
        document = {"identity": self.identity, "seconds": state.seconds, "loss_sum": state.loss_sum,
                    "epoch_losses": state.epoch_losses}
        save_checkpoint(self.folder, state.step, document, {"weights": weights, "momentum": momentum})
        self.saved_step = state.step

    def _restore(self) -> TrainState:
        found = load_checkpoint(self.folder)
        if found is None:
            return TrainState()
        document, tensors = found
        require_same(document.get("identity") or {}, self.identity, self.folder)
        try:
            weights, momentum = tensors["weights"], tensors["momentum"]
            state = TrainState(document["step"], document["seconds"], document["loss_sum"], document["epoch_losses"])
            parameters = {name: parameter for name, parameter in self.model.named_parameters() if name in momentum}
            buffers = {name: torch.empty_like(parameter).copy_(momentum[name]) for name, parameter in parameters.items()}
            if not 0 <= state.step <= self.total_steps or len(state.epoch_losses) != state.step // self.steps_per_epoch:
                raise ValueError
            math.fsum((state.seconds, state.loss_sum, *state.epoch_losses))  # they are numbers
        except (KeyError, RuntimeError, TypeError, ValueError):
            raise InputError(f"The checkpoint in {self.folder} is incomplete or contradicts itself: it was edited or written by "
                             "another version of hwnas; start again with overwrite.") from None
        load_state(self.model, weights, self.folder)
        for name, parameter in parameters.items():
            self.optimizer.state[parameter]["momentum_buffer"] = buffers[name]
        return state

    def _has_momentum(self, parameter: nn.Parameter) -> bool:
        return parameter in self.optimizer.state and self.optimizer.state[parameter].get("momentum_buffer") is not None

    def _diverged(self, what: str) -> VerificationError:
        step = self.state.step
        kept = (f"the last good checkpoint, of step {self.saved_step}, is kept in {self.folder}" if self.saved_step
                else "no checkpoint was written yet")
        return VerificationError(f"Training must stay finite, but {what} at step {step} ({self.task.describe(step)}, learning "
                                 f"rate {self.config.learning_rate_at(step, self.total_steps):.3g}): lower the learning rate or "
                                 f"set gradient_clip; {kept}.")


def _sgd(model: nn.Module, config: LoopConfig) -> torch.optim.SGD:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [{"params": [each for each in parameters if each.ndim > 1], "weight_decay": config.weight_decay},
              {"params": [each for each in parameters if each.ndim <= 1], "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum, foreach=True)


def _usable_device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UnavailableError(f"The device {name!r} must be one that PyTorch can use here, but it reports "
                               f"{str(error).splitlines()[0]!r}: use 'cpu'.") from None
    return device


@contextmanager
def _torch_settings(threads: int | None, device: torch.device) -> Iterator[None]:
    """Sets the number of threads, and gives PyTorch's settings and random state back afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _deferred_interrupt() -> Iterator[threading.Event]:
    """Turns the first Ctrl-C into an event, so that no step is cut in half; a second one interrupts as usual."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only there may signals be handled
        yield event
        return
    previous = signal.getsignal(signal.SIGINT) or signal.SIG_DFL  # None: set by other than Python

    def note(number: int, frame: FrameType | None) -> None:
        event.set()
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, note)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, previous)
