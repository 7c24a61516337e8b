"""NVIDIA TensorRT (`tensorrt`) and TensorRT for RTX (`tensorrt-rtx`): two packages, one API.

Both compile a model to an engine. TensorRT does it on the GPU that will run it; TensorRT for RTX does it on any machine, for
consumer and workstation GPUs named by compute capability, and finishes the kernels where the engine is loaded. What is prepared
for a device is a model, of which the engine is built where it runs.

Networks are strongly typed: each layer computes in the type that the model states, so a model is converted to the precision
before TensorRT sees it, and TF32 (19 bits, TensorRT's own default for float32) is off. Quantised models run in int8, with what
`hwnas.runtimes.onnx_signed` says about u8.
"""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hwnas.errors import InputError, UnavailableError
from hwnas.runtimes.base import (
    Availability,
    Bound,
    Executable,
    Program,
    Runtime,
    RuntimeConfig,
    Setting,
    TensorInfo,
    check_inputs,
    check_precision,
    compile_refusal,
    one_line,
    probe_package,
)
from hwnas.runtimes.cuda import DeviceArray, Stream
from hwnas.runtimes.nvidia import Gpu, gpu_settings, missing_modules, probe_gpu, why_unusable
from hwnas.runtimes.onnx_model import ONNX_FILE, read_onnx

ENGINE_FILE = "model.engine"
"""The file of a program that is an engine, already built."""

PORTABLE = ("8.0", "8.6", "8.9", "12.0", "12.1")
"""Compute capabilities that an engine of TensorRT for RTX is built for by default: all but 7.5, which lacks some kernels."""


