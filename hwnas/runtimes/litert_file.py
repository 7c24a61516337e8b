"""TensorFlow Lite's file format: tensors, operators and constants, written as the flatbuffer that LiteRT loads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Shape = tuple[int, ...]

_TYPES = {"float32": "FLOAT32", "int8": "INT8", "int32": "INT32"}  # by numpy's names


@dataclass(frozen=True)
class Quantization:
    """What integers stand for: `scales * (integers - zero)`, with one scale, or one for each place along an axis."""

    scales: NDArray[np.float32]
    zero: int = 0
    axis: int = 0


@dataclass
class Tensor:
    """A tensor in the file, with its shape in memory; `buffer` 0 is that of all that is computed."""

    dims: Shape
    dtype: str
    quantization: Quantization | None = None
    buffer: int = 0
    name: str = ""


@dataclass
class Operator:
    """An operator in the file: `code`, `kind` and the names of `options` are those of TensorFlow Lite's schema."""

    code: str
    inputs: Sequence[int]
    outputs: Sequence[int]
    kind: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    version: int = 1


class File:
    """A TensorFlow Lite model in the making."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self.operators: list[Operator] = []
        self._buffers = [b""]
        self._shared: dict[tuple[Any, ...], int] = {}

    def add_tensor(self, tensor: Tensor) -> int:
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def add_constant(self, values: ArrayLike, quantization: Quantization | None = None) -> int:
        """A tensor with known values; small ones that are alike are one."""
        array = np.ascontiguousarray(values).reshape(np.shape(values))  # numpy makes a vector of a scalar
        key = (array.dtype, array.shape, array.tobytes()) if array.size <= 16 and quantization is None else (len(self.tensors),)
        if key not in self._shared:
            self._buffers.append(array.tobytes())
            self._shared[key] = self.add_tensor(Tensor(array.shape, _TYPES[array.dtype.name], quantization,
                                                       len(self._buffers) - 1))
        return self._shared[key]

    def add(self, code: str, inputs: Sequence[int], dims: Sequence[int], *, kind: str = "",
            options: Mapping[str, Any] | None = None, version: int = 1, dtype: str | None = None,
            quantization: Quantization | None = None) -> int:
        """An operator and the tensor that it makes: of the type of its first input unless another is given."""
        like = self.tensors[inputs[0]]
        output = self.add_tensor(Tensor(tuple(dims), dtype or like.dtype, quantization if dtype else like.quantization))
        self.operators.append(Operator(code, inputs, [output], kind, dict(options or {}), version))
        return output

    def serialize(self, inputs: Sequence[int], outputs: Sequence[int]) -> bytes:
        import flatbuffers
        from ai_edge_litert import schema_py_generated as schema

        codes = list(dict.fromkeys((operator.code, operator.version) for operator in self.operators))
        numbers = [getattr(schema.BuiltinOperator, code) for code, _ in codes]
        graph = schema.SubGraphT(
            tensors=[_packed_tensor(schema, tensor) for tensor in self.tensors], inputs=np.array(inputs, np.int32),
            outputs=np.array(outputs, np.int32), name="main",
            operators=[_packed_operator(schema, operator, codes.index((operator.code, operator.version)))
                       for operator in self.operators])
        model = schema.ModelT(
            version=3, description="hwnas", subgraphs=[graph], buffers=[_Buffer(content) for content in self._buffers],
            operatorCodes=[schema.OperatorCodeT(builtinCode=number, deprecatedBuiltinCode=min(number, 127), version=version)
                           for number, (_, version) in zip(numbers, codes, strict=True)])
        builder = flatbuffers.Builder(sum(map(len, self._buffers)) + 512 * (len(self.tensors) + len(self.operators)) + 1024)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


@dataclass(frozen=True)
class _Buffer:
    """A constant's bytes. They are aligned as the schema demands, which the code generated from it for Python ignores."""

    content: bytes

    def Pack(self, builder: Any) -> int:
        from ai_edge_litert import schema_py_generated as schema

        data = None
        if self.content:
            builder.Prep(16, len(self.content))
            data = builder.CreateByteVector(self.content)
        schema.BufferStart(builder)
        if data is not None:
            schema.BufferAddData(builder, data)
        return schema.BufferEnd(builder)


def _packed_tensor(schema: Any, tensor: Tensor) -> Any:
    quantization = None
    if tensor.quantization is not None:
        scales = tensor.quantization.scales
        quantization = schema.QuantizationParametersT(scale=scales, zeroPoint=np.full(len(scales), tensor.quantization.zero),
                                                      quantizedDimension=tensor.quantization.axis)
    return schema.TensorT(shape=np.array(tensor.dims, np.int32), type=getattr(schema.TensorType, tensor.dtype),
                          buffer=tensor.buffer, name=tensor.name, quantization=quantization, hasRank=True)


def _packed_operator(schema: Any, operator: Operator, code: int) -> Any:
    packed = schema.OperatorT(opcodeIndex=code, inputs=np.array(operator.inputs, np.int32),
                              outputs=np.array(operator.outputs, np.int32))
    if operator.kind:
        packed.builtinOptionsType = getattr(schema.BuiltinOptions, operator.kind)
        packed.builtinOptions = getattr(schema, f"{operator.kind}T")(**operator.options)
    return packed
