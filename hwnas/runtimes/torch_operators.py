"""What each ONNX operator is in PyTorch: a function of tensors, with all else that the graph says settled beforehand.

A translation reads a node's attributes and constant inputs once. What it has not read it would not honour, so a node with
anything left over is refused, and so is a form of an operator that PyTorch computes otherwise than ONNX defines it.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial, reduce
from itertools import accumulate
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from hwnas.errors import InputError
from hwnas.runtimes.torch_arrays import to_torch

Function = Callable[..., Any]
Builder = Callable[["NodeReader"], Function]
Translations = Mapping[str, tuple[Builder, int | None]]

ONNX_DOMAINS = ("", "ai.onnx")

# As functions of the same inputs; without attributes, or only with such as the defaults below.
_PLAIN: dict[str, Function] = {
    "Abs": torch.abs,
    "Add": torch.add,
    "Ceil": torch.ceil,
    "Div": torch.div,
    "Equal": torch.eq,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "Greater": torch.gt,
    "HardSwish": F.hardswish,
    "Identity": lambda x: x,
    "Less": torch.lt,
    "Log": torch.log,
    "MatMul": torch.matmul,
    "Mul": torch.mul,
    "Neg": torch.neg,
    "Pow": torch.pow,
    "Reciprocal": torch.reciprocal,
    "Relu": F.relu,
    "Round": torch.round,  # both round half to even
    "Sigmoid": torch.sigmoid,
    "Softplus": F.softplus,
    "Sqrt": torch.sqrt,
    "Sub": torch.sub,
    "Tanh": torch.tanh,
    "Where": torch.where,
}
_FLOATS = {TensorProto.FLOAT16: torch.float16, TensorProto.BFLOAT16: torch.bfloat16, TensorProto.DOUBLE: torch.float64}
_INTEGERS = {TensorProto.INT8: torch.int8, TensorProto.UINT8: torch.uint8, TensorProto.INT16: torch.int16,
             TensorProto.INT32: torch.int32, TensorProto.INT64: torch.int64, TensorProto.BOOL: torch.bool}


class NodeReader:
    """One ONNX node, and a note of what has been read of it.

    Args:
        node: The node.
        constants: Every tensor that the graph knows beforehand, as it knows them.
        dtype: What is computed in wherever the model says float32.
    """

    def __init__(self, node: onnx.NodeProto, constants: Mapping[str, Tensor], dtype: torch.dtype) -> None:
        self.operator = node.op_type if node.domain in ONNX_DOMAINS else f"{node.domain}.{node.op_type}"
        self.name = node.name or next(iter(node.output), "")
        self.dtype = dtype
        self.outputs = tuple(name for name in node.output if name)
        self.inputs = list(node.input)
        self._constants = constants
        self._attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}

    def refusal(self, why: str) -> InputError:
        return InputError(f"The {self.operator} layer {self.name!r} has no PyTorch form here ({why}): export the model so that "
                          "it has none such, or use a runtime that reads ONNX itself.")

    def attribute(self, name: str, default: Any = None) -> Any:
        value = self._attributes.pop(name, default)
        return value.decode() if isinstance(value, bytes) else value

    def expect(self, **values: Any) -> None:
        """Refuses attributes that are given with other values than these."""
        for name, value in values.items():
            given = self.attribute(name, value)
            if given != value:
                raise self.refusal(f"its {name} is {given!r} instead of {value!r}")

    def has(self, index: int) -> bool:
        return index < len(self.inputs) and self.inputs[index] != ""

    def is_constant(self, index: int) -> bool:
        return self.inputs[index] in self._constants

    def tensor(self, index: int) -> Tensor:
        """An input that the graph knows beforehand."""
        if not self.is_constant(index):
            raise self.refusal(f"its input {self.inputs[index]!r} is not a constant")
        return self._constants[self.inputs[index]]

    def constant(self, index: int, default: Any = None) -> Any:
        """An input that the graph knows beforehand, as Python numbers."""
        return self.tensor(index).tolist() if self.has(index) else default

    def check_all_read(self) -> None:
        for name in self._attributes:
            raise self.refusal(f"its attribute {name!r} is not covered")


def translate(reader: NodeReader, overrides: Translations) -> tuple[Function, tuple[str, ...]]:
    """The function that computes a node, and the names of the tensors that it takes.

    Args:
        reader: The node.
        overrides: Translations instead of those here.

    Raises:
        InputError: The operator, or this form of it, is not covered.
    """
    found = overrides.get(reader.operator) or TRANSLATIONS.get(reader.operator)
    if found is None:
        raise InputError(f"There is no PyTorch form of the ONNX operator {reader.operator!r} here: use a runtime that reads "
                         "ONNX itself.")
    build, count = found
    function = build(reader)
    if len(reader.outputs) > 1 and reader.operator != "Split":
        raise reader.refusal("it has several outputs")
    reader.check_all_read()
    names = reader.inputs[:count]
    while names and names[-1] == "":
        names.pop()
    if "" in names:
        raise reader.refusal("an input in the middle is left out")
    return function, tuple(names)


def to_tensor(tensor: onnx.TensorProto) -> Tensor:
    """A constant of the graph."""
    return to_torch(numpy_helper.to_array(tensor))


def to_dtype(dtype: np.dtype) -> torch.dtype:
    """PyTorch's type for numpy's."""
    return torch.bfloat16 if dtype.name == "bfloat16" else torch.from_numpy(np.empty(0, dtype)).dtype


def _always(function: Function) -> Builder:
    return lambda node: function


def _conv(node: NodeReader) -> Function:
    kernel = node.attribute("kernel_shape", [1, 1])  # the weights have it too
    padding, before = _padding(node, kernel)
    convolve = partial(F.conv2d, stride=tuple(node.attribute("strides", [1, 1])), padding=padding,
                       dilation=tuple(node.attribute("dilations", [1, 1])), groups=node.attribute("group", 1))
    return _after_pad(lambda x, weight, bias=None: convolve(x, weight, bias), before)


def _max_pool(node: NodeReader) -> Function:
    kernel = node.attribute("kernel_shape")
    padding, before = _padding(node, kernel)
    node.expect(storage_order=0)
    pool = partial(F.max_pool2d, kernel_size=tuple(kernel), stride=tuple(node.attribute("strides", [1, 1])), padding=padding,
                   dilation=tuple(node.attribute("dilations", [1, 1])), ceil_mode=bool(node.attribute("ceil_mode", 0)))
    return _after_pad(pool, before, -math.inf)


def _average_pool(node: NodeReader) -> Function:
    kernel = node.attribute("kernel_shape")
    padding, before = _padding(node, kernel)
    if before:
        raise node.refusal("its padding differs from side to side")
    node.expect(ceil_mode=0, dilations=[1, 1])
    return partial(F.avg_pool2d, kernel_size=tuple(kernel), stride=tuple(node.attribute("strides", [1, 1])), padding=padding,
                   count_include_pad=bool(node.attribute("count_include_pad", 0)))


def _padding(node: NodeReader, kernel: list[int]) -> tuple[tuple[int, int], list[int]]:
    """Padding that is alike on opposite sides, as layers take it; otherwise none, and what `F.pad` does beforehand."""
    if len(kernel) != 2:
        raise node.refusal(f"its kernel is {len(kernel)}-dimensional")
    if node.attribute("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise node.refusal("its auto_pad leaves the padding to the runtime")
    top, left, bottom, right = node.attribute("pads", [0, 0, 0, 0])
    return ((top, left), []) if (top, left) == (bottom, right) else ((0, 0), [left, right, top, bottom])


def _after_pad(function: Function, pads: list[int], value: float = 0.0) -> Function:
    return (lambda x, *others: function(F.pad(x, pads, value=value), *others)) if pads else function


def _gemm(node: NodeReader) -> Function:
    alpha, beta = node.attribute("alpha", 1.0), node.attribute("beta", 1.0)
    turn_a, turn_b = node.attribute("transA", 0), node.attribute("transB", 0)

    def general(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        product = alpha * torch.matmul(a.T if turn_a else a, b.T if turn_b else b)
        return product if c is None else product + beta * c

    if (alpha, beta, turn_a) != (1.0, 1.0, 0):
        return general
    return lambda a, b, c=None: F.linear(a, b if turn_b else b.T, c) if c is None or c.ndim == 1 else general(a, b, c)


def _batch_norm(node: NodeReader) -> Function:
    node.expect(training_mode=0)
    node.attribute("momentum")  # is training's
    eps = node.attribute("epsilon", 1e-5)
    return lambda x, scale, shift, mean, variance: F.batch_norm(x, mean, variance, scale, shift, eps=eps)


def _layer_norm(node: NodeReader) -> Function:
    node.expect(axis=-1, stash_type=1)
    eps = node.attribute("epsilon", 1e-5)
    return lambda x, scale, shift=None: F.layer_norm(x, (x.shape[-1],), scale, shift, eps)


def _clip(node: NodeReader) -> Function:
    low, high = node.constant(1), node.constant(2)
    if low is None and high is None:
        return lambda x: x
    if low is not None and high is not None and low < high:
        return partial(F.hardtanh, min_val=low, max_val=high)  # the same, and compilers fuse it with the layer before
    return partial(torch.clamp, min=low, max=high)


def _hard_sigmoid(node: NodeReader) -> Function:
    alpha, beta = node.attribute("alpha", 0.2), node.attribute("beta", 0.5)
    if abs(alpha - 1 / 6) < 1e-7 and beta == 0.5:
        return F.hardsigmoid
    return lambda x: torch.clamp(alpha * x + beta, 0, 1)


def _reduce_mean(node: NodeReader) -> Function:
    axes = node.attribute("axes") or node.constant(1)
    if not axes:
        raise node.refusal("its axes are left out")
    return partial(torch.mean, dim=tuple(axes), keepdim=bool(node.attribute("keepdims", 1)))


def _concat(node: NodeReader) -> Function:
    axis = node.attribute("axis")
    return lambda *parts: torch.cat(parts, axis)


def _split(node: NodeReader) -> Function:
    axis, sizes, count = node.attribute("axis", 0), node.constant(1), len(node.outputs)
    node.attribute("num_outputs")  # as many as there are names for

    def split(x: Tensor) -> Any:  # by `narrow`: a view in PyTorch, and known to every compiler behind it
        lengths = sizes or _even_parts(x.shape[axis], count)
        starts = accumulate(lengths, initial=0)
        parts = [x.narrow(axis, start, length) for start, length in zip(starts, lengths, strict=False)]
        return parts if count > 1 else parts[0]

    return split


def _even_parts(size: int, count: int) -> list[int]:
    part = math.ceil(size / count)
    return [part] * (count - 1) + [size - part * (count - 1)]


def _slice(node: NodeReader) -> Function:
    starts, ends = node.constant(1), node.constant(2)
    axes, steps = node.constant(3, list(range(len(starts)))), node.constant(4, [1] * len(starts))
    if min(steps, default=1) < 1:
        raise node.refusal("it steps backwards")
    bounds = (slice(*bound) for bound in zip(starts, ends, steps, strict=True))
    cuts: dict[int, slice] = dict(zip(axes, bounds, strict=True))
    return lambda x: x[tuple(cuts.get(axis, cuts.get(axis - x.ndim, slice(None))) for axis in range(x.ndim))]


def _pad(node: NodeReader) -> Function:
    node.expect(mode="constant")
    if node.has(3):
        raise node.refusal("it names its axes")
    pads = node.constant(1)
    before, after = pads[:len(pads) // 2], pads[len(pads) // 2:]
    backwards = [size for pair in zip(reversed(before), reversed(after), strict=True) for size in pair]
    while backwards[-2:] == [0, 0]:
        del backwards[-2:]
    return partial(F.pad, pad=backwards, value=node.constant(2, 0.0))


def _reshape(node: NodeReader) -> Function:
    node.expect(allowzero=0)
    shape = node.constant(1)

    def reshape(x: Tensor) -> Tensor:
        sizes = [size or x.shape[axis] for axis, size in enumerate(shape)]
        if x.ndim == 5 and sizes == [len(x), x.shape[1] * x.shape[2], *x.shape[3:]] and x.stride(4) == sizes[1]:
            # The end of a channel shuffle in channels_last, out of which `reshape` would fall, with all layers after it.
            return x.permute(0, 3, 4, 1, 2).reshape([sizes[0], *sizes[2:], sizes[1]]).permute(0, 3, 1, 2)
        return x.reshape(sizes)

    return reshape


def _transpose(node: NodeReader) -> Function:
    order = node.attribute("perm")
    return lambda x: x.permute(order or tuple(reversed(range(x.ndim))))


def _flatten(node: NodeReader) -> Function:
    axis = node.attribute("axis", 1)
    return lambda x: x.flatten(1) if axis == 1 else x.reshape(math.prod(x.shape[:axis]), -1)


def _unsqueeze(node: NodeReader) -> Function:
    axes = node.constant(1)
    if min(axes) < 0 < len(axes) - 1:
        raise node.refusal("several of its axes are counted from the end")
    return lambda x: reduce(torch.unsqueeze, sorted(axes), x)


def _squeeze(node: NodeReader) -> Function:
    axes = node.constant(1)
    return torch.squeeze if axes is None else partial(torch.squeeze, dim=tuple(axes))


def _resize(node: NodeReader) -> Function:
    mode, coordinates = node.attribute("mode", "nearest"), node.attribute("coordinate_transformation_mode", "half_pixel")
    node.expect(antialias=0, exclude_outside=0, extrapolation_value=0.0, keep_aspect_ratio_policy="stretch")
    rounding = node.attribute("nearest_mode", "round_prefer_floor")
    node.attribute("cubic_coeff_a")  # is for a mode that is refused
    if node.has(1) and node.constant(1):
        raise node.refusal("it has a region of interest")
    scales, sizes = node.constant(2) or None, node.constant(3)
    target = sizes or scales
    if target is None or len(target) != 4:
        raise node.refusal("it is not of images (N, C, H, W)")
    options: dict[str, Any] = {"size" if sizes else "scale_factor": target[2:]}
    if (mode, coordinates) == ("linear", "half_pixel"):
        options |= {"mode": "bilinear", "align_corners": False}
    elif (mode, coordinates, rounding) == ("nearest", "asymmetric", "floor"):
        options |= {"mode": "nearest"}
    else:
        raise node.refusal(f"it is {mode} with {coordinates} coordinates")
    return lambda x: F.interpolate(x, **options)


def _cast(node: NodeReader) -> Function:
    node.expect(saturate=1)
    to = node.attribute("to")
    dtype = node.dtype if to == TensorProto.FLOAT else (_FLOATS | _INTEGERS).get(to)
    if dtype is None:
        raise node.refusal(f"there is no type {TensorProto.DataType.Name(to)}")
    return partial(Tensor.to, dtype=dtype)


def _softmax(node: NodeReader) -> Function:
    return partial(torch.softmax, dim=node.attribute("axis", -1))


def _leaky_relu(node: NodeReader) -> Function:
    return partial(F.leaky_relu, negative_slope=node.attribute("alpha", 0.01))


def _gelu(node: NodeReader) -> Function:
    return partial(F.gelu, approximate=node.attribute("approximate", "none"))


def _constant(node: NodeReader) -> Function:
    for name in ("value_float", "value_floats", "value_int", "value_ints"):
        value = node.attribute(name)
        if value is not None:
            return partial(torch.tensor, value, dtype=torch.float32 if "float" in name else torch.int64)
    value = node.attribute("value")
    if value is None:
        raise node.refusal("its value is no tensor of numbers")
    return partial(to_tensor, value)


def _quantize(node: NodeReader) -> Function:
    """round(x / scale) + zero point, in float32 whatever is computed in: its steps are finer than those of a short float."""
    axis, step = _quantized_axis(node), _single(node, 1)
    if not node.has(2):
        raise node.refusal("its zero point, which says the type, is left out")

    def quantize(x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        limits = torch.iinfo(zero.dtype)
        ratio = x.float() / (_along(scale, x, axis).float() if step is None else step)
        return torch.clamp(torch.round(ratio) + _along(zero, x, axis), limits.min, limits.max).to(zero.dtype)

    return quantize


def _dequantize(node: NodeReader) -> Function:
    axis, step, dtype = _quantized_axis(node), _single(node, 1), node.dtype

    def dequantize(x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
        shifted = x.float() if zero is None else x.float() - _along(zero, x, axis)
        return (shifted * (_along(scale, x, axis).float() if step is None else step)).to(dtype)

    return dequantize


def _single(node: NodeReader, index: int) -> float | None:
    """A constant input that is one number, as exact as the graph has it; None for any other."""
    return float(node.tensor(index)) if node.is_constant(index) and node.tensor(index).ndim == 0 else None


def _quantized_axis(node: NodeReader) -> int:
    node.expect(block_size=0, output_dtype=0, saturate=1, precision=0)
    return node.attribute("axis", 1)


def _along(values: Tensor, x: Tensor, axis: int) -> Tensor:
    """One value for all, or one for each place along an axis."""
    return values.reshape([-1 if place == axis % x.ndim else 1 for place in range(x.ndim)]) if values.ndim else values


# How the function is made, and how many of a node's inputs are tensors that it takes (None: all).
TRANSLATIONS: Translations = {
    **{operator: (_always(function), None) for operator, function in _PLAIN.items()},
    "AveragePool": (_average_pool, None),
    "BatchNormalization": (_batch_norm, None),
    "Cast": (_cast, None),
    "Clip": (_clip, 1),
    "Concat": (_concat, None),
    "Constant": (_constant, None),
    "Conv": (_conv, None),
    "DequantizeLinear": (_dequantize, None),
    "Dropout": (lambda node: lambda x: x, 1),
    "Flatten": (_flatten, None),
    "Gelu": (_gelu, None),
    "Gemm": (_gemm, None),
    "GlobalAveragePool": (lambda node: lambda x: x.mean(tuple(range(2, x.ndim)), keepdim=True), None),
    "HardSigmoid": (_hard_sigmoid, None),
    "LayerNormalization": (_layer_norm, None),
    "LeakyRelu": (_leaky_relu, None),
    "Max": (lambda node: lambda *parts: reduce(torch.maximum, parts), None),
    "MaxPool": (_max_pool, None),
    "Min": (lambda node: lambda *parts: reduce(torch.minimum, parts), None),
    "Pad": (_pad, 1),
    "QuantizeLinear": (_quantize, None),
    "ReduceMean": (_reduce_mean, 1),
    "Reshape": (_reshape, 1),
    "Resize": (_resize, 1),
    "Slice": (_slice, 1),
    "Softmax": (_softmax, None),
    "Split": (_split, 1),
    "Squeeze": (_squeeze, 1),
    "Sum": (lambda node: lambda *parts: reduce(torch.add, parts), None),
    "Transpose": (_transpose, None),
    "Unsqueeze": (_unsqueeze, 1),
}
