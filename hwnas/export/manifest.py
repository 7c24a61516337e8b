"""The manifest of an artefact: what the network is, what was promised, what was found, and a hash of every file."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from hwnas.errors import InputError
from hwnas.export.formats import FORMATS
from hwnas.files import content_sha256, read_json, write_json
from hwnas.runtimes import RUNTIMES

# 1: 2026-11, first. 2: 2026-11, formats and precisions, numbers that could not be compared, the test behind a verdict.
SCHEMA = "hwnas.artifact/2"
MANIFEST_FILE = "manifest.json"
GOLDEN_FILE = "golden.npz"
SCRIPT_FILE = "run.py"

FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]  # never another folder
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Size = Annotated[int, Field(ge=1)]
PositiveMs = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class FileRecord(_Record):
    """A file of the artefact."""

    sha256: Sha256
    size_bytes: int = Field(ge=0)


class Preprocessing(_Record):
    """How an image becomes the model's input: scaled to 0..1, then `(pixel - mean) / std` for each channel.

    Attributes:
        size: Height and width in pixels.
        channels: Order of the channels: `RGB`, `BGR`, `L` (grey) or any other that the user's data has.
        mean: Per channel.
        std: Per channel.
        in_model: The model does this itself, and takes pixel values from 0 to 255; only the size is left to its user.
    """

    size: tuple[int, int]
    channels: str
    mean: tuple[float, ...]
    std: tuple[Annotated[float, Field(gt=0)], ...]
    in_model: bool = False


class MeasurementRecord(_Record):
    """Timing of the finished model on its target, paired with the anchor.

    Attributes:
        latency_ms: Ratio times the anchor's latency.
        lower_ms: Lower end of the confidence interval.
        upper_ms: Upper end.
        ratio: Latency in units of the anchor's.
        ratio_lower: Lower end of the ratio's confidence interval.
        ratio_upper: Upper end.
        sessions: Ratios, pair by pair, for every fresh session.
        environment: Device, runtime, versions, threads, precision and flags.
        verdict: What the statistical test said about the budget: `kept`, `broken`, `undecided`, or `no budget`.
        quantile: Of latency over sessions that the budget is for; this and what follows is None where there was no budget.
        confidence: Of the test, in all rounds that it was planned for together.
        observations: Sessions that it looked at.
        above: How many of them were above the budget.
        certifiable_ms: The least budget that these sessions would have shown kept.
    """

    latency_ms: PositiveMs
    lower_ms: float
    upper_ms: PositiveMs
    ratio: Annotated[float, Field(gt=0)]
    ratio_lower: float
    ratio_upper: Annotated[float, Field(gt=0)]
    sessions: tuple[tuple[float, ...], ...]
    environment: dict[str, Any]
    verdict: str
    quantile: Annotated[float, Field(gt=0, lt=1)] | None = None
    confidence: Annotated[float, Field(gt=0, lt=1)] | None = None
    observations: Annotated[int, Field(ge=1)] | None = None
    above: Annotated[int, Field(ge=0)] | None = None
    certifiable_ms: PositiveMs | None = None


class Manifest(_Record):
    """The file `manifest.json`, field by field.

    Attributes:
        name: What the network is called.
        created: UTC time of the export, ISO 8601.
        versions: Package or runtime to version, of everything that took part.
        format: What the model is, one of `hwnas.export.formats.FORMATS`.
        precision: What its runtime computes in.
        rounding: The coarsest arithmetic in it, by which its numbers are compared: its precision, or what it rounds to itself.
        compute_capabilities: The GPUs that an engine was built for ahead of time.
        version_compatible: Later versions of TensorRT load the engine, too.
        hardware_compatible: The other GPUs that run an engine of TensorRT, too; None for those like the one it was built on.
        files: File name to hash and size; all files but the manifest itself.
        input_shape: (N, C, H, W) of the model's one input, `images`, in float32; None for N where any number goes.
        outputs: Numbers that come out for an image: `logits` is (N, outputs) in float32.
        architecture: The architecture file's content; None for a network of no space.
        macs: Multiply-accumulates for one image.
        parameters: All learnable parameters.
        preprocessing: What the input must have gone through; None where no dataset was given.
        classes: Names of the outputs, empty where unknown.
        accuracy: Top-1 on the data that the exporter named, 0 to 1.
        budget_ms: What the latency had to stay within.
        predicted_ms: Predicted latency, with `predicted_lower_ms` and `predicted_upper_ms`.
        measured_ms: Measured latency of this very model; `measurement` has the details.
        parity: `agrees`: the model's own runtime gave PyTorch's numbers on the golden images; or `not run`, and why. Then the
            next four are None.
        parity_max_abs: Largest difference.
        parity_tolerance: What it had to stay within.
        parity_top1_agreement: Share of golden images on which both choose the same class.
        parity_accuracy_difference: Top-1 of the model minus that of PyTorch on images with labels; None where there were none.
        content_sha256: Covers everything else in the manifest.
    """

    schema_: Literal["hwnas.artifact/2"] = Field(alias="schema")
    name: str
    created: str
    versions: dict[str, str]
    format: str
    precision: str
    rounding: Literal["fp32", "fp16", "int8", "bf16"]
    compute_capabilities: tuple[str, ...]
    version_compatible: bool = False
    hardware_compatible: str | None = None
    files: dict[FileName, FileRecord]
    input_shape: tuple[Size | None, Size, Size, Size]
    outputs: Size
    architecture: dict[str, Any] | None
    macs: int = Field(ge=0)
    parameters: int = Field(ge=0)
    preprocessing: Preprocessing | None
    classes: tuple[str, ...]
    accuracy: Share | None
    budget_ms: PositiveMs | None
    predicted_ms: PositiveMs | None
    predicted_lower_ms: Annotated[float, Field(ge=0)] | None
    predicted_upper_ms: PositiveMs | None
    measured_ms: PositiveMs | None
    measurement: MeasurementRecord | None
    parity: Annotated[str, StringConstraints(pattern=r"^(agrees$|not run: .)")]
    parity_max_abs: Annotated[float, Field(ge=0)] | None
    parity_tolerance: Annotated[float, Field(gt=0)] | None
    parity_top1_agreement: Share | None
    parity_accuracy_difference: Annotated[float, Field(ge=-1, le=1)] | None
    content_sha256: Sha256

    @model_validator(mode="after")
    def _check_files(self) -> Self:
        chosen = FORMATS.get(self.format)
        if chosen is None or self.precision not in RUNTIMES[chosen.runtime].precisions:
            raise ValueError(f"there is no format {self.format!r} in {self.precision!r}")
        required = [name for name in chosen.files if name not in chosen.optional]
        missing = [name for name in (*required, GOLDEN_FILE) if name not in self.files]
        if missing:
            raise ValueError(f"{missing[0]} is not listed")
        compared = (self.parity_max_abs, self.parity_tolerance, self.parity_top1_agreement)
        if (self.parity == "agrees") != all(one is not None for one in compared) or (
                self.parity != "agrees" and any(one is not None for one in (*compared, self.parity_accuracy_difference))):
            raise ValueError("parity is 'agrees' with its figures, or 'not run' without")
        if MANIFEST_FILE in self.files:
            raise ValueError(f"{MANIFEST_FILE} cannot list itself")
        return self


def make_manifest(content: Mapping[str, Any]) -> Manifest:
    """Makes a manifest from its fields, without `schema` and `content_sha256`.

    Raises:
        InputError: A field is missing, unknown or not of its type.
    """
    placeholder = {**content, "schema": SCHEMA, "content_sha256": "0" * 64}
    document = _validate(placeholder, "The manifest").model_dump(mode="json", by_alias=True)
    return _validate(document | {"content_sha256": content_sha256(document)}, "The manifest")


def load_manifest(directory: str | os.PathLike[str]) -> Manifest:
    """Reads the manifest of an artefact.

    Raises:
        InputError: It is missing, truncated, edited, or of another schema.
    """
    path = Path(directory) / MANIFEST_FILE
    document = read_json(path, "artefact manifest")
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        found = document.get("schema") if isinstance(document, dict) else type(document).__name__
        raise InputError(f"A manifest has the schema {SCHEMA!r}, but {path} has {found!r}: export again.")
    manifest = _validate(document, f"The manifest {path}")
    if manifest.content_sha256 != content_sha256(document):
        raise InputError(f"A manifest matches its own content_sha256, but {path} does not: it was edited; export again.")
    return manifest


def save_manifest(manifest: Manifest, directory: str | os.PathLike[str]) -> Path:
    """Writes the manifest into an artefact, atomically."""
    return write_json(Path(directory) / MANIFEST_FILE, manifest.model_dump(mode="json", by_alias=True))


def _validate(document: Mapping[str, Any], what: str) -> Manifest:
    try:
        return Manifest.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "files"
        raise InputError(f"{what} must be a whole {SCHEMA!r} document, but {where!r} is wrong ({first['msg']}): it was edited "
                         "or made from wrong arguments; export again.") from None
