"""Reading an ONNX model before any runtime sees it, so that all of them refuse the same models in the same words.

Runtimes get bytes that hold every weight: external data would be looked up relative to whatever folder the process
happens to be in, and each runtime guards that lookup differently.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    if any(uses_external_data(tensor) for tensor in tensors_of(proto)):
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

    folder = Path(path).parent
    for location in external_locations(proto):
        _check_location(location, folder)
    try:
        load_external_data_for_model(proto, str(folder))
    except Exception as error:  # onnx raises its own ValidationError, OSError or ValueError here
        raise InputError(f"The external data of {path} cannot be read ({one_line(error)}): keep it beside the file.") from None
    return proto.SerializeToString()


def external_locations(proto: onnx.ModelProto) -> list[str]:
    """The files, as the model names them, that hold weights of its tensors; empty for a model that is whole."""
    import onnx

    locations = set()
    for tensor in tensors_of(proto):
        if tensor.external_data or tensor.data_location == onnx.TensorProto.EXTERNAL:
            named = [entry.value for entry in tensor.external_data if entry.key == "location"]
            locations.update(named or [""])
    return sorted(locations)


def _check_location(location: str, folder: Path) -> None:
    """External data are a plain file in the model's own folder: a model from elsewhere must not reach for other files.

    Raises:
        InputError: They are not.
    """
    parts = re.split(r"[/\\]", location)
    path = folder
    sound = not any(part in ("", "..") or ":" in part for part in parts)  # absolute, upwards, or with a drive's letter
    for part in parts if sound else ():
        path = path / part
        sound = sound and not path.is_symlink()
    if not sound or not path.is_file():
        raise InputError(f"A model keeps its external data in plain files of its own folder, but names {location!r}, which is "
                         "missing, a link or elsewhere: put it beside the model, if you trust where both come from.")


def tensors_of(message: Any) -> Iterator[onnx.TensorProto]:
    """Every tensor of a protobuf message, wherever it is: weights, constants, subgraphs, functions."""
    if message.DESCRIPTOR.full_name == "onnx.TensorProto":
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for child in value if isinstance(value, Sequence) else [value]:
                yield from tensors_of(child)


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
