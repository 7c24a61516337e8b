"""ONNX Runtime on an NVIDIA GPU (`onnxruntime-cuda`), and on nothing else.

ONNX Runtime moves to the CPU whatever the GPU has no kernel for, and everything when CUDA's libraries do not load. A latency
measured then is nobody's, so both are refused. Inputs and outputs stay on the GPU, and an inference is one CUDA graph.
"""

import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from hwnas.errors import HwnasError, InputError, UnavailableError
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
from hwnas.runtimes.onnx_model import ONNX_FILE, read_onnx

_PROVIDER = "CUDAExecutionProvider"
_LIBRARY = "onnxruntime_providers_cuda.dll" if sys.platform == "win32" else "libonnxruntime_providers_cuda.so"
# Both packages lie in one folder, where the second to be installed overwrites half of the first.
_INSTALL = "pip uninstall --yes onnxruntime && pip install 'onnxruntime-gpu[cuda,cudnn]>=1.24' nvidia-ml-py"
_SILENT = 4  # every error arrives as an exception as well, so nothing is lost
_NO_CPU = "session.disable_cpu_ep_fallback"
_RECORD = "session.record_ep_graph_assignment_info"
_FLOAT_QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear"})  # in the operator sets that hwnas writes


class OnnxRuntimeCuda(Runtime):
    """The CUDA execution provider, all graph optimisations on."""

    name = "onnxruntime-cuda"
    precisions: tuple[str, ...] = ("fp32", "fp16")

    def can_load(self) -> Availability:
        reason = why_unusable([missing_modules(["onnxruntime", "pynvml"], _INSTALL), _why_not_for_gpus()])
        return Availability(False, reason=reason) if reason else probe_package("onnxruntime", _INSTALL)

    def settings(self, config: RuntimeConfig) -> dict[str, Setting]:
        check_precision(self, config)
        return {
            **gpu_settings(),
            "provider": _PROVIDER,
            "float_type": config.precision,
            "graph_optimization_level": "ORT_ENABLE_ALL",
            "intra_op_num_threads": config.threads,  # of the CPU, which computes nothing
            _NO_CPU: "1",
            "cuda.cudnn_conv_algo_search": "EXHAUSTIVE",
            "cuda.enable_cuda_graph": "1",
            "cuda.use_tf32": "0",
        }

    def clock_mhz(self) -> int | None:
        return read_clock_mhz()

    def prepare(self, model: bytes | Path, config: RuntimeConfig) -> Program:
        check_precision(self, config)
        onnx_model = read_onnx(model)
        if config.precision == "fp16":
            onnx_model = replace(onnx_model, content=_to_half(onnx_model.content))
        return onnx_model.as_program()

    def load(self, program: Program, config: RuntimeConfig) -> Executable:
        settings = self.settings(config)
        found = self.can_load()
        if not found.available:
            raise UnavailableError(f"{self.name} is not usable here: {found.reason}.")
        import onnxruntime as ort

        with redirect_stdout(sys.stderr):  # where it complains; stdout is for results
            ort.preload_dlls()  # those that pip installed
        content = program.files[ONNX_FILE]
        try:
            session = _open_session(content, settings)
        except Exception as error:  # its exceptions share no base class
            raise self._refusal(error, content, settings) from None
        return _OnnxRuntimeCudaExecutable(session, program)

    def _refusal(self, error: Exception, content: bytes, settings: Mapping[str, Setting]) -> HwnasError:
        """Says what keeps a model off the GPU, after a session that may use the CPU as well."""
        loose = {**settings, _NO_CPU: "0", _RECORD: "1", "cuda.enable_cuda_graph": "0"}
        try:
            session = _open_session(content, loose)
        except Exception:
            return compile_refusal(self, error)
        if _PROVIDER not in session.get_providers():
            return UnavailableError(f"{self.name} needs CUDA's libraries, but they do not load (ONNX Runtime's lines above name "
                                    f"them): run `{_INSTALL}`, and compare with the CUDA version that `nvidia-smi` reports.")
        elsewhere = layers_elsewhere(session, _PROVIDER)
        if elsewhere:
            return InputError(f"Every layer must run on the GPU, but {self.name} has no kernel there for "
                              f"{', '.join(elsewhere[:8])}: replace these layers, or choose another runtime.")
        return compile_refusal(self, error)


class _OnnxRuntimeCudaExecutable:
    def __init__(self, session: Any, program: Program) -> None:
        self.inputs = program.inputs
        self.outputs = program.outputs
        self._session = session
        self._graph_ids = count(1)

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        names = [output.name for output in self.outputs]
        results = self._session.run(names, check_inputs(self.inputs, inputs), _run_options(-1))  # without a graph
        return dict(zip(names, results, strict=True))

    def bind(self, inputs: Mapping[str, np.ndarray]) -> Bound:
        import onnxruntime as ort

        binding = self._session.io_binding()
        for name, array in check_inputs(self.inputs, inputs).items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array, "cuda", 0))
        results = {}
        for tensor in self.outputs:
            results[tensor.name] = ort.OrtValue.ortvalue_from_shape_and_type(tensor.shape, tensor.dtype, "cuda", 0)
            binding.bind_ortvalue_output(tensor.name, results[tensor.name])
        infer = partial(_infer, self._session, binding, _run_options(next(self._graph_ids)))
        infer()  # records the graph of these buffers
        return Bound(infer=infer, read_outputs=lambda: {name: value.numpy().copy() for name, value in results.items()})

    def close(self) -> None:
        self._session = None


def layers_elsewhere(session: Any, provider: str) -> list[str]:
    """The layers that a session runs on another provider, as `Operator 'name'`.

    Args:
        session: Opened with the assignment being recorded.
        provider: The one that is wanted.
    """
    return [f"{node.op_type} {node.name!r}" for part in session.get_provider_graph_assignment_info()
            if part.ep_name != provider for node in part.get_nodes()]


def _to_half(content: bytes) -> bytes:
    import onnx

    from hwnas.runtimes.onnx_half import to_half

    return to_half(onnx.load_from_string(content), _FLOAT_QUANTIZERS).SerializeToString()


def _infer(session: Any, binding: Any, options: Any) -> None:
    session.run_with_iobinding(binding, options)
    binding.synchronize_outputs()


def _open_session(content: bytes, settings: Mapping[str, Setting]) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = _SILENT
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, str(settings["graph_optimization_level"]))
    options.intra_op_num_threads = settings["intra_op_num_threads"]
    for key, value in settings.items():
        if key.startswith("session."):
            options.add_session_config_entry(key, value)
    cuda = {key.removeprefix("cuda."): value for key, value in settings.items() if key.startswith("cuda.")}
    return ort.InferenceSession(content, options, providers=[(settings["provider"], cuda)], enable_fallback=0)


def _run_options(graph_id: int) -> Any:
    """Runs of one id replay one graph, which is bound to one set of buffers; -1 is without a graph."""
    import onnxruntime as ort

    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(graph_id))
    return options


def _why_not_for_gpus() -> str | None:
    """Whether the onnxruntime that is installed is one without CUDA."""
    package = find_module("onnxruntime")
    if package is None or package.origin is None or (Path(package.origin).parent / "capi" / _LIBRARY).exists():
        return None
    return f"the onnxruntime installed here was built without CUDA; run: {_INSTALL}"
