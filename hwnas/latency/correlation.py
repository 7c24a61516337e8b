"""Whether two rows of numbers are in the same order."""

from collections.abc import Sequence

import numpy as np


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's, equal values sharing their mean rank; None for fewer than three pairs or where all of a side are equal."""
    if len(first) < 3 or len(set(first)) == 1 or len(set(second)) == 1:
        return None
    ranks = []
    for side in (first, second):
        ordered = np.sort(np.asarray(side, np.float64))
        ranks.append(np.searchsorted(ordered, side, "left") + np.searchsorted(ordered, side, "right"))
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])
