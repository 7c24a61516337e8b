"""ExecuTorch on the CPU (`executorch-cpu`), with XNNPACK's kernels: what PyTorch offers phones and other small devices.

Lowering a model takes seconds, so programs are kept in the cache of converted models. Only lowering imports ExecuTorch's
compiler, which takes longer still; to load a program needs nothing but ExecuTorch's runtime, and PyTorch for its bindings.

The process has one pool of threads. To resize it is deadly for programs that were loaded before, which is why all that are
open at a time must have the same number of threads.
"""

import json
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import numpy as np

from hwnas.errors import HwnasError, InputError
from hwnas.runtimes.base import (
    Availability,
    Bound,
    Executable,
    Program,
    RuntimeConfig,
    Setting,
    check_inputs,
    check_precision,
    compile_refusal,
    one_line,
    probe_package,
    with_converter,
)
from hwnas.runtimes.conversion import Converter, ConvertingRuntime
from hwnas.runtimes.native_output import silent_stderr
from hwnas.runtimes.onnx_model import read_onnx
from hwnas.runtimes.torch_arrays import to_arrays, to_torch

_INSTALL = "pip install executorch torch"
_NOT_INSTALLED = f"executorch is not installed; run: {_INSTALL}"
_DTYPES = {"fp32": "float32", "fp16": "float16"}
_PROGRAM, _PORTABLE = "model.pte", "portable.json"
_LOWERING = 1  # of what `executorch_lowering` makes of a model: another number makes older programs in caches void


class ExecuTorchCpu(ConvertingRuntime):
    """XNNPACK for all that it covers; ExecuTorch's own kernels for the rest, which an executable lists as `portable`."""

    name = "executorch-cpu"
    precisions: tuple[str, ...] = tuple(_DTYPES)

    def can_prepare(self) -> Availability:
        found = probe_package("torch", _INSTALL)
        if not found.available:
            return found
        try:
            metadata.version("executorch")
        except metadata.PackageNotFoundError:
            return Availability(False, reason=_NOT_INSTALLED)
        return Availability(True, version=f"torch {found.version}")

    def can_load(self) -> Availability:
        torch_found = probe_package("torch", _INSTALL)
        if not torch_found.available:
            return torch_found
        try:
            _pybindings()
            version = metadata.version("executorch")
        except ModuleNotFoundError:
            return Availability(False, reason=_NOT_INSTALLED)
        except Exception as error:  # a broken native library may raise anything
            why = f"{type(error).__name__}: {one_line(error)}"
            return Availability(False, reason=f"executorch is installed but does not import ({why}); reinstall it: {_INSTALL}")
        return Availability(True, version=version)

    def settings(self, config: RuntimeConfig) -> dict[str, Setting]:
        check_precision(self, config)
        return {
            "backend": "XnnpackBackend",
            "dtype": _DTYPES[config.precision],
            "lowering": _LOWERING,
            "threadpool_threads": config.threads,
        }

    def prepare(self, model: bytes | Path, config: RuntimeConfig) -> Program:
        check_precision(self, config)
        onnx_model = read_onnx(model)
        version = with_converter(metadata.version("executorch"), self.can_prepare().version)
        lowering = _Lowering(self.name, version, (), (_DTYPES[config.precision], f"{_LOWERING}"), (_PROGRAM, _PORTABLE))
        try:
            return Program(lowering.convert(onnx_model.content), onnx_model.inputs, onnx_model.outputs)
        except HwnasError:
            raise
        except Exception as error:  # exporting runs through a good part of PyTorch, and may raise anything
            raise compile_refusal(self, error) from None

    def load(self, program: Program, config: RuntimeConfig) -> Executable:
        check_precision(self, config)
        try:
            return _ExecuTorchExecutable(program, config.threads)
        except (RuntimeError, ValueError) as error:
            raise compile_refusal(self, error) from None


@dataclass(frozen=True)
class _Lowering(Converter):
    """A conversion in this process, because loading what lowers takes longer than lowering."""

    def _run(self, folder: Path) -> None:
        import torch

        from hwnas.runtimes.executorch_lowering import lower

        lowered = lower(read_onnx(folder / "model.onnx"), getattr(torch, self.arguments[0]))
        (folder / _PROGRAM).write_bytes(lowered.program)
        (folder / _PORTABLE).write_text(json.dumps(lowered.portable))


class _ExecuTorchExecutable:
    """A program.

    Attributes:
        portable: Operators outside of XNNPACK, each as often as it occurs; usually slow. None where a program was shipped
            without their list.
    """

    def __init__(self, program: Program, threads: int) -> None:
        self.inputs = program.inputs
        self.outputs = program.outputs
        listed = program.files.get(_PORTABLE)
        self.portable: tuple[str, ...] | None = None if listed is None else tuple(json.loads(listed))
        self._content = program.files[_PROGRAM]
        self._threads = threads
        self._loaded: weakref.WeakSet[_Inference] = weakref.WeakSet()
        self._own = self._load()

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self._own.set_inputs(check_inputs(self.inputs, inputs))
        self._own.execute()
        return self._read(self._own)

    def bind(self, inputs: Mapping[str, np.ndarray]) -> Bound:
        inference = self._load()  # of its own: programs keep intermediate results
        inference.set_inputs(check_inputs(self.inputs, inputs))
        return Bound(infer=inference.execute, read_outputs=lambda: self._read(inference))

    def close(self) -> None:
        for inference in list(self._loaded):
            inference.close()

    def _load(self) -> "_Inference":
        inference = _Inference(self._content, self._threads)
        self._loaded.add(inference)
        return inference

    def _read(self, inference: "_Inference") -> dict[str, np.ndarray]:
        return to_arrays(inference.outputs(), self.outputs)


class _Inference:
    """A loaded program on inputs of its own."""

    def __init__(self, content: bytes, threads: int) -> None:
        _size_pool(threads)
        self.threads = threads
        self._content = content  # kept: what is loaded points into it
        self._program = _pybindings()._load_program_from_buffer(content)
        self._method = self._program.load_method("forward")
        self._inputs: list[Any] = []
        _OPEN.add(self)

    def set_inputs(self, arrays: Mapping[str, np.ndarray]) -> None:
        self._inputs = [to_torch(array) for array in arrays.values()]  # kept: the program only points to them
        self._method.set_inputs(self._inputs)

    def execute(self) -> None:
        self._method.execute()

    def outputs(self) -> list[Any]:
        return self._method.get_outputs()

    def close(self) -> None:
        self._method = self._program = None
        _OPEN.discard(self)


_OPEN: weakref.WeakSet[_Inference] = weakref.WeakSet()  # of this process, like the pool


def _size_pool(threads: int) -> None:
    """Gives the process's pool a number of threads.

    Raises:
        InputError: Programs are open that were loaded with another number.
    """
    others = {inference.threads for inference in _OPEN} - {threads}
    if others:
        raise InputError(f"executorch-cpu has one number of threads in a process, and what is open has {others.pop()}: close it "
                         f"before compiling for {threads}, or use another process.")
    pybindings = _pybindings()
    with silent_stderr():
        if pybindings._threadpool_get_thread_count() != threads:
            pybindings._unsafe_reset_threadpool(threads)


def _pybindings() -> Any:
    """The native module itself: ExecuTorch's Python around it would import its compiler, too."""
    import_module("torch")  # whose libraries it needs
    return import_module("executorch.extension.pybindings._C")
