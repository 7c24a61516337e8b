"""A program as files in a folder and one JSON document, as it might travel; imports no more than a device has."""

import json
from pathlib import Path

import numpy as np

from hwnas.runtimes.base import Program, TensorInfo


def ship(program: Program, folder: Path) -> None:
    for name, content in program.files.items():
        (folder / name).write_bytes(content)
    ends = [[(tensor.name, tensor.shape, tensor.dtype.str) for tensor in end] for end in (program.inputs, program.outputs)]
    (folder / "ends.json").write_text(json.dumps(ends))


def receive(folder: Path) -> Program:
    inputs, outputs = (tuple(TensorInfo(name, tuple(shape), np.dtype(dtype)) for name, shape, dtype in end)
                       for end in json.loads((folder / "ends.json").read_text()))
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "ends.json"}
    return Program(files, inputs, outputs)
