"""The supernet: weights for every option of a space, of which one path computes at a time.

Single Path One-Shot (Guo et al., arXiv 1904.00420, sec. 3.2). The path is an argument of `forward`; there is no active
subnet that a question could change. Where the paper's blocks meet one input width, a layer here has weights of its own for
each shape that can reach it, so spaces with searched widths and strides train the same way.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hwnas.errors import InputError
from hwnas.ir.architecture import Architecture
from hwnas.ir.block import Part
from hwnas.ir.space import SearchSpace
from hwnas.ir.steps import Edge, Space, Step
from hwnas.lower.torch import NetworkModule, get_weights, load_weights, to_torch
from hwnas.supernet.streams import stream_seed

Path = Architecture | Sequence[int] | NDArray[np.integer]
"""An architecture, or for speed its row of option indices, one for each decision."""

_BLOCK = "block/"  # what `block_network` calls its only layer


class Supernet(nn.Module):
    """Weights of every edge of a space's trellis; identity options have none.

    In `state_dict` an option's weights are `{layer}/{option}.block/...`, and `{layer}/{option}@24x16x16.block/...` where
    several shapes can reach the layer.

    Attributes:
        space: The space.
    """

    def __init__(self, space: Space, seed: int = 0) -> None:
        """Builds every edge with initial weights drawn from `seed`.

        Raises:
            InputError: A space of cells.
        """
        super().__init__()
        if not isinstance(space, SearchSpace):
            raise InputError(f"A supernet is trained for a space of layers, but {space.name!r} is one of cells: profile it, draw "
                             "from it and export its networks; to train one, retrain it on its own.")
        self.space: Space = space
        for step in space.steps:
            for edge in step.edges:
                for part in edge.parts:
                    name = _part_name(step, edge, part)
                    if part.network.nodes and name not in self._modules:  # states may differ in more than their shape
                        self.add_module(name, to_torch(part.network, seed=stream_seed(seed, name, 0)))

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
        x = images
        for _, module in self.modules_on(path):
            x = module(x[:, :, None, None] if x.ndim == 2 else x)  # a block takes (N, C, 1, 1) where a vector reaches it
        return x

    def modules_on(self, path: Path) -> Iterator[tuple[str, NetworkModule]]:
        """Place in the network (layer, or layer and part) and module of what computes something, from input to output.

        Raises:
            InputError: The path is not of this space.
        """
        choices = iter(self._indices(path))
        source = 0
        for step in self.space.steps:
            edge = step.edge(source, next(choices) if step.is_decision else 0)
            if edge is None:
                raise InputError(f"A path's options must be allowed after those before them, but decision {step.name!r} of "
                                 f"{self.space.name!r} breaks that.")
            for part in edge.parts:
                module = self._modules.get(_part_name(step, edge, part))
                if module is not None:
                    yield "/".join(filter(None, (step.name, part.name))), module  # type: ignore[misc]
            source = edge.target

    def _indices(self, path: Path) -> list[int]:
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
    return {f"{layer}/{name.removeprefix(_BLOCK)}": array
            for layer, module in supernet.modules_on(architecture) for name, array in get_weights(module).items()}


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


def _part_name(step: Step, edge: Edge, part: Part) -> str:
    name = "/".join(filter(None, (step.name, step.options[edge.option], part.name)))
    return f"{name}@{part.input_shape}" if step.reached_by_shapes > 1 else name
