"""The training loop: SGD over augmented batches, resumable to the bit, whatever is trained.

Everything random is a pure function of (seed, step), so a checkpoint is weights, what the optimisers remember, and a step
number. On the CPU, with the same number of threads, a run that was killed and resumed ends with the very weights of one that
was not. Host and device meet once in a step, when loss and gradient norm are read and found finite, or not.
"""

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hwnas.data import Dataset
from hwnas.errors import InputError, VerificationError
from hwnas.lower.straight_through import follow_statistics
from hwnas.supernet.batches import Batch, Feed, HostBatch
from hwnas.supernet.batchnorm import running_statistics
from hwnas.supernet.checkpoint import (
    load_checkpoint,
    load_optimizers,
    load_state,
    optimizer_tensors,
    require_same,
    save_checkpoint,
)
from hwnas.supernet.compiled import compile_network
from hwnas.supernet.config import LoopConfig
from hwnas.supernet.diagnose import first_nonfinite, places
from hwnas.supernet.distributed import Group
from hwnas.supernet.ema import WeightAverage
from hwnas.supernet.interrupt import deferred_interrupt
from hwnas.supernet.log import TrainLog
from hwnas.supernet.precision import LossScale, autocast, check_precision
from hwnas.supernet.streams import stream_seed

ProgressCallback = Callable[[int, int, float, float], None]
"""Called after every step with: steps done, steps in all, the step's loss, images per second of late."""


@dataclass(frozen=True)
class OuterUpdate:
    """The upper half of bi-level training: what moves the architecture parameters, before a step moves the weights.

    What it remembers between steps lies in its optimiser, and in parameters and buffers of the task's model: those are what a
    checkpoint holds.

    Attributes:
        optimizer: Of the parameters that the weights' optimiser leaves alone; they are parameters of the task's model.
        update: From step, a batch for the weights, one for the architecture and the weights' optimiser (its learning rate
            set for this step) to figures to log. Computes gradients and moves the parameters itself; leaves no gradient on
            the weights. With gradient accumulation, both batches are of a micro-batch's size. With several processes, each
            gets its share of the batches, and the gradients are averaged when the optimiser steps; figures are rank 0's.
            In fp16, which would need a scale of its own, it computes in fp32.
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
            gradients to the parameters that took part, and leaves the others' gradients None. Called for each micro-batch of a
            step, and again to find the layer that failed: which parameters take part is a function of the step.
        describe: What a step computes, for errors.
        outer: What else moves, before every step.
        decays_weights: The optimiser decays weights; False where `backward` adds an L2 term of its own.
        loss_scale: What `backward` computes its gradients with, `loss_scale.backward(loss)`; None where it cannot, which
            rules out fp16.
    """

    model: nn.Module
    backward: Callable[[int, Tensor, Tensor], Tensor]
    describe: Callable[[int], str]
    outer: OuterUpdate | None = None
    decays_weights: bool = True
    loss_scale: LossScale | None = None


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
             progress: ProgressCallback | None = None, *, log_folder: Path | None = None, group: Group | None = None
             ) -> TrainState:
    """Trains to the end, from the folder's checkpoint if it has one. The trained weights are then in `task.model`.

    Args:
        task: What to train.
        dataset: Of which the training images are used.
        config: How to train.
        identity: What a checkpoint must have been made with, JSON-able.
        folder: For checkpoints.
        progress: Told about every step, in the first process.
        log_folder: For TensorBoard's files; None for none.
        group: The processes that train together; None for this one alone.

    Raises:
        InputError: The checkpoint is damaged or of another run, or the batches fit neither the set nor the processes.
        UnavailableError: The device or another process is not usable here, or a package is missing.
        VerificationError: Training diverged; the last checkpoint stays.
        KeyboardInterrupt: On the user's request, after a checkpoint was written.
    """
    group = group or Group()
    device = group.device(config.device)
    with _torch_settings(config.threads, device), deferred_interrupt(once=group.size == 1) as interrupted:
        loop = _Loop(task, dataset, config, identity, folder, group, device)
        with _opened(log_folder if group.is_first and config.log_steps else None, loop.state.step) as log:
            return loop.run(interrupted, progress if group.is_first else None, log)


