"""PyTorch on the CPU (`torch-cpu`), eager and in channels_last: a network as PyTorch runs it without any deployment.

Eager because nothing else is as robust: `torch.compile` needs a C++ compiler and long for each network, without being faster
on most, and TorchScript is deprecated. Eight-bit integers compute in floating point, as the model spells out.

The number of threads belongs to the process. It is set for each inference and set back after it, which costs next to nothing,
so that executables with different numbers, and a training beside them, do not disturb each other.

So does the C library's memory. glibc gives back what a large tensor leaves, and has each of its pages made anew for the next one;
when it does depends on all that the process did before, so that networks on 224x224 images take another time now and then. So the
process keeps what is freed, from the first model that is loaded; PyTorch's tuning guide advises allocators that do.

PyTorch does not read ONNX: the model is translated where it is loaded, so a device needs onnx beside PyTorch.
"""

import ctypes
from collections.abc import Callable, Mapping
from functools import cache, partial
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
    probe_package,
)
from hwnas.runtimes.onnx_model import OnnxModel, read_onnx
from hwnas.runtimes.torch_arrays import to_arrays, to_torch

_INSTALL = "pip install torch onnx"
_DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
# Of glibc's malloc.h: what `mallopt` sets, and the largest block that it may be told to take from the heap.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MAX_HEAP_BLOCK_BYTES = 32 << 20


class TorchCpu(Runtime):
    """PyTorch's own kernels and oneDNN's, operator by operator."""

    name = "torch-cpu"
    precisions: tuple[str, ...] = tuple(_DTYPES)

    def can_load(self) -> Availability:
        onnx = probe_package("onnx", _INSTALL)
        return probe_package("torch", _INSTALL) if onnx.available else onnx

    def settings(self, config: RuntimeConfig) -> dict[str, Setting]:
        check_precision(self, config)
        return {
            "execution": "eager",
            "memory_format": "channels_last",
            "dtype": _DTYPES[config.precision],
            "num_threads": config.threads,
            "freed_memory": "as the C library does" if _mallopt() is None else "kept",
        }

    def prepare(self, model: bytes | Path, config: RuntimeConfig) -> Program:
        check_precision(self, config)
        return read_onnx(model).as_program()

    def load(self, program: Program, config: RuntimeConfig) -> Executable:
        settings = self.settings(config)
        _keep_freed_memory()
        import torch

        from hwnas.runtimes.torch_model import build_torch_model

        try:
            module = build_torch_model(OnnxModel.of(program), getattr(torch, str(settings["dtype"]))).channels_last()
            executable = _TorchCpuExecutable(module, program, config.threads)
            # Only a run shows whether the layers fit each other.
            executable.run({tensor.name: np.zeros(tensor.shape, tensor.dtype) for tensor in program.inputs})
        except HwnasError:
            raise
        except Exception as error:  # PyTorch's operators raise errors of many kinds
            raise compile_refusal(self, error) from None
        return executable


class _TorchCpuExecutable:
    def __init__(self, module: Any, program: Program, threads: int) -> None:
        self.inputs = program.inputs
        self.outputs = program.outputs
        self._module = module
        self._threads = threads

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        bound = self.bind(inputs)
        bound()
        return bound.read_outputs()

    def bind(self, inputs: Mapping[str, np.ndarray]) -> Bound:
        tensors = [_laid_out(to_torch(array)) for array in check_inputs(self.inputs, inputs).values()]
        results: list[Any] = []
        return Bound(infer=partial(_infer, self._module, tensors, results, self._threads),
                     read_outputs=lambda: to_arrays(results, self.outputs))

    def close(self) -> None:
        self._module = None


def _laid_out(tensor: Any) -> Any:
    """As a layer before it would leave it, so that a block alone computes as it does in a network."""
    import torch

    return tensor.to(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


@cache
def _mallopt() -> Callable[[int, int], int] | None:
    """What adjusts the C library's memory; None for another library than glibc."""
    try:
        return ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return None


def _keep_freed_memory() -> None:
    if (mallopt := _mallopt()) is not None:
        mallopt(_M_MMAP_THRESHOLD, _MAX_HEAP_BLOCK_BYTES)
        mallopt(_M_TRIM_THRESHOLD, -1)  # no end of the heap is too long


def _infer(module: Any, tensors: list[Any], results: list[Any], threads: int) -> None:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            results[:] = module(*tensors)
    finally:
        torch.set_num_threads(before)
