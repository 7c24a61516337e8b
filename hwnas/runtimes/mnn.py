"""MNN on the CPU (`mnn-cpu`).

Models are converted by the native module that MNN's `mnnconvert` wraps, never by `mnnconvert` itself or `MNN.tools`: these
install packages with pip whenever they start, and report what they converted to MNN's makers.

The lower precisions that MNN has on ARM change nothing on x86, so there is fp32 only.
"""

import importlib
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
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
    one_line,
    probe_package,
)
from hwnas.runtimes.conversion import Converter, ConvertingRuntime, refusal, require_float32
from hwnas.runtimes.native_output import captured_stdout
from hwnas.runtimes.onnx_model import read_onnx
from hwnas.runtimes.program_files import files_on_disk

_MODEL = "model.mnn"
_CONVERT = "import sys, _tools; _tools.mnnconvert(sys.argv)"
_ARGUMENTS = ("-f", "ONNX", "--modelFile", "model.onnx", "--MNNModel", _MODEL, "--bizCode", "hwnas")


class MnnCpu(ConvertingRuntime):
    """MNN's CPU backend through its module interface.

    Args:
        converter_timeout_s: How long its converter may take for one model.
    """

    name = "mnn-cpu"
    precisions: tuple[str, ...] = ("fp32",)

    def __init__(self, converter_timeout_s: float = 120.0) -> None:
        self._converter_timeout_s = converter_timeout_s

    def can_prepare(self) -> Availability:
        return replace(self.can_load(), version=None)  # the converter is a part of the package

    def can_load(self) -> Availability:
        try:
            return Availability(True, version=_import_mnn().version())
        except Exception:  # a broken native library may raise anything
            with captured_stdout():
                return probe_package("MNN", "pip install MNN")

    def settings(self, config: RuntimeConfig) -> dict[str, Setting]:
        check_precision(self, config)
        return {"backend": "CPU", "numThread": config.threads, "precision": "normal", "memory": "normal", "power": "normal"}

    def prepare(self, model: bytes | Path, config: RuntimeConfig) -> Program:
        check_precision(self, config)
        onnx_model = read_onnx(model)
        require_float32(self.name, onnx_model)
        return Program(self._converter().convert(onnx_model.content), onnx_model.inputs, onnx_model.outputs)

    def load(self, program: Program, config: RuntimeConfig) -> Executable:
        settings = self.settings(config)
        with captured_stdout() as printed:
            try:
                return _MnnExecutable(program, settings)
            except _RefusalError as error:
                said = printed().strip()
                reason = _RefusalError(f"{error}; MNN says:\n{said}") if said else error
                raise refusal(self.name, one_line(reason)) from None

    def _converter(self) -> Converter:
        return Converter(self.name, _import_mnn().version(), (sys.executable, "-c", _CONVERT), _ARGUMENTS, (_MODEL,),
                         self._converter_timeout_s)


class _RefusalError(Exception):
    """Why MNN does not run a model."""


class _MnnExecutable:
    def __init__(self, program: Program, settings: dict[str, Setting]) -> None:
        nn = _import_mnn().nn
        self.inputs = program.inputs
        self.outputs = program.outputs
        manager = nn.create_runtime_manager((settings,))
        names = [[tensor.name for tensor in tensors] for tensors in (program.inputs, program.outputs)]
        with files_on_disk(program, (_MODEL,)) as folder:
            try:
                self._module = nn.load_module_from_file(str(folder / _MODEL), *names, runtime_manager=manager)
            except SystemError:  # how MNN's binding reports any failure; the reason is printed
                raise _RefusalError("its file does not load") from None
        self._try_out()

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        bound = self.bind(inputs)
        bound()
        return bound.read_outputs()

    def bind(self, inputs: Mapping[str, np.ndarray]) -> Bound:
        variables = [_to_variable(array) for array in check_inputs(self.inputs, inputs).values()]
        results: list[Any] = []
        return Bound(infer=partial(_infer, self._module, variables, results), read_outputs=partial(self._read, results))

    def close(self) -> None:
        self._module = None

    def _try_out(self) -> None:
        """Runs once, since only that shows whether MNN can compute the model, and agrees on its shapes."""
        bound = self.bind({tensor.name: np.zeros(tensor.shape, np.float32) for tensor in self.inputs})
        try:
            bound()
            bound.read_outputs()
        except UnavailableError:
            raise _RefusalError("its inference fails") from None
        except ValueError as error:
            raise _RefusalError(str(error)) from None

    def _read(self, results: list[Any]) -> dict[str, np.ndarray]:
        return {tensor.name: _to_array(tensor, result) for tensor, result in zip(self.outputs, results, strict=True)}


def _infer(module: Any, variables: list[Any], results: list[Any]) -> None:
    results[:] = module.onForward(variables)
    if not results:
        raise UnavailableError("MNN's inference failed: free some memory and try again.")


def _to_variable(array: np.ndarray) -> Any:
    """A copy of an array as MNN's variable in the (N, C, H, W) layout."""
    expr = _import_mnn().expr
    variable = expr.placeholder(list(array.shape), expr.NCHW)
    variable.write(array)
    return variable


def _to_array(tensor: TensorInfo, result: Any) -> np.ndarray:
    array = np.array(result.read())
    if array.shape != tensor.shape:
        raise ValueError(f"output {tensor.name!r} has the shape {array.shape} there instead of {tensor.shape}")
    return array


def _import_mnn() -> Any:
    """Imports MNN, which prints the processor's features when it is loaded."""
    if "MNN" in sys.modules:
        return sys.modules["MNN"]
    with captured_stdout():
        return importlib.import_module("MNN")