@dataclass(frozen=True)
class _Outcome:
    """What the host learns of a step.

    Attributes:
        loss: Mean over the batch.
        gradient_norm: Of the mean loss, before it is clipped.
        gradient_factor: What turns the gradients as they are (summed, scaled) into those that the weights move by.
        stops: A rank was interrupted when the step began.
        saves: A checkpoint was due when it began.
        figures: What else there is to log.
    """

    loss: float
    gradient_norm: float
    gradient_factor: float
    stops: bool
    saves: bool
    figures: dict[str, float]


class _Loop:
    """One session of a run."""

    def __init__(self, task: Task, dataset: Dataset, config: LoopConfig, identity: dict[str, Any], folder: Path,
                 group: Group, device: torch.device) -> None:
        outer = task.outer
        self.task, self.config, self.identity, self.folder = task, config, identity, folder
        self.group, self.device = group, device
        self.feed = Feed(dataset, config, group, device, outer.share if outer else 0.0, outer.first_epoch if outer else 0)
        self.total_steps = self.feed.steps_per_epoch * config.epochs
        check_precision(config, device)
        self.loss_scale = _loss_scale(task, config)
        self.model = task.model.to(device=device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        self.scales = follow_statistics(self.model) if config.ranges == "statistics" else {}
        group.copy_from_first(list(self.model.state_dict().values()))  # equal already, but for another processor's last bits
        self.sgd = _sgd(task, config)
        self.weights = _parameters(self.sgd)
        self.parameters = list(self.model.parameters())  # once: the walk over a supernet's modules takes milliseconds
        self.optimizers: dict[str, torch.optim.Optimizer] = {"sgd": self.sgd}
        if outer is not None:
            self.optimizers["outer"] = outer.optimizer
            if group.size > 1:
                outer.optimizer.register_step_pre_hook(lambda optimizer, *_: group.average(_gradients(_parameters(optimizer))))
        self.statistics = running_statistics(self.model) | self.scales
        self.average = None if config.ema_decay is None else WeightAverage(self._averaged(), config.ema_decay)
        self.state = self._restore()
        self.saved_step = self.state.step
        if config.compile:
            compile_network(self.model, device)

    def run(self, interrupted: threading.Event, progress: ProgressCallback | None, log: TrainLog | None) -> TrainState:
        state, config, group = self.state, self.config, self.group
        seconds_per_step = 0.0
        save_at = time.monotonic() + config.checkpoint_seconds
        began = time.monotonic()
        for batch in self.feed.batches(state.step, self.total_steps):
            outcome = self._step(batch, interrupted.is_set(), time.monotonic() >= save_at)
            seconds = time.monotonic() - began
            self._count(outcome.loss, seconds)
            seconds_per_step = 0.9 * seconds_per_step + 0.1 * seconds if seconds_per_step else seconds
            images_per_second = config.batch_size / max(seconds_per_step, 1e-9)
            if progress is not None:
                progress(state.step, self.total_steps, outcome.loss, images_per_second)
            if log is not None and state.step % config.log_steps == 0:
                log.write(state.step, {"loss": outcome.loss, "gradient_norm": outcome.gradient_norm,
                                       "learning_rate": self._learning_rate(batch.step), "images_per_second": images_per_second,
                                       **outcome.figures})
            stops = interrupted.is_set() if group.size == 1 else outcome.stops
            if stops or (time.monotonic() >= save_at if group.size == 1 else outcome.saves):
                self._save(log)
                save_at = time.monotonic() + config.checkpoint_seconds
            if stops:
                raise KeyboardInterrupt
            began = time.monotonic()
        self._save(log)
        if self.average is not None:
            self.average.apply()
        return state

    def _step(self, batch: HostBatch, stops: bool, saves: bool) -> _Outcome:
        """One update. The flags are this rank's wishes; what all agree on comes back."""
        for group in self.sgd.param_groups:
            group["lr"] = self._learning_rate(batch.step)
        first = self.feed.part(batch, 0)
        figures = self._outer_update(batch, first)
        loss = self._backward(batch, first)
        gradients = _gradients(self.weights)
        outcome = self._agreed(loss, gradients, stops, saves, figures)
        if not math.isfinite(outcome.loss):
            raise self._diverged(f"the loss is {outcome.loss}{self._where(batch, is_loss=True)}")
        is_overflow = not math.isfinite(outcome.gradient_norm)
        if self.config.precision == "fp16":
            figures["loss_scale"] = self.loss_scale.factor
            self.loss_scale.update(is_overflow)
            if is_overflow and self.loss_scale.factor >= 1:
                return outcome  # the step is left out: the factor was too large
        if is_overflow:
            raise self._diverged(f"the gradient's norm is {outcome.gradient_norm}{self._where(batch, is_loss=False)}")
        if outcome.gradient_factor != 1:
            torch._foreach_mul_(gradients, outcome.gradient_factor)
        self.sgd.step()
        if self.average is not None:
            self.average.update(batch.step)
        return outcome

    def _outer_update(self, batch: HostBatch, first: Batch) -> dict[str, float]:
        """Moves what is not weights; returns figures to log."""
        outer, architecture_batch = self.task.outer, self.feed.architecture(batch)
        if outer is None or architecture_batch is None:
            return {}
        self._forget_gradients()
        self._seed("outer", batch.step)
        with nullcontext() if self.config.precision == "fp16" else autocast(self.config.precision, self.device):
            figures = dict(outer.update(batch.step, first, architecture_batch, self.sgd))
        for name, value in figures.items():
            if not math.isfinite(value):
                raise self._diverged(f"the {name} of the architecture's update is {value}")
        return figures

    def _backward(self, batch: HostBatch, first: Batch) -> Tensor:
        """Computes gradients, summed over the micro-batches and scaled; returns the mean loss."""
        config = self.config
        self._forget_gradients()
        losses = torch.zeros((), device=self.device)
        for index in range(config.accumulation):
            chunk = batch.step * self.feed.chunks + self.group.rank * config.accumulation + index
            self._seed("dropout", chunk)
            images, labels = self.feed.part(batch, index) if index else first
            with autocast(config.precision, self.device):
                losses += self.task.backward(batch.step, images, labels).detach()
        return losses / config.accumulation

    def _seed(self, purpose: str, index: int) -> None:
        """Seeds PyTorch's own generators; on the CPU only that one, since asking after absent GPUs takes half a millisecond."""
        seed = stream_seed(self.config.seed, purpose, index)
        (torch.default_generator if self.device.type == "cpu" else torch).manual_seed(seed)

    def _forget_gradients(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None  # what takes no part has no gradient: neither momentum nor decay moves it

    def _agreed(self, loss: Tensor, gradients: list[Tensor], stops: bool, saves: bool, figures: dict[str, float]) -> _Outcome:
        """Averages loss and gradients over the ranks, gathers their wishes, and reads all that the host needs at once."""
        wishes = [loss.new_full((), float(wish)) for wish in (stops, saves and self.group.is_first)]
        payload = torch.stack([loss, *wishes])
        self.group.average([*gradients, *self.scales.values(), payload])  # scales moved with what each rank saw: as one again
        norm = nn.utils.get_total_norm(gradients, foreach=True).to(payload)
        mean_loss, stops_somewhere, saves_somewhere, summed_norm = torch.cat([payload, norm.reshape(1)]).tolist()
        factor = 1 / (self.config.accumulation * self.loss_scale.factor)
        gradient_norm = summed_norm * factor
        limit = self.config.gradient_clip
        if limit is not None:
            factor *= min(1.0, limit / (gradient_norm + 1e-6))
        return _Outcome(mean_loss, gradient_norm, factor, stops_somewhere > 0, saves_somewhere > 0, figures)

    def _learning_rate(self, step: int) -> float:
        return self.config.learning_rate_at(step, self.total_steps)

    def _count(self, loss: float, seconds: float) -> None:
        state = self.state
        state.seconds += seconds
        state.step += 1
        state.loss_sum += loss
        if state.step % self.feed.steps_per_epoch == 0:
            state.epoch_losses.append(state.loss_sum / self.feed.steps_per_epoch)
            state.loss_sum = 0.0

    def _averaged(self) -> dict[str, Tensor]:
        """What the moving average is of: weights and running statistics, but not the parameters of an outer update."""
        weights = set(self.weights)
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter in weights} | self.statistics

    def _save(self, log: TrainLog | None) -> None:
        """Writes a checkpoint of the present step, unless it is the one that is there."""
        state = self.state
        if state.step == self.saved_step:
            return
        averages = self.average.average if self.average is not None else {}
        # Each rank's statistics moved towards its own images: their mean is what moving by the mean in each step would give.
        self.group.average([*self.statistics.values(), *(averages[name] for name in self.statistics if averages)])
        weights = self.model.state_dict()
        broken = _first_nonfinite(weights)
        if broken is not None:
            raise self._diverged(f"the weights are not finite, {broken!r} first,")
        if log is not None:
            log.flush()  # first: records that no checkpoint holds are withdrawn by the next session, missing ones are lost
        if self.group.is_first:
            document = {"identity": self.identity, "seconds": state.seconds, "loss_sum": state.loss_sum,
                        "epoch_losses": state.epoch_losses, "loss_scale": asdict(self.loss_scale)}
            save_checkpoint(self.folder, state.step, document, {
                "weights": weights, "optimizers": optimizer_tensors(self.model, self.optimizers), "average": averages})
        self.saved_step = state.step

    def _restore(self) -> TrainState:
        found = load_checkpoint(self.folder)
        if found is None:
            return TrainState()
        document, tensors = found
        require_same(document.get("identity") or {}, self.identity, self.folder)
        try:
            weights = tensors["weights"]
            state = TrainState(document["step"], document["seconds"], document["loss_sum"], document["epoch_losses"])
            steps_per_epoch = self.feed.steps_per_epoch
            if not 0 <= state.step <= self.total_steps or len(state.epoch_losses) != state.step // steps_per_epoch:
                raise ValueError
            math.fsum((state.seconds, state.loss_sum, *state.epoch_losses))  # they are numbers
            load_optimizers(self.model, self.optimizers, tensors["optimizers"])
            if self.average is not None:
                self.average.load(tensors["average"])
            self.loss_scale.factor = float(document["loss_scale"]["factor"])
            self.loss_scale.good_steps = int(document["loss_scale"]["good_steps"])
        except (KeyError, RuntimeError, StopIteration, TypeError, ValueError):
            raise InputError(f"The checkpoint in {self.folder} is incomplete or contradicts itself: it was edited or written by "
                             "another version of hwnas; start again with overwrite.") from None
        load_state(self.model, weights, self.folder)
        return state

    def _where(self, batch: HostBatch, is_loss: bool) -> str:
        """Words for the layer in which a step's numbers are first not finite, on whichever rank."""
        names = places(self.model)
        found = first_nonfinite(self.model, lambda: self._backward(batch, self.feed.part(batch, 0)))
        place = self.group.lowest(len(names) if found is None else found)
        if place < len(list(self.model.modules())) or (place < len(names) and not is_loss):
            return f", first {names[place]},"
        return ", though every layer's output is finite," if is_loss else ""

    def _diverged(self, what: str) -> VerificationError:
        step = self.state.step
        kept = (f"the last good checkpoint, of step {self.saved_step}, is kept in {self.folder}" if self.saved_step
                else "no checkpoint was written yet")
        return VerificationError(f"Training must stay finite, but {what} at step {step} ({self.task.describe(step)}, learning "
                                 f"rate {self._learning_rate(step):.3g}): lower the learning rate or set gradient_clip; {kept}.")


def _loss_scale(task: Task, config: LoopConfig) -> LossScale:
    if config.precision != "fp16":
        return LossScale()
    if task.loss_scale is None:
        raise InputError("Precision fp16 needs a method that scales its loss, but this one does not: use 'bf16' or 'fp32'.")
    task.loss_scale.start()
    return task.loss_scale


def _sgd(task: Task, config: LoopConfig) -> torch.optim.SGD:
    elsewhere = set(_parameters(task.outer.optimizer)) if task.outer else set()
    parameters = [each for each in task.model.parameters() if each.requires_grad and each not in elsewhere]
    decay = config.weight_decay if task.decays_weights else 0.0
    groups = [{"params": [each for each in parameters if each.ndim > 1], "weight_decay": decay},
              {"params": [each for each in parameters if each.ndim <= 1], "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum, foreach=True)


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _gradients(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    return [gradient for parameter in parameters if (gradient := parameter.grad) is not None]


def _first_nonfinite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor that is not finite; one synchronisation where all are."""
    finite = {name: tensor.isfinite().all() for name, tensor in tensors.items()}
    if torch.stack(list(finite.values())).all():
        return None
    return next(name for name, is_finite in finite.items() if not is_finite)


@contextmanager
def _opened(folder: Path | None, steps_done: int) -> Iterator[TrainLog | None]:
    if folder is None:
        yield None
        return
    with closing(TrainLog(folder, steps_done)) as log:
        yield log


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
