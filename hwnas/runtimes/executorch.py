"""ExecuTorch on the CPU (`executorch-cpu`), with XNNPACK's kernels: what PyTorch offers phones and other small devices.

Lowering a model takes seconds, so programs are kept in the cache of converted models. Only lowering imports ExecuTorch's
compiler, which takes longer still; a program from the cache needs nothing but PyTorch and ExecuTorch's runtime.

The process has one pool of threads. To resize it is deadly for programs that were loaded before, which is why all that are
open at a time must have the same number of threads.
"""

import json
import os
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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
    RuntimeConfig,
    Setting,
    check_inputs,
    check_precision,
    compile_refusal,
    one_line,
    probe_package,
)
from hwnas.runtimes.conversion import Converter, forget
from hwnas.runtimes.onnx_model import OnnxModel, read_onnx

_INSTALL = "pip install executorch torch"
_DTYPES = {"fp32": "float32", "fp16": "float16"}
_PROGRAM, _PORTABLE = "model.pte", "portable.json"
_LOWERING = 1  # of what `executorch_lowering` makes of a model: another number makes older programs in caches void
_STDERR = 2


class ExecuTorchCpu:
    """XNNPACK for all that it covers; ExecuTorch's own kernels for the rest, which an executable lists as `portable`."""

    name = "executorch-cpu"
    precisions: tuple[str, ...] = tuple(_DTYPES)

    def availability(self) -> Availability:
        torch_found = probe_package("torch", _INSTALL)
        if not torch_found.available:
            return torch_found
        try:
            _pybindings()
            version = metadata.version("executorch")
        except ModuleNotFoundError:
            return Availability(False, reason=f"executorch is not installed; run: {_INSTALL}")
        except Exception as error:  # a broken native library may raise anything
            why = f"{type(error).__name__}: {one_line(error)}"
            return Availability(False, reason=f"executorch is installed but does not import ({why}); reinstall it: {_INSTALL}")
        return Availability(True, version=f"{version} (torch {torch_found.version})")

    def settings(self, config: RuntimeConfig) -> dict[str, Setting]:
        check_precision(self, config)
        return {
            "backend": "XnnpackBackend",
            "dtype": _DTYPES[config.precision],
            "lowering": _LOWERING,
            "threadpool_threads": config.threads,
        }

    def compile(self, model: bytes | Path, config: RuntimeConfig) -> Executable:
        settings = self.settings(config)
        onnx_model = read_onnx(model)
        lowering = _Lowering(self.name, str(self.availability().version), (), (f"{settings['dtype']}", f"{_LOWERING}"),
                             (_PROGRAM, _PORTABLE))
        try:
            entry = lowering.convert(onnx_model.content)
        except HwnasError:
            raise
        except Exception as error:  # exporting runs through a good part of PyTorch, and may raise anything
            raise compile_refusal(self, error) from None
        try:
            return _ExecuTorchExecutable((entry / _PROGRAM).read_bytes(), json.loads((entry / _PORTABLE).read_text()),
                                         onnx_model, config.threads)
        except (RuntimeError, OSError, ValueError) as error:
            forget(entry)  # it may be damaged
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
        portable: Operators outside of XNNPACK, each as often as it occurs; usually slow.
    """

    def __init__(self, program: bytes, portable: Sequence[str], model: OnnxModel, threads: int) -> None:
        self.inputs = model.inputs
        self.outputs = model.outputs
        self.portable = tuple(portable)
        self._program = program
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
        inference = _Inference(self._program, self._threads)
        self._loaded.add(inference)
        return inference

    def _read(self, inference: "_Inference") -> dict[str, np.ndarray]:
        from hwnas.runtimes.torch_model import to_arrays

        return to_arrays(inference.outputs(), self.outputs)


class _Inference:
    """A loaded program on inputs of its own."""

    def __init__(self, program: bytes, threads: int) -> None:
        _size_pool(threads)
        self.threads = threads
        self._content = program  # kept: what is loaded points into it
        self._program = _pybindings()._load_program_from_buffer(program)
        self._method = self._program.load_method("forward")
        self._inputs: list[Any] = []
        _OPEN.add(self)

    def set_inputs(self, arrays: Mapping[str, np.ndarray]) -> None:
        from hwnas.runtimes.torch_operators import to_torch

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
    with _silent_stderr():
        if pybindings._threadpool_get_thread_count() != threads:
            pybindings._unsafe_reset_threadpool(threads)


def _pybindings() -> Any:
    """The native module itself: ExecuTorch's Python around it would import its compiler, too."""
    import_module("torch")  # whose libraries it needs
    return import_module("executorch.extension.pybindings._C")


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Drops what the native library remarks on the processor and on its own pool."""
    saved = os.dup(_STDERR)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, _STDERR)
    try:
        yield
    finally:
        os.dup2(saved, _STDERR)
        os.close(nowhere)
        os.close(saved)
