"""Checks an artefact again, anywhere: hashes, the model's soundness, and its numbers in ONNX Runtime. No torch needed."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from hwnas.errors import UnavailableError, VerificationError
from hwnas.export.manifest import GOLDEN_FILE, MANIFEST_FILE, MODEL_FILE, FileRecord, Manifest, load_manifest
from hwnas.export.parity import Parity, check_parity, run_model
from hwnas.files import sha256_file


@dataclass(frozen=True)
class VerifyReport:
    """What a verification found; that there is one means that everything agreed.

    Attributes:
        directory: The artefact.
        manifest: Its manifest.
        parity: How close this machine's numbers are to the golden ones.
        extra_files: What lies in the folder without being listed: not covered by any hash.
    """

    directory: Path
    manifest: Manifest
    parity: Parity
    extra_files: tuple[str, ...]


def verify_artifact(directory: str | os.PathLike[str]) -> VerifyReport:
    """Verifies an artefact.

    Raises:
        InputError: The manifest is missing, truncated or edited.
        UnavailableError: ONNX Runtime is not installed.
        VerificationError: A file is missing or changed, the model is not sound or not self-contained, or its outputs differ
            from the golden ones.
    """
    folder = Path(directory)
    manifest = load_manifest(folder)
    for name, record in manifest.files.items():
        _check_file(folder / name, record)
    model = _check_model(folder / MODEL_FILE, manifest)
    images, expected = _read_golden(folder / GOLDEN_FILE)
    try:
        logits = run_model(model, images)
    except UnavailableError:
        raise
    except Exception as error:  # the model or the golden images are at fault; runtimes' errors share no base class
        raise VerificationError(f"{folder / MODEL_FILE} must run on {GOLDEN_FILE}, but does not: {error}") from None
    parity = check_parity(expected, logits, f"{folder / MODEL_FILE} and {GOLDEN_FILE}")
    extra = sorted(path.name for path in folder.iterdir() if path.name not in (*manifest.files, MANIFEST_FILE))
    return VerifyReport(folder, manifest, parity, tuple(extra))


def _check_file(path: Path, record: FileRecord) -> None:
    if path.is_symlink() or not path.is_file():
        raise VerificationError(f"An artefact holds every file that its manifest lists, but {path} is missing or a link: copy "
                                "the whole folder again.")
    size = path.stat().st_size
    if size != record.size_bytes:
        raise VerificationError(f"{path} must have {record.size_bytes} bytes, but has {size}: copy or export it again.")
    sha256 = sha256_file(path)
    if sha256 != record.sha256:
        raise VerificationError(f"{path} must have the SHA-256 {record.sha256}, but has {sha256}: copy or export it again.")


def _check_model(path: Path, manifest: Manifest) -> bytes:
    content = path.read_bytes()
    try:
        model = onnx.load_from_string(content)
    except Exception as error:  # protobuf's DecodeError, which onnx does not re-export
        raise VerificationError(f"{path} must be an ONNX model, but cannot be read ({error}): export it again.") from None
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data for tensor in _tensors(model)):
        raise VerificationError(f"{path} must hold all its weights, but refers to external data: export it again.")
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # ValidationError, or the shape inference's own
        raise VerificationError(f"{path} must be a valid ONNX model, but is not ({error}): export it again.") from None
    shapes = [tuple(size.dim_value for size in value.type.tensor_type.shape.dim) for value in model.graph.input]
    if shapes != [manifest.input_shape]:
        raise VerificationError(f"{path} must take the input {manifest.input_shape} of its manifest, but takes {shapes}: export "
                                "it again.")
    return content


def _tensors(message: Any) -> Iterator[onnx.TensorProto]:
    """Every tensor of a protobuf message, wherever it is: weights, constants, subgraphs, functions."""
    if isinstance(message, onnx.TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for child in value if isinstance(value, Sequence) else [value]:
                yield from _tensors(child)


def _read_golden(path: Path) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    try:
        with np.load(path, allow_pickle=False) as golden:
            images, logits = golden["images"], golden["logits"]
    except Exception as error:  # zipfile, zlib and numpy each have their own
        raise VerificationError(f"{path} must hold the arrays 'images' and 'logits', but cannot be read ({error}): export it "
                                "again.") from None
    if images.ndim != 4 or logits.ndim != 2 or len(images) != len(logits) or not logits.size or {
            images.dtype, logits.dtype} != {np.dtype(np.float32)}:
        raise VerificationError(f"{path} must hold float32 images (N, C, H, W) and logits (N, K), but has {images.dtype} "
                                f"{images.shape} and {logits.dtype} {logits.shape}: export it again.")
    return images, logits
