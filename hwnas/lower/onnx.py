"""A network as an ONNX model, written node by node: no torch, no exporter, a few milliseconds.

Every inference runtime gets this graph, both when a block is profiled and when a network is shipped, so what is timed is
what is run. It is as small as inference allows: batch norms folded into the convolutions before them, no dropout, no
identities, no dead nodes; node names are those of the network.

Where weights and activations both have eight bits, they are written as runtimes want them for their integer kernels:
activations through QuantizeLinear and DequantizeLinear in u8, weights as int8 constants with a step per output channel. For
other bit-widths there are no kernels, and the same arithmetic is written in float32. It must not contain a DequantizeLinear:
ONNX Runtime takes one before a convolution as leave to quantise float weights to eight bits by itself.

What will never be here: training, calibration, optimisations of a particular runtime.
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
    FORMAT_BITS,
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
from hwnas.ir.network import INPUT, Network, Node, nodes_needed
from hwnas.lower.quantize import quantize_weight, round_to_half
from hwnas.lower.weights import Weights, check_weights, random_weights

OPSET = 17  # with IR version 8: read by every runtime release of the last years
_OLDEST_OPSET = 14  # HardSwish
_HALVES = {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}
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
        nodes = nodes_needed(network.nodes, network.output)
        self._batch_norms = _foldable(nodes)
        self._folded = {node.name for node in self._batch_norms.values()}
        self._splits = _partitions(nodes)
        self._integers_from = _integer_quantizers(nodes)
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
            case Pad():
                return self._pad(node, x)
            case Resize():
                return self._resize(node, x)
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
            case Quantize():
                return self._quantize(node, x)
            case Round(format):
                half = self._add("Cast", f"{name}/half", [x], to=_HALVES[format])
                return self._add("Cast", name, [half], to=onnx.TensorProto.FLOAT)
        raise TypeError(f"{type(node.layer).__name__} has no ONNX lowering: add a case here.")

    def _convolution(self, node: Node, x: str) -> str:
        layer = node.layer
        assert isinstance(layer, Conv)
        bias = self._weights[f"{node.name}.bias"] if layer.bias else None
        factor: NDArray[np.floating] = np.ones(layer.out_channels)
        batch_norm = self._batch_norms.get(node.name)
        if batch_norm is not None:
            factor, bias = _fold(batch_norm, self._weights, bias)
        inputs = [x, self._convolution_weight(node, factor, bias)]
        if bias is not None:
            inputs.append(self._floats(f"{node.name}.bias", bias))
        return self._add("Conv", node.name, inputs, kernel_shape=layer.kernel, strides=[layer.stride] * 2,
                         pads=[*layer.padding, *layer.padding], dilations=[layer.dilation] * 2, group=layer.groups)

    def _convolution_weight(self, node: Node, factor: NDArray[np.floating], bias: NDArray[Any] | None) -> str:
        """Weights rounded to their format, and then scaled by a factor per output channel, which keeps them on a grid."""
        layer, name = node.layer, f"{node.name}.weight"
        assert isinstance(layer, Conv)
        weight = self._weights[name]
        bits = FORMAT_BITS[layer.weight_format]
        if bits == 16:
            weight = round_to_half(weight, layer.weight_format)
        elif bits <= 8:
            integers, step = quantize_weight(weight, bits)
            if node.inputs[0] in self._integers_from:
                return self._integer_weight(name, integers, step * factor, bias, self._scale(node.inputs[0]))
            weight = integers * step.astype(np.float64)[:, None, None, None]
        return self._floats(name, weight * factor[:, None, None, None])

    def _integer_weight(self, name: str, integers: NDArray[np.int8], step: NDArray[np.floating], bias: NDArray[Any] | None,
                        input_scale: np.float32) -> str:
        """int8 weights and what gives their values back.

        Integer kernels hold a bias in 32 bits, as multiples of input scale times step. So a channel whose weights a batch
        norm has made vanishingly small beside its bias gets a larger step.
        """
        least = np.full(len(step), 1e-30) if bias is None else np.maximum(1e-30, np.abs(bias) / (input_scale * 2.0**30))
        larger = np.maximum(np.abs(step), least)
        integers = np.rint(integers * (step / larger)[:, None, None, None]).astype(np.int8)
        constants = [self._constant(name, integers), self._floats(f"{name}.step", larger),
                     self._constant(f"{name}.zero", np.zeros(len(step), np.int8))]
        return self._add("DequantizeLinear", f"{name}/float", constants, axis=0)

    def _quantize(self, node: Node, x: str) -> str:
        layer, name = node.layer, node.name
        assert isinstance(layer, Quantize)
        value = self._scale(name)
        scale = self._floats(f"{name}.scale", value)
        if name in self._integers_from:  # u8 whatever the sign: the type for which runtimes have the fastest kernels
            zero = self._constant("signed_zero", np.uint8(128)) if layer.signed else self._constant("unsigned_zero", np.uint8(0))
            integers = self._add("QuantizeLinear", f"{name}/integers", [x, scale, zero])
            return self._add("DequantizeLinear", name, [integers, scale, zero])
        if layer.signed and layer.bits == 1:
            negative = self._add("Less", f"{name}/negative", [x, self._floats("zero", 0)])
            return self._add("Where", name, [negative, self._floats(f"{name}.minus_scale", -value), scale])
        x = self._add("Div", f"{name}/ratio", [x, scale])
        ends = [self._floats(f"multiple_{multiple}", multiple) for multiple in (layer.lowest, layer.highest)]
        x = self._add("Round", f"{name}/multiples", [self._add("Clip", f"{name}/clip", [x, *ends])])
        return self._add("Mul", name, [x, scale])

    def _scale(self, quantizer: str) -> np.float32:
        return np.abs(np.float32(self._weights[f"{quantizer}.scale"][0]))

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

    def _resize(self, node: Node, x: str) -> str:
        """By size; with an open batch by scale, rounded up, since the output size is the floor of a product with it."""
        if self._batch:
            target = ["", self._integers(f"{node.name}.sizes", [self._batch, *node.shape])]
        else:
            ratios = [np.float32(after / before) for before, after in zip(node.input_shapes[0], node.shape, strict=True)]
            scales = [ratio if ratio == 1 else np.nextafter(ratio, np.float32(np.inf)) for ratio in ratios]
            target = [self._floats(f"{node.name}.scales", np.array([1, *scales], np.float32))]
        return self._add("Resize", node.name, [x, "", *target], mode="linear", coordinate_transformation_mode="half_pixel")

    def _pad(self, node: Node, x: str) -> str:
        """A `Slice` for what is taken away, then a `Pad` for what is added: negative pads are not understood everywhere."""
        layer, shape = node.layer, node.input_shapes[0]
        assert isinstance(layer, Pad)
        starts = [max(-layer.top, 0), max(-layer.left, 0)]
        ends = [shape.height + min(layer.bottom, 0), shape.width + min(layer.right, 0)]
        added = [max(edge, 0) for edge in (layer.top, layer.left, layer.bottom, layer.right)]
        name = f"{node.name}/crop" if any(added) else node.name
        if starts != [0, 0] or ends != [shape.height, shape.width]:
            bounds = {"starts": starts, "ends": ends, "axes": [2, 3]}
            x = self._add("Slice", name, [x, *(self._integers(f"{name}.{part}", values) for part, values in bounds.items())])
        if any(added):
            x = self._add("Pad", node.name, [x, self._integers(f"{node.name}.pads", [0, 0, *added[:2], 0, 0, *added[2:]])])
        return x

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
        return self._constant(name, np.asarray(values, np.float32))

    def _integers(self, name: str, values: Sequence[int]) -> str:
        return self._constant(name, np.array(values, np.int64))

    def _constant(self, name: str, values: ArrayLike) -> str:
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.asarray(values), name)
        return name


def _integer_quantizers(nodes: Sequence[Node]) -> set[str]:
    """The eight-bit quantisers that no convolution reads but those with eight-bit weights."""
    found = {node.name for node in nodes if isinstance(node.layer, Quantize) and node.layer.bits == 8}
    return found - {node.inputs[0] for node in nodes if isinstance(node.layer, Conv) and node.layer.weight_format != "int8"}


def _foldable(nodes: Sequence[Node]) -> dict[str, Node]:
    """Convolution's name to the batch norm that alone reads its output."""
    readers = Counter(source for node in nodes for source in node.inputs)
    convolutions = {node.name for node in nodes if isinstance(node.layer, Conv) and readers[node.name] == 1}
    return {node.inputs[0]: node for node in nodes
            if isinstance(node.layer, BatchNorm) and node.inputs[0] in convolutions}


def _fold(batch_norm: Node, weights: Weights, bias: NDArray[Any] | None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Factor for each output channel's weights, and bias, of the convolution that equals convolution and batch norm.

    In float64, so that the result is rounded once.
    """
    assert isinstance(batch_norm.layer, BatchNorm)
    gamma, beta, mean, variance = (np.asarray(weights[f"{batch_norm.name}.{part}"], np.float64)
                                   for part in ("weight", "bias", "running_mean", "running_var"))
    scale = gamma / np.sqrt(variance + batch_norm.layer.eps)
    start = 0.0 if bias is None else np.asarray(bias, np.float64)
    return scale, beta + (start - mean) * scale


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
