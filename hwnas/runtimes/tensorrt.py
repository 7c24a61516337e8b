"""NVIDIA TensorRT (`tensorrt`) and TensorRT for RTX (`tensorrt-rtx`): two packages, one API.

Both compile a model to an engine. TensorRT does it on the GPU that will run it; TensorRT for RTX does it on any machine, for
consumer and workstation GPUs named by compute capability, and finishes the kernels where the engine is loaded. What is prepared
for a device is a model, of which the engine is built where it runs.

TensorRT chooses kernels by timing them, so no two builds need be alike. `build_engine` keeps the timings from one build to the
next and hands them out with the engine: built with the same ones, a network gets the same kernels. `load` builds without them:
what differs from build to build belongs to what is measured. TensorRT for RTX times nothing when it builds, and would ask for a
GPU if it were given timings.

Engines always hold their weights. TensorRT for RTX 1.7 builds none that could be given them later unless there is a GPU, and a
stripped engine beside the model with the weights, as an artefact would need both, is no smaller than the whole.

Networks are strongly typed: each layer computes in the type that the model states, so a model is converted to the precision
before TensorRT sees it, and TF32 (19 bits, TensorRT's own default for float32) is off. Quantised models run in int8, with what
`hwnas.runtimes.onnx_signed` says about u8.
"""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
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
from hwnas.runtimes.conversion import CACHE_VARIABLE, cache_folder
from hwnas.runtimes.cuda import DeviceArray, Stream
from hwnas.runtimes.nvidia import Gpu, gpu_settings, missing_modules, probe_gpu, read_clock_mhz, why_unusable
from hwnas.runtimes.onnx_model import ONNX_FILE, read_onnx

ENGINE_FILE = "model.engine"
"""The file of a program that is an engine, already built."""

TIMINGS_FILE = "model.timing"
"""What TensorRT measured of kernels for that engine (its timing cache)."""

PORTABLE = ("8.0", "8.6", "8.9", "12.0", "12.1")
"""Compute capabilities that an engine of TensorRT for RTX is built for by default: all but 7.5, which lacks some kernels."""

HARDWARE_LEVELS = {"same-compute-capability": "SAME_COMPUTE_CAPABILITY", "ampere-plus": "AMPERE_PLUS"}
"""The other GPUs that an engine of TensorRT may be compatible with, to what TensorRT calls that."""


