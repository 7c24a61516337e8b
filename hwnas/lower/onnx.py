"""A network as an ONNX model, written node by node: no torch, no exporter, a few milliseconds.

Every inference runtime gets this graph, both when a block is profiled and when a network is shipped, so what is timed is
what is run. It is as small as inference allows: batch norms folded into the convolutions before them, no dropout, no
identities, no dead nodes; node names are those of the network.

What will never be here: training, quantisation (a pass over the finished model), optimisations of a particular runtime.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray
from onnx import helper, numpy_helper

import hwnas
from hwnas.errors import InputError
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
    Pool,
)
from hwnas.ir.network import INPUT, Network, Node
from hwnas.lower.weights import Weights, check_weights, random_weights

OPSET = 17  # with IR version 8: read by every runtime release of the last years
_OLDEST_OPSET = 14  # HardSwish
_ACTIVATIONS = {"relu": "Relu", "hardswish": "HardSwish", "sigmoid": "Sigmoid"}  # those that are one plain operator


def to_onnx(network: Network, weights: Weights | None = None, seed: int = 0, *, batch_size: int = 1, opset: int = OPSET,
            dynamic_batch: bool = False, metadata: Mapping[str, str] | None = None) -> onnx.ModelProto:
    """Lowers a network to ONNX for inference.

    Args:
        network: What to lower.
        weights: `{node}.{parameter}` arrays. None draws random ones: latency does not depend on them.
        seed: For the drawn weights.
        batch_size: Images in a batch, fixed in the model.
        opset: ONNX operator set; the IR version is the oldest that allows it.
        dynamic_batch: Leave the batch size open; `batch_size` is then ignored.
        metadata: Stored in the model's `metadata_props`.

    Returns:
        A model from `images` (N, C, H, W) to `logits` (N, F) where the network ends in a linear layer, otherwise to
        `features` (N, C, H, W).

    Raises:
        InputError: The weights are not this network's or not finite, or batch size or opset are out of range.
    """
    if not dynamic_batch and batch_size < 1:
        raise InputError(f"A batch holds at least one image, but the batch size is {batch_size}: use 1 or more.")
    newest = onnx.defs.onnx_opset_version()
    if not _OLDEST_OPSET <= opset <= newest:
        raise InputError(f"The ONNX opset must be between {_OLDEST_OPSET} and {newest}, but is {opset}: use {OPSET}.")
    if weights is None:
        weights = random_weights(network, seed)
    else:
        check_weights(network, weights)

    graph = _Graph(network, weights, 0 if dynamic_batch else batch_size)
    output = "logits" if network.output in network.vectors else "features"
    graph.finish(output)
    batch = "batch" if dynamic_batch else batch_size
    shape = network.output_shape
    output_dims = [batch, shape.channels] if output == "logits" else [batch, *shape]
    opset_id = helper.make_opsetid("", opset)
    model = helper.make_model(
        helper.make_graph(
            graph.nodes, "hwnas",
            [helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, [batch, *network.input_shape])],
            [helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, output_dims)],
            list(graph.constants.values())),
        opset_imports=[opset_id], ir_version=helper.find_min_ir_version_for([opset_id]),
        producer_name="hwnas", producer_version=hwnas.__version__)
    helper.set_model_props(model, dict(metadata or {}))
    return model


class _Graph:
    """The ONNX nodes and constants of a network, collected in the network's order."""

    def __init__(self, network: Network, weights: Weights, batch: int) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self._network = network
        self._weights = weights
        self._batch = batch  # as a `Reshape` takes it: 0 keeps what is there
        self._tensors = {INPUT: "images"}  # what holds each node's output
        nodes = _live_nodes(network)
        self._batch_norms = _foldable(nodes)
        self._folded = {node.name for node in self._batch_norms.values()}
        self._splits = _partitions(nodes)
        for node in nodes:
            if node.name not in self._tensors:  # a split makes several at once
                self._tensors[node.name] = self._lower(node)

    def finish(self, output: str) -> None:
        """Gives the network's result its name."""
        result = self._tensors[self._network.output]
        if result == "images":  # nothing was computed, and an output of its own is required
            self._add("Identity", output, [result])
            return
        for node in self.nodes:
            node.input[:] = [output if name == result else name for name in node.input]
            node.output[:] = [output if name == result else name for name in node.output]

    def _lower(self, node: Node) -> str:
        """Adds what computes one node; returns the name of the tensor that holds its output."""
        name = node.name
        vectors = self._network.vectors
        if isinstance(node.layer, Linear) or name in vectors:
            x, *others = (self._tensors[source] for source in node.inputs)
        else:
            x, *others = (self._with_resolution(source) for source in node.inputs)
        match node.layer:
            case Conv():
                return self._convolution(node, x)
            case Linear(bias=bias):
                if node.inputs[0] not in vectors:
                    x = self._add("Flatten", f"{name}/flatten", [x], axis=1)
                parameters = ["weight", "bias"] if bias else ["weight"]
                return self._add("Gemm", name, [x, *(self._weight(node, part) for part in parameters)], transB=1)
            case BatchNorm(eps=eps):
                if name in self._folded:
                    return x
                parameters = ["weight", "bias", "running_mean", "running_var"]
                return self._add("BatchNormalization", name, [x, *(self._weight(node, part) for part in parameters)],
                                 epsilon=eps)
            case Activation(function):
                return self._activation(name, function, x)
            case Pool(kind, kernel, stride, padding):
                return self._add("MaxPool" if kind == "max" else "AveragePool", name, [x], kernel_shape=[kernel] * 2,
                                 strides=[stride] * 2, pads=[padding] * 4)
            case GlobalAveragePool():
                return self._add("GlobalAveragePool", name, [x])
            case Add():
                return self._add("Add" if len(others) == 1 else "Sum", name, [x, *others])
            case Multiply():
                return self._add("Mul", name, [x, *others])
            case Concat():
                return self._add("Concat", name, [x, *others], axis=1)
            case ChannelSlice():
                return self._slice(node, x)
            case ChannelShuffle(groups):  # a `Slice` with steps would do for shuffle units, but is slow on OpenVINO
                channels, *resolution = node.shape
                matrix = [self._batch, groups, channels // groups, *resolution]
                x = self._add("Reshape", f"{name}/matrix", [x, self._integers(f"{name}/matrix.shape", matrix)])
                x = self._add("Transpose", f"{name}/transpose", [x], perm=[0, 2, 1, 3, 4])
                return self._add("Reshape", name, [x, self._integers(f"{name}.shape", [self._batch, *node.shape])])
            case Dropout():
                return x
        raise TypeError(f"{type(node.layer).__name__} has no ONNX lowering: add a case here.")

    def _convolution(self, node: Node, x: str) -> str:
        layer = node.layer
        assert isinstance(layer, Conv)
        weight = self._weights[f"{node.name}.weight"]
        bias = self._weights[f"{node.name}.bias"] if layer.bias else None
        batch_norm = self._batch_norms.get(node.name)
        if batch_norm is not None:
            weight, bias = _fold(batch_norm, self._weights, weight, bias)
        inputs = [x, self._floats(f"{node.name}.weight", weight)]
        if bias is not None:
            inputs.append(self._floats(f"{node.name}.bias", bias))
        return self._add("Conv", node.name, inputs, kernel_shape=layer.kernel, strides=[layer.stride] * 2,
                         pads=[*layer.padding, *layer.padding], dilations=[layer.dilation] * 2, group=layer.groups)

    def _activation(self, name: str, function: str, x: str) -> str:
        match function:
            case "relu6":
                return self._add("Clip", name, [x, self._floats("zero", 0), self._floats("six", 6)])
            case "hardsigmoid":
                return self._add("HardSigmoid", name, [x], alpha=1 / 6, beta=0.5)
            case "silu":
                return self._add("Mul", name, [x, self._add("Sigmoid", f"{name}/sigmoid", [x])])
            case _:
                return self._add(_ACTIVATIONS[function], name, [x])

    def _slice(self, node: Node, x: str) -> str:
        """One `Split` for slices that share their input out among them, a `Slice` for any other."""
        layer = node.layer
        assert isinstance(layer, ChannelSlice)
        parts = self._splits.get(node.inputs[0])
        if parts is None:
            bounds = {"starts": layer.start, "ends": layer.stop, "axes": 1}
            return self._add("Slice", node.name, [x, *(self._integers(f"{node.name}.{key}", [bound])
                                                       for key, bound in bounds.items())])
        name = f"{node.inputs[0]}/split"
        sizes = self._integers(f"{name}.sizes", [part.shape.channels for part in parts])
        self._add("Split", name, [x, sizes], [part.name for part in parts], axis=1)
        self._tensors |= {part.name: part.name for part in parts}
        return node.name

    def _with_resolution(self, source: str) -> str:
        """The `(N, C, H, W)` form of a tensor; a vector `(N, F)` becomes `(N, F, 1, 1)`."""
        if source not in self._network.vectors:
            return self._tensors[source]
        name = f"{source}/unflatten"
        if name not in self._tensors:
            self._tensors[name] = self._add("Unsqueeze", name,
                                            [self._tensors[source], self._integers("resolution_axes", [2, 3])])
        return name

    def _add(self, operator: str, name: str, inputs: Sequence[str], outputs: Sequence[str] | None = None,
             **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, outputs or [name], name, **attributes))
        return name

    def _weight(self, node: Node, part: str) -> str:
        name = f"{node.name}.{part}"
        return self._floats(name, self._weights[name])

    def _floats(self, name: str, values: ArrayLike) -> str:
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.asarray(values, np.float32), name)
        return name

    def _integers(self, name: str, values: Sequence[int]) -> str:
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.array(values, np.int64), name)
        return name


