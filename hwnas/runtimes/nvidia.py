"""The NVIDIA GPU that this process computes on, as its driver describes it (NVML).

NVML does not start CUDA. Starting it takes long, and a process that is forked afterwards could no longer use the GPU, so
the question "is there a GPU?" must not do it.
"""

import ctypes
import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from typing import Any

from hwnas.runtimes.base import Setting, one_line

_LIBRARY = "nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1"
_NO_DRIVER = ("no NVIDIA GPU driver was found; install one from https://www.nvidia.com/drivers, and start a container with "
              "`--gpus all`")


@dataclass(frozen=True)
class Gpu:
    """A GPU.

    Attributes:
        name: As sold.
        driver: The driver's version.
        compute_capability: What its instructions are, "8.9" for example.
    """

    name: str
    driver: str
    compute_capability: str


@dataclass(frozen=True)
class NoGpu:
    """There is none for this process.

    Attributes:
        reason: Why, and what changes that.
    """

    reason: str


def probe_gpu() -> Gpu | NoGpu:
    """The GPU that CUDA gives this process first."""
    try:
        with _open_gpu() as (nvml, gpu):
            major, minor = nvml.nvmlDeviceGetCudaComputeCapability(gpu)
            return Gpu(nvml.nvmlDeviceGetName(gpu), nvml.nvmlSystemGetDriverVersion(), f"{major}.{minor}")
    except _NoGpuError as error:
        return NoGpu(str(error))


def read_clock_mhz() -> int | None:
    """The clock of the GPU's multiprocessors now, which falls when it is warm or idle; None where no GPU tells."""
    try:
        with _open_gpu() as (nvml, gpu):
            return int(nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM)) or None
    except _NoGpuError:
        return None


def gpu_settings() -> dict[str, Setting]:
    """The GPU as part of a runtime's settings."""
    gpu = probe_gpu()
    if isinstance(gpu, NoGpu):
        return {"gpu": "none"}
    return {"gpu": gpu.name, "gpu_driver": gpu.driver, "gpu_compute_capability": gpu.compute_capability}


def why_unusable(missing: Iterable[str | None]) -> str | None:
    """Why a runtime for NVIDIA GPUs cannot be used here, all reasons at once; None when there is none.

    Args:
        missing: What the runtime's own packages lack, from `missing_modules` and the like.
    """
    reasons = [reason for reason in (None if _driver_is_present() else _NO_DRIVER, *missing) if reason]
    if not reasons:
        gpu = probe_gpu()
        reasons = [gpu.reason] if isinstance(gpu, NoGpu) else []
    return "; ".join(reasons) or None


def missing_modules(modules: Sequence[str], install: str) -> str | None:
    """Which of some modules are not installed, and the command that installs them; without importing any."""
    missing = [module for module in modules if find_module(module) is None]
    return f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed; run: {install}" if missing else None


def find_module(name: str) -> ModuleSpec | None:
    """Where a module lies, without importing it; None when it is not installed."""
    try:
        return importlib.util.find_spec(name)
    except (ImportError, ValueError):  # its parent package is missing or broken
        return None


def choose_gpu(gpus: Mapping[str, str], environment: Mapping[str, str]) -> str:
    """Which GPU is CUDA's first under its environment variables.

    Args:
        gpus: Names by UUID, in the order of their PCI addresses.
        environment: Environment variables.

    Returns:
        A UUID.

    Raises:
        _NoGpuError: None is, or it cannot be known.
    """
    if not gpus:
        raise _NoGpuError("the NVIDIA driver knows of no GPU; see what `nvidia-smi` reports")
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    first = "0" if visible is None else visible.partition(",")[0].strip()
    if first.startswith("MIG-"):
        return first
    if first.startswith("GPU-"):
        uuids = [uuid for uuid in gpus if uuid.startswith(first)]
    else:
        uuids = list(gpus)[int(first):][:1] if first.isdecimal() else []
        if len(set(gpus.values())) > 1 and environment.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
            raise _NoGpuError(f"the GPUs here differ ({', '.join(gpus.values())}) and CUDA numbers them by a guess at their "
                              "speed; set CUDA_DEVICE_ORDER=PCI_BUS_ID, or CUDA_VISIBLE_DEVICES to the UUID of one")
    if not uuids:
        raise _NoGpuError(f"CUDA_VISIBLE_DEVICES={visible} shows no GPU to this process; unset it, or choose one from "
                          f"`nvidia-smi -L` (there are {len(gpus)})")
    return uuids[0]


class _NoGpuError(Exception):
    """The message is `NoGpu.reason`."""


@contextmanager
def _open_gpu() -> Iterator[tuple[Any, Any]]:
    """NVML's module and its handle of the GPU."""
    if not _driver_is_present():
        raise _NoGpuError(_NO_DRIVER)
    try:
        import pynvml
    except ImportError:
        raise _NoGpuError("pynvml is not installed; run: pip install nvidia-ml-py") from None
    try:
        pynvml.nvmlInit()
        try:
            handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
            gpus = {pynvml.nvmlDeviceGetUUID(handle): pynvml.nvmlDeviceGetName(handle) for handle in handles}
            yield pynvml, pynvml.nvmlDeviceGetHandleByUUID(choose_gpu(gpus, os.environ))
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        raise _NoGpuError(f"the NVIDIA driver does not answer ({one_line(error)}); see what `nvidia-smi` reports") from None


def _driver_is_present() -> bool:
    try:
        ctypes.CDLL(_LIBRARY)
    except OSError:
        return False
    return True
