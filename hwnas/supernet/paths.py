"""Which paths a training step takes, as a pure function of (seed, step).

`uniform_paths` is Single Path One-Shot (Guo et al., arXiv 1904.00420, sec. 3.2): one path per step, every network of the space
equally likely. A new method is one function here and one line in `METHODS`.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwnas.ir.steps import Space
from hwnas.ir.trellis import Trellis
from hwnas.supernet.streams import stream_seed

PathSampler = Callable[[int], NDArray[np.integer[Any]]]
"""From the training step to the option indices of its paths, (paths, decisions)."""


def uniform_paths(space: Space, seed: int) -> PathSampler:
    """One uniformly drawn path per step."""
    trellis = Trellis(space)

    def paths(step: int) -> NDArray[np.integer[Any]]:
        return trellis.sample_indices(1, seed=np.random.default_rng(stream_seed(seed, "paths", step)))

    return paths


METHODS: dict[str, Callable[[Space, int], PathSampler]] = {"spos": uniform_paths}
