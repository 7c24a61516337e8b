"""ONNX models as TensorFlow Lite flatbuffers, which LiteRT loads: written directly, operator by operator, in milliseconds.

Padding is TensorFlow's SAME or VALID. Any other is a PAD before a VALID operator, which XNNPACK merges with a convolution. An
eight-bit convolution (or addition, or product) computes in integers where its inputs are quantised and its result goes to
nothing but a quantiser, possibly through an activation function; all else in float32.

A translation reads a node's attributes and constants once. What it has not read it would not honour, so a node with anything
left over is refused, and so is every operator that is not listed at the end.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from math import ceil, inf, prod
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike
from onnx import TensorProto, helper, numpy_helper

from hwnas.errors import InputError
from hwnas.runtimes.base import one_line
from hwnas.runtimes.litert_file import Operator, Quantization, Shape, Tensor
from hwnas.runtimes.litert_graph import BINARY, FUSED, Array, Graph, Operand, Value, channels_last
from hwnas.runtimes.onnx_model import OnnxModel

_OLDEST_OPSET = 13  # since when axes and sizes are inputs
_DOMAINS = ("", "ai.onnx")
_SAME, _VALID = 0, 1  # as the schema numbers them


def lower(model: OnnxModel) -> bytes:
    """Writes a model as the content of a `.tflite` file.

    Args:
        model: As `read_onnx` gives it, from float32 to float32.

    Returns:
        A flatbuffer with the model's inputs and outputs in their order and under their names.

    Raises:
        InputError: The model is too old, or has an operator, or a form of one, that is not covered.
    """
    proto = onnx.load_from_string(model.content)
    opset = max((entry.version for entry in proto.opset_import if entry.domain in _DOMAINS), default=0)
    if opset < _OLDEST_OPSET:
        raise InputError(f"The model's ONNX opset must be at least {_OLDEST_OPSET} to be lowered to LiteRT, but is {opset}: "
                         "export it for a newer one.")
    lowering = Lowering(proto.graph)
    inputs = [lowering.add_input(tensor.name, tensor.shape) for tensor in model.inputs]
    for node in proto.graph.node:
        lowering.add_node(node)
    outputs = [lowering.finish(tensor.name, tensor.shape) for tensor in model.outputs]
    return lowering.file.serialize(inputs, outputs)


class Node:
    """One ONNX node, and a note of what has been read of it."""

    def __init__(self, node: onnx.NodeProto, lowering: "Lowering") -> None:
        self.operator = node.op_type if node.domain in _DOMAINS else f"{node.domain}.{node.op_type}"
        self.name = node.name or next(iter(node.output), "")
        self.inputs = tuple(node.input)
        self.outputs = tuple(name for name in node.output if name)
        self._attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        self._lowering = lowering

    def refusal(self, why: str) -> InputError:
        return InputError(f"The {self.operator} layer {self.name!r} has no LiteRT form here ({why}): export the model so that it "
                          "has none such, or use a runtime that reads ONNX itself.")

    def attribute(self, name: str, default: Any = None) -> Any:
        value = self._attributes.pop(name, default)
        return value.decode() if isinstance(value, bytes) else value

    def expect(self, **values: Any) -> None:
        """Refuses attributes that are given with other values than these."""
        for name, value in values.items():
            given = self.attribute(name, value)
            if given != value:
                raise self.refusal(f"its {name} is {given!r} instead of {value!r}")

    def check_all_read(self) -> None:
        for name in self._attributes:
            raise self.refusal(f"its attribute {name!r} is not covered")

    def has(self, index: int) -> bool:
        return index < len(self.inputs) and self.inputs[index] != ""

    def operand(self, index: int) -> Operand:
        """An input, in floating point."""
        found = self._lowering.find(self.inputs[index]) if self.has(index) else None
        if found is None:
            raise self.refusal(f"no layer before it makes its input {self.inputs[index] if self.has(index) else index!r}")
        if isinstance(found, Value) and self._lowering.is_integer(found):
            raise self.refusal("it reads integers")
        return found

    def operands(self) -> list[Operand]:
        return [self.operand(index) for index in range(len(self.inputs))]

    def value(self, index: int = 0) -> Value:
        """An input that may change from one inference to the next."""
        return self._lowering.as_value(self.operand(index))

    def image(self, index: int = 0) -> Value:
        """An input (N, C, H, W), channels last in memory."""
        value = self.value(index)
        if len(value.shape) != 4:
            raise self.refusal(f"its input has the shape {value.shape} instead of (N, C, H, W)")
        return self._lowering.ordered(value, channels_last(4))

    def constant(self, index: int) -> Array:
        """An input that the graph knows beforehand."""
        found = self._lowering.find(self.inputs[index]) if self.has(index) else None
        if not isinstance(found, np.ndarray):
            raise self.refusal(f"its input {self.inputs[index] if self.has(index) else index!r} is not a constant")
        return found

    def numbers(self, index: int, default: Any = None) -> Any:
        """Such an input as Python numbers, where it is given."""
        return self.constant(index).tolist() if self.has(index) else default

    def number(self, index: int, default: float) -> float:
        """The single number of such an input."""
        return float(self.constant(index).item()) if self.has(index) else default


class Lowering(Graph):
    """A graph and the ONNX names of what is in it."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        super().__init__()
        self._values: dict[str, Operand] = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)
        self._results = {output.name for output in graph.output}
        self._makers: dict[str, Operator] = {}  # those of results that an activation function may still join
        self._taken: set[int] = set()  # tensors that already are an input or an output of the model
        self.dequantized: dict[str, Value] = {}  # integers by the name that they have as floats
        self.integer_weights: dict[str, tuple[Array, Array]] = {}  # and their scales, likewise

    def add_input(self, name: str, shape: Shape) -> int:
        order = channels_last(len(shape))
        tensor = self.file.add_tensor(Tensor(tuple(shape[axis] for axis in order), "FLOAT32", name=name))
        self._values[name] = Value(tensor, shape, order)
        self._taken.add(tensor)
        return tensor

    def add_node(self, proto: onnx.NodeProto) -> None:
        node = Node(proto, self)
        if all(name in self._values for name in node.outputs):
            return  # a step of an integer operator
        translate = _TRANSLATIONS.get(node.operator)
        if translate is None:
            raise InputError(f"There is no LiteRT form of the ONNX operator {node.operator!r} here: use a runtime that reads "
                             "ONNX itself.")
        count = len(self.file.operators)
        if self._is_constant(node):
            self._values.update(zip(node.outputs, self._fold(proto, node), strict=True))
            return
        result = translate(self, node)
        node.check_all_read()
        if result is None:
            return
        results = result if isinstance(result, list) else [result]
        if len(results) != len(node.outputs):
            raise node.refusal("it has several outputs")
        self._values.update(zip(node.outputs, results, strict=True))
        last = self.file.operators[-1] if len(self.file.operators) > count else None
        if last and isinstance(result, Value) and [result.tensor] == last.outputs and "fusedActivationFunction" in last.options:
            self._makers[node.outputs[0]] = last

    def finish(self, name: str, shape: Shape) -> int:
        """The number of the tensor that a result of the model is in."""
        found = self.find(name)
        if found is None:
            raise InputError(f"The model's output {name!r} is made by no layer: export the model again.")
        value = self.as_value(found)
        if value.shape != shape:
            raise InputError(f"The model's output {name!r} comes out as {value.shape} instead of {shape}: export it again.")
        value = self.ordered(value, channels_last(len(shape)))
        tensor = value.tensor
        if tensor in self._taken or self.file.tensors[tensor].buffer:
            tensor = self._add_reshape(tensor, value.dims)
        self._taken.add(tensor)
        self.file.tensors[tensor].name = name
        return tensor

    def find(self, name: str) -> Operand | None:
        """What a name stands for; integers are dequantised when something first reads them as floats."""
        if name in self.dequantized and name not in self._values:
            x = self.dequantized[name]
            self._values[name] = Value(self.file.add("DEQUANTIZE", [x.tensor], x.dims, kind="DequantizeOptions", version=2,
                                                     dtype="FLOAT32"), x.shape, x.order)
        return self._values.get(name)

    def is_integer(self, x: Value) -> bool:
        return self.file.tensors[x.tensor].dtype == "INT8"

    def quantization(self, x: Value) -> Quantization:
        found = self.file.tensors[x.tensor].quantization
        if found is None:
            raise InputError("What is dequantised in the model was never quantised: export the model again.")
        return found

    def sole_maker(self, name: str) -> Operator | None:
        """The operator that an activation function of this tensor, and of nothing else, may join."""
        alone = len(self._readers.get(name, ())) == 1 and name not in self._results
        return self._makers.get(name) if alone else None

    def next_quantizer(self, node: Node) -> tuple[str, str, Quantization] | None:
        """Where a node's result goes to nothing but a quantiser, possibly through an activation function.

        Returns:
            The activation function, the name of the integers and what they stand for; None where it goes elsewhere.
        """
        name, activation = node.outputs[0], ""
        for _ in range(2):
            readers = self._readers.get(name, [])
            if len(readers) != 1 or name in self._results:
                return None
            reader = Node(readers[0], self)
            if reader.operator == "QuantizeLinear":
                return activation, reader.outputs[0], _quantization(reader)
            function = "RELU" if reader.operator == "Relu" else _clip_function(reader) if reader.operator == "Clip" else ""
            if activation or not function:
                return None
            name, activation = reader.outputs[0], function
        return None

    def add_integers(self, node: Node, name: str, integers: Value) -> None:
        """Integers that were computed as such: nothing is left to do from the node to the quantiser of that name."""
        passed = node.outputs[0]
        while passed != name:
            self._values[passed] = integers  # read by the next step only, which is not to be translated
            passed = self._readers[passed][0].output[0]
        self._values[name] = integers

    def _is_constant(self, node: Node) -> bool:
        known = all(isinstance(self._values.get(name), np.ndarray) for name in node.inputs if name)
        return known and node.operator != "DequantizeLinear"

    def _fold(self, proto: onnx.NodeProto, node: Node) -> list[Operand]:
        """What follows from constants alone."""
        from onnx.reference import ReferenceEvaluator  # slow to import, and few models need it

        try:
            return list(ReferenceEvaluator(proto).run(None, {name: self._values[name] for name in node.inputs if name}))
        except Exception as error:  # it runs numpy on whatever the model says
            raise node.refusal(f"its constants do not fit ({one_line(error)})") from None