def _live_nodes(network: Network) -> list[Node]:
    """The nodes that the network's output depends on, in order."""
    needed = {network.output}
    nodes = []
    for node in reversed(network.nodes):
        if node.name in needed:
            nodes.append(node)
            needed.update(node.inputs)
    return nodes[::-1]


def _foldable(nodes: Sequence[Node]) -> dict[str, Node]:
    """Convolution's name to the batch norm that alone reads its output."""
    readers = Counter(source for node in nodes for source in node.inputs)
    convolutions = {node.name for node in nodes if isinstance(node.layer, Conv) and readers[node.name] == 1}
    return {node.inputs[0]: node for node in nodes
            if isinstance(node.layer, BatchNorm) and node.inputs[0] in convolutions}


def _fold(batch_norm: Node, weights: Weights, weight: NDArray[Any], bias: NDArray[Any] | None
          ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weight and bias of the convolution that equals convolution and batch norm; in float64, so that it is rounded once."""
    assert isinstance(batch_norm.layer, BatchNorm)
    gamma, beta, mean, variance = (np.asarray(weights[f"{batch_norm.name}.{part}"], np.float64)
                                   for part in ("weight", "bias", "running_mean", "running_var"))
    scale = gamma / np.sqrt(variance + batch_norm.layer.eps)
    start = 0.0 if bias is None else np.asarray(bias, np.float64)
    return weight * scale[:, None, None, None], beta + (start - mean) * scale


def _partitions(nodes: Sequence[Node]) -> dict[str, list[Node]]:
    """Tensors of which several slices are taken that together are the whole, each channel once."""
    slices: dict[str, list[tuple[int, int, Node]]] = {}
    for node in nodes:
        if isinstance(node.layer, ChannelSlice):
            slices.setdefault(node.inputs[0], []).append((node.layer.start, node.layer.stop, node))
    found = {}
    for source, parts in slices.items():
        parts.sort(key=lambda part: part[0])
        stops = [stop for _, stop, _ in parts]
        whole = parts[0][2].input_shapes[0].channels
        if len(parts) > 1 and [start for start, _, _ in parts] == [0, *stops[:-1]] and stops[-1] == whole:
            found[source] = [node for _, _, node in parts]
    return found
