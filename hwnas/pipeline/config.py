"""The configuration of `hwnas compile`: one YAML file for the whole pipeline, checked whole before anything runs."""

import os
import re
import reprlib
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from hwnas.errors import InputError
from hwnas.export.certify import (
    LARGEST_CONFIDENCE,
    LARGEST_QUANTILE,
    LEAST_CONFIDENCE,
    LEAST_QUANTILE,
    CertificationPlan,
)
from hwnas.files import read_yaml
from hwnas.latency.estimates import LEAST_BLOCKS


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_value(cls, value: Any) -> Any:
        if isinstance(value, bool):  # Python would count it as 0 or 1
            raise ValueError("true, false, yes, no, on and off are no values here")
        return value


class ProfileSection(_Section):
    """How the table is measured."""

    threads: int = Field(1, ge=1)
    precision: str = "fp32"
    batch_size: int = Field(1, ge=1)
    sessions: int = Field(2, ge=1, le=50)
    blocks: int | None = Field(None, ge=LEAST_BLOCKS)  # measure so many and estimate the others
    max_minutes: float = Field(30.0, gt=0)
    table: Path | None = None  # use this table instead of measuring


class TrainSection(_Section):
    """How the supernet is trained."""

    method: str = "spos"
    sharing: str = "options"
    ranges: str = "learned"
    epochs: int = Field(30, ge=1)
    batch_size: int = Field(128, ge=2)
    learning_rate: float = Field(0.3, gt=0)
    gradient_clip: float = Field(5.0, gt=0)
    threads: int | None = Field(None, ge=1)
    device: str = "cpu"  # a PyTorch device, which scores networks, too


class SearchSection(_Section):
    """How the space is searched."""

    method: Literal["evolution", "random", "dnas"] = "evolution"
    population: int = Field(50, ge=1)
    generations: int = Field(20, ge=1)
    parents: int = Field(10, ge=1)
    mutation_probability: float = Field(0.1, gt=0, le=1)
    validation_images: int | None = Field(None, ge=1)
    calibration_images: int = Field(1024, ge=2)
    batch_norm: Literal["recalibrated", "batches"] | None = None


class ExportSection(_Section):
    """How the artefact's promise is certified."""

    quantile: float = Field(0.5, ge=LEAST_QUANTILE, le=LARGEST_QUANTILE)  # of latency over fresh sessions
    confidence: float = Field(0.95, ge=LEAST_CONFIDENCE, le=LARGEST_CONFIDENCE)
    max_sessions: int | None = Field(None, ge=1, le=10_000)  # of a certification; None for five times the fewest
    sessions: int = Field(5, ge=1, le=100)  # of each network that the result is compared with
    rounds: int = Field(3, ge=1, le=20)  # of search and export until the promise is kept

    def certification(self) -> CertificationPlan:
        """The test."""
        return CertificationPlan(self.quantile, self.confidence, self.max_sessions, self.rounds)

    @model_validator(mode="after")
    def _can_be_shown(self) -> Self:
        try:
            self.certification()
        except InputError as error:
            raise ValueError(str(error).rstrip(".")) from None
        return self


class CompileConfig(_Section):
    """Everything that `hwnas compile` needs.

    Attributes:
        space: Name, file.py:attribute or file.yaml.
        data: A dataset, as for `hwnas train --data`.
        device: A runtime of `hwnas devices`.
        max_latency_ms: The budget.
        latency_position: The budget as a place in the achievable range instead: 0 is the fastest network, 1 the slowest. For
            configurations that must make sense on any machine.
        seed: Of training, search and the random network that the result is compared with.
    """

    space: str
    data: str
    device: str = "onnxruntime-cpu"
    max_latency_ms: float | None = Field(None, gt=0)
    latency_position: float | None = Field(None, ge=0, le=1)
    seed: int = Field(0, ge=0)
    profile: ProfileSection = ProfileSection()
    train: TrainSection = TrainSection()
    search: SearchSection = SearchSection()
    export: ExportSection = ExportSection()

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        if (self.max_latency_ms is None) == (self.latency_position is None):
            raise ValueError("give one budget, either max_latency_ms or latency_position")
        return self


def load_config(path: str | os.PathLike[str], max_latency_ms: float | None = None) -> CompileConfig:
    """Reads a configuration; paths in it are relative to its own folder.

    Args:
        path: The YAML file.
        max_latency_ms: Replaces the file's budget.

    Raises:
        InputError: Unreadable, not YAML, or a field that is unknown, missing or out of range.
    """
    source = Path(path)
    document = read_yaml(source, "configuration")
    if not isinstance(document, dict):
        raise InputError(f"A configuration is a mapping with at least space, data and a budget, but {path} is not.")
    if max_latency_ms is not None:
        document = {**document, "max_latency_ms": max_latency_ms, "latency_position": None}
    try:
        return _with_paths_beside(source, CompileConfig.model_validate(document))
    except ValidationError as error:
        first = error.errors()[0]
        where = _one_line(".".join(map(str, first["loc"]))) or "its top level"
        raise InputError(f"The configuration {path} is not valid at {where}: {first['msg'].removeprefix('Value error, ')} (got "
                         f"{reprlib.repr(first['input']):.100}).") from None


def _with_paths_beside(source: Path, config: CompileConfig) -> CompileConfig:
    """The configuration with its relative paths, which start from its own folder, starting from the working directory."""
    space, table = config.space, config.profile.table
    if re.search(r"\.(ya?ml|json)(\+|$)|\.py:", space):
        space = _beside(source, space)
    kind, colon, place = config.data.partition(":")
    data = f"{kind}:{_beside(source, place)}" if colon and "?" not in kind else config.data
    profile = config.profile.model_copy(update={"table": table and Path(_beside(source, str(table)))})
    return config.model_copy(update={"space": space, "data": data, "profile": profile})


def _beside(source: Path, reference: str) -> str:
    return str(source.parent / os.path.expanduser(reference))  # an absolute one stays


def _one_line(message: object) -> str:
    return " ".join(str(message).split())
