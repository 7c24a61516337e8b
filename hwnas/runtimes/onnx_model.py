"""Reading an ONNX model before any runtime sees it, so that all of them refuse the same models in the same words.

Runtimes get bytes that hold every weight: external data would be looked up relative to whatever folder the process
happens to be in, and each runtime guards that lookup differently.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hwnas.errors import InputError
from hwnas.runtimes.base import Program, TensorInfo, one_line

if TYPE_CHECKING:
    import onnx

ONNX_FILE = "model.onnx"
"""The file of a program that is an ONNX model."""


@dataclass(frozen=True)
class OnnxModel:
    """A model in memory: its self-contained bytes and the tensors that go in and come out."""

    content: bytes
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]

    def as_program(self) -> Program:
        """The program for a runtime that itself reads ONNX."""
        return Program({ONNX_FILE: self.content}, self.inputs, self.outputs)

    @classmethod
    def of(cls, program: Program) -> OnnxModel:
        """The model in such a program."""
        return cls(program.files[ONNX_FILE], program.inputs, program.outputs)


def read_onnx(model: bytes | Path) -> OnnxModel:
    """Reads a model from bytes, or from a file together with external data that lies in the file's folder.

    Raises:
        InputError: The model cannot be read, is not ONNX, lacks weights, or has an open shape.
    """
    import onnx
    from onnx.external_data_helper import uses_external_data

    content = model if isinstance(model, bytes) else _read_file(model)
    try:
        proto = onnx.load_from_string(content)
    except Exception as error:  # protobuf's DecodeError; protobuf itself is onnx's affair
        raise InputError(f"The model is not valid ONNX ({one_line(error)}): it is truncated or another format.") from None
    if not proto.graph.node:
        raise InputError("The model is not valid ONNX (it has no layers): check that the file is the one you meant.")
    if any(uses_external_data(tensor) for tensor in _tensors(proto.graph)):
        if isinstance(model, bytes):
            raise InputError("The model keeps weights in another file: give the path of its .onnx file, not its bytes.")
        content = _embed_external_data(proto, model)
    weights = {tensor.name for tensor in proto.graph.initializer}  # models before IR version 4 list weights as inputs
    inputs = (value for value in proto.graph.input if value.name not in weights)
    return OnnxModel(content, _tensor_infos(inputs, "input"), _tensor_infos(_typed_outputs(proto), "output"))


def _read_file(path: Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"The model {path} cannot be read ({error.strerror}): check the path.") from None


def _embed_external_data(proto: onnx.ModelProto, path: Path) -> bytes:
    from onnx.external_data_helper import load_external_data_for_model

    try:
        load_external_data_for_model(proto, str(Path(path).parent))  # refuses locations outside of that folder
    except Exception as error:  # onnx raises its own ValidationError, OSError or ValueError here
        raise InputError(f"The external data of {path} cannot be read ({one_line(error)}): keep it beside the file.") from None
    return proto.SerializeToString()


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every constant of a graph, those of its subgraphs included."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for subgraph in (attribute.g, *attribute.graphs):
                yield from _tensors(subgraph)


def _typed_outputs(proto: onnx.ModelProto) -> Iterable[onnx.ValueInfoProto]:
    """The outputs with shapes; exporters may leave those to be inferred."""
    import onnx

    if all(output.type.tensor_type.HasField("shape") for output in proto.graph.output):
        return proto.graph.output
    try:
        return onnx.shape_inference.infer_shapes(proto).graph.output
    except onnx.shape_inference.InferenceError as error:
        raise InputError(f"The model's shapes contradict each other ({one_line(error)}): export it again.") from None


def _tensor_infos(values: Iterable[onnx.ValueInfoProto], what: str) -> tuple[TensorInfo, ...]:
    return tuple(_tensor_info(value, what) for value in values)


def _tensor_info(value: onnx.ValueInfoProto, what: str) -> TensorInfo:
    from onnx.helper import tensor_dtype_to_np_dtype

    tensor = value.type.tensor_type
    if not tensor.elem_type or not tensor.HasField("shape") or not all(_is_fixed(d) for d in tensor.shape.dim):
        dims = [d.dim_value if _is_fixed(d) else d.dim_param or "?" for d in tensor.shape.dim]
        raise InputError(
            f"The model's {what} {value.name!r} has the open shape {dims}, but a latency belongs to one fixed shape: "
            "export the model with fixed sizes."
        )
    return TensorInfo(
        name=value.name,
        shape=tuple(d.dim_value for d in tensor.shape.dim),
        dtype=tensor_dtype_to_np_dtype(tensor.elem_type),
    )


def _is_fixed(dimension: onnx.TensorShapeProto.Dimension) -> bool:
    return dimension.HasField("dim_value") and dimension.dim_value > 0
