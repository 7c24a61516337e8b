"""The supernet of a space of layers.

Single Path One-Shot (Guo et al., arXiv 1904.00420, sec. 3.2). Where the paper's blocks meet one input width, a layer here has
weights of its own for each shape that can reach it, so spaces with searched widths and strides train the same way.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hwnas.errors import InputError
from hwnas.ir.architecture import Architecture
from hwnas.ir.block import Part
from hwnas.ir.space import SearchSpace
from hwnas.ir.steps import Edge, Step
from hwnas.lower.torch import NetworkModule, get_weights, to_torch
from hwnas.supernet.streams import stream_seed
from hwnas.supernet.supernet import Path, Supernet

BLOCK = "block/"
"""What the names of nodes start with in a block's own network."""


class Weighed(NamedTuple):
    """How an edge takes part in a mixture.

    Attributes:
        weight: What its output is multiplied by: a scalar tensor, or 1.
        is_frozen: Its output counts as a constant: the weight gets a gradient, what computed it does not.
        target: The state that it is added to, of the same shape, where that is not the edge's own.
    """

    weight: Tensor | float
    is_frozen: bool = False
    target: int | None = None


Mixture = Sequence[Mapping[tuple[int, int], Weighed]]
"""For every step, source and option of the edges that take part; the others are not computed."""


class LayeredSupernet(Supernet):
    """Weights of every edge of a space's trellis; identity options have none.

    In `state_dict` an option's weights are `{layer}/{option}.block/...`, and `{layer}/{option}@24x16x16.block/...` where
    several shapes can reach the layer.
    """

    space: SearchSpace

    def __init__(self, space: SearchSpace, seed: int = 0) -> None:
        """Builds every edge with initial weights drawn from `seed`."""
        super().__init__(space)
        self._build(seed)

    def _build(self, seed: int) -> None:
        for step in self.space.steps:
            for edge in step.edges:
                for part in edge.parts:
                    name = _part_name(step, edge, part)
                    if part.network.nodes and name not in self._modules:  # states may differ in more than their shape
                        self.add_module(name, to_torch(part.network, seed=stream_seed(seed, name, 0)))

    def _module(self, step: Step, edge: Edge, part: Part) -> NetworkModule | None:
        """What computes a part; None where it passes its input on."""
        return self._modules.get(_part_name(step, edge, part))  # type: ignore[return-value]

    def forward(self, images: Tensor, path: Path) -> Tensor:
        x = images
        for _, module in self.modules_on(path):
            x = module(x[:, :, None, None] if x.ndim == 2 else x)  # a block takes (N, C, 1, 1) where a vector reaches it
        return x

    def mix(self, images: Tensor, mixture: Mixture) -> Tensor:
        """Computes many networks at once: each state of the trellis is the weighed sum of what the edges into it give.

        Args:
            images: Normalised images, (N, C, H, W).
            mixture: Which edges, and their weights. An edge of a state that nothing computes is left out.

        Returns:
            The last step's output; that of its first state where there are several.
        """
        states = {0: images}
        for step, weighed in zip(self.space.steps, mixture, strict=True):
            sums: dict[int, Tensor] = {}
            for edge in step.edges:
                how = weighed.get((edge.source, edge.option))
                if how is None or edge.source not in states:
                    continue
                target = edge.target if how.target is None else how.target
                sums[target] = _add(sums.get(target), self._output(step, edge, states[edge.source], how.is_frozen), how.weight)
            states = sums
        return states[min(states)]

    def _output(self, step: Step, edge: Edge, x: Tensor, is_frozen: bool) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not is_frozen):
            for part in edge.parts:
                module = self._module(step, edge, part)
                if module is not None:
                    x = module(x[:, :, None, None] if x.ndim == 2 else x)
        return x.detach() if is_frozen else x

    def modules_on(self, path: Path) -> Iterator[tuple[str, NetworkModule]]:
        """Place in the network (layer, or layer and part) and module of what computes something, from input to output.

        Raises:
            InputError: The path is not of this space.
        """
        choices = iter(self.indices(path))
        source = 0
        for step in self.space.steps:
            edge = step.edge(source, next(choices) if step.is_decision else 0)
            if edge is None:
                raise InputError(f"A path's options must be allowed after those before them, but decision {step.name!r} of "
                                 f"{self.space.name!r} breaks that.")
            for part in edge.parts:
                module = self._module(step, edge, part)
                if module is not None:
                    yield "/".join(filter(None, (step.name, part.name))), module
            source = edge.target

    def weights_of(self, architecture: Architecture) -> dict[str, NDArray[np.float32]]:
        return {f"{layer}/{name.removeprefix(BLOCK)}": array
                for layer, module in self.modules_on(architecture) for name, array in get_weights(module).items()}


def _add(total: Tensor | None, x: Tensor, weight: Tensor | float) -> Tensor:
    """`total + weight * x` in one pass over memory, where there is a total."""
    if isinstance(weight, Tensor):
        weight = weight.to(x.dtype)
        return x * weight if total is None else torch.addcmul(total, x, weight)
    if total is None:
        return x if weight == 1.0 else x * weight
    return torch.add(total, x, alpha=weight)


def _part_name(step: Step, edge: Edge, part: Part) -> str:
    name = "/".join(filter(None, (step.name, step.options[edge.option], part.name)))
    return f"{name}@{part.input_shape}" if step.reached_by_shapes > 1 else name
