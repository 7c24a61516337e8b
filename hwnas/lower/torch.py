"""A network as a PyTorch module, for training and as the reference that every other lowering is compared with."""

from collections import Counter
from functools import reduce

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import skip_init

from hwnas.ir.layers import (
    Activation,
    Add,
    BatchNorm,
    ChannelShuffle,
    ChannelSlice,
    Concat,
    Conv,
    Dropout,
    GlobalAveragePool,
    Linear,
    Multiply,
    Pad,
    Pool,
    Quantize,
    Resize,
    Round,
)
from hwnas.ir.network import INPUT, Network, Node
from hwnas.lower.straight_through import QuantizedConv, Quantizer, RoundToHalf
from hwnas.lower.weights import Weights, check_weights

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU, "relu6": nn.ReLU6, "hardswish": nn.Hardswish, "silu": nn.SiLU, "hardsigmoid": nn.Hardsigmoid}

_Step = tuple[str, tuple[str, ...]]  # a module, and the names of the tensors that it reads


class NetworkModule(nn.Module):
    """A network whose `state_dict` keys are the weight names, so that arrays pass between torch, files and ONNX unrenamed.

    `forward` takes images `(N, C, H, W)` and returns the output node's tensor: `(N, F)` after a linear layer, `(N, C, H, W)`
    otherwise. A network with no nodes returns the images.

    Attributes:
        network: What was lowered.
    """

    def __init__(self, network: Network, seed: int = 0) -> None:
        """Builds the modules with initial weights drawn from `seed`; torch's own random state is neither read nor moved."""
        super().__init__()
        self.network = network
        generator = torch.Generator().manual_seed(seed)
        nodes = {node.name: node for node in network.nodes}
        readers = Counter(name for node in network.nodes for name in node.inputs)
        steps: list[_Step] = []
        zero_start = branch_ends(network)
        for node in network.nodes:
            source = nodes.get(node.inputs[0])
            # An activation overwrites the output of layers that do not need it for gradients: new memory
            # costs page faults on a CPU.
            inplace = (source is not None and readers[source.name] == 1
                       and isinstance(source.layer, BatchNorm | Conv | Linear))
            module, inputs = _strided_slice(node, source) or (layer_module(node, generator, inplace), node.inputs)
            if isinstance(module, _BatchNorm) and node.name in zero_start:
                nn.init.zeros_(module.weight)
            if not isinstance(node.layer, Linear) and node.name not in network.vectors:
                inputs = tuple(self._with_resolution(name, steps) for name in inputs)
            self.add_module(node.name, module)
            steps.append((node.name, inputs))
        self._plan = _plan(steps, network.output)

    def _with_resolution(self, name: str, steps: list[_Step]) -> str:
        """Name of the `(N, C, H, W)` form of a tensor; a vector `(N, F)` gets a step that makes it `(N, F, 1, 1)`."""
        if name not in self.network.vectors:
            return name
        reshaped = f"{name}/unflatten"
        if reshaped not in self._modules:
            self.add_module(reshaped, nn.Unflatten(1, (-1, 1, 1)))
            steps.append((reshaped, (name,)))
        return reshaped

    def forward(self, images: Tensor) -> Tensor:
        tensors = {INPUT: images}
        for name, sources, finished in self._plan:
            tensors[name] = self._modules[name](*[tensors[source] for source in sources])  # type: ignore[misc]
            for source in finished:
                del tensors[source]
        return tensors[self.network.output]


def to_torch(network: Network, weights: Weights | None = None, seed: int = 0) -> NetworkModule:
    """Lowers a network to PyTorch.

    Args:
        network: What to lower.
        weights: `{node}.{parameter}` arrays. None draws weights to start training from: He et al. (arXiv 1502.01852) for
            convolutions, a standard deviation of 1 / sqrt(inputs) for linear layers, identity batch norms, zero biases. A
            batch norm that ends a residual branch starts at zero, so that every residual block starts as the identity
            (Goyal et al., arXiv 1706.02677, sec. 5.1): in a supernet, blocks then see the same features whatever the path.
        seed: For the drawn weights.

    Raises:
        InputError: The weights are not this network's, or not finite.
    """
    module = NetworkModule(network, seed)
    if weights is not None:
        load_weights(module, weights)
    return module


def load_weights(module: NetworkModule, weights: Weights) -> None:
    """Copies arrays into a module, in the module's own precision and on its own device.

    Raises:
        InputError: The weights are not this network's, or not finite; the module is unchanged.
    """
    check_weights(module.network, weights)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            tensor.copy_(torch.tensor(np.asarray(weights[name], np.float32)))


def get_weights(module: NetworkModule) -> dict[str, NDArray[np.float32]]:
    """Copies a module's weights out: float32 arrays with the keys of `network.weight_shapes`."""
    return {name: tensor.to("cpu", torch.float32, copy=True).numpy() for name, tensor in module.state_dict().items()}


