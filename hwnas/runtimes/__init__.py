"""The inference runtimes that hwnas measures and deploys on; one file each, all meeting the contract in `base`."""

from hwnas.errors import InputError, UnavailableError
from hwnas.runtimes.base import Availability, Bound, Executable, Program, Runtime, RuntimeConfig, TensorInfo
from hwnas.runtimes.executorch import ExecuTorchCpu
from hwnas.runtimes.litert import LiteRtCpu
from hwnas.runtimes.mnn import MnnCpu
from hwnas.runtimes.ncnn import NcnnCpu
from hwnas.runtimes.onnxruntime import OnnxRuntimeCpu
from hwnas.runtimes.onnxruntime_cuda import OnnxRuntimeCuda
from hwnas.runtimes.openvino import OpenVinoCpu
from hwnas.runtimes.tensorrt import TENSORRT, TENSORRT_RTX
from hwnas.runtimes.torch_cpu import TorchCpu
from hwnas.runtimes.torch_cuda import TorchCuda

__all__ = [
    "RUNTIMES",
    "Availability",
    "Bound",
    "Executable",
    "Program",
    "Runtime",
    "RuntimeConfig",
    "TensorInfo",
    "load_converter",
    "load_runtime",
]

_ALL: tuple[Runtime, ...] = (OnnxRuntimeCpu(), OpenVinoCpu(), NcnnCpu(), MnnCpu(), ExecuTorchCpu(), LiteRtCpu(), TorchCpu(),
                             OnnxRuntimeCuda(), TENSORRT, TENSORRT_RTX, TorchCuda())

RUNTIMES: dict[str, Runtime] = {runtime.name: runtime for runtime in _ALL}


def load_runtime(name: str) -> Runtime:
    """Returns a runtime that is usable on this machine.

    Raises:
        InputError: No runtime has that name.
        UnavailableError: Its package is missing or broken; the message has the command that mends it.
    """
    runtime = _known(name)
    found = runtime.availability()
    if not found.available:
        raise UnavailableError(f"{name} is not usable here: {found.reason}.")
    return runtime


def load_converter(name: str) -> Runtime:
    """Returns a runtime whose programs can be prepared on this machine, wherever they run.

    Raises:
        InputError: No runtime has that name.
        UnavailableError: Its converter is missing or broken.
    """
    runtime = _known(name)
    found = runtime.can_prepare()
    if not found.available:
        raise UnavailableError(f"Programs for {name} cannot be prepared here: {found.reason}.")
    return runtime


def _known(name: str) -> Runtime:
    if name not in RUNTIMES:
        raise InputError(f"There is no runtime {name!r}: choose one of {', '.join(sorted(RUNTIMES))}.")
    return RUNTIMES[name]
