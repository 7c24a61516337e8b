"""Lower precision where it is safe (autocast), and the scale that keeps small gradients of fp16 from vanishing.

Weights, their gradients and their updates stay fp32. bf16 has the range of fp32 and needs no scale. With fp16 the loss is
multiplied by a factor (Micikevicius et al., Mixed Precision Training, arXiv 1710.03740, sec. 3.2), found as PyTorch's
`GradScaler` finds it: a step whose gradients overflow is left out and the factor halved; after 2000 good ones it is doubled.
The factor is a number of the host, since the loop reads each step's gradient norm there anyway.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from hwnas.errors import UnavailableError
from hwnas.supernet.config import LoopConfig

_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_FIRST_FACTOR = 65536.0
_GROWTH_STEPS = 2000


def autocast(precision: str, device: torch.device) -> AbstractContextManager[None]:
    """Computes convolutions and matrix products in a precision, one of `PRECISIONS`.

    Casts of weights are not kept: they would go stale where an outer update moves the weights, and a cast made without
    gradient (a teacher's) would cut the gradient of the next.
    """
    return torch.autocast(device.type, _TYPES[precision], enabled=precision != "fp32", cache_enabled=False)


def check_precision(config: LoopConfig, device: torch.device) -> None:
    """Tries one convolution.

    Raises:
        UnavailableError: The device cannot train in this precision.
    """
    try:
        with autocast(config.precision, device):
            weight = torch.zeros(8, 8, 3, 3, device=device, requires_grad=True)
            functional.conv2d(torch.zeros(2, 8, 4, 4, device=device), weight).sum().backward()
    except RuntimeError as error:
        raise UnavailableError(f"The device must compute {config.precision}, but {config.device!r} reports "
                               f"{str(error).splitlines()[0]!r}: use precision 'fp32'.") from None


@dataclass
class LossScale:
    """What a loss is multiplied by before its gradients are computed; the loop divides them by it.

    Attributes:
        factor: 1 unless the loop trains in fp16.
        good_steps: Since the factor last changed.
    """

    factor: float = 1.0
    good_steps: int = 0

    def start(self) -> None:
        """Takes the first factor of a run in fp16."""
        self.factor, self.good_steps = _FIRST_FACTOR, 0

    def backward(self, loss: Tensor) -> None:
        """Adds the scaled loss's gradients to the parameters: what `Task.backward` calls instead of `loss.backward()`."""
        (loss if self.factor == 1.0 else loss * self.factor).backward()

    def update(self, overflowed: bool) -> None:
        """Adapts the factor to a step."""
        self.good_steps = 0 if overflowed else self.good_steps + 1
        if overflowed:
            self.factor /= 2
        elif self.good_steps == _GROWTH_STEPS:
            self.factor, self.good_steps = self.factor * 2, 0
