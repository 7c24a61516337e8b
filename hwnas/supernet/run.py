"""A training run and its folder: `{kind}.safetensors`, `{kind}.json`, `logs/` if asked for, and `checkpoint/` until it is
finished."""

import dataclasses
import hashlib
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from hwnas.data import Dataset
from hwnas.errors import InputError
from hwnas.files import locked, read_json, write_json
from hwnas.supernet.checkpoint import read_tensors, require_same, write_tensors
from hwnas.supernet.config import LoopConfig
from hwnas.supernet.distributed import Group, joined
from hwnas.supernet.loop import ProgressCallback, Task, run_loop


@dataclass(frozen=True)
class TrainResult:
    """A finished run.

    Attributes:
        output_dir: Its folder.
        steps: Training steps in all.
        epoch_losses: Mean training loss of each epoch.
        seconds: Time spent training, all sessions together.
        images_per_second: Training throughput over that time.
        already_trained: The folder held the finished run, and nothing was computed.
    """

    output_dir: Path
    steps: int
    epoch_losses: tuple[float, ...]
    seconds: float
    images_per_second: float
    already_trained: bool = False


@dataclass(frozen=True)
class Run:
    """Where a run lives and what it is.

    Attributes:
        folder: Its folder.
        kind: "supernet" or "network": stem of its files and part of their schema.
        identity: What a later session must share with this one to continue it, JSON-able.
        header: What else its file tells the next stage, JSON-able.
        derived: Names of files that its caller makes from a finished run; they go when it is overwritten.
    """

    folder: Path
    kind: str
    identity: dict[str, Any]
    header: dict[str, Any]
    derived: tuple[str, ...] = ()

    @property
    def document_path(self) -> Path:
        return self.folder / f"{self.kind}.json"

    @property
    def checkpoint_folder(self) -> Path:
        return self.folder / "checkpoint"

    @property
    def log_folder(self) -> Path:
        return self.folder / "logs"

    def execute(self, task: Task, dataset: Dataset, config: LoopConfig, overwrite: bool,
                progress: ProgressCallback | None) -> TrainResult:
        """Starts, continues, or merely reports the run, whichever its folder calls for.

        Under `torchrun` every process calls this; the first one writes, and keeps runs of others out of the folder meanwhile.

        Raises:
            InputError: The folder holds another run or damaged files, or another process is training into it.
            UnavailableError: The device or another process is not usable here.
            VerificationError: Training diverged.
        """
        reports = self.document_path.exists() and not overwrite  # which needs no lock, and no folder that can be written
        with joined(config.device) as group, (
                locked(self.document_path, self.kind) if group.is_first and not reports else nullcontext()):
            return self._execute(task, dataset, config, overwrite, progress, group)

    def _execute(self, task: Task, dataset: Dataset, config: LoopConfig, overwrite: bool, progress: ProgressCallback | None,
                 group: Group) -> TrainResult:
        if overwrite and group.is_first:
            self._clear()
        group.wait()  # until the folder is what all may read
        if self.document_path.exists():
            document = read_run_document(self.folder, self.kind)
            require_same(document, self.identity, self.folder)
            return self._result(document, already_trained=True)
        state = run_loop(task, dataset, config, {"kind": self.kind, **self.identity}, self.checkpoint_folder, progress,
                         log_folder=self.log_folder, group=group)
        images = state.step * config.batch_size
        document = {"schema": _schema(self.kind), **self.header, **self.identity, "execution": dataclasses.asdict(config),
                    "steps": state.step, "epoch_losses": state.epoch_losses, "seconds": state.seconds,
                    "images_per_second": images / max(state.seconds, 1e-9)}
        if group.is_first:
            weights = self.folder / f"{self.kind}.safetensors"
            document |= {"weights": weights.name, "sha256": write_tensors(weights, task.model.state_dict())}
            write_json(self.document_path, document)
            shutil.rmtree(self.checkpoint_folder, ignore_errors=True)
        group.wait()  # a process that ends early would end the others
        return self._result(document)

    def _clear(self) -> None:
        """Deletes an earlier run's files and no others; first the one without which it is not a finished run."""
        self.document_path.unlink(missing_ok=True)
        for name in (f"{self.kind}.safetensors", *self.derived):
            (self.folder / name).unlink(missing_ok=True)
        shutil.rmtree(self.checkpoint_folder, ignore_errors=True)
        for log in self.log_folder.glob("events.out.tfevents.*"):
            log.unlink()

    def _result(self, document: Mapping[str, Any], already_trained: bool = False) -> TrainResult:
        try:
            return TrainResult(self.folder, document["steps"], tuple(document["epoch_losses"]), document["seconds"],
                               document["images_per_second"], already_trained)
        except (KeyError, TypeError):
            raise InputError(f"{self.document_path} lacks a key of a finished run: it was edited; start again with "
                             "overwrite.") from None


def read_run_document(folder: Path, kind: str) -> dict[str, Any]:
    """Reads `{kind}.json`.

    Raises:
        InputError: It is missing, or not the document of a finished run.
    """
    path = folder / f"{kind}.json"
    if not path.exists() and (folder / "checkpoint").is_dir():
        raise InputError(f"The {kind} in {folder} must be fully trained, but only has a checkpoint: train again with the same "
                         "arguments, which continues it.")
    document = read_json(path, kind)
    if not isinstance(document, dict) or document.get("schema") != _schema(kind):
        raise InputError(f"A trained {kind} has schema {_schema(kind)!r}, but {path} does not: train it again.")
    return document


def read_run_weights(folder: Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Reads a finished run's document and weights.

    Raises:
        InputError: A file is missing, truncated or edited.
    """
    document = read_run_document(folder, kind)
    return document, read_tensors(folder / f"{kind}.safetensors", str(document.get("sha256")),
                                  "train it again with overwrite")


def data_identity(dataset: Dataset) -> dict[str, Any]:
    """What makes two training sets the same: shapes, and the bytes of images and labels."""
    digest = hashlib.sha256(np.ascontiguousarray(dataset.train.images).data)
    digest.update(np.ascontiguousarray(dataset.train.labels).data)
    return {"name": dataset.name, "input_shape": list(dataset.input_shape), "num_classes": dataset.num_classes,
            "train_images": len(dataset.train), "train_sha256": digest.hexdigest()}


def require_same_data(info: Mapping[str, Any], dataset: Dataset) -> None:
    """Checks that a dataset's training images are those a run was trained on, so that none of them scores a candidate.

    Raises:
        InputError: They are not; the message names what differs.
    """
    stored = info["data"] if isinstance(info.get("data"), Mapping) else {}
    for key, now in data_identity(dataset).items():
        if stored.get(key) != now:
            raise InputError(f"The dataset must be the one that was trained on, but its {key} was {stored.get(key)!r} and is now "
                             f"{now!r}: load it with the arguments that were used for training.")


def _schema(kind: str) -> str:
    return f"hwnas.{kind}/1"  # 1: 2026-11, first
