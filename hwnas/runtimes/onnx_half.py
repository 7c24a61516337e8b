"""An ONNX model of 32-bit floating point as one that computes in 16-bit, with the same inputs and outputs.

For runtimes that compute in the types that a model states. Every tensor is cast where the model meets one that stays as it
is: its inputs and outputs, and what an operator's definition or the caller keeps in 32 bits.
"""

from itertools import count

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hwnas.errors import InputError

_CASTS = frozenset({"Cast"})  # these state their type
_NEVER_HALF = {"Resize": (1, 2), "Upsample": (1,)}  # inputs that are float32 whatever flows through the operator
_QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")
_LARGEST = float(np.finfo(np.float16).max)
_SMALLEST = np.finfo(np.float16).smallest_subnormal


def to_half(model: onnx.ModelProto, keep: frozenset[str] = frozenset()) -> onnx.ModelProto:
    """Converts a model to fp16.

    Weights are rounded to nearest. Scales of quantisers that would become 0 become the smallest number above it.

    Args:
        model: Of fixed shapes; not changed.
        keep: Operator types that stay in 32 bits.

    Raises:
        InputError: A weight does not fit, or the model has control flow.
    """
    return _Conversion(model, keep | _CASTS).result


class _Conversion:
    """Writes the nodes anew. A tensor `x` in 16 bits is called `x/fp16`; either form is made when a node first asks for it."""

    def __init__(self, model: onnx.ModelProto, keep: frozenset[str]) -> None:
        typed = onnx.shape_inference.infer_shapes(model).graph
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._floats = {value.name for value in (*typed.input, *typed.value_info, *typed.output)
                        if value.type.tensor_type.elem_type == TensorProto.FLOAT}
        self._floats |= {tensor.name for tensor in typed.initializer if tensor.data_type == TensorProto.FLOAT}
        self._suffix = _free_suffix(model.graph)
        self._made = {value.name for value in typed.input} | set(self._constants)  # every tensor there is, in either form
        self._nodes: list[onnx.NodeProto] = []
        self._new_constants: list[onnx.TensorProto] = []
        for node in model.graph.node:
            self._convert(node, keep)
        for output in model.graph.output:
            self._full(output.name)

        self.result = onnx.ModelProto()
        self.result.CopyFrom(model)
        graph = self.result.graph
        used = {name for node in self._nodes for name in node.input}
        for field, values in (("node", self._nodes), ("value_info", ()),  # the shapes still hold, the types do not
                              ("initializer", [*(one for name, one in self._constants.items() if name in used),
                                               *self._new_constants])):
            graph.ClearField(field)
            getattr(graph, field).extend(values)

    def _convert(self, node: onnx.NodeProto, keep: frozenset[str]) -> None:
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise InputError(f"A model with control flow cannot be converted to fp16, but it has {node.op_type} {node.name!r}: "
                             "run it in fp32.")
        reads_floats = any(name in self._floats for name in node.input)
        half = reads_floats and node.op_type not in keep
        new = onnx.NodeProto()
        new.CopyFrom(node)
        for index, name in enumerate(node.input):
            if name in self._floats:
                stays = not half or index in _NEVER_HALF.get(node.op_type, ())
                new.input[index] = self._full(name) if stays else self._half(name, node, index)
        for index, name in enumerate(node.output):
            if half and name in self._floats:
                new.output[index] = name + self._suffix
        self._made.update(new.output)
        self._nodes.append(new)

    def _full(self, name: str) -> str:
        if name not in self._made:
            self._cast(name + self._suffix, name, TensorProto.FLOAT)
        return name

    def _half(self, name: str, reader: onnx.NodeProto, index: int) -> str:
        half = name + self._suffix
        if half not in self._made:
            if name in self._constants:
                values = _round_constant(numpy_helper.to_array(self._constants[name]), name, reader, index)
                self._new_constants.append(numpy_helper.from_array(values, half))
                self._made.add(half)
            else:
                self._cast(name, half, TensorProto.FLOAT16)
        return half

    def _cast(self, source: str, target: str, to: int) -> None:
        self._nodes.append(helper.make_node("Cast", [source], [target], f"{target}/cast", to=to))
        self._made.add(target)


def _free_suffix(graph: onnx.GraphProto) -> str:
    """One that no tensor's name ends with, so that no new name is taken."""
    names = [name for node in graph.node for name in (*node.input, *node.output)]
    suffixes = (f"/fp16{'_' * index}" for index in count())
    return next(suffix for suffix in suffixes if not any(name.endswith(suffix) for name in names))


def _round_constant(values: np.ndarray, name: str, reader: onnx.NodeProto, index: int) -> np.ndarray:
    if reader.op_type != "Clip" and (np.abs(values[np.isfinite(values)]) > _LARGEST).any():  # a bound may become infinite
        raise InputError(f"Weights of a model in fp16 must be within {_LARGEST:.0f} either way, but {name!r} has "
                         f"{np.abs(values).max():.3g}: run it in fp32.")
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    if reader.op_type in _QUANTIZERS and index == 1:
        half = np.maximum(half, _SMALLEST)
    return half
