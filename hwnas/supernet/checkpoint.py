"""Checkpoints that a kill at any moment leaves whole: tensors under new names first, then the JSON file that names them.

`state.json` holds the SHA-256 of every tensor file, so what is read back is one consistent unit or an error. Only when the
new state stands are the old files deleted.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from hwnas.errors import InputError
from hwnas.files import first_difference, read_json, write_atomic, write_json

SCHEMA = "hwnas.checkpoint/2"  # 1: 2026-11, first; 2: 2026-11, the state of every optimiser
_STATE = "state.json"


def save_checkpoint(folder: Path, step: int, document: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Replaces the folder's checkpoint.

    Args:
        folder: Holds this checkpoint and nothing else.
        step: Training steps done; part of the file names.
        document: What else belongs to the state, JSON-able.
        tensors: File stem to named tensors.
    """
    files = {}
    for stem, named in tensors.items():
        path = folder / f"{stem}-{step:09d}.safetensors"
        files[stem] = {"file": path.name, "sha256": write_tensors(path, named)}
    write_json(folder / _STATE, {"schema": SCHEMA, "step": step, "files": files, **document})
    current = {_STATE, *(entry["file"] for entry in files.values())}
    for path in folder.iterdir():  # the last state's files, and what a killed process left half-written
        if path.name not in current:
            path.unlink()


def load_checkpoint(folder: Path) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]] | None:
    """Reads the folder's checkpoint.

    Returns:
        The document and the tensors, or None where no checkpoint was ever completed.

    Raises:
        InputError: A file is missing, truncated or edited.
    """
    path = folder / _STATE
    if not path.exists():
        return None
    remedy = "start again with overwrite"
    document = read_json(path, "checkpoint")
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise InputError(f"A checkpoint has schema {SCHEMA!r}, but {path} does not: {remedy}.")
    try:
        files = {stem: (str(entry["file"]), str(entry["sha256"])) for stem, entry in document["files"].items()}
    except (AttributeError, KeyError, TypeError):
        raise InputError(f"A checkpoint names its files, but {path} does not: it was edited; {remedy}.") from None
    return document, {stem: read_tensors(folder / name, digest, remedy) for stem, (name, digest) in files.items()}


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Writes a safetensors file atomically and returns its SHA-256."""
    data = safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    write_atomic(path, data)
    return hashlib.sha256(data).hexdigest()


def read_tensors(path: Path, sha256: str, remedy: str) -> dict[str, Tensor]:
    """Reads a safetensors file that must have the given hash.

    Raises:
        InputError: It is missing, or its bytes are not those that were written.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"The weights {path} cannot be read ({error.strerror}): {remedy}.") from None
    if hashlib.sha256(data).hexdigest() != sha256:
        raise InputError(f"The weights {path} do not have the SHA-256 that was stored with them; they are truncated or were "
                         f"edited: {remedy}.")
    try:
        return safetensors.torch.load(data)
    except SafetensorError as error:
        raise InputError(f"The weights {path} are not a safetensors file ({error}): {remedy}.") from None


@torch.no_grad()
def load_state(module: nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Copies tensors into a module in place, which keeps the module's memory layout.

    Raises:
        InputError: Names or shapes are not the module's; the module is unchanged.
    """
    state = module.state_dict()
    wrong = [name for name in {**state, **tensors} if name not in state or name not in tensors
             or state[name].shape != tensors[name].shape]
    if wrong:
        raise InputError(f"The weights in {source} must be those of this network or space, but {wrong[0]!r} is missing, unknown "
                         "or of another shape: train again.")
    for name, tensor in state.items():
        tensor.copy_(tensors[name])


def optimizer_tensors(model: nn.Module, optimizers: Mapping[str, torch.optim.Optimizer]) -> dict[str, Tensor]:
    """What optimisers remember of a model's parameters (momentum, moments, step counts), as `{optimiser}/{key}/{parameter}`."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {f"{label}/{key}/{names[parameter]}": value for label, optimizer in optimizers.items()
            for parameter, state in optimizer.state.items() for key, value in state.items() if value is not None}


@torch.no_grad()
def load_optimizers(model: nn.Module, optimizers: Mapping[str, torch.optim.Optimizer], tensors: Mapping[str, Tensor]) -> None:
    """Gives optimisers back what `optimizer_tensors` took from them, to the bit and in the parameters' memory layout.

    Raises:
        KeyError: A tensor is of another optimiser or parameter.
        ValueError: A tensor has another shape than its parameter.
    """
    parameters = dict(model.named_parameters())
    for path, tensor in tensors.items():
        label, key, name = path.split("/", 2)
        parameter = parameters[name]
        group = next(each for each in optimizers[label].param_groups if any(one is parameter for one in each["params"]))
        if tensor.shape != (() if key == "step" else parameter.shape):
            raise ValueError(f"{path} has the shape {tuple(tensor.shape)}")
        if key == "step":  # a count, which PyTorch keeps on the CPU unless it is told otherwise
            value = tensor.to(parameter.device) if group.get("capturable") or group.get("fused") else tensor
        else:
            value = torch.empty_like(parameter, dtype=tensor.dtype)
            value.copy_(tensor)
        optimizers[label].state[parameter][key] = value


def require_same(stored: Mapping[str, Any], wanted: Mapping[str, Any], folder: Path) -> None:
    """Checks that a run continues what its folder holds.

    Raises:
        InputError: Naming the first key that differs, and both values.
    """
    difference = first_difference({key: stored.get(key) for key in wanted}, json.loads(json.dumps(wanted)))
    if difference is not None:
        key, before, now = difference
        raise InputError(f"Training continues only with what it began with, but {key} was {before!r} in {folder} and is now "
                         f"{now!r}: restore it, choose another folder, or start again with overwrite.")
