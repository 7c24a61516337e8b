"""LiteRT on the CPU (`litert-cpu`), formerly TensorFlow Lite, with XNNPACK's kernels: what most Android applications run.

Models are lowered here, without TensorFlow or PyTorch, and computed in channels-last. What is timed is the interpreter alone;
inputs and results are turned round outside of it, since an application has its images in channels-last to begin with.

There is no fp16: LiteRT computes in it where the processor does natively, and says nothing where it does not.
"""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from hwnas.errors import HwnasError
from hwnas.runtimes.base import (
    Availability,
    Bound,
    Executable,
    Program,
    Runtime,
    RuntimeConfig,
    Setting,
    check_inputs,
    check_precision,
    compile_refusal,
    one_line,
    probe_package,
)
from hwnas.runtimes.conversion import require_float32
from hwnas.runtimes.native_output import silent_stderr
from hwnas.runtimes.nvidia import find_module
from hwnas.runtimes.onnx_model import read_onnx

_INSTALL = "pip install ai-edge-litert"
_MODEL = "model.tflite"
_LOWERING = 1  # of what `litert_lowering` makes of a model: another number is another latency


class LiteRtCpu(Runtime):
    """XNNPACK for all that it covers, which is all that most networks have; LiteRT's own kernels for the rest."""

    name = "litert-cpu"
    precisions: tuple[str, ...] = ("fp32",)

    def can_prepare(self) -> Availability:
        for module in ("flatbuffers", "ai_edge_litert.schema_py_generated"):
            if find_module(module) is None:
                return Availability(False, reason=f"{module}, which models are written with, is not installed; run: {_INSTALL}")
        return Availability(True)

    def can_load(self) -> Availability:
        found = probe_package("ai_edge_litert", _INSTALL)
        if not found.available:
            return found
        try:
            _interpreter()
        except Exception as error:  # a broken native library may raise anything
            why = f"{type(error).__name__}: {one_line(error)}"
            return Availability(False, reason=f"ai_edge_litert does not import ({why}); reinstall it: {_INSTALL}")
        return found

    def settings(self, config: RuntimeConfig) -> dict[str, Setting]:
        check_precision(self, config)
        return {
            "delegate": "XNNPACK",
            "layout": "NHWC",
            "lowering": _LOWERING,
            "num_threads": config.threads,
        }

    def prepare(self, model: bytes | Path, config: RuntimeConfig) -> Program:
        check_precision(self, config)
        onnx_model = read_onnx(model)
        require_float32(self.name, onnx_model)
        from hwnas.runtimes.litert_lowering import lower

        try:
            return Program({_MODEL: lower(onnx_model)}, onnx_model.inputs, onnx_model.outputs)
        except HwnasError:
            raise
        except Exception as error:  # a layer may be at odds with its own input in any way
            raise compile_refusal(self, error) from None

    def load(self, program: Program, config: RuntimeConfig) -> Executable:
        check_precision(self, config)
        try:
            return _LiteRtExecutable(program, config.threads)
        except (RuntimeError, ValueError) as error:
            raise compile_refusal(self, error) from None


class _LiteRtExecutable:
    def __init__(self, program: Program, threads: int) -> None:
        self.inputs = program.inputs
        self.outputs = program.outputs
        self._content = program.files[_MODEL]
        self._threads = threads
        self._idle = [self._load()]  # an interpreter keeps its inputs, so each that is bound has one of its own

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        arrays = check_inputs(self.inputs, inputs)
        interpreter = self._idle.pop() if self._idle else self._load()
        self._set_inputs(interpreter, arrays)
        interpreter.invoke()
        results = self._read(interpreter)
        self._idle.append(interpreter)
        return results

    def bind(self, inputs: Mapping[str, np.ndarray]) -> Bound:
        arrays = check_inputs(self.inputs, inputs)
        interpreter = self._idle.pop() if self._idle else self._load()
        self._set_inputs(interpreter, arrays)
        return Bound(infer=interpreter.invoke, read_outputs=lambda: self._read(interpreter))

    def close(self) -> None:
        self._idle.clear()

    def _load(self) -> Any:
        with silent_stderr():
            interpreter = _interpreter()(model_content=self._content, num_threads=self._threads)
            interpreter.allocate_tensors()
        return interpreter

    def _set_inputs(self, interpreter: Any, arrays: Mapping[str, np.ndarray]) -> None:
        for detail, array in zip(interpreter.get_input_details(), arrays.values(), strict=True):
            interpreter.set_tensor(detail["index"], _to_channels_last(array))

    def _read(self, interpreter: Any) -> dict[str, np.ndarray]:
        details = interpreter.get_output_details()
        return {tensor.name: _to_channels_first(interpreter.get_tensor(detail["index"]))
                for tensor, detail in zip(self.outputs, details, strict=True)}


def _interpreter() -> Any:
    return import_module("ai_edge_litert.interpreter").Interpreter


def _to_channels_last(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1)) if array.ndim == 4 else array


def _to_channels_first(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array.transpose(0, 3, 1, 2)) if array.ndim == 4 else array
