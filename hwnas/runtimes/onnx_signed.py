"""A quantised ONNX model as one whose eight-bit integers are all signed with a zero point of 0, as TensorRT wants them.

TensorRT refuses other zero points, but takes u8 with zero point 0 for s8 with a mere warning: everything in the upper half of
the range would saturate. So models are rewritten before it sees them:

- u8 around 128 becomes s8 around 0: the same numbers;
- u8 from 0 becomes s8 with twice the step: every other level of the old range remains, one bit is lost;
- whole numbers of 32 bits (biases, as ONNX Runtime's quantiser writes them) become float constants: the same numbers.
"""

from collections import defaultdict

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from hwnas.errors import InputError

_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


def to_signed(model: onnx.ModelProto) -> onnx.ModelProto:
    """Rewrites what quantises.

    Args:
        model: With scales and zero points that are constants; not changed.

    Raises:
        InputError: A zero point has no signed counterpart, or u8 integers reach another operator than DequantizeLinear.
    """
    if not any(node.op_type in (_QUANTIZE, _DEQUANTIZE) for node in model.graph.node):
        return model
    return _Rewriting(model).result


class _Rewriting:
    def __init__(self, model: onnx.ModelProto) -> None:
        self.result = onnx.ModelProto()
        self.result.CopyFrom(model)
        graph = self.result.graph
        self._constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        self._constants |= {node.output[0]: numpy_helper.to_array(attribute.t) for node in graph.node
                            if node.op_type == "Constant" for attribute in node.attribute if attribute.name == "value"}
        self._new: dict[str, NDArray] = {}
        self._zeros: dict[str, NDArray] = {}  # of what a QuantizeLinear makes
        self._check_readers(graph)
        kept = [node for node in graph.node if self._rewrite(node)]
        initializers = [one for one in graph.initializer if one.name not in self._new]
        for field, values in (("node", kept), ("initializer", [
                *initializers, *(numpy_helper.from_array(array, name) for name, array in self._new.items())])):
            values = list(values)
            graph.ClearField(field)
            getattr(graph, field).extend(values)

    def _check_readers(self, graph: onnx.GraphProto) -> None:
        readers = defaultdict(list)
        for node in graph.node:
            for name in node.input:
                readers[name].append(node)
        for node in graph.node:
            if node.op_type == _QUANTIZE:
                for reader in readers[node.output[0]]:
                    if reader.op_type != _DEQUANTIZE:
                        raise InputError("What QuantizeLinear makes must go to DequantizeLinear alone, but "
                                         f"{reader.op_type} {reader.name!r} reads it: export the model in QDQ form.")

    def _rewrite(self, node: onnx.NodeProto) -> bool:
        """Changes a node in place; returns whether it is still needed."""
        if node.op_type == _QUANTIZE:
            zero = self._zeros[node.output[0]] = self._zero_point(node, np.zeros((), np.uint8))
            self._sign(node, zero)
        elif node.op_type == _DEQUANTIZE:
            source = node.input[0]
            integers = self._constants.get(source)
            default = self._zeros.get(source, np.zeros((), np.int8 if integers is None else integers.dtype))
            zero = self._zero_point(node, default)
            if integers is not None and integers.dtype == np.int32:
                self._new[node.output[0]] = self._dequantize(node, integers - zero)
                return False
            if integers is not None and zero.dtype == np.uint8:
                if (zero != 128).any():
                    raise _unlike(node, zero)
                node.input[0] = self._add(f"{source}/signed", (integers.astype(np.int16) - 128).astype(np.int8))
            self._sign(node, zero)
        return True

    def _sign(self, node: onnx.NodeProto, zero: NDArray) -> None:
        if zero.dtype != np.uint8:
            return  # signed already; TensorRT itself refuses a zero point other than 0
        scale = self._constant(node, 1)
        if (zero == 0).all():
            node.input[1] = self._add(f"{node.input[1]}/twice", scale * scale.dtype.type(2))
        elif (zero != 128).any():
            raise _unlike(node, zero)
        signed = self._add(f"{node.input[1]}/zero", np.zeros(scale.shape, np.int8))
        node.input[:] = [*node.input[:2], signed]

    def _zero_point(self, node: onnx.NodeProto, default: NDArray) -> NDArray:
        return self._constant(node, 2) if len(node.input) > 2 and node.input[2] else default

    def _constant(self, node: onnx.NodeProto, index: int) -> NDArray:
        if node.input[index] not in self._constants:
            raise InputError(f"Scales and zero points must be constants, but {node.op_type} {node.name!r} computes "
                             f"{node.input[index]!r}: quantise the model statically.")
        return self._constants[node.input[index]]

    def _dequantize(self, node: onnx.NodeProto, integers: NDArray) -> NDArray:
        scale = self._constant(node, 1)
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
        if scale.ndim and integers.ndim > 1:
            scale = scale.reshape([-1 if index == axis % integers.ndim else 1 for index in range(integers.ndim)])
        return (integers * scale).astype(scale.dtype)

    def _add(self, name: str, array: NDArray) -> str:
        self._new[name] = array
        return name


def _unlike(node: onnx.NodeProto, zero: NDArray) -> InputError:
    return InputError(f"Eight-bit integers must be symmetric around 0 here, but those of {node.op_type} {node.name!r} have the "
                      f"zero point {zero.flat[0]}: quantise with zero point 128 (or 0 for activations without a sign).")
