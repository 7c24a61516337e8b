"""PyTorch on an NVIDIA GPU (`torch-cuda`): eager layers in channels_last, recorded once as a CUDA graph.

A graph is one launch, so what is measured is the GPU's work and not Python's. Inputs and outputs stay on the GPU.

PyTorch does not read ONNX: the model is translated where it is loaded, so a device needs onnx beside PyTorch.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from hwnas.errors import HwnasError, UnavailableError
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
from hwnas.runtimes.nvidia import find_module, gpu_settings, missing_modules, read_clock_mhz, why_unusable
from hwnas.runtimes.onnx_model import OnnxModel, read_onnx
from hwnas.runtimes.torch_arrays import to_arrays, to_torch

# PyTorch's packages for CPUs bear the same name and may be all that pip's usual index has; this one has those for CUDA alone.
_INSTALL = "pip uninstall --yes torch && pip install torch --index-url https://download.pytorch.org/whl/cu130"
_INSTALL_REST = "pip install onnx nvidia-ml-py"
_LIBRARY = "torch_cuda.dll" if sys.platform == "win32" else "libtorch_cuda.so"
_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
_WARM_UPS = 3  # cuDNN chooses its algorithms in the first


class TorchCuda(Runtime):
    """cuDNN and PyTorch's own kernels; float32 is float32, without the tensor cores' TF32."""

    name = "torch-cuda"
    precisions: tuple[str, ...] = tuple(_DTYPES)

    def can_load(self) -> Availability:
        reason = why_unusable([missing_modules(["torch"], _INSTALL), _why_not_for_gpus(),
                               missing_modules(["onnx", "pynvml"], _INSTALL_REST)])
        return Availability(False, reason=reason) if reason else probe_package("torch", _INSTALL)

    def settings(self, config: RuntimeConfig) -> dict[str, Setting]:
        check_precision(self, config)
        return {
            **gpu_settings(),
            "execution": "eager, as a CUDA graph",
            "memory_format": "channels_last",
            "dtype": _DTYPES[config.precision],
            "allow_tf32": False,
            "cudnn_benchmark": True,
            "num_threads": config.threads,  # of the CPU, which computes nothing
        }

    def clock_mhz(self) -> int | None:
        return read_clock_mhz()

    def prepare(self, model: bytes | Path, config: RuntimeConfig) -> Program:
        check_precision(self, config)
        return read_onnx(model).as_program()

    def load(self, program: Program, config: RuntimeConfig) -> Executable:
        settings = self.settings(config)
        found = self.can_load()
        if not found.available:
            raise UnavailableError(f"{self.name} is not usable here: {found.reason}.")
        import torch

        from hwnas.runtimes.torch_model import build_torch_model

        if not torch.cuda.is_available():
            raise UnavailableError(f"{self.name} is not usable here: PyTorch {torch.__version__} finds no GPU of its CUDA "
                                   f"{torch.version.cuda}; compare it with the version that `nvidia-smi` reports.")
        if config.precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
            raise UnavailableError(f"{self.name} cannot run in bf16: this GPU has no bf16 arithmetic; choose fp16.")
        try:
            module = build_torch_model(OnnxModel.of(program), getattr(torch, str(settings["dtype"]))).channels_last()
            executable = _TorchCudaExecutable(module.cuda(), program)
            # Only a run shows whether the layers fit each other.
            executable.run({tensor.name: np.zeros(tensor.shape, tensor.dtype) for tensor in program.inputs})
        except HwnasError:
            raise
        except Exception as error:  # PyTorch's operators raise errors of many kinds
            raise compile_refusal(self, error) from None
        return executable


class _TorchCudaExecutable:
    def __init__(self, module: Any, program: Program) -> None:
        self.inputs = program.inputs
        self.outputs = program.outputs
        self._module = module

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        tensors = self._to_gpu(inputs)
        with _settled_arithmetic():
            return to_arrays(self._module(*tensors), self.outputs)

    def bind(self, inputs: Mapping[str, np.ndarray]) -> Bound:
        recording = _Recording(self._module, self._to_gpu(inputs))
        return Bound(infer=recording.replay, read_outputs=lambda: to_arrays(recording.results, self.outputs))

    def close(self) -> None:
        self._module = None

    def _to_gpu(self, inputs: Mapping[str, np.ndarray]) -> list[Any]:
        return [to_torch(array).cuda() for array in check_inputs(self.inputs, inputs).values()]


class _Recording:
    """An inference as a CUDA graph, which points to its inputs, weights and results."""

    def __init__(self, module: Any, inputs: Sequence[Any]) -> None:
        import torch

        self._kept_alive = (module, inputs)
        self._graph = torch.cuda.CUDAGraph()
        self._finished = torch.cuda.Event()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())  # which copies the inputs
        with _settled_arithmetic():
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UPS):
                    module(*inputs)
            with torch.cuda.graph(self._graph, stream=stream):
                self.results = module(*inputs)

    def replay(self) -> None:
        self._graph.replay()
        self._finished.record()
        self._finished.synchronize()


@contextmanager
def _settled_arithmetic() -> Iterator[None]:
    """What decides how PyTorch computes on the GPU, whatever else this process has chosen."""
    import torch

    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    matmul.allow_tf32 = False
    try:
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False):
            yield
    finally:
        matmul.allow_tf32 = before


def _why_not_for_gpus() -> str | None:
    """Whether the PyTorch that is installed is one without CUDA."""
    package = find_module("torch")
    if package is None or package.origin is None or (Path(package.origin).parent / "lib" / _LIBRARY).exists():
        return None
    return f"the torch installed here was built without CUDA; run: {_INSTALL}"
