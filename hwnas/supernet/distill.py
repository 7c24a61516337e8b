"""Distillation: learning from another network's outputs (Hinton et al., arXiv 1503.02531, sec. 2).

In-place distillation in a supernet (`single_path.py`) and retraining with a teacher (`retrain.py`) share it.
"""

import math
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from hwnas.errors import InputError


@dataclass(frozen=True)
class Distillation:
    """How a network learns from a teacher beside the labels.

    Attributes:
        weight: Share of the teacher's part of the loss; the labels have the rest. 1 leaves the labels out.
        temperature: What both networks' logits are divided by in that part: more shows more of how the teacher ranks the
            classes it rejects.
    """

    weight: float = 0.5
    temperature: float = 1.0

    def __post_init__(self) -> None:
        """Refuses what is no mean or no temperature.

        Raises:
            InputError: Naming the field, its bounds and the value.
        """
        if not 0 < self.weight <= 1:
            raise InputError(f"A distillation's weight must be above 0 and at most 1, but is {self.weight}: change it, or leave "
                             "the teacher out.")
        if not 0 < self.temperature < math.inf:
            raise InputError(f"A distillation's temperature must be above 0 and finite, but is {self.temperature}: change it.")

    def loss(self, label_loss: Tensor, logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """The weighted mean of the loss on the labels and that on the teacher's outputs."""
        return (1 - self.weight) * label_loss + self.weight * soft_loss(logits, teacher_logits, self.temperature)


def soft_loss(logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Cross-entropy with a teacher's probabilities, in the mean over images.

    It differs from the Kullback-Leibler divergence by the entropy of the teacher's probabilities, which has no gradient.

    Args:
        logits: What learns, (N, classes).
        teacher_logits: What it learns from, (N, classes); gets no gradient.
        temperature: T, by which both are divided. The result is multiplied by T^2, so that the gradient keeps its size
            relative to that of the labels.
    """
    probabilities = (teacher_logits.detach() / temperature).softmax(1)
    return temperature**2 * functional.cross_entropy(logits / temperature, probabilities)