def _plan(steps: list[_Step], output: str) -> list[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    """The steps that the output needs, each with its module, its inputs, and those of them that nothing reads afterwards."""
    plan: list[tuple[str, tuple[str, ...], tuple[str, ...]]] = []
    needed = {output}
    for name, inputs in reversed(steps):
        if name in needed:
            plan.append((name, inputs, tuple(set(inputs) - needed)))
            needed.update(inputs)
    return plan[::-1]


def _strided_slice(node: Node, source: Node | None) -> tuple[nn.Module, tuple[str, ...]] | None:
    """Module and inputs of a slice of shuffled channels that reads the tensor before the shuffle, where it can.

    It can where the channels are evenly spaced there: that is how shuffle units split their input by channel parity. A view
    takes the place of a copy, in either memory format.
    """
    if not (isinstance(node.layer, ChannelSlice) and source is not None and isinstance(source.layer, ChannelShuffle)):
        return None
    groups = source.layer.groups
    step = source.shape.channels // groups
    offset, first = divmod(node.layer.start, groups)
    last = node.layer.stop - 1 - offset * groups
    if last >= groups:
        return None
    return _ChannelSlice(first * step + offset, last * step + offset + 1, step), source.inputs


def branch_ends(network: Network) -> set[str]:
    """Nodes whose tensor a residual sum adds to another; a batch norm among them starts at zero."""
    nodes = {node.name: node for node in network.nodes}
    ends = [nodes.get(node.inputs[-1]) for node in network.nodes if isinstance(node.layer, Add)]  # the branch comes last
    return {end.inputs[0] if isinstance(end.layer, Quantize) else end.name for end in ends if end is not None}


def layer_module(node: Node, generator: torch.Generator, inplace: bool = False) -> nn.Module:
    """One layer with initial weights, as `to_torch` draws them.

    Args:
        node: The layer and its input shapes.
        generator: For the weights.
        inplace: Whether an activation overwrites its input.
    """
    x = node.input_shapes[0]
    match node.layer:
        case Conv(out_channels, kernel, stride, padding, dilation, groups, bias, weight_format):
            shape = x.channels, out_channels, kernel, stride, padding, dilation, groups, bias
            conv = skip_init(nn.Conv2d, *shape) if weight_format == "fp32" else skip_init(QuantizedConv, weight_format, *shape)
            fan_out = kernel[0] * kernel[1] * out_channels / groups
            return _initialise(conv, (2 / fan_out) ** 0.5, generator)
        case Linear(out_features, bias):
            return _initialise(skip_init(_Linear, x.channels, out_features, bias), x.channels**-0.5, generator)
        case BatchNorm(eps, momentum):
            return _BatchNorm(x.channels, eps, momentum)
        case Activation("sigmoid"):
            return nn.Sigmoid()
        case Activation(function):
            return _ACTIVATIONS[function](inplace)
        case Pool("max", kernel, stride, padding):
            return nn.MaxPool2d(kernel, stride, padding)
        case Pool("avg", kernel, stride, padding):
            return nn.AvgPool2d(kernel, stride, padding, count_include_pad=False)
        case Pad(top, left, bottom, right):
            return nn.ZeroPad2d((left, right, top, bottom))
        case Resize(height, width):
            return nn.Upsample((height, width), mode="bilinear", align_corners=False)
        case GlobalAveragePool():
            return nn.AdaptiveAvgPool2d(1)
        case Add():
            return _Add()
        case Multiply():
            return _Multiply()
        case Concat():
            return _Concat()
        case ChannelSlice(start, stop):
            return _ChannelSlice(start, stop)
        case ChannelShuffle(groups):
            return _ChannelShuffle(groups)
        case Dropout(rate):
            return nn.Dropout(rate)
        case Quantize():
            return Quantizer(node.layer)
        case Round(format):
            return RoundToHalf(format)
    raise TypeError(f"{type(node.layer).__name__} has no PyTorch lowering: add a case here.")


def _initialise(module: nn.Module, deviation: float, generator: torch.Generator) -> nn.Module:
    for name, parameter in module.named_parameters():
        if name == "bias":
            nn.init.zeros_(parameter)
        else:
            nn.init.normal_(parameter, 0, deviation, generator)
    return module


class _BatchNorm(nn.BatchNorm2d):
    """Without `num_batches_tracked`, which only matters where momentum is None and would be no weight of the network."""

    def __init__(self, channels: int, eps: float, momentum: float) -> None:
        super().__init__(channels, eps, momentum)
        self.num_batches_tracked = None

    def _load_from_state_dict(self, *arguments: object) -> None:  # torch's adds the missing counter, then refuses it
        nn.Module._load_from_state_dict(self, *arguments)


class _Linear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(1))


class _Add(nn.Module):
    def forward(self, *tensors: Tensor) -> Tensor:
        return reduce(torch.add, tensors)


class _Multiply(nn.Module):
    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return x * gate


class _Concat(nn.Module):
    def forward(self, *tensors: Tensor) -> Tensor:
        return torch.cat(tensors, 1)


class _ChannelSlice(nn.Module):
    def __init__(self, start: int, stop: int, step: int = 1) -> None:
        super().__init__()
        self.channels = slice(start, stop, step)

    def forward(self, x: Tensor) -> Tensor:
        return x[:, self.channels]


class _ChannelShuffle(nn.Module):
    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        if x.is_contiguous(memory_format=torch.channels_last):  # and stays so: a reshape below would fall out of it
            x = x.permute(0, 2, 3, 1).view(n, h, w, self.groups, c // self.groups)
            return x.transpose(3, 4).reshape(n, h, w, c).permute(0, 3, 1, 2)
        return x.reshape(n, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(n, c, h, w)
