"""Makes the artefact of a network: model, golden inputs and outputs, a script that runs it, and the manifest.

The folder appears whole or not at all: it is built beside its destination, under a hidden name, and renamed at the end.
Nothing is shipped unless the format's own runtime, given the very files that are shipped, and PyTorch agree on real images. Where
an engine is built that cannot run here, the model that it is built from must agree, and the manifest says what was not run.
"""

import errno
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from pydantic import ValidationError

import hwnas
from hwnas.errors import InputError, VerificationError
from hwnas.export.formats import MODEL_FILE, FormatOptions
from hwnas.export.making import Labels, Maker
from hwnas.export.manifest import (
    GOLDEN_FILE,
    MANIFEST_FILE,
    SCRIPT_FILE,
    Manifest,
    Preprocessing,
    load_manifest,
    make_manifest,
    save_manifest,
)
from hwnas.export.parity import RELATIVE_TOLERANCE, SMALLEST_SCALE
from hwnas.files import sha256_file, write_atomic
from hwnas.ir.architecture import Architecture
from hwnas.ir.network import Network
from hwnas.latency.table import Prediction
from hwnas.lower.weights import Weights


@dataclass(frozen=True)
class Artifact:
    """A finished artefact.

    Attributes:
        directory: The folder.
        manifest: What its manifest says.
    """

    directory: Path
    manifest: Manifest

    @property
    def model_path(self) -> Path:
        """The ONNX file, of the format `onnx`."""
        return self.directory / MODEL_FILE


def export_network(network: Network, weights: Weights, output_dir: str | os.PathLike[str], *, images: NDArray[np.float32],
                   name: str = "network", architecture: Architecture | None = None, batch_size: int = 1,
                   labels: Labels | None = None, preprocessing: Mapping[str, Any] | None = None, classes: Sequence[str] = (),
                   accuracy: float | None = None, budget_ms: float | None = None, prediction: Prediction | None = None,
                   options: FormatOptions | None = None, tested: tuple[NDArray[np.float32], Labels] | None = None,
                   overwrite: bool = False) -> Artifact:
    """Exports a classifier as a verified artefact.

    Args:
        network: What to export.
        weights: `{node}.{parameter}` arrays.
        output_dir: The folder to make.
        images: (N, C, H, W) float32, real ones; the model must agree with PyTorch on all of them, and they are kept as golden
            inputs. Eight are plenty. As the model takes them: preprocessed, or pixel values where it includes that.
        name: What the network is called.
        architecture: Where the network stands in its space; None for a network of no space.
        batch_size: Images in a batch, fixed in the model, as it was profiled; of no meaning where it is left open.
        labels: (N,), kept beside the golden images for whoever looks at them.
        preprocessing: `size`, `channels`, `mean` and `std`: what images must go through.
        classes: Names of the outputs.
        accuracy: Top-1 that was measured before, 0 to 1.
        budget_ms: What the latency must stay within.
        prediction: The predicted latency and its interval.
        options: Format, precision and the like; fp32 ONNX unless given.
        tested: More images as `images` is, and their labels, on which the accuracy must not suffer.
        overwrite: Replaces an artefact that is already there.

    Raises:
        InputError: An argument does not fit the network, the format does not take it, or the folder exists.
        UnavailableError: PyTorch, the format's runtime or its converter is missing.
        VerificationError: The weights or the outputs are not finite, or the model and PyTorch disagree: the message names the
            first layer that departs. No artefact is left.
    """
    options = options or FormatOptions()
    chosen = options.check()
    _check_arguments(network, images, labels, classes)
    if tested is not None:
        _check_arguments(network, *tested, classes)
    _check_finite(weights)
    maker = Maker(network, weights, options, chosen, batch_size, _preprocessing(preprocessing, options))
    with _new_folder(output_dir, overwrite) as folder:
        torch_version = maker.require_what_it_needs()
        logits = maker.run_torch(network, images)
        contents, layers = maker.make(images, logits, _metadata(name, architecture, torch_version))
        batch = None if options.dynamic_batch else batch_size
        golden = {"images": images, "logits": logits} | ({} if labels is None else {"labels": np.asarray(labels)}) | layers
        script = chosen.script(precision=options.precision, batch=batch, raw_images=options.include_preprocessing,
                               relative=RELATIVE_TOLERANCE[maker.rounding], floor=SMALLEST_SCALE)
        for file_name, data in (*contents.items(), (GOLDEN_FILE, _npz(golden)), (SCRIPT_FILE, script.encode())):
            write_atomic(folder / file_name, data)
        shipped = {file_name: (folder / file_name).read_bytes() for file_name in contents}
        manifest = make_manifest({
            "name": name,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": _versions(torch_version) | maker.runtime_version(),
            "format": options.format,
            "precision": options.precision,
            "rounding": maker.rounding,
            "compute_capabilities": list(chosen.compute_capabilities(options)),
            "version_compatible": options.version_compatible,
            "hardware_compatible": options.hardware_compatible,
            "files": {path.name: {"sha256": sha256_file(path), "size_bytes": path.stat().st_size}
                      for path in sorted(folder.iterdir())},
            "input_shape": [batch, *network.input_shape],
            "outputs": network.output_shape.channels,
            "architecture": architecture.to_dict() if architecture else None,
            "macs": network.macs,
            "parameters": network.parameters,
            "preprocessing": maker.preprocessing,
            "classes": list(classes),
            "accuracy": accuracy,
            "budget_ms": budget_ms,
            "predicted_ms": prediction.latency_ms if prediction else None,
            "predicted_lower_ms": prediction.lower_ms if prediction else None,
            "predicted_upper_ms": prediction.upper_ms if prediction else None,
            "measured_ms": None,
            "measurement": None,
            **maker.compare(shipped, images, logits, tested),
        })
        save_manifest(manifest, folder)
    return Artifact(Path(output_dir).resolve(), manifest)


