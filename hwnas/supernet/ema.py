"""An exponential moving average of the weights (Polyak averaging): often better than the weights at the end of a run.

The average is over all weights, those of a supernet's other paths too: what a step leaves alone, its average approaches. It
starts at the initial weights, which it forgets in time since the decay rises to its value as (1 + step) / (10 + step), as in
TensorFlow's `ExponentialMovingAverage`. Batch norm's running statistics are averaged with the weights they belong to.
"""

from collections.abc import Mapping

import torch
from torch import Tensor


class WeightAverage:
    """The average, beside what it is of.

    Attributes:
        average: By name; in the memory layout of what it is of.
    """

    def __init__(self, tensors: Mapping[str, Tensor], decay: float) -> None:
        """Starts at the present values.

        Args:
            tensors: What is averaged, by name; they change in place.
            decay: What the average keeps of itself in a step, from 0 to below 1.
        """
        self._tensors = {name: tensor.detach() for name, tensor in tensors.items()}
        self._decay = decay
        self.average = {name: tensor.clone() for name, tensor in self._tensors.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Moves the average after a step, counted from 0."""
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.average.values()), list(self._tensors.values()), 1 - decay)

    @torch.no_grad()
    def load(self, stored: Mapping[str, Tensor]) -> None:
        """Continues from a stored average.

        Raises:
            KeyError: One is missing.
            ValueError: One has another shape.
        """
        for name, tensor in self.average.items():
            if stored[name].shape != tensor.shape:
                raise ValueError(f"{name} has the shape {tuple(stored[name].shape)}")
            tensor.copy_(stored[name])

    @torch.no_grad()
    def apply(self) -> None:
        """Replaces what is averaged by its average."""
        for name, tensor in self.average.items():
            self._tensors[name].copy_(tensor)
