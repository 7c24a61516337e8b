"""What every supernet is: weights for every option of a space, of which one path computes at a time.

The path is an argument of `forward`; there is no active subnet that a question could change. `LayeredSupernet` is that of
layers in order, `CellSupernet` that of cells that repeat; `build_supernet` makes the one that a space calls for.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hwnas.errors import InputError
from hwnas.ir.architecture import Architecture
from hwnas.ir.steps import Space
from hwnas.lower.torch import NetworkModule, load_weights, to_torch

Path = Architecture | Sequence[int] | NDArray[np.integer]
"""An architecture, or for speed its row of option indices, one for each decision."""


class Supernet(nn.Module):
    """Weights of all networks of a space.

    Attributes:
        space: The space.
    """

    def __init__(self, space: Space) -> None:
        super().__init__()
        self.space = space

    def forward(self, images: Tensor, path: Path) -> Tensor:
        """Computes one network of the space.

        Args:
            images: Normalised images, (N, C, H, W).
            path: Which network.

        Returns:
            What the network returns: logits (N, classes) where the space ends in a classifier.

        Raises:
            InputError: The path is not of this space.
        """
        raise NotImplementedError

    def weights_of(self, architecture: Architecture) -> dict[str, NDArray[np.float32]]:
        """Copies a network's weights out, as `extract_weights`."""
        raise NotImplementedError

    def indices(self, path: Path) -> list[int]:
        """The option of each decision.

        Raises:
            InputError: The path is not of this space.
        """
        if isinstance(path, Architecture):
            return self.space.indices([path])[0].tolist()
        row = np.asarray(path)
        counts = [len(decision.options) for decision in self.space.decisions]
        if row.shape != (len(counts),) or row.dtype.kind not in "iu" or (row < 0).any() or (row >= counts).any():
            raise InputError(f"A path is one option index for each decision, below {counts}, but is {row.tolist()}.")
        return row.tolist()


def extract_weights(supernet: Supernet, architecture: Architecture) -> dict[str, NDArray[np.float32]]:
    """Copies a network's weights out of the supernet.

    Returns:
        Arrays with the keys of `space.network(architecture).weight_shapes`. Batch-norm statistics are those of supernet
        training, a mixture over all paths: recalibrate them before the network is used.

    Raises:
        InputError: The architecture is not of the supernet's space.
    """
    return supernet.weights_of(architecture)


def extract(supernet: Supernet, architecture: Architecture) -> NetworkModule:
    """Makes a standalone network, on the supernet's device, which computes what the supernet computes on that path.

    Nothing is shared: whatever is done to the network leaves the supernet as it is.

    Raises:
        InputError: The architecture is not of the supernet's space, or its weights are not finite.
    """
    module = to_torch(supernet.space.network(architecture))
    load_weights(module, extract_weights(supernet, architecture))
    return module.to(module_device(supernet)).train(supernet.training)


def module_device(module: nn.Module) -> torch.device:
    """Where a module's weights are; the CPU if it has none."""
    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