def record_measurement(directory: str | os.PathLike[str], measured: Mapping[str, Any], verdict: str) -> Manifest:
    """Adds the timing of the finished model to the manifest.

    Args:
        directory: The artefact.
        measured: The fields of `MeasurementRecord` but `verdict`.
        verdict: What the statistical test said about the budget.

    Raises:
        InputError: There is no sound manifest, or a field is missing or wrong.
    """
    fields = load_manifest(directory).model_dump(exclude={"schema_", "content_sha256"})
    measurement = {**measured, "verdict": verdict}
    manifest = make_manifest(fields | {"measured_ms": measured.get("latency_ms"), "measurement": measurement})
    save_manifest(manifest, directory)
    return manifest


def _check_arguments(network: Network, images: NDArray[np.float32], labels: Labels | None, classes: Sequence[str]) -> None:
    if network.output not in network.vectors:
        raise InputError(f"An exported network ends in a linear layer, but this one gives {network.output_shape} feature "
                         "maps: add a head.")
    if images.ndim != 4 or images.shape[1:] != tuple(network.input_shape) or not len(images) or images.dtype != np.float32:
        raise InputError(f"Parity images must be float32 (N, {', '.join(map(str, network.input_shape))}) with N of at least 1, "
                         f"but are {images.dtype} {images.shape}.")
    if not np.isfinite(images).all():
        raise InputError("Parity images must be finite, but hold NaN or infinity: check the preprocessing.")
    if labels is not None and np.shape(labels) != (len(images),):
        raise InputError(f"Labels must be one for each image, but there are {np.shape(labels)} for {len(images)} images.")
    if classes and len(classes) != network.output_shape.channels:
        raise InputError(f"Classes must be one for each output, but there are {len(classes)} names for "
                         f"{network.output_shape.channels} outputs.")


def _check_finite(weights: Weights) -> None:
    # A NaN need not reach the output (max(NaN, 0) is 0 in some runtimes), so the outputs alone do not prove its absence.
    for name, array in weights.items():
        if not np.isfinite(array).all():
            raise VerificationError(f"Weights must be finite, but {name!r} holds NaN or infinity: training diverged; train "
                                    "again with a lower learning rate.")


def _preprocessing(given: Mapping[str, Any] | None, options: FormatOptions) -> Preprocessing | None:
    if given is None:
        if options.include_preprocessing:
            raise InputError("Pre-processing goes into a model as the mean and standard deviation of its data, but this one was "
                             "not trained on any: leave --include-preprocessing out.")
        return None
    try:
        return Preprocessing(**{**given, "in_model": options.include_preprocessing})
    except (ValidationError, TypeError) as error:
        raise InputError(f"Pre-processing must be size, channels, mean and std, but is {dict(given)} "
                         f"({str(error).splitlines()[0]}): correct it.") from None


def _metadata(name: str, architecture: Architecture | None, torch_version: str) -> dict[str, str]:
    """What the model says of itself, wherever it goes without its manifest."""
    properties = {"name": name, "versions": json.dumps(_versions(torch_version))}
    if architecture:
        properties |= {"space": architecture.space, "space_hash": architecture.space_hash,
                       "architecture": json.dumps(architecture.to_dict())}
    return properties


def _versions(torch_version: str) -> dict[str, str]:
    return {"hwnas": hwnas.__version__, "onnx": onnx.__version__, "torch": torch_version, "numpy": np.__version__}


def _npz(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


@contextmanager
def _new_folder(output_dir: str | os.PathLike[str], overwrite: bool) -> Iterator[Path]:
    """A hidden folder beside the destination that takes its name when the block ends without an error."""
    target = Path(output_dir).resolve()
    _check_replaceable(target, overwrite)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
    except OSError as error:
        raise InputError(f"The artefact cannot be written to {target} ({error.strerror}): choose another folder.") from None
    try:
        yield temporary
        temporary.chmod(0o755)  # mkdtemp makes folders private; an artefact is meant to be shared
        _replace(target, temporary)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check_replaceable(target: Path, overwrite: bool) -> None:
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not overwrite:
        raise InputError(f"An export makes a new folder, but {target} exists: pass --overwrite to replace it.")
    if not (target / MANIFEST_FILE).is_file():
        raise InputError(f"Only an artefact is replaced, but {target} has no {MANIFEST_FILE}: choose another folder, or "
                         "remove it yourself.")


def _replace(target: Path, finished: Path) -> None:
    retired = finished.with_suffix(".old")
    try:
        if target.exists() and any(target.iterdir()):
            os.rename(target, retired)
        os.rename(finished, target)
    except OSError as error:
        with suppress(OSError):  # where another run has put its own meanwhile, that stays
            os.rename(retired, target)
        if target.exists():
            shutil.rmtree(retired, ignore_errors=True)
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
            raise InputError(f"Another run wrote to {target} meanwhile: export again into another folder.") from None
        raise InputError(f"The artefact cannot be moved to {target} ({error.strerror}): choose a folder inside it.") from None
    shutil.rmtree(retired, ignore_errors=True)
