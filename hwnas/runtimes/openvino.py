"""OpenVINO on the CPU (`openvino-cpu`): reads ONNX, and its own format (IR), which is what it ships."""

import tempfile
from collections.abc import Mapping
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
    Runtime,
    RuntimeConfig,
    Setting,
    check_inputs,
    check_precision,
    compile_refusal,
    probe_package,
)
from hwnas.runtimes.onnx_model import ONNX_FILE, read_onnx

# The precision is always stated: left alone, OpenVINO computes in bf16 on the CPUs that have it.
_HINTS = {"fp32": "f32", "bf16": "bf16"}
_GRAPH, _WEIGHTS = "model.xml", "model.bin"


class OpenVinoCpu(Runtime):
    """The CPU plugin, tuned for the latency of one request at a time."""

    name = "openvino-cpu"
    precisions: tuple[str, ...] = tuple(_HINTS)

    def can_load(self) -> Availability:
        return probe_package("openvino", "pip install openvino")

    def settings(self, config: RuntimeConfig) -> dict[str, Setting]:
        check_precision(self, config)
        return {
            "INFERENCE_NUM_THREADS": config.threads,
            "INFERENCE_PRECISION_HINT": _HINTS[config.precision],
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
        }

    def prepare(self, model: bytes | Path, config: RuntimeConfig) -> Program:
        check_precision(self, config)
        return read_onnx(model).as_program()

    def load(self, program: Program, config: RuntimeConfig) -> Executable:
        settings = self.settings(config)
        import openvino

        core = openvino.Core()
        if config.precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise UnavailableError(f"{self.name} cannot run in bf16: this CPU has no bf16 arithmetic; choose fp32.")
        try:
            compiled = core.compile_model(_read(core, program), "CPU", settings)
        except RuntimeError as error:
            raise compile_refusal(self, error) from None
        return _OpenVinoExecutable(compiled, program)


def to_ir(program: Program) -> Program:
    """A prepared program in OpenVINO's own format, `model.xml` and `model.bin`, all weights as they are.

    Raises:
        InputError: OpenVINO does not take the model.
    """
    import openvino

    with tempfile.TemporaryDirectory(prefix="hwnas-") as folder:
        try:
            model = openvino.Core().read_model(program.files[ONNX_FILE])
            openvino.save_model(model, Path(folder, _GRAPH), compress_to_fp16=False)
        except RuntimeError as error:
            raise compile_refusal(OpenVinoCpu(), error) from None
        files = {name: Path(folder, name).read_bytes() for name in (_GRAPH, _WEIGHTS)}
    return Program(files, program.inputs, program.outputs)


def _read(core: Any, program: Program) -> Any:
    if _GRAPH not in program.files:
        return core.read_model(program.files[ONNX_FILE])
    import openvino

    weights = openvino.Tensor(np.frombuffer(program.files[_WEIGHTS], np.uint8))
    return core.read_model(program.files[_GRAPH], weights)


class _OpenVinoExecutable:
    def __init__(self, compiled: Any, program: Program) -> None:
        self.inputs = program.inputs
        self.outputs = program.outputs
        self._compiled = compiled
        self._request = compiled.create_infer_request()

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self._request.infer(check_inputs(self.inputs, inputs), share_outputs=True)
        return self._copy_outputs(self._request)

    def bind(self, inputs: Mapping[str, np.ndarray]) -> Bound:
        import openvino

        request = self._compiled.create_infer_request()
        for name, array in check_inputs(self.inputs, inputs).items():
            request.set_tensor(name, openvino.Tensor(array))  # copies: a shared one would not keep the array alive
        return Bound(
            infer=partial(request.infer, share_outputs=True),
            read_outputs=partial(self._copy_outputs, request),
        )

    def close(self) -> None:
        self._compiled = self._request = None

    def _copy_outputs(self, request: Any) -> dict[str, np.ndarray]:
        return {output.name: request.get_tensor(output.name).data.copy() for output in self.outputs}
