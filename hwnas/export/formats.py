"""The forms that a network is shipped in: for each, the runtime that runs it, its files and how they are made.

A format is one entry in `FORMATS` below, and inherits the contract suite in tests/export. Its files are what the runtime's own
users call them; its program is what `hwnas.runtimes` loads, so that the very bytes that are shipped are compared and timed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from hwnas.errors import InputError
from hwnas.export import scripts
from hwnas.lower.onnx import OPSET
from hwnas.runtimes import RUNTIMES, RuntimeConfig, TensorInfo, load_converter
from hwnas.runtimes.base import Program
from hwnas.runtimes.onnx_model import ONNX_FILE
from hwnas.runtimes.openvino import to_ir
from hwnas.runtimes.tensorrt import ENGINE_FILE, PORTABLE, TENSORRT, TENSORRT_RTX, TIMINGS_FILE, EngineTarget, TensorRt

MODEL_FILE = ONNX_FILE
WEIGHTS_FILE = "model.onnx.data"
"""Weights of an ONNX model that is too large for one file."""


@dataclass(frozen=True)
class FormatOptions:
    """What is to be made of a network.

    Attributes:
        format: One of `FORMATS`.
        precision: What the runtime computes in, one of its own.
        dynamic_batch: Leave the batch size open (`onnx` only).
        include_preprocessing: Put scaling, mean and standard deviation into the model, which then takes pixel values 0 to 255.
        compute_capabilities: The GPUs that `tensorrt-rtx` builds for; the portable ones if none is named.
        version_compatible: Later versions of TensorRT load it, too (`tensorrt` only).
        hardware_compatible: The other GPUs that run it, too, `same-compute-capability` or `ampere-plus` (`tensorrt` only).
    """

    format: str = "onnx"
    precision: str = "fp32"
    dynamic_batch: bool = False
    include_preprocessing: bool = False
    compute_capabilities: tuple[str, ...] = ()
    version_compatible: bool = False
    hardware_compatible: str | None = None

    @property
    def target(self) -> EngineTarget:
        """Where an engine is to run.

        Raises:
            InputError: It cannot be compatible with such GPUs.
        """
        return EngineTarget(self.compute_capabilities, self.version_compatible, self.hardware_compatible)

    def check(self) -> "Format":
        """The format, if it can be made so.

        Raises:
            InputError: No such format, or it lacks what is asked for.
        """
        if self.format not in FORMATS:
            raise InputError(f"The format must be one of {', '.join(FORMATS)}, but is {self.format!r}.")
        chosen = FORMATS[self.format]
        precisions = RUNTIMES[chosen.runtime].precisions
        if self.precision not in precisions:
            raise InputError(f"The format {self.format} is computed in {' or '.join(precisions)}, but the precision is "
                             f"{self.precision!r}: choose another precision or format.")
        if self.dynamic_batch and self.format != "onnx":
            raise InputError(f"An open batch size is for the format onnx, but the format is {self.format}: leave --dynamic-batch "
                             "out.")
        if self.compute_capabilities and chosen.runtime != TENSORRT_RTX.name:
            raise InputError(f"Compute capabilities are for the format tensorrt-rtx, but the format is {self.format}: leave "
                             "--compute-capability out.")
        target = self.target
        if (target.version_compatible or target.hardware_compatible) and chosen.runtime != TENSORRT.name:
            raise InputError(f"Compatibility of engines is for the format tensorrt, but the format is {self.format}: leave "
                             "--version-compatible and --hardware-compatible out.")
        return chosen


@dataclass(frozen=True)
class Format:
    """One form of a network.

    Attributes:
        runtime: What runs it, of `hwnas.runtimes.RUNTIMES`.
        files: Its files, to what they are called in the runtime's program.
        load: What its run.py does to load and run it.
        build: Makes the program from an ONNX model.
        opset: Operator set of the ONNX model that it is, or is made from: one for all, since a newer one changes nothing in what
            runtimes make of our operators, and older releases of them do not read it.
        optional: Those of `files` that not every model has, such as weights beside a large one.
        built_elsewhere: Whether it is also made on machines that cannot run it, on which its numbers are not compared.
        inspect: Raises an `InputError` for a program that is unsound as far as such a machine can tell.
        script_precisions: What run.py calls the precisions.
    """

    runtime: str
    files: Mapping[str, str]
    load: str
    build: Callable[[bytes, FormatOptions], Program]
    opset: int = OPSET
    optional: tuple[str, ...] = ()
    built_elsewhere: bool = False
    inspect: Callable[[Program], None] | None = None
    script_precisions: Mapping[str, str] = field(default_factory=dict)

    def compute_capabilities(self, options: FormatOptions) -> tuple[str, ...]:
        """The GPUs that it is built for ahead of time."""
        return options.compute_capabilities or (PORTABLE if self.built_elsewhere else ())

    def script(self, *, precision: str, batch: int | None, raw_images: bool, relative: float, floor: float) -> str:
        """The text of run.py; the arguments are those of `hwnas.export.scripts.run_script`."""
        load = self.load.replace("@precision@", self.script_precisions.get(precision, precision))
        return scripts.run_script(load, files=" and ".join(name for name in self.files if name not in self.optional), batch=batch,
                                  raw_images=raw_images, relative=relative, floor=floor)

    def shipped(self, program: Program) -> dict[str, bytes]:
        """A program's files as they are called in an artefact."""
        return {name: program.files[inner] for name, inner in self.files.items() if inner in program.files}

    def program(self, contents: Mapping[str, bytes], input_shape: tuple[int, ...], outputs: int) -> Program:
        """The program that an artefact's files are.

        Args:
            contents: Those files and maybe others.
            input_shape: (N, C, H, W).
            outputs: Numbers that come out for an image.
        """
        files = {inner: contents[name] for name, inner in self.files.items() if name in contents}
        float32 = np.dtype(np.float32)
        return Program(files, (TensorInfo("images", tuple(input_shape), float32),),
                       (TensorInfo("logits", (input_shape[0], outputs), float32),))