def _floats(values: ArrayLike) -> Array:
    return np.asarray(values, np.float32)


# Convolutions and pools


@dataclass(frozen=True)
class _Window:
    """How a kernel moves over an image.

    Attributes:
        pads: Added to the image beforehand: top and left, bottom and right.
        padding: TensorFlow's, on top of that.
        resolution: Of what comes out.
    """

    strides: Sequence[int]
    dilations: Sequence[int]
    pads: tuple[tuple[int, int], tuple[int, int]]
    padding: int
    resolution: Shape

    @property
    def options(self) -> dict[str, int]:
        return {"padding": self.padding, "strideH": self.strides[0], "strideW": self.strides[1]}


def _window(node: Node, x: Value, kernel: Sequence[int], *, explicit: bool = False) -> _Window:
    """What a node says of its window; with TensorFlow's SAME where that is the same, unless pads are to be explicit."""
    strides, dilations = node.attribute("strides", [1, 1]), node.attribute("dilations", [1, 1])
    if node.attribute("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise node.refusal("its auto_pad leaves the padding to the runtime")
    top, left, bottom, right = node.attribute("pads", [0, 0, 0, 0])
    pads = ((top, left), (bottom, right))
    sizes = x.shape[2:]
    spans = [(size - 1) * dilation + 1 for size, dilation in zip(kernel, dilations, strict=True)]
    resolution = tuple((size + before + after - span) // stride + 1 for size, before, after, span, stride
                       in zip(sizes, *pads, spans, strides, strict=True))
    if min(*resolution, *pads[0], *pads[1], 0) < 0 or 0 in resolution:
        raise node.refusal(f"its kernel of {kernel} with pads {[top, left, bottom, right]} does not fit {sizes}")
    totals = [max((ceil(size / stride) - 1) * stride + span - size, 0)
              for size, span, stride in zip(sizes, spans, strides, strict=True)]
    same = tuple(total // 2 for total in totals), tuple(total - total // 2 for total in totals)
    if pads == same != ((0, 0), (0, 0)) and not explicit:
        return _Window(strides, dilations, ((0, 0), (0, 0)), _SAME, resolution)
    return _Window(strides, dilations, pads, _VALID, resolution)


def _conv(g: Lowering, node: Node) -> Value | None:
    if _integer_conv(g, node):
        return None
    weight = _floats(node.constant(1))
    bias = _floats(node.constant(2)) if node.has(2) else np.zeros(len(weight), np.float32)
    return _convolve(g, node, node.image(), weight, bias)


def _integer_conv(g: Lowering, node: Node) -> bool:
    operands, quantized = _integer_inputs(g, node, 1), g.integer_weights.get(node.inputs[1])
    following = g.next_quantizer(node) if operands and quantized else None
    if not operands or not quantized or not following:
        return False
    x, (weight, scales), (activation, name, result) = operands[0], quantized, following
    products = scales * g.quantization(x).scales  # a bias is of 32 bits, as multiples of input scale times weight scale
    bias = np.rint(np.float64(node.constant(2)) / products) if node.has(2) else np.zeros(len(weight))
    bounded = np.clip(bias, np.iinfo(np.int32).min, np.iinfo(np.int32).max).astype(np.int32)
    g.add_integers(node, name, _convolve(g, node, g.ordered(x, channels_last(4)), weight, bounded, scales=(scales, products),
                                         fused=activation, dtype="INT8", quantization=result))
    return True


def _convolve(g: Lowering, node: Node, x: Value, weight: Array, bias: Array, *, scales: tuple[Array, Array] | None = None,
              fused: str = "", **result: Any) -> Value:
    """A convolution, depthwise where it can be.

    Args:
        g: The graph.
        node: What has the kernel's size, steps and padding.
        x: Channels last.
        weight: (out, in / groups, height, width).
        bias: (out,).
        scales: Of weight and bias where they are integers, (out,) each.
        fused: An activation function.
        result: The type of the result, and what it stands for.
    """
    filters, depth, *kernel = weight.shape
    groups = node.attribute("group", 1)
    node.expect(kernel_shape=kernel)
    if len(kernel) != 2 or depth * groups != x.shape[1] or filters % groups or len(bias) != filters:
        raise node.refusal(f"weights {weight.shape} in {groups} groups do not fit an input {x.shape}")
    window = _window(node, x, kernel)
    options = {**window.options, "dilationHFactor": window.dilations[0], "dilationWFactor": window.dilations[1],
               "fusedActivationFunction": FUSED[fused]}
    if depth == 1 < groups:
        code, kind, axes = "DEPTHWISE_CONV_2D", "DepthwiseConv2DOptions", (1, 2, 3, 0)
        options["depthMultiplier"] = filters // groups
        version = 3 if scales else 2 if max(window.dilations) > 1 else 1
    else:
        code, kind, axes = "CONV_2D", "Conv2DOptions", (0, 2, 3, 1)
        version = 6 if groups > 1 else 3 if scales else 1
    of_weight, of_bias = (Quantization(scales[0], axis=axes.index(0)), Quantization(scales[1])) if scales else (None, None)
    x = g.pad(x, (0, 0, *window.pads[0]), (0, 0, *window.pads[1]))
    tensors = [x.tensor, g.file.add_constant(weight.transpose(axes), of_weight), g.file.add_constant(bias, of_bias)]
    shape = (x.shape[0], filters, *window.resolution)
    dims = [shape[axis] for axis in x.order]
    return Value(g.file.add(code, tensors, dims, kind=kind, options=options, version=version, **result), shape, x.order)


def _max_pool(g: Lowering, node: Node) -> Value:
    """Padding that TensorFlow has no word for repeats the image's edges, which lie in the same windows anyway."""
    x, kernel = node.image(), node.attribute("kernel_shape")
    node.expect(storage_order=0, ceil_mode=0, dilations=[1, 1])
    window = _window(node, x, kernel)
    for axis, before, after in zip((2, 3), *window.pads, strict=True):
        x = g.repeat_edges(x, axis, before, after)
    return _pool(g, "MAX_POOL_2D", x, kernel, window)


def _average_pool(g: Lowering, node: Node) -> Value:
    """TensorFlow's own padding does not count; any other counts as zeros, and what that takes away is given back."""
    x, kernel = node.image(), node.attribute("kernel_shape")
    whole = bool(node.attribute("count_include_pad", 0))
    node.expect(ceil_mode=0, dilations=[1, 1])
    window = _window(node, x, kernel, explicit=whole)
    before, after = window.pads
    result = _pool(g, "AVERAGE_POOL_2D", g.pad(x, (0, 0, *before), (0, 0, *after)), kernel, window)
    if whole or not any((*before, *after)):
        return result
    shares = [_share_inside(*sizes) for sizes in zip(x.shape[2:], before, kernel, window.strides, window.resolution, strict=True)]
    return g.binary("Mul", result, _floats(1 / np.outer(*shares)))


def _share_inside(size: int, before: int, kernel: int, stride: int, count: int) -> Array:
    """How much of each window along an axis is not padding."""
    starts = np.arange(count) * stride - before
    return (np.minimum(starts + kernel, size) - np.maximum(starts, 0)) / kernel


def _pool(g: Lowering, code: str, x: Value, kernel: Sequence[int], window: _Window) -> Value:
    options = {**window.options, "filterHeight": kernel[0], "filterWidth": kernel[1], "fusedActivationFunction": FUSED[""]}
    shape = (*x.shape[:2], *window.resolution)
    return Value(g.file.add(code, [x.tensor], [shape[axis] for axis in x.order], kind="Pool2DOptions", options=options),
                 shape, x.order)


def _global_average_pool(g: Lowering, node: Node) -> Value:
    x = node.value()
    return g.mean(x, range(2, len(x.shape)), keep=True)


def _reduce_mean(g: Lowering, node: Node) -> Value:
    x, axes = node.value(), node.attribute("axes") or node.numbers(1)
    if not axes:
        raise node.refusal("its axes are left out")
    return g.mean(x, [axis % len(x.shape) for axis in axes], keep=bool(node.attribute("keepdims", 1)))


def _resize(g: Lowering, node: Node) -> Value:
    x = node.image()
    mode, coordinates = node.attribute("mode", "nearest"), node.attribute("coordinate_transformation_mode", "half_pixel")
    node.expect(antialias=0, exclude_outside=0, extrapolation_value=0.0, keep_aspect_ratio_policy="stretch")
    rounding = node.attribute("nearest_mode", "round_prefer_floor")
    node.attribute("cubic_coeff_a")  # is for a mode that is refused
    if node.has(1) and node.numbers(1):
        raise node.refusal("it has a region of interest")
    scales = node.numbers(2) or None
    shape = tuple(node.numbers(3) if scales is None else (int(size * scale) for size, scale in zip(x.shape, scales, strict=True)))
    if len(shape) != 4 or shape[:2] != x.shape[:2] or min(shape) < 1:
        raise node.refusal("it is not of images (N, C, H, W)")
    if scales and any(abs(size * scale - whole) > 1e-3 for size, scale, whole in zip(x.shape, scales, shape, strict=True)):
        raise node.refusal("its scales give no whole sizes")
    if (mode, coordinates) == ("linear", "half_pixel"):
        code, kind, version, options = "RESIZE_BILINEAR", "ResizeBilinearOptions", 3, {"halfPixelCenters": True}
    elif (mode, coordinates, rounding) == ("nearest", "asymmetric", "floor"):
        code, kind, version, options = "RESIZE_NEAREST_NEIGHBOR", "ResizeNearestNeighborOptions", 1, {}
    else:
        raise node.refusal(f"it is {mode} with {coordinates} coordinates")
    tensors = [x.tensor, g.file.add_constant(np.array(shape[2:], np.int32))]
    dims = [shape[axis] for axis in x.order]
    return Value(g.file.add(code, tensors, dims, kind=kind, version=version, options=options), shape, x.order)


# Matrices and normalisation


def _gemm(g: Lowering, node: Node) -> Value:
    alpha, beta = node.attribute("alpha", 1.0), node.attribute("beta", 1.0)
    node.expect(transA=0)
    x, weight = node.value(), alpha * node.constant(1)
    if not node.attribute("transB", 0):
        weight = weight.T
    bias = beta * node.constant(2) if node.has(2) else np.zeros(1, np.float32)
    if len(x.shape) != 2 or weight.shape[1] != x.shape[1] or bias.size not in (1, len(weight)):
        raise node.refusal(f"weights {weight.shape} and bias {bias.shape} do not fit {x.shape}")
    tensors = [g.ordered(x, (0, 1)).tensor, g.file.add_constant(_floats(weight)),
               g.file.add_constant(_floats(np.broadcast_to(bias.reshape(-1), len(weight))))]
    shape = (x.shape[0], len(weight))
    return Value(g.file.add("FULLY_CONNECTED", tensors, shape, kind="FullyConnectedOptions",
                            options={"fusedActivationFunction": FUSED[""]}), shape, (0, 1))


def _batch_norm(g: Lowering, node: Node) -> Value:
    node.expect(training_mode=0)
    node.attribute("momentum")  # is training's
    x, (scale, shift, mean, variance) = node.value(), (np.float64(node.constant(index)) for index in range(1, 5))
    factor = scale / np.sqrt(variance + node.attribute("epsilon", 1e-5))
    along = (-1, *(1 for _ in x.shape[2:]))
    product = g.binary("Mul", x, _floats(factor).reshape(along))
    return g.binary("Add", product, _floats(shift - mean * factor).reshape(along))


def _softmax(g: Lowering, node: Node) -> Value:
    x, axis = node.value(), node.attribute("axis", -1)
    order = (*(place for place in x.order if place != axis % len(x.shape)), axis % len(x.shape))
    x = g.ordered(x, order)
    return Value(g.file.add("SOFTMAX", [x.tensor], x.dims, kind="SoftmaxOptions", options={"beta": 1.0}), x.shape, order)


# Functions of single elements


def _unary(code: str, g: Lowering, node: Node) -> Value:
    return g.elementwise(code, node.value())


def _binary(g: Lowering, node: Node) -> Value | None:
    """Two operands, or one after the other where there are more."""
    if _integer_binary(g, node):
        return None
    return g.as_value(reduce(partial(g.binary, node.operator if node.operator != "Sum" else "Add"), node.operands()))


def _integer_binary(g: Lowering, node: Node) -> bool:
    operands = _integer_inputs(g, node, 2) if node.operator in ("Add", "Mul") and len(node.inputs) == 2 else None
    following = g.next_quantizer(node) if operands else None
    if not operands or not following:
        return False
    activation, name, result = following
    code, kind = BINARY[node.operator]
    g.add_integers(node, name, g.elementwise(code, *operands, kind=kind, version=2, dtype="INT8", quantization=result,
                                             options={"fusedActivationFunction": FUSED[activation]}))
    return True


def _compare(code: str, g: Lowering, node: Node) -> Value:
    return g.elementwise(code, *node.operands(), dtype="BOOL")


def _where(g: Lowering, node: Node) -> Value:
    return g.elementwise("SELECT_V2", *node.operands(), dtype="FLOAT32")


def _relu(g: Lowering, node: Node) -> Value:
    return _bounded(g, node, "RELU")


def _clip(g: Lowering, node: Node) -> Value:
    function = _clip_function(node)
    if function:
        return _bounded(g, node, function)
    x, (low, high) = node.value(), _bounds(node)
    if low > -inf:
        x = g.binary("Max", x, _floats(low))
    return x if high == inf else g.binary("Min", x, _floats(high))


def _bounded(g: Lowering, node: Node, function: str) -> Value:
    """An activation function, joined with the operator that makes its input where nothing else reads that."""
    x, maker = node.value(), g.sole_maker(node.inputs[0])
    if maker is None:
        return g.elementwise(function, x)
    maker.options["fusedActivationFunction"] = FUSED[function]
    return x


def _clip_function(node: Node) -> str:
    """The one that TensorFlow Lite has for a `Clip`, if any."""
    return {(0.0, 6.0): "RELU6", (0.0, inf): "RELU", (-1.0, 1.0): "RELU_N1_TO_1"}.get(_bounds(node), "")


def _bounds(node: Node) -> tuple[float, float]:
    low, high = node.number(1, -inf), node.number(2, inf)
    return (-inf if low == np.finfo(np.float32).min else low), (inf if high == np.finfo(np.float32).max else high)


def _hard_sigmoid(g: Lowering, node: Node) -> Value:
    """As TensorFlow does: a sixth of a ReLU6."""
    x, alpha, beta = node.value(), node.attribute("alpha", 0.2), node.attribute("beta", 0.5)
    if abs(6 * alpha - 1) > 1e-6:
        x = g.binary("Mul", x, _floats(6 * alpha))
    return g.binary("Mul", g.binary("Add", x, _floats(6 * beta), "RELU6"), _floats(1 / 6))


def _leaky_relu(g: Lowering, node: Node) -> Value:
    return g.elementwise("LEAKY_RELU", node.value(), kind="LeakyReluOptions", options={"alpha": node.attribute("alpha", 0.01)})


def _cast(g: Lowering, node: Node) -> Value:
    node.expect(saturate=1)
    to = TensorProto.DataType.Name(node.attribute("to"))
    names = {"FLOAT": "FLOAT32", "FLOAT16": "FLOAT16", "BFLOAT16": "BFLOAT16"}
    if to not in names:
        raise node.refusal(f"it converts to {to}")
    return g.elementwise("CAST", node.value(), kind="CastOptions", dtype=names[to], version=7)


# Where things are


def _pad(g: Lowering, node: Node) -> Value:
    node.expect(mode="constant")
    if node.has(3):
        raise node.refusal("it names its axes")
    x, pads = node.value(), node.numbers(1)
    if min(pads) < 0:
        raise node.refusal("it takes away")
    return g.pad(x, pads[:len(x.shape)], pads[len(x.shape):], node.number(2, 0.0))


def _concat(g: Lowering, node: Node) -> Value:
    parts = node.operands()
    return g.concatenate(parts, node.attribute("axis") % len(parts[0].shape))


def _slice(g: Lowering, node: Node) -> Value:
    x, starts, ends = node.value(), node.numbers(1), node.numbers(2)
    axes, steps = node.numbers(3, list(range(len(starts)))), node.numbers(4, [1] * len(starts))
    if min(steps, default=1) < 1:
        raise node.refusal("it steps backwards")
    return g.cut(x, {axis % len(x.shape): range(*slice(*bound).indices(x.shape[axis]))
                     for axis, bound in zip(axes, zip(starts, ends, steps, strict=True), strict=True)})


def _split(g: Lowering, node: Node) -> list[Value]:
    x, count, sizes = node.value(), len(node.outputs), node.numbers(1)
    node.attribute("num_outputs")  # as many as there are names for
    axis = node.attribute("axis", 0) % len(x.shape)
    sizes = sizes or [ceil(x.shape[axis] / count)] * (count - 1)
    stops = [*np.cumsum(sizes).tolist()[:count - 1], x.shape[axis]]
    return [g.cut(x, {axis: range(start, stop)}) for start, stop in zip([0, *stops], stops, strict=False)]


def _reshape(g: Lowering, node: Node) -> Value:
    node.expect(allowzero=0)
    x = node.value()
    shape = [size or x.shape[axis] for axis, size in enumerate(node.numbers(1))]
    if -1 in shape:
        shape[shape.index(-1)] = prod(x.shape) // -prod(shape)
    if prod(shape) != prod(x.shape):
        raise node.refusal(f"{x.shape} does not fill {tuple(shape)}")
    return g.reshape(x, tuple(shape))


def _transpose(g: Lowering, node: Node) -> Value:
    x = node.value()
    return g.transpose(x, node.attribute("perm") or list(range(len(x.shape)))[::-1])


def _flatten(g: Lowering, node: Node) -> Value:
    x, axis = node.value(), node.attribute("axis", 1)
    return g.reshape(x, (prod(x.shape[:axis]), prod(x.shape[axis:])))


def _unsqueeze(g: Lowering, node: Node) -> Value:
    x, axes = node.value(), node.numbers(1)
    sizes = iter(x.shape)
    new = {axis % (len(x.shape) + len(axes)) for axis in axes}
    return g.reshape(x, tuple(1 if axis in new else next(sizes) for axis in range(len(x.shape) + len(axes))))


def _squeeze(g: Lowering, node: Node) -> Value:
    x = node.value()
    axes = [axis % len(x.shape) for axis in node.numbers(1, [axis for axis, size in enumerate(x.shape) if size == 1])]
    return g.reshape(x, tuple(size for axis, size in enumerate(x.shape) if axis not in axes))


def _same(g: Lowering, node: Node) -> Operand:
    node.attribute("seed")  # of a `Dropout`
    return node.operand(0)


# Integers


def _quantize(g: Lowering, node: Node) -> Value:
    x, quantization = node.value(), _quantization(node)
    return g.elementwise("QUANTIZE", x, kind="QuantizeOptions", dtype="INT8", quantization=quantization)


def _dequantize(g: Lowering, node: Node) -> Operand | None:
    """Activations stay integers until something reads them as floats; weights are kept as both."""
    integers, name = g.find(node.inputs[0]), node.outputs[0]
    if isinstance(integers, Value):
        found, meant = _quantization(node), g.quantization(integers)
        if (found.scales, found.zero) != (meant.scales, meant.zero):
            raise node.refusal("its integers were quantised otherwise")
        g.dequantized[name] = integers
        return None
    constant, scale = node.constant(0), node.constant(1)
    node.expect(block_size=0, output_dtype=0)
    axis = node.attribute("axis", 1)
    zero = node.constant(2) if node.has(2) else np.zeros((), constant.dtype)
    if constant.dtype == np.int8 and axis == 0 and scale.ndim == 1 and not zero.any():
        g.integer_weights[name] = constant, scale
    along = tuple(-1 if place == axis % constant.ndim else 1 for place in range(constant.ndim)) if scale.ndim else ()
    return (_floats(constant) - _floats(zero).reshape(along)) * _floats(scale).reshape(along)


def _quantization(node: Node) -> Quantization:
    """What a quantiser's integers stand for as s8, in which u8 numbers are smaller by 128."""
    node.expect(block_size=0, output_dtype=0, saturate=1, precision=0)
    node.attribute("axis")  # of one scale there is none
    if not node.has(2):
        raise node.refusal("its zero point, which says the type, is left out")
    scale, zero = node.constant(1), node.constant(2)
    if scale.size != 1 or zero.dtype not in (np.int8, np.uint8):
        raise node.refusal("its integers are not of eight bits with one scale")
    return Quantization(_floats(scale).reshape(1), int(zero.item()) - (128 if zero.dtype == np.uint8 else 0))


def _integer_inputs(g: Lowering, node: Node, count: int) -> list[Value] | None:
    """A node's first inputs as integers, where all of them are dequantised ones."""
    found = [g.dequantized[name] for name in node.inputs[:count] if name in g.dequantized]
    return found if len(found) == count else None


_UNARY = {"Abs": "ABS", "Ceil": "CEIL", "Exp": "EXP", "Floor": "FLOOR", "HardSwish": "HARD_SWISH", "Log": "LOG", "Neg": "NEG",
          "Round": "ROUND", "Sigmoid": "LOGISTIC", "Sqrt": "SQRT", "Tanh": "TANH"}

Translation = Callable[[Lowering, Node], Operand | list[Value] | None]

_TRANSLATIONS: dict[str, Translation] = {
    **{operator: partial(_unary, code) for operator, code in _UNARY.items()},
    **dict.fromkeys([*BINARY, "Sum"], _binary),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concat,
    "Constant": _same,
    "Conv": _conv,
    "DequantizeLinear": _dequantize,
    "Dropout": _same,
    "Flatten": _flatten,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_average_pool,
    "Greater": partial(_compare, "GREATER"),
    "HardSigmoid": _hard_sigmoid,
    "Identity": _same,
    "LeakyRelu": _leaky_relu,
    "Less": partial(_compare, "LESS"),
    "MaxPool": _max_pool,
    "Pad": _pad,
    "QuantizeLinear": _quantize,
    "ReduceMean": _reduce_mean,
    "Relu": _relu,
    "Reshape": _reshape,
    "Resize": _resize,
    "Slice": _slice,
    "Softmax": _softmax,
    "Split": _split,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}
