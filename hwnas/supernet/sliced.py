"""The supernet whose options share weights: a narrower, smaller or coarser option computes with a slice of the largest one's.

Channel search by weight slicing (Single Path One-Shot, Guo et al., arXiv 1904.00420, sec. 3.4: weights are preallocated for the
most channels, and a path takes `W[:c_out, :c_in]`), bit-width search on one set of weights (same section), and elastic width,
kernel and expansion (Once-for-All, Cai et al., arXiv 1908.09791; BigNAS, Yu et al., arXiv 2003.11142). Depth needs nothing of
its own: a skipped block is an identity option.

The rule. Two layers of options share their weights where all of these are equal:

- the decision (or fixed layer), the part of a sequence, and the layer's name within the block;
- the block's class and fields, but for the fields that `SHARED_FIELDS` names: those of widths (`channels`), and the kernel size
  as well (`elastic`). Bit-widths never count: a rounded block is what is inside it;
- what a slice cannot change: stride, dilation, bias, groups, the number of bits of an activation's quantiser.

So choice blocks of different kinds keep weights of their own, and with `channels` so do different kernel sizes, as the choice
blocks of Single Path One-Shot should. Resolutions always share.

The slice: the first output and input channels, whole channels of a depthwise convolution, the first entries of biases and batch
norms (running statistics too), the centre of a kernel. Grouped convolutions that are not depthwise share between equal widths
alone, for a slice would move channels to another group.

Departures: kernels are plain centres, as in BigNAS; Once-for-All's learned kernel transforms are not used, so that a network's
weights are slices and nothing else. Once-for-All also sorts channels by importance before it shrinks widths; here the first
ones are taken, as when training began. Optimisers see whole weights: those of a layer that takes part in a step, but lie outside
of its slice, get a gradient of exactly zero, and momentum and weight decay still move them.
"""

import dataclasses
from collections.abc import Collection, Hashable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hwnas.errors import InputError
from hwnas.ir.architecture import Architecture
from hwnas.ir.block import Block, Part
from hwnas.ir.layers import Conv, Layer, Linear
from hwnas.ir.network import Network, Node
from hwnas.ir.quantized import HalfPrecision, Quantized
from hwnas.ir.space import SearchSpace
from hwnas.ir.steps import Edge, Step
from hwnas.lower.torch import NetworkModule, branch_ends, layer_module
from hwnas.supernet.layered import BLOCK, LayeredSupernet
from hwnas.supernet.streams import stream_seed

_WIDTHS = frozenset({"out_channels", "mid_channels", "channels", "expansion", "reduction"})
SHARED_FIELDS: dict[str, frozenset[str]] = {"channels": _WIDTHS, "elastic": _WIDTHS | {"kernel"}}
"""By kind of sharing: the fields in which blocks, a user's own among them, may differ and still share their weights."""


class _Family(NamedTuple):
    """The layers that share weights.

    Attributes:
        name: That of its module in the supernet.
        largest: A layer of the elementwise largest shape, which no network need have.
        starts_at_zero: Whether all of the layers end residual branches.
    """

    name: str
    largest: Node
    starts_at_zero: bool


class _Weight(NamedTuple):
    """One array of a part.

    Attributes:
        name: In the part.
        layer: Parameters or buffers of the part's layer that computes with it.
        owner: Those of the supernet's layer whose array is sliced.
        attribute: Its name in both.
        slices: Of each axis up to the last one that is cut; empty for the whole.
    """

    name: str
    layer: dict[str, Any]
    owner: dict[str, Any]
    attribute: str
    slices: tuple[slice, ...]

    def value(self) -> Tensor:
        """A view, so that batch norms update the statistics that it is a slice of."""
        whole: Tensor = self.owner[self.attribute]
        return whole[self.slices] if self.slices else whole