class TensorRt(Runtime):
    """One of the two packages.

    Args:
        name: What the runtime is called.
        module: The package.
        ahead_of_time: Whether engines are built without their GPU.
    """

    precisions: tuple[str, ...] = ("fp32", "fp16")

    def __init__(self, name: str, module: str, *, ahead_of_time: bool) -> None:
        self.name = name
        self.module = module
        self.ahead_of_time = ahead_of_time

    def can_load(self) -> Availability:
        reason = why_unusable([missing_modules([self.module, "cuda.bindings", "pynvml"], self._install)])
        if reason:
            return Availability(False, reason=reason)
        found = probe_package(self.module, self._install)
        gpu = probe_gpu()
        if found.available and self.ahead_of_time and isinstance(gpu, Gpu):
            known = list(_compute_capabilities(importlib.import_module(self.module)))
            if gpu.compute_capability not in known:
                return Availability(False, reason=f"{self.name} serves GPUs of compute capability {', '.join(known)}, but the "
                                    f"{gpu.name} here has {gpu.compute_capability}; use the runtime tensorrt")
        return found

    def can_build(self) -> Availability:
        """Says whether `build_engine` works here; never raises."""
        if not self.ahead_of_time:
            return self.can_load()
        reason = missing_modules([self.module], self._install)
        return Availability(False, reason=reason) if reason else probe_package(self.module, self._install)

    def settings(self, config: RuntimeConfig) -> dict[str, Setting]:
        check_precision(self, config)
        return {
            **gpu_settings(),
            "strongly_typed": True,
            "float_type": config.precision,
            "tf32": False,
            "uint8": "int8 of twice the step",
            "cuda_graph": True,
            "builder_optimization_level": 3,
            "max_threads": config.threads,  # of the builder; an inference uses one
        }

    def prepare(self, model: bytes | Path, config: RuntimeConfig) -> Program:
        check_precision(self, config)
        onnx_model = read_onnx(model)
        return replace(onnx_model, content=_in_precision(onnx_model.content, config.precision)).as_program()

    def load(self, program: Program, config: RuntimeConfig) -> Executable:
        settings = self.settings(config)
        found = self.can_load()
        if not found.available:
            raise UnavailableError(f"{self.name} is not usable here: {found.reason}.")
        engine = program.files.get(ENGINE_FILE)
        if engine is None:
            capabilities = (str(settings["gpu_compute_capability"]),) if self.ahead_of_time else ()
            engine = self._build(program, settings, capabilities)
        return _TensorRtExecutable(self, engine, program)

    def build_engine(self, model: bytes | Path, *, precision: str = "fp32",
                     compute_capabilities: Sequence[str] | None = None) -> bytes:
        """Compiles an ONNX model to an engine, which any program that uses this package's runtime can load.

        TensorRT for RTX needs no GPU for that.

        Args:
            model: The model's bytes or its file.
            precision: Arithmetic of the floating-point layers, one of `precisions`.
            compute_capabilities: The GPUs that TensorRT for RTX builds for, `PORTABLE` unless given; TensorRT has no choice
                but the GPU that is here.

        Raises:
            InputError: The model is malformed or not supported, or precision or capabilities are unknown.
            UnavailableError: The package is not installed; for TensorRT also, there is no GPU.
        """
        config = RuntimeConfig(precision=precision)
        program = self.prepare(model, config)
        if compute_capabilities and not self.ahead_of_time:
            raise InputError(f"{self.name} builds for the GPU that is here, but got compute capabilities "
                             f"{list(compute_capabilities)}: leave them out, or use tensorrt-rtx.")
        reason = self.can_build().reason
        if reason:
            raise UnavailableError(f"{self.name} cannot build an engine here: {reason}.")
        return self._build(program, self.settings(config), (compute_capabilities or PORTABLE) if self.ahead_of_time else ())

    def inspect_engine(self, engine: bytes) -> None:
        """Reads an engine as far as this machine can: without a GPU, its header and how its parts lie in it.

        Raises:
            InputError: It is damaged, or of another version of the package.
        """
        trt = importlib.import_module(self.module)
        complaints: list[str] = []
        runtime = trt.Runtime(_logger(trt, complaints))
        if runtime.deserialize_cuda_engine(engine) is None:
            damage = [one for one in complaints if "Cuda Runtime" not in one]  # of which a missing GPU is the reason
            if damage:
                raise InputError(f"{self.name} must be able to read the engine, but says ({one_line(ValueError(damage[0]))}): "
                                 "build it again with the version that is installed.")

    @property
    def _install(self) -> str:
        return f"pip install 'hwnas[{self.name}]'"

    def _build(self, program: Program, settings: Mapping[str, Setting], compute_capabilities: Sequence[str]) -> bytes:
        """An engine; compute capabilities are only given to what builds ahead of time."""
        trt = importlib.import_module(self.module)
        complaints: list[str] = []
        builder = trt.Builder(_logger(trt, complaints))
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, _logger(trt, complaints))
        if not parser.parse(program.files[ONNX_FILE]):
            raise compile_refusal(self, ValueError(_describe(parser, complaints)))
        config = builder.create_builder_config()
        config.clear_flag(trt.BuilderFlag.TF32)
        config.builder_optimization_level = settings["builder_optimization_level"]
        builder.max_threads = settings["max_threads"]
        if compute_capabilities:
            _set_compute_capabilities(trt, config, compute_capabilities)
        engine = builder.build_serialized_network(network, config)
        if engine is None:
            raise compile_refusal(self, ValueError("; ".join(complaints) or "the builder does not say why"))
        return bytes(engine)


TENSORRT = TensorRt("tensorrt", "tensorrt", ahead_of_time=False)
TENSORRT_RTX = TensorRt("tensorrt-rtx", "tensorrt_rtx", ahead_of_time=True)


class _TensorRtExecutable:
    def __init__(self, runtime: TensorRt, engine: bytes, program: Program) -> None:
        trt = importlib.import_module(runtime.module)
        self.inputs = program.inputs
        self.outputs = program.outputs
        self._complaints: list[str] = []
        self._runtime = trt.Runtime(_logger(trt, self._complaints))
        self._engine = self._runtime.deserialize_cuda_engine(engine)
        if self._engine is None:
            raise UnavailableError(f"{runtime.name} must load the engine that it built, but did not "
                                   f"({'; '.join(self._complaints)}): see `nvidia-smi` for what else occupies the GPU.")
        for tensor in (*program.inputs, *program.outputs):
            dtype = np.dtype(trt.nptype(self._engine.get_tensor_dtype(tensor.name)))
            if dtype != tensor.dtype:
                raise InputError(f"{runtime.name} has no tensors of type {tensor.dtype}, but {tensor.name!r} is one: export the "
                                 f"model with {dtype} there.")
        self._one_run: _Inference | None = None

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        arrays = check_inputs(self.inputs, inputs)
        if self._one_run is None:
            self._one_run = self._prepare(arrays)
        else:
            self._one_run.write(arrays)
        self._one_run.graph.run()
        return self._one_run.read()

    def bind(self, inputs: Mapping[str, np.ndarray]) -> Bound:
        inference = self._prepare(check_inputs(self.inputs, inputs))
        return Bound(infer=inference.graph.run, read_outputs=inference.read)

    def close(self) -> None:
        self._one_run = self._engine = self._runtime = None

    def _prepare(self, arrays: Mapping[str, np.ndarray]) -> "_Inference":
        return _Inference(self._engine, self._complaints, self.inputs, self.outputs, arrays)


