"""ncnn on the CPU (`ncnn-cpu`): models converted by pnnx, whose version is part of the runtime's.

ncnn keeps images of a batch apart from the other dimensions, and mostly computes them one after another: a batch costs
about as much as its images alone. Every inference needs an extractor of its own, some 7 microseconds of each call.

There is no bf16, though ncnn has it: on x86 its release of 2026-10-20 computes grouped convolutions, and depthwise ones of an
odd number of channels, to values that are plainly wrong.
"""

import importlib.util
import os
import re
from collections.abc import Mapping
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from hwnas.errors import UnavailableError
from hwnas.runtimes.base import (
    Availability,
    Bound,
    Executable,
    Program,
    RuntimeConfig,
    Setting,
    TensorInfo,
    check_inputs,
    check_precision,
    probe_package,
)
from hwnas.runtimes.conversion import Converter, ConvertingRuntime, refusal, require_float32
from hwnas.runtimes.onnx_model import read_onnx
from hwnas.runtimes.program_files import files_on_disk

_INSTALL = "pip install ncnn pnnx"
# Half precision where the processor has it: on x86 tensors are stored so, on ARM they are computed so as well.
_HALF = {"fp32": False, "fp16": True}

_GRAPH, _WEIGHTS, _EXAMPLE = "model.ncnn.param", "model.ncnn.bin", "model_ncnn.py"
# Weights in float32, each precision rounds them itself; and no files for anything but ncnn.
_PNNX_ARGUMENTS = ("model.onnx", "fp16=0", *(f"{part}={os.devnull}" for part in ("pnnxbin", "pnnxonnx", "pnnxpy", "pnnxparam")))


class NcnnCpu(ConvertingRuntime):
    """ncnn's kernels with its default choice of algorithms and layouts.

    Args:
        converter_timeout_s: How long pnnx may take for one model.
    """

    name = "ncnn-cpu"
    precisions: tuple[str, ...] = tuple(_HALF)

    def __init__(self, converter_timeout_s: float = 120.0) -> None:
        self._converter_timeout_s = converter_timeout_s

    def can_prepare(self) -> Availability:
        if not _pnnx_program().is_file():
            return Availability(False, reason=f"pnnx, which converts models for it, is not installed; run: {_INSTALL}")
        return Availability(True, version=f"pnnx {_pnnx_version()}")

    def can_load(self) -> Availability:
        return probe_package("ncnn", _INSTALL)

    def settings(self, config: RuntimeConfig) -> dict[str, Setting]:
        check_precision(self, config)
        half = _HALF[config.precision]
        return {
            "use_fp16_storage": half,  # left alone, these three are on
            "use_fp16_packed": half,
            "use_fp16_arithmetic": half,
            "use_bf16_storage": False,
            "use_bf16_packed": False,
            "num_threads": config.threads,
            "lightmode": True,
            "use_packing_layout": True,
            "use_sgemm_convolution": True,
            "use_winograd_convolution": True,
            "use_vulkan_compute": False,
        }

    def prepare(self, model: bytes | Path, config: RuntimeConfig) -> Program:
        check_precision(self, config)
        onnx_model = read_onnx(model)
        require_float32(self.name, onnx_model)
        files = self._converter().convert(_for_pnnx(onnx_model.content))
        return Program(files, onnx_model.inputs, onnx_model.outputs)

    def load(self, program: Program, config: RuntimeConfig) -> Executable:
        settings = self.settings(config)
        try:
            return _NcnnExecutable(_load(program, settings), program)
        except _RefusalError as error:
            raise refusal(self.name, str(error)) from None

    def _converter(self) -> Converter:
        return Converter(self.name, _pnnx_version(), (str(_pnnx_program()),), _PNNX_ARGUMENTS,
                         (_GRAPH, _WEIGHTS, _EXAMPLE), self._converter_timeout_s)


class _RefusalError(Exception):
    """Why ncnn does not run a model."""