def _prepared(runtime: str) -> Callable[[bytes, FormatOptions], Program]:
    def build(model: bytes, options: FormatOptions) -> Program:
        return load_converter(runtime).prepare(model, RuntimeConfig(precision=options.precision))

    return build


def _openvino(model: bytes, options: FormatOptions) -> Program:
    return to_ir(_prepared("openvino-cpu")(model, options))


def _engine(runtime: TensorRt) -> Callable[[bytes, FormatOptions], Program]:
    def build(model: bytes, options: FormatOptions) -> Program:
        return runtime.build_engine(model, precision=options.precision, target=options.target)

    return build


def _inspect_rtx(program: Program) -> None:
    if TENSORRT_RTX.can_build().available:
        TENSORRT_RTX.inspect_engine(program.files[ENGINE_FILE])


def _tensorrt_script(runtime: TensorRt) -> str:
    return scripts.TENSORRT.replace("@module@", runtime.module).replace("@host_code@", str(not runtime.ahead_of_time))


FORMATS: dict[str, Format] = {
    "onnx": Format("onnxruntime-cpu", {MODEL_FILE: MODEL_FILE, WEIGHTS_FILE: WEIGHTS_FILE}, scripts.ONNX,
                   _prepared("onnxruntime-cpu"), optional=(WEIGHTS_FILE,)),
    "openvino": Format("openvino-cpu", {"model.xml": "model.xml", "model.bin": "model.bin"}, scripts.OPENVINO, _openvino,
                       script_precisions={"fp32": "f32"}),
    "ncnn": Format("ncnn-cpu", {"model.param": "model.ncnn.param", "model.bin": "model.ncnn.bin"}, scripts.NCNN,
                   _prepared("ncnn-cpu")),
    "mnn": Format("mnn-cpu", {"model.mnn": "model.mnn"}, scripts.MNN, _prepared("mnn-cpu")),
    "executorch": Format("executorch-cpu", {"model.pte": "model.pte"}, scripts.EXECUTORCH, _prepared("executorch-cpu")),
    "litert": Format("litert-cpu", {"model.tflite": "model.tflite"}, scripts.LITERT, _prepared("litert-cpu")),
    "tensorrt-rtx": Format("tensorrt-rtx", {ENGINE_FILE: ENGINE_FILE}, _tensorrt_script(TENSORRT_RTX), _engine(TENSORRT_RTX),
                           built_elsewhere=True, inspect=_inspect_rtx),
    "tensorrt": Format("tensorrt", {ENGINE_FILE: ENGINE_FILE, TIMINGS_FILE: TIMINGS_FILE}, _tensorrt_script(TENSORRT),
                       _engine(TENSORRT), optional=(TIMINGS_FILE,)),
}
