"""An ONNX model as the files that are shipped, and back: weights inside, or beside it where one file could not hold them.

A protobuf message ends at 2 GB, so weights above `INLINE_LIMIT` go to one file of their own. A model that is read may name any
file as the place of its weights; only that one, in the artefact's own folder and covered by the manifest, is accepted.
"""

from collections.abc import Mapping
from typing import Any

import onnx
from onnx import numpy_helper

from hwnas.errors import InputError, VerificationError
from hwnas.export.formats import MODEL_FILE, WEIGHTS_FILE
from hwnas.runtimes.onnx_model import external_locations

INLINE_LIMIT = 1_500_000_000  # bytes of weights
_SMALL = 1024  # bytes of a constant that stays in the model: shapes and the like, which are needed to check it
_ALIGNMENT = 4096  # of weights in their file, so that they can be mapped to memory


def model_files(model: onnx.ModelProto, inline_limit: int = INLINE_LIMIT) -> dict[str, bytes]:
    """The files that a model is shipped as, by name.

    Args:
        model: With all its weights; emptied of the large ones where they do not go inside.
        inline_limit: Bytes of weights that go inside.
    """
    tensors = model.graph.initializer
    if sum(numpy_helper.to_array(tensor).nbytes for tensor in tensors) <= inline_limit:
        return {MODEL_FILE: model.SerializeToString()}
    weights = bytearray()
    for tensor in tensors:
        content = numpy_helper.to_array(tensor).tobytes()
        if len(content) < _SMALL:
            continue
        weights += bytes(-len(weights) % _ALIGNMENT)
        place = {"location": WEIGHTS_FILE, "offset": len(weights), "length": len(content)}
        for field in ("raw_data", "float_data", "int32_data", "int64_data"):
            tensor.ClearField(field)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))
        weights += content
    return {MODEL_FILE: model.SerializeToString(), WEIGHTS_FILE: bytes(weights)}


def read_model(contents: Mapping[str, bytes]) -> onnx.ModelProto:
    """The model of an artefact's files, without the weights beside it.

    Raises:
        VerificationError: It is no model, or names other files than the artefact's as the place of its weights.
    """
    try:
        model = onnx.load_from_string(contents[MODEL_FILE])
    except Exception as error:  # protobuf's DecodeError, which onnx does not re-export
        raise VerificationError(f"{MODEL_FILE} must be an ONNX model, but cannot be read ({error}): export it again.") from None
    elsewhere = [one for one in external_locations(model) if one != WEIGHTS_FILE or WEIGHTS_FILE not in contents]
    if elsewhere:
        raise VerificationError(f"{MODEL_FILE} must find all its weights in the artefact, but refers to external data at "
                                f"{elsewhere[0]!r}: export it again.")
    return model


def whole_model(contents: Mapping[str, bytes]) -> onnx.ModelProto:
    """The model of an artefact's files, with all weights inside.

    Raises:
        InputError: Then it would be larger than one file can be.
        VerificationError: As for `read_model`, or the place of a weight is malformed.
    """
    model = read_model(contents)
    weights = contents.get(WEIGHTS_FILE, b"")
    if len(weights) > INLINE_LIMIT:
        raise InputError(f"Converters take models of up to {INLINE_LIMIT:,} bytes of weights, but this one has "
                         f"{len(weights):,}: run it in ONNX Runtime itself.")
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            place = {entry.key: entry.value for entry in tensor.external_data}
            try:
                offset, length = int(place["offset"]), int(place["length"])
            except (KeyError, ValueError):
                raise VerificationError(f"{MODEL_FILE} must say where in {WEIGHTS_FILE} {tensor.name!r} lies, but does not: "
                                        "export it again.") from None
            tensor.raw_data = weights[offset:offset + length]
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
    return model


def input_shapes(model: onnx.ModelProto) -> list[tuple[Any, ...]]:
    """The shape of each input; None for a size that is open."""
    return [tuple(size.dim_value if size.HasField("dim_value") else None for size in value.type.tensor_type.shape.dim)
            for value in model.graph.input]


def fix_batch(model: onnx.ModelProto, batch_size: int) -> onnx.ModelProto:
    """A copy of a model of open batch size that has a fixed one."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for value in (*fixed.graph.input, *fixed.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = batch_size
    return fixed