class _SlicedModule(NetworkModule):
    """A part of a network, which has weights during a call alone."""

    def __init__(self, network: Network, owners: Mapping[str, nn.Module]) -> None:
        """Finds the slices.

        Args:
            network: The part.
            owners: Name of a node with weights to the layer that keeps them.
        """
        super().__init__(network)
        weights = []
        for node in _weighted_nodes(network):
            layer, owner = self.get_submodule(node.name), owners[node.name]
            for shapes, arrays, whole in ((node.parameters, layer._parameters, owner._parameters),
                                          (node.buffers, layer._buffers, owner._buffers)):
                for name, shape in shapes.items():
                    slices = _slices(getattr(owner, name).shape, shape)
                    weights.append(_Weight(f"{node.name}.{name}", arrays, whole, name, slices))
                    arrays[name] = None
        self._weights = tuple(weights)

    def forward(self, images: Tensor) -> Tensor:
        try:  # as torch.func.functional_call does, without its search for each weight's place, which takes longer than to slice
            for weight in self._weights:
                weight.layer[weight.attribute] = weight.value()
            return super().forward(images)
        finally:
            for weight in self._weights:
                weight.layer[weight.attribute] = None

    def slices(self) -> dict[str, Tensor]:
        """The arrays by name, not copied."""
        return {weight.name: weight.value().detach() for weight in self._weights}


class SlicedSupernet(LayeredSupernet):
    """Weights of the largest layers of a space, of which every network takes slices.

    In `state_dict` a layer's weights are `{layer}/{option}/{node}.{parameter}`, where the option is the first that uses them.
    Initial weights are those that `to_torch` gives to a layer of the largest shape: their deviation fits the largest fan.

    Attributes:
        sharing: The key of `SHARED_FIELDS` that says what shares.
    """

    def __init__(self, space: SearchSpace, seed: int = 0, sharing: str = "elastic") -> None:
        """Allocates the largest layers, with initial weights drawn from `seed`.

        Raises:
            InputError: There is no such sharing.
        """
        if sharing not in SHARED_FIELDS:
            raise InputError(f"Weights are shared in one of the ways {', '.join(SHARED_FIELDS)}, but got {sharing!r}.")
        self.sharing = sharing
        super().__init__(space, seed)

    def weights_of(self, architecture: Architecture) -> dict[str, NDArray[np.float32]]:
        return {f"{layer}/{name.removeprefix(BLOCK)}": tensor.to("cpu", torch.float32, copy=True).numpy()
                for layer, module in self.modules_on(architecture) if isinstance(module, _SlicedModule)
                for name, tensor in module.slices().items()}

    def _module(self, step: Step, edge: Edge, part: Part) -> NetworkModule | None:
        return self._parts.get((step.name, part))

    def _build(self, seed: int) -> None:
        families = self._families()
        for family in families.values():
            generator = torch.Generator().manual_seed(stream_seed(seed, family.name, 0))
            module = layer_module(family.largest, generator)
            if family.starts_at_zero and isinstance(module, nn.BatchNorm2d):
                nn.init.zeros_(module.weight)
            self.add_module(family.name, module)
        self._parts: dict[tuple[str, Part], _SlicedModule] = {}
        alike: dict[Hashable, _SlicedModule] = {}  # one for all parts that differ in resolution alone, of which there may be many
        for step, option, part in self._different_parts():
            network = part.network
            layers = tuple((node.name, node.layer, node.inputs, tuple(shape.channels for shape in node.input_shapes))
                           for node in network.nodes)
            key = step.name, part.name, self._kind(part.block), layers
            if network.nodes and key not in alike:
                owners = {node.name: self.get_submodule(families[self._key(step, part, node)].name)
                          for node in _weighted_nodes(network)}
                alike[key] = _SlicedModule(network, owners)
                self.add_module(_free_name(self._modules, step, option, part), alike[key])
            if network.nodes:
                self._parts[step.name, part] = alike[key]

    def _families(self) -> dict[Hashable, _Family]:
        families: dict[Hashable, _Family] = {}
        names: set[str] = set()
        for step, option, part in self._different_parts():
            ends = branch_ends(part.network)
            for node in _weighted_nodes(part.network):
                key, ends_branch = self._key(step, part, node), node.name in ends
                if key in families:
                    family = families[key]
                    families[key] = _Family(family.name, _larger(family.largest, node), family.starts_at_zero and ends_branch)
                else:
                    name = _free_name(names, step, option, part, node.name.removeprefix(BLOCK))
                    families[key] = _Family(name, _larger(node, node), ends_branch)
                    names.add(name)
        return families

    def _different_parts(self) -> Iterator[tuple[Step, str, Part]]:
        """Every part of each step, with the first option that has it."""
        for step in self.space.steps:
            found: dict[Part, str] = {}
            for edge in step.edges:
                for part in edge.parts:
                    found.setdefault(part, step.options[edge.option])
            yield from ((step, option, part) for part, option in found.items())

    def _key(self, step: Step, part: Part, node: Node) -> Hashable:
        """Equal for two layers that share their weights."""
        return step.name, part.name, self._kind(part.block), node.name, _role(node, "kernel" in SHARED_FIELDS[self.sharing])

    def _kind(self, block: Block) -> Hashable:
        """A block without its bit-widths and the fields in which it may differ from others."""
        while isinstance(block, Quantized | HalfPrecision):
            block = block.block
        values = ((field.name, getattr(block, field.name)) for field in dataclasses.fields(block)
                  if field.name not in SHARED_FIELDS[self.sharing])
        return type(block), *((name, self._kind(value) if isinstance(value, Block) else value) for name, value in values)