class _Inference:
    """An execution context with buffers of its own, recorded as a CUDA graph."""

    def __init__(self, engine: Any, complaints: list[str], inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo],
                 arrays: Mapping[str, np.ndarray]) -> None:
        self._stream = Stream()
        self._context = engine.create_execution_context()
        if self._context is None:
            raise _failure("create an execution context", complaints)
        self._inputs, self._outputs = ({tensor.name: DeviceArray(tensor.shape, tensor.dtype, self._stream) for tensor in tensors}
                                       for tensors in (inputs, outputs))
        for name, buffer in (*self._inputs.items(), *self._outputs.items()):
            if not self._context.set_tensor_address(name, buffer.address):
                raise _failure(f"take the buffer of {name!r}", complaints)
        self.write(arrays)
        enqueue = partial(self._enqueue, complaints)
        enqueue()  # what is done once (loading kernels, reserving memory) must not be recorded
        self._stream.wait()
        self.graph = self._stream.record(enqueue)

    def write(self, arrays: Mapping[str, np.ndarray]) -> None:
        for name, array in arrays.items():
            self._inputs[name].write(array)

    def read(self) -> dict[str, np.ndarray]:
        return {name: buffer.read() for name, buffer in self._outputs.items()}

    def _enqueue(self, complaints: list[str]) -> None:
        if not self._context.execute_async_v3(self._stream.handle):
            raise _failure("run the engine", complaints)


def _failure(what: str, complaints: Sequence[str]) -> UnavailableError:
    return UnavailableError(f"The GPU must {what}, but did not ({'; '.join(complaints[-3:])}): see `nvidia-smi` for what else "
                            "occupies it, and start anew.")


def _in_precision(content: bytes, precision: str) -> bytes:
    """The model in the types that it is to be computed in."""
    import onnx

    from hwnas.runtimes.onnx_half import to_half
    from hwnas.runtimes.onnx_signed import to_signed

    model = to_signed(onnx.load_from_string(content))
    if precision == "fp16":
        model = to_half(model)
    return model.SerializeToString()


def _compute_capabilities(trt: Any) -> dict[str, Any]:
    """What the package can build for, "8.9" for its SM89."""
    numbers = {name.removeprefix("SM"): value for name, value in trt.ComputeCapability.__members__.items()}
    return {f"{number[:-1]}.{number[-1]}": value for number, value in numbers.items() if number.isdecimal()}


def _set_compute_capabilities(trt: Any, config: Any, wanted: Sequence[str]) -> None:
    known = _compute_capabilities(trt)
    config.num_compute_capabilities = len(wanted)
    for index, capability in enumerate(wanted):
        if capability not in known:
            raise InputError(f"An engine is built for compute capabilities among {', '.join(known)}, but got {capability!r}.")
        config.set_compute_capability(known[capability], index)


def _describe(parser: Any, complaints: Sequence[str]) -> str:
    """The first thing that the parser did not like, with the layer's operator and name."""
    if not parser.num_errors:
        return "; ".join(complaints)
    error = parser.get_error(0)
    return f"{error.node_operator()} {error.node_name()!r}: {error.desc()}"


def _logger(trt: Any, complaints: list[str]) -> Any:
    """TensorRT returns None and tells its logger why."""

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                complaints.append(message)

    return Logger()
