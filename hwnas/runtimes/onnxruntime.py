"""ONNX Runtime on the CPU (`onnxruntime-cpu`)."""

from collections.abc import Callable, Mapping
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
from hwnas.runtimes.program_files import files_on_disk

_SILENT = 4  # every error arrives as an exception as well, so nothing is lost


class OnnxRuntimeCpu(Runtime):
    """The CPU execution provider, all graph optimisations on, one operator after the other."""

    name = "onnxruntime-cpu"
    precisions: tuple[str, ...] = ("fp32",)

    def can_load(self) -> Availability:
        return probe_package("onnxruntime", "pip install onnxruntime")

    def settings(self, config: RuntimeConfig) -> dict[str, Setting]:
        check_precision(self, config)
        return {
            "provider": "CPUExecutionProvider",
            "graph_optimization_level": "ORT_ENABLE_ALL",
            "execution_mode": "ORT_SEQUENTIAL",
            "intra_op_num_threads": config.threads,
            "inter_op_num_threads": 1,
            "session.intra_op.allow_spinning": "1",
            # The worker threads of an idle session would go on spinning and slow the one that is timed in turn with
            # it, which makes the paired ratio useless where there are no cores to spare.
            "session.force_spinning_stop": "1",
        }

    def prepare(self, model: bytes | Path, config: RuntimeConfig) -> Program:
        check_precision(self, config)
        return read_onnx(model).as_program()

    def load(self, program: Program, config: RuntimeConfig) -> Executable:
        settings = self.settings(config)
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.log_severity_level = _SILENT
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, str(settings["graph_optimization_level"]))
        options.execution_mode = getattr(ort.ExecutionMode, str(settings["execution_mode"]))
        options.intra_op_num_threads = settings["intra_op_num_threads"]
        options.inter_op_num_threads = settings["inter_op_num_threads"]
        for key, value in settings.items():
            if key.startswith("session."):
                options.add_session_config_entry(key, value)
        try:
            session = _session(partial(ort.InferenceSession, sess_options=options, providers=[settings["provider"]]), program)
        except UnavailableError:
            raise
        except Exception as error:  # its exceptions share no base class
            raise compile_refusal(self, error) from None
        return _OnnxRuntimeExecutable(session, program)



def _session(make: Callable[[bytes | str], Any], program: Program) -> Any:
    """A session of a whole model, or of one whose weights lie beside it."""
    if len(program.files) == 1:
        return make(program.files[ONNX_FILE])
    with files_on_disk(program, tuple(program.files)) as folder:
        return make(str(folder / ONNX_FILE))


class _OnnxRuntimeExecutable:
    def __init__(self, session: Any, program: Program) -> None:
        self.inputs = program.inputs
        self.outputs = program.outputs
        self._output_names = [output.name for output in program.outputs]
        self._session = session

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        results = self._session.run(self._output_names, check_inputs(self.inputs, inputs))
        return dict(zip(self._output_names, results, strict=True))

    def bind(self, inputs: Mapping[str, np.ndarray]) -> Bound:
        binding = self._session.io_binding()
        for name, array in check_inputs(self.inputs, inputs).items():
            binding.bind_cpu_input(name, array.copy())
        for name in self._output_names:
            binding.bind_output(name)
        return Bound(
            infer=partial(self._session.run_with_iobinding, binding),
            read_outputs=lambda: dict(zip(self._output_names, binding.copy_outputs_to_cpu(), strict=True)),
        )

    def close(self) -> None:
        self._session = None
