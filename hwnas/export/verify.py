"""Checks an artefact again, anywhere: hashes, the model's soundness, and its numbers in its own runtime. No torch needed."""

import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from hwnas.errors import InputError, UnavailableError, VerificationError
from hwnas.export.bisect import Departure, Layers, first_different_layer, sample_layers
from hwnas.export.formats import MODEL_FILE, WEIGHTS_FILE
from hwnas.export.loading import LoadedArtifact, load_artifact
from hwnas.export.making import OPEN_BATCHES
from hwnas.export.manifest import GOLDEN_FILE, MANIFEST_FILE, Manifest
from hwnas.export.onnx_file import input_shapes, read_model, whole_model
from hwnas.export.parity import Parity, check_parity, run_program
from hwnas.runtimes import RUNTIMES, RuntimeConfig, load_runtime


@dataclass(frozen=True)
class VerifyReport:
    """What a verification found; that there is one means that everything agreed that could be looked at.

    Attributes:
        directory: The artefact.
        manifest: Its manifest.
        parity: How close this machine's numbers are to the golden ones; None where the model cannot run here.
        not_run: Why it cannot; None if it did.
        extra_files: What lies in the folder without being listed: not covered by any hash.
        changed: Files of the model that do not have their hash, but were trusted.
    """

    directory: Path
    manifest: Manifest
    parity: Parity | None
    not_run: str | None
    extra_files: tuple[str, ...]
    changed: tuple[str, ...] = ()


def verify_artifact(directory: str | os.PathLike[str], trust_engine: bool = False) -> VerifyReport:
    """Verifies an artefact.

    Args:
        directory: Its folder.
        trust_engine: Load the model even if it is not the one that was exported.

    Raises:
        InputError: The manifest is missing, truncated or edited.
        UnavailableError: The format's runtime is not installed.
        VerificationError: A file is missing or changed, the model is not sound or not self-contained, or its outputs differ
            from the golden ones.
    """
    return verify_loaded(load_artifact(directory, trust_engine))


def verify_loaded(loaded: LoadedArtifact) -> VerifyReport:
    """Verifies an artefact whose files have been read, as `verify_artifact` does."""
    if loaded.manifest.format == "onnx":
        _check_model(loaded)
    golden = _read_golden(loaded)
    not_run = _why_not_run(loaded)
    if not_run is None:
        parity = _compare(loaded, golden)
    else:
        parity = None
        _inspect(loaded)
    extra = sorted(path.name for path in loaded.directory.iterdir() if path.name not in (*loaded.contents, MANIFEST_FILE))
    return VerifyReport(loaded.directory, loaded.manifest, parity, not_run, tuple(extra), loaded.changed)


def bisect_artifact(directory: str | os.PathLike[str], trust_engine: bool = False) -> Departure | None:
    """The first layer whose numbers on the first golden image are not those of the export; None when all agree.

    Raises:
        InputError: The manifest is unsound, or the artefact keeps nothing of its layers: only those of ONNX do.
        UnavailableError: ONNX Runtime is not installed.
        VerificationError: A file is missing or changed, or the model has other layers than were exported.
    """
    loaded = load_artifact(directory, trust_engine)
    golden = _read_golden(loaded)
    expected = Layers.of(golden)
    _check_model(loaded)
    load_runtime(loaded.format.runtime)
    try:
        actual = sample_layers(whole_model(loaded.contents), golden["images"][:1])
    except InputError as error:
        raise VerificationError(f"{loaded.directory / MODEL_FILE} must run on {GOLDEN_FILE}, but does not: {error}") from None
    return first_different_layer(expected, actual, loaded.manifest.rounding)


def _compare(loaded: LoadedArtifact, golden: Mapping[str, NDArray[Any]]) -> Parity:
    manifest, runtime = loaded.manifest, load_runtime(loaded.format.runtime)
    what = f"{loaded.directory / next(iter(loaded.format.files))} and {GOLDEN_FILE}"
    config, found = RuntimeConfig(precision=manifest.precision), []
    for batch_size in OPEN_BATCHES if manifest.input_shape[0] is None else (None,):
        try:
            logits = run_program(runtime, config, loaded.program(batch_size), golden["images"])
        except UnavailableError:
            raise
        except Exception as error:  # the model or the golden images are at fault; runtimes' errors share no base class
            raise VerificationError(f"{loaded.directory}'s model must run on {GOLDEN_FILE}, but does not: {error}") from None
        found.append(check_parity(golden["logits"], logits, what, manifest.rounding))
    return max(found, key=lambda parity: parity.max_abs)


def _why_not_run(loaded: LoadedArtifact) -> str | None:
    """Why an engine that is built on other machines than it runs on cannot run on this one."""
    return RUNTIMES[loaded.format.runtime].availability().reason if loaded.format.built_elsewhere else None


def _inspect(loaded: LoadedArtifact) -> None:
    if loaded.format.inspect is not None:
        try:
            loaded.format.inspect(loaded.program())
        except InputError as error:
            raise VerificationError(str(error)) from None


def _check_model(loaded: LoadedArtifact) -> None:
    path = loaded.directory / MODEL_FILE
    model = read_model(loaded.contents)
    try:
        # with weights beside it, it may be too large to be checked in memory
        onnx.checker.check_model(path if WEIGHTS_FILE in loaded.contents else model, full_check=True)
    except Exception as error:  # ValidationError, or the shape inference's own
        raise VerificationError(f"{path} must be a valid ONNX model, but is not ({error}): export it again.") from None
    shapes = input_shapes(model)
    if shapes != [loaded.manifest.input_shape]:
        raise VerificationError(f"{path} must take the input {loaded.manifest.input_shape} of its manifest, but takes {shapes}: "
                                "export it again.")


def _read_golden(loaded: LoadedArtifact) -> dict[str, NDArray[Any]]:
    path = loaded.directory / GOLDEN_FILE
    try:
        with np.load(io.BytesIO(loaded.contents[GOLDEN_FILE]), allow_pickle=False) as golden:
            arrays = dict(golden)
            images, logits = arrays["images"], arrays["logits"]
    except Exception as error:  # zipfile, zlib and numpy each have their own
        raise VerificationError(f"{path} must hold the arrays 'images' and 'logits', but cannot be read ({error}): export it "
                                "again.") from None
    if images.ndim != 4 or logits.ndim != 2 or len(images) != len(logits) or not logits.size or {
            images.dtype, logits.dtype} != {np.dtype(np.float32)}:
        raise VerificationError(f"{path} must hold float32 images (N, C, H, W) and logits (N, K), but has {images.dtype} "
                                f"{images.shape} and {logits.dtype} {logits.shape}: export it again.")
    return arrays
