"""Whether one network is more accurate than another on the same images: what a front of accuracies may claim.

Two accuracies on the same images differ by far less than their separate intervals suggest: only images count that one network
gets right and the other wrong.
"""

from dataclasses import dataclass
from math import comb
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from hwnas.errors import InputError

_Z95 = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class AccuracyDifference:
    """Two networks on the same images.

    Attributes:
        difference: First accuracy minus second, from -1 to 1.
        lower: Of its 95 % interval (Agresti and Min, "Simple improved confidence intervals for comparing matched
            proportions", 2005: Wald's with half an image more in each cell).
        upper: Likewise.
        p_value: Of the hypothesis that they are equally accurate, two-sided (McNemar's test, exact).
    """

    difference: float
    lower: float
    upper: float
    p_value: float


def compare_accuracy(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> AccuracyDifference:
    """Compares two networks by which images each gets right, (N,) both.

    Raises:
        InputError: The images are not the same.
    """
    if first.shape != second.shape or first.ndim != 1 or not first.size:
        raise InputError(f"Accuracies are compared on the same images, but there are {first.shape} and {second.shape}.")
    gained, lost, count = int((first & ~second).sum()), int((second & ~first).sum()), first.size
    more, less, total = gained + 0.5, lost + 0.5, count + 2
    centre = (more - less) / total
    half = _Z95 * max(more + less - (more - less) ** 2 / total, 0.0) ** 0.5 / total
    return AccuracyDifference((gained - lost) / count, max(centre - half, -1.0), min(centre + half, 1.0), _mcnemar(gained, lost))


def accuracy_interval(correct: NDArray[np.bool_]) -> tuple[float, float]:
    """95 % interval of an accuracy (Wilson's score interval, 1927)."""
    count, share = correct.size, float(correct.mean())
    spread = _Z95**2 / count
    half = _Z95 * (share * (1 - share) / count + spread / (4 * count)) ** 0.5
    return (share + spread / 2 - half) / (1 + spread), (share + spread / 2 + half) / (1 + spread)


def _mcnemar(gained: int, lost: int) -> float:
    """Chance of a split at least as uneven when either side is as likely; in whole numbers, so exact at any size."""
    pairs = gained + lost
    tail = sum(comb(pairs, few) for few in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail / 2**pairs)