def _free_name(taken: Collection[str], step: Step, option: str, part: Part, node: str = "") -> str:
    name = "/".join(filter(None, (step.name, option, part.name, node)))
    return f"{name}@{part.input_shape}" if name in taken else name


def _weighted_nodes(network: Network) -> list[Node]:
    return [node for node in network.nodes if node.parameters or node.buffers]


def _role(node: Node, any_kernel: bool) -> Hashable:
    """What a slice of a layer cannot change."""
    layer, channels = node.layer, node.input_shapes[0].channels
    if isinstance(layer, Linear):
        return Linear, layer.bias
    if not isinstance(layer, Conv):
        return layer
    is_centred = all(size % 2 and padding == layer.dilation * (size // 2)
                     for size, padding in zip(layer.kernel, layer.padding, strict=True))
    window = None if any_kernel and is_centred else (layer.kernel, layer.padding)
    groups: tuple[int, ...] = ()
    if layer.groups == channels > 1:
        groups = (layer.out_channels // channels,)  # depthwise: outputs for each input
    elif layer.groups > 1:
        groups = (layer.groups, channels, layer.out_channels)
    return Conv, layer.stride, layer.dilation, layer.bias, window, groups


def _larger(node: Node, other: Node) -> Node:
    """A layer with the larger of each size of two layers of a family, in full precision."""
    shape, channels = node.input_shapes[0], other.input_shapes[0].channels
    layer: Layer = node.layer
    match layer, other.layer:
        case Conv(), Conv() as wide:
            layer = dataclasses.replace(
                layer, out_channels=max(layer.out_channels, wide.out_channels), groups=max(layer.groups, wide.groups),
                kernel=(max(layer.kernel[0], wide.kernel[0]), max(layer.kernel[1], wide.kernel[1])),
                padding=(max(layer.padding[0], wide.padding[0]), max(layer.padding[1], wide.padding[1])), weight_format="fp32")
        case Linear(), Linear() as wide:
            layer = dataclasses.replace(layer, out_features=max(layer.out_features, wide.out_features))
    return dataclasses.replace(node, layer=layer, input_shapes=(shape._replace(channels=max(shape.channels, channels)),))


def _slices(full: torch.Size, wanted: tuple[int, ...]) -> tuple[slice, ...]:
    """The first channels and the centre of the kernel."""
    starts = [0 if axis < 2 else (size - part) // 2 for axis, (size, part) in enumerate(zip(full, wanted, strict=True))]
    cut = [axis for axis, (size, part) in enumerate(zip(full, wanted, strict=True)) if size != part]
    return tuple(slice(start, start + part) for start, part in zip(starts, wanted, strict=True))[:max(cut, default=-1) + 1]
