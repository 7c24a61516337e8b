"""A network in channels-last memory under channels-first names: what `litert_lowering` builds its file with.

TensorFlow Lite computes in channels-last, ONNX is written in channels-first. A tensor here keeps the shape that it has in ONNX
and an `order`, which of its axes come first in memory. So a `Transpose` only gives axes other names, and something is moved
about in the file where an operator needs another order than there is: for a channel shuffle once, for most networks never.
Images (N, C, H, W) go in and come out as (N, H, W, C), all other tensors as they are in ONNX.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwnas.runtimes.litert_file import File, Shape

Array = NDArray[Any]

# As the schema numbers them.
FUSED = {"": 0, "RELU": 1, "RELU_N1_TO_1": 2, "RELU6": 3}
_MOST_CONCATENATED = 5  # at once, by XNNPACK
# Each operator's code, and the name of its options where an activation function can be among them.
BINARY = {"Add": ("ADD", "AddOptions"), "Div": ("DIV", "DivOptions"), "Max": ("MAXIMUM", ""), "Min": ("MINIMUM", ""),
          "Mul": ("MUL", "MulOptions"), "Sub": ("SUB", "SubOptions")}


def channels_last(rank: int) -> Shape:
    """The order in memory of a tensor that goes into or comes out of a model."""
    return (0, 2, 3, 1) if rank == 4 else tuple(range(rank))


@dataclass(frozen=True)
class Value:
    """What the graph computes: a tensor in the file that holds an ONNX tensor.

    Attributes:
        tensor: Its number in the file.
        shape: As in ONNX.
        order: For each axis in memory, which axis of `shape` it is.
    """

    tensor: int
    shape: Shape
    order: Shape

    @property
    def dims(self) -> Shape:
        """The shape in memory."""
        return tuple(self.shape[axis] for axis in self.order)


Operand = Value | Array


class Graph:
    """What is computed, on its way into a file. The methods add operators, or none where nothing needs to be done."""

    def __init__(self) -> None:
        self.file = File()
        self._ordered: dict[tuple[int, Shape], Value] = {}

    def as_value(self, x: Operand) -> Value:
        if isinstance(x, Value):
            return x
        return Value(self.file.add_constant(x), x.shape, tuple(range(x.ndim)))

    def ordered(self, x: Value, order: Shape) -> Value:
        """The same tensor with its axes in another order in memory."""
        if x.order == order:
            return x
        key = (x.tensor, tuple(x.order.index(axis) for axis in order))
        dims = tuple(x.shape[axis] for axis in order)
        if key not in self._ordered:
            if _is_same_memory(x.shape, x.order, order):
                tensor = self._add_reshape(x.tensor, dims) if dims != x.dims else x.tensor
            else:
                tensor = self.file.add("TRANSPOSE", [x.tensor, self._sizes(key[1])], dims, kind="TransposeOptions",
                                       version=4 if len(dims) > 4 else 1)
            self._ordered[key] = Value(tensor, x.shape, order)
        return Value(self._ordered[key].tensor, x.shape, order)

    def transpose(self, x: Value, axes: Sequence[int]) -> Value:
        return Value(x.tensor, tuple(x.shape[axis] for axis in axes), tuple(list(axes).index(axis) for axis in x.order))

    def reshape(self, x: Value, shape: Shape) -> Value:
        """Groups of axes that become others stay where they are in memory, if a group's own axes are next to each other."""
        if shape == x.shape:
            return x
        groups = sorted(_matching_axes(x.shape, shape), key=lambda group: min(map(x.order.index, group[0]), default=99))
        x = self.ordered(x, tuple(axis for before, _ in groups for axis in before))
        order = tuple(axis for _, after in groups for axis in after)
        if _is_same_memory(shape, order, channels_last(len(shape))):
            order = channels_last(len(shape))
        dims = tuple(shape[axis] for axis in order)
        return Value(x.tensor if dims == x.dims else self._add_reshape(x.tensor, dims), shape, order)

    def elementwise(self, code: str, *operands: Operand, **details: Any) -> Value:
        """Any function of single elements; smaller operands are repeated as numpy does."""
        shape = np.broadcast_shapes(*(operand.shape for operand in operands))
        orders = {operand.order for operand in operands if isinstance(operand, Value) and len(operand.shape) == len(shape)}
        order = orders.pop() if len(orders) == 1 else channels_last(len(shape))
        tensors = [self._spread(operand, order) for operand in operands]
        return Value(self.file.add(code, tensors, [shape[axis] for axis in order], **details), shape, order)

    def _spread(self, operand: Operand, order: Shape) -> int:
        """An operand as a tensor that is repeated along the right axes."""
        if not operand.shape:
            return self.as_value(operand).tensor
        shape = (1,) * (len(order) - len(operand.shape)) + operand.shape
        if isinstance(operand, Value):
            return self.ordered(self.reshape(operand, shape), order).tensor
        array = operand.reshape(shape).transpose(order)
        return self.file.add_constant(array.reshape(array.shape[_leading_ones(array.shape):]))

    def binary(self, operator: str, a: Operand, b: Operand, fused: str = "") -> Value:
        code, kind = BINARY[operator]
        return self.elementwise(code, a, b, kind=kind, options={"fusedActivationFunction": FUSED[fused]} if kind else {})

    def pad(self, x: Value, before: Sequence[int], after: Sequence[int], value: float = 0.0) -> Value:
        """Adds so many places before and after, for each axis of the shape."""
        if not any((*before, *after)):
            return x
        shape = tuple(map(sum, zip(x.shape, before, after, strict=True)))
        tensors = [x.tensor, self.file.add_constant(np.array([[before[axis], after[axis]] for axis in x.order], np.int32))]
        code, kind = ("PADV2", "PadV2Options") if value else ("PAD", "PadOptions")
        if value:
            tensors.append(self.file.add_constant(np.float32(value)))
        return Value(self.file.add(code, tensors, [shape[axis] for axis in x.order], kind=kind), shape, x.order)

    def repeat_edges(self, x: Value, axis: int, before: int, after: int) -> Value:
        size = x.shape[axis]
        first = [self.cut(x, {axis: range(1)})] * before if before else []
        last = [self.cut(x, {axis: range(size - 1, size)})] * after if after else []
        return self.concatenate([*first, x, *last], axis)

    def cut(self, x: Value, ranges: Mapping[int, range]) -> Value:
        """Keeps a part of some axes."""
        kept = [ranges.get(axis, range(size)) for axis, size in enumerate(x.shape)]
        shape = tuple(map(len, kept))
        if shape == x.shape:
            return x
        bounds = np.array([[kept[axis].start, kept[axis].stop, kept[axis].step] for axis in x.order], np.int32).T
        dims = [shape[axis] for axis in x.order]
        version = 5 if len(dims) > 4 else 1
        if (bounds[2] == 1).all():
            tensors = [x.tensor, *(self.file.add_constant(sizes) for sizes in (bounds[0], np.array(dims, np.int32)))]
            return Value(self.file.add("SLICE", tensors, dims, kind="SliceOptions", version=version), shape, x.order)
        tensors = [x.tensor, *map(self.file.add_constant, bounds)]
        return Value(self.file.add("STRIDED_SLICE", tensors, dims, kind="StridedSliceOptions"), shape, x.order)

    def concatenate(self, parts: Sequence[Operand], axis: int) -> Value:
        values = [self.as_value(part) for part in parts]
        rank = len(values[0].shape)
        order = values[0].order if len({value.order for value in values}) == 1 else channels_last(rank)
        values = [self.ordered(value, order) for value in values]
        while len(values) > 1:
            some, values = values[:_MOST_CONCATENATED], values[_MOST_CONCATENATED:]
            shape = tuple(sum(value.shape[axis] for value in some) if place == axis else size
                          for place, size in enumerate(some[0].shape))
            tensor = self.file.add("CONCATENATION", [value.tensor for value in some], [shape[place] for place in order],
                                   kind="ConcatenationOptions", options={"axis": order.index(axis)})
            values.insert(0, Value(tensor, shape, order))
        return values[0]

    def mean(self, x: Value, axes: Sequence[int], keep: bool) -> Value:
        places = sorted(x.order.index(axis) for axis in axes)
        shape = tuple(1 if axis in axes else size for axis, size in enumerate(x.shape))
        dims = [shape[axis] for place, axis in enumerate(x.order) if keep or place not in places]
        tensor = self.file.add("MEAN", [x.tensor, self._sizes(places)], dims, kind="ReducerOptions", options={"keepDims": keep})
        if keep:
            return Value(tensor, shape, x.order)
        left = [axis for axis in range(len(shape)) if axis not in axes]
        return Value(tensor, tuple(shape[axis] for axis in left), tuple(left.index(axis) for axis in x.order if axis in left))

    def _add_reshape(self, tensor: int, dims: Shape) -> int:
        return self.file.add("RESHAPE", [tensor, self._sizes(dims)], dims, kind="ReshapeOptions",
                             options={"newShape": np.array(dims, np.int32)})

    def _sizes(self, values: Sequence[int]) -> int:
        return self.file.add_constant(np.array(values, np.int32))


def _is_same_memory(shape: Shape, order: Shape, other: Shape) -> bool:
    """Whether two orders of a shape's axes differ in axes of size 1 only."""
    return [axis for axis in order if shape[axis] > 1] == [axis for axis in other if shape[axis] > 1]


def _matching_axes(before: Shape, after: Shape) -> Iterator[tuple[list[int], list[int]]]:
    """The smallest groups of successive axes that a reshape turns into each other."""
    old, new = 0, 0
    while old < len(before) or new < len(after):
        ends = min(old + 1, len(before)), min(new + 1, len(after))
        while (sizes := (prod(before[old:ends[0]]), prod(after[new:ends[1]])))[0] != sizes[1]:
            ends = (ends[0] + 1, ends[1]) if sizes[0] < sizes[1] else (ends[0], ends[1] + 1)
        yield list(range(old, ends[0])), list(range(new, ends[1]))
        old, new = ends


def _leading_ones(shape: Shape) -> int:
    return next((place for place, size in enumerate(shape) if size > 1), len(shape))
