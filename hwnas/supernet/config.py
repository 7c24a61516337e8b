"""How to train: every number of a run, checked when it is made."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from hwnas.errors import InputError

SCHEDULES = ("linear", "cosine")
SHARING = ("options", "channels", "elastic")
PRECISIONS = ("fp32", "bf16", "fp16")
RANGES = ("learned", "statistics")
_EXECUTION = ("threads", "device", "compile", "log_steps", "checkpoint_seconds")  # how a run is carried out, not what it computes


@dataclass(frozen=True)
class LoopConfig:
    """What the training loop needs, whatever it trains.

    The defaults follow Guo et al. (arXiv 1904.00420, sec. 4) but for the learning rate. The paper's 0.5 for batches of 1024
    would scale to 0.06 for 128, and suits 150,000 steps; in runs of thousands of steps five times that learned much faster.

    Attributes:
        epochs: Passes over the training images.
        batch_size: Images in a step, over all processes and micro-batches; an epoch's last, partial batch is left out.
        accumulation: Micro-batches that a step is computed in, one after the other, for want of memory. Batch norm, and
            ranges that follow statistics, see each.
        learning_rate: At its peak.
        schedule: How it falls to 0: "linear" (the paper's) or "cosine".
        warmup_steps: Steps over which it first rises linearly.
        momentum: Of SGD.
        weight_decay: On tensors of more than one dimension; batch norm and biases are left alone.
        label_smoothing: Share of the target spread over all classes.
        gradient_clip: Largest norm of a step's gradient; None for no limit.
        ema_decay: Of the moving average of the weights, which a run then ends with; None for the last step's weights.
        precision: Of convolutions and matrix products, one of `PRECISIONS`; weights and updates stay fp32.
        ranges: How far activations of few bits reach, one of `RANGES`: a parameter like others, or a moving average of what
            they are (`hwnas.lower.straight_through`). Either way it is the network's, and fixed once training is over.
        max_shift: Augmentation: largest shift in pixels.
        flip: Augmentation: mirror half of the images.
        cutout: Augmentation: side in pixels of a masked square.
        seed: Of initial weights, order of images, paths, augmentation and dropout.
        threads: CPU threads; None leaves PyTorch's setting. Another number may change the last bits of a result.
        device: A PyTorch device.
        compile: Use `torch.compile`; for single networks. It may change the last bits of a result.
        log_steps: Steps from one record of TensorBoard's to the next, in `logs` in the run's folder; 0 for no log.
        checkpoint_seconds: Least time between two checkpoints; 0 for one after every step.
    """

    epochs: int = 30
    batch_size: int = 128
    accumulation: int = 1
    learning_rate: float = 0.3
    schedule: str = "linear"
    warmup_steps: int = 0
    momentum: float = 0.9
    weight_decay: float = 4e-5
    label_smoothing: float = 0.1
    gradient_clip: float | None = 5.0
    ema_decay: float | None = None
    precision: str = "fp32"
    ranges: str = "learned"
    max_shift: int = 4
    flip: bool = False
    cutout: int = 0
    seed: int = 0
    threads: int | None = None
    device: str = "cpu"
    compile: bool = False
    log_steps: int = 0
    checkpoint_seconds: float = 30.0

    def __post_init__(self) -> None:
        """Refuses values that cannot train.

        Raises:
            InputError: Naming the field, its bounds and the value.
        """
        for name, low, high in (("epochs", 1, math.inf), ("batch_size", 2, math.inf), ("accumulation", 1, math.inf),
                                ("warmup_steps", 0, math.inf), ("ema_decay", 0, 1), ("log_steps", 0, math.inf),
                                ("momentum", 0, 1), ("weight_decay", 0, math.inf), ("label_smoothing", 0, 1),
                                ("max_shift", 0, math.inf), ("cutout", 0, math.inf), ("seed", 0, 1 << 63),
                                ("threads", 1, 1 << 12), ("checkpoint_seconds", 0, math.inf)):
            value = getattr(self, name)
            if value is not None and not low <= value < high:
                raise InputError(f"{name} must be at least {low}{f' and below {high}' if high < math.inf else ''}, but is "
                                 f"{value}: change it.")
        for name in ("learning_rate", "gradient_clip"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"{name} must be above 0 and finite, but is {value}: change it.")
        for name, choices in (("schedule", SCHEDULES), ("precision", PRECISIONS), ("ranges", RANGES)):
            if getattr(self, name) not in choices:
                raise InputError(f"The {name} must be one of {', '.join(choices)}, but is {getattr(self, name)!r}.")

    def learning_rate_at(self, step: int, total_steps: int) -> float:
        """The learning rate of one step, counted from 0: warm-up, then a fall that would reach 0 at `total_steps`."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, total_steps - self.warmup_steps)
        return self.learning_rate * (1 - done if self.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2)

    def identity(self) -> dict[str, Any]:
        """The fields that decide the result: those that must match before a run is resumed."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in _EXECUTION}


@dataclass(frozen=True)
class TrainConfig(LoopConfig):
    """How to train a supernet.

    Attributes:
        method: One of `hwnas.supernet.methods.METHODS`.
        sharing: Which options share weights, one of `SHARING`: none, those that differ in widths, or in kernels as well
            (`hwnas.supernet.sliced`).
    """

    method: str = "spos"
    sharing: str = "options"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sharing not in SHARING:
            raise InputError(f"Weights are shared in one of the ways {', '.join(SHARING)}, but sharing is {self.sharing!r}.")