@dataclass(frozen=True)
class EngineTarget:
    """Where an engine is to run, if not only on such a GPU and in that version that it is built with.

    Compatibility may cost speed. For later versions, an engine brings its own runtime: code that the process runs.

    Args:
        compute_capabilities: The GPUs that TensorRT for RTX builds for; `PORTABLE` if none is named.
        version_compatible: Later versions of TensorRT load it, too.
        hardware_compatible: The other GPUs on which TensorRT runs it, too, one of `HARDWARE_LEVELS`.

    Raises:
        InputError: There is no such level.
    """

    compute_capabilities: Sequence[str] = ()
    version_compatible: bool = False
    hardware_compatible: str | None = None

    def __post_init__(self) -> None:
        if self.hardware_compatible not in (None, *HARDWARE_LEVELS):
            raise InputError(f"The other GPUs that an engine is compatible with are {' or '.join(HARDWARE_LEVELS)}, but got "
                             f"{self.hardware_compatible!r}: choose one of these.")


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

    def clock_mhz(self) -> int | None:
        return read_clock_mhz()

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
            target = EngineTarget((str(settings["gpu_compute_capability"]),) if self.ahead_of_time else ())
            engine = self._build(program, settings, target)[ENGINE_FILE]
        return _TensorRtExecutable(self, engine, program)

    def build_engine(self, model: bytes | Path, *, precision: str = "fp32", target: EngineTarget | None = None) -> Program:
        """Compiles an ONNX model to an engine, which `load` takes wherever the target says.

        TensorRT for RTX needs no GPU for that.

        Args:
            model: The model's bytes or its file.
            precision: Arithmetic of the floating-point layers, one of `precisions`.
            target: Where the engine is to run.

        Returns:
            A program of the engine (`ENGINE_FILE`) and, of TensorRT, of the timings that it was built with (`TIMINGS_FILE`).

        Raises:
            InputError: The model is malformed or not supported, or precision or target are not this package's.
            UnavailableError: The package is not installed; for TensorRT also, there is no GPU, or its timings cannot be kept.
        """
        config, target = RuntimeConfig(precision=precision), target or EngineTarget()
        program = self.prepare(model, config)
        self._check_target(target)
        reason = self.can_build().reason
        if reason:
            raise UnavailableError(f"{self.name} cannot build an engine here: {reason}.")
        settings = self.settings(config)
        if self.ahead_of_time:
            files = self._build(program, settings, replace(target, compute_capabilities=target.compute_capabilities or PORTABLE))
        else:
            files = self._build_with_kept_timings(program, settings, target)
        return Program(files, program.inputs, program.outputs)

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

    def _check_target(self, target: EngineTarget) -> None:
        if target.compute_capabilities and not self.ahead_of_time:
            raise InputError(f"{self.name} builds for the GPU that is here, but got compute capabilities "
                             f"{list(target.compute_capabilities)}: leave them out, or use tensorrt-rtx.")
        if (target.version_compatible or target.hardware_compatible) and self.ahead_of_time:
            raise InputError(f"{self.name} builds for its own version and for GPUs by compute capability, but is asked for "
                             "compatibility with others: leave it out, or use tensorrt.")

    def _build_with_kept_timings(self, program: Program, settings: Mapping[str, Setting], target: EngineTarget
                                 ) -> dict[str, bytes]:
        from hwnas.files import write_atomic  # which a device that only loads does not have

        kept = timings_path(self.name, importlib.import_module(self.module).__version__, gpu_settings())
        try:
            files = self._build(program, settings, target, kept.read_bytes() if kept.exists() else b"")
            write_atomic(kept, files[TIMINGS_FILE])
        except OSError as error:
            raise UnavailableError(f"What {self.name} measures of kernels is kept in {kept.parent}, but that cannot be read and "
                                   f"written ({error.strerror}): free some space there, or set {CACHE_VARIABLE} to another "
                                   "folder.") from None
        return files

    def _build(self, program: Program, settings: Mapping[str, Setting], target: EngineTarget,
               timings: bytes | None = None) -> dict[str, bytes]:
        """An engine; with timings, which may be empty, also what they are afterwards."""
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
        _set_target(trt, config, target)
        cache = None if timings is None else _attach_timings(trt, config, timings)
        engine = builder.build_serialized_network(network, config)
        if engine is None:
            raise compile_refusal(self, ValueError("; ".join(complaints) or "the builder does not say why"))
        return {ENGINE_FILE: bytes(engine)} | ({} if cache is None else {TIMINGS_FILE: bytes(cache.serialize())})


TENSORRT = TensorRt("tensorrt", "tensorrt", ahead_of_time=False)
TENSORRT_RTX = TensorRt("tensorrt-rtx", "tensorrt_rtx", ahead_of_time=True)


class _TensorRtExecutable:
    def __init__(self, runtime: TensorRt, engine: bytes, program: Program) -> None:
        trt = importlib.import_module(runtime.module)
        self.inputs = program.inputs
        self.outputs = program.outputs
        self._complaints: list[str] = []
        self._runtime = trt.Runtime(_logger(trt, self._complaints))
        self._runtime.engine_host_code_allowed = not runtime.ahead_of_time  # those for later versions bring a runtime
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


def timings_path(runtime: str, version: str, gpu: Mapping[str, Setting]) -> Path:
    """The file that keeps what one version measured of kernels on one GPU under one driver: of no other are they true."""
    identity = repr((version, sorted(gpu.items())))
    return cache_folder() / runtime / f"{sha256(identity.encode()).hexdigest()}.timing"


def _set_target(trt: Any, config: Any, target: EngineTarget) -> None:
    if target.compute_capabilities:
        known = _compute_capabilities(trt)
        config.num_compute_capabilities = len(target.compute_capabilities)
        for index, capability in enumerate(target.compute_capabilities):
            if capability not in known:
                raise InputError(f"An engine is built for compute capabilities among {', '.join(known)}, but got {capability!r}.")
            config.set_compute_capability(known[capability], index)
    if target.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if target.hardware_compatible:
        level = HARDWARE_LEVELS[target.hardware_compatible]
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.__members__[level]


def _attach_timings(trt: Any, config: Any, timings: bytes) -> Any:
    """A timing cache for a build, empty where TensorRT does not take the timings: damaged ones, or those of another GPU."""
    config.set_flag(trt.BuilderFlag.DISABLE_COMPILATION_CACHE)  # else the kernels themselves are in it, too
    cache = config.create_timing_cache(timings)
    if not config.set_timing_cache(cache, ignore_mismatch=False):
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, ignore_mismatch=False)
    return cache


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