class _NcnnExecutable:
    def __init__(self, net: Any, program: Program) -> None:
        self.inputs = program.inputs
        self.outputs = program.outputs
        self._net = net
        self._input_blobs = [f"in{index}" for index in range(len(program.inputs))]  # pnnx gives blobs names of its own
        self._output_blobs = [f"out{index}" for index in range(len(program.outputs))]
        example = program.files.get(_EXAMPLE)  # a model that was shipped comes without: the batch is its first dimension
        self._batch_axes = (dict.fromkeys((*self._input_blobs, *self._output_blobs), 0) if example is None
                            else _batch_axes(example))
        self._try_out()

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        bound = self.bind(inputs)
        bound()
        return bound.read_outputs()

    def bind(self, inputs: Mapping[str, np.ndarray]) -> Bound:
        arrays = check_inputs(self.inputs, inputs)
        mats = {blob: self._to_mat(blob, array) for blob, array in zip(self._input_blobs, arrays.values(), strict=True)}
        results: list[Any] = []
        return Bound(infer=partial(_infer, self._net, mats, self._output_blobs, results),
                     read_outputs=partial(self._read, results))

    def close(self) -> None:
        if self._net is not None:
            self._net.clear()
        self._net = None

    def _try_out(self) -> None:
        """Runs once, since only that shows whether ncnn can compute the model, and agrees on its shapes."""
        if set(self._batch_axes) != {*self._input_blobs, *self._output_blobs}:
            raise _RefusalError("pnnx made other inputs or outputs of it")
        bound = self.bind({tensor.name: np.zeros(tensor.shape, np.float32) for tensor in self.inputs})
        try:
            bound()
            bound.read_outputs()
        except UnavailableError:
            raise _RefusalError("its inference fails") from None
        except ValueError as error:
            raise _RefusalError(str(error)) from None

    def _to_mat(self, blob: str, array: np.ndarray) -> Any:
        import ncnn

        return ncnn.Mat(np.atleast_1d(array), batch_index=self._batch_axes[blob]).clone()

    def _read(self, results: list[Any]) -> dict[str, np.ndarray]:
        return {tensor.name: self._to_array(tensor, blob, mat)
                for tensor, blob, mat in zip(self.outputs, self._output_blobs, results, strict=True)}

    def _to_array(self, tensor: TensorInfo, blob: str, mat: Any) -> np.ndarray:
        array = np.array(mat.numpy(batch_index=self._batch_axes[blob]))
        if _without_ones(array.shape) != _without_ones(tensor.shape):
            raise ValueError(f"output {tensor.name!r} has the shape {array.shape} there instead of {tensor.shape}")
        return array.reshape(tensor.shape)


def _for_pnnx(content: bytes) -> bytes:
    """States the default mode of each `Pad`, without which pnnx leaves the operator as it is."""
    if b"Pad" not in content:
        return content
    import onnx

    model = onnx.load_from_string(content)
    for node in model.graph.node:
        if node.op_type == "Pad" and not any(attribute.name == "mode" for attribute in node.attribute):
            node.attribute.append(onnx.helper.make_attribute("mode", "constant"))
    return model.SerializeToString(deterministic=True)


def _infer(net: Any, mats: Mapping[str, Any], output_blobs: list[str], results: list[Any]) -> None:
    extractor = net.create_extractor()
    for blob, mat in mats.items():
        extractor.input(blob, mat)
    results.clear()
    for blob in output_blobs:
        status, mat = extractor.extract(blob)
        if status != 0:
            raise UnavailableError(f"ncnn's inference failed with code {status}: free some memory and try again.")
        results.append(mat)


def _load(program: Program, settings: Mapping[str, Setting]) -> Any:
    import ncnn

    graph = program.files[_GRAPH].decode(errors="replace")
    operators = [line.split()[0] for line in graph.splitlines()[2:] if line.strip()]
    unknown = sorted({operator for operator in operators if ncnn.layer_to_index(operator) < 0})
    if unknown:
        raise _RefusalError(f"ncnn has no {', '.join(unknown)}")
    net = ncnn.Net()
    for option, value in settings.items():
        setattr(net.opt, option, value)
    with files_on_disk(program, (_GRAPH, _WEIGHTS)) as folder:  # from memory, ncnn reads without knowing where it ends
        if net.load_param(str(folder / _GRAPH)) != 0 or net.load_model(str(folder / _WEIGHTS)) != 0:
            raise _RefusalError("ncnn does not load what pnnx made of it")
    return net


def _batch_axes(example: bytes) -> dict[str, int]:
    """Which dimension of each blob is the batch, or ncnn's number for none; only pnnx's example in Python tells."""
    text = example.decode(errors="replace")
    return {blob: int(axis) for blob, axis in re.findall(r"\b((?:in|out)\d+)\.numpy\((?:\), )?batch_index=(\d+)\)", text)}


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def _pnnx_version() -> str:
    try:
        return metadata.version("pnnx")
    except metadata.PackageNotFoundError:
        return "of unknown version"


def _pnnx_program() -> Path:
    try:
        spec = importlib.util.find_spec("pnnx")  # not imported: it would import torch
    except ImportError:
        spec = None
    folders = list(spec.submodule_search_locations or ()) if spec else []
    return Path(folders[0] if folders else "", "pnnx.exe" if os.name == "nt" else "pnnx")
