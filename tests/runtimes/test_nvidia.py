"""Finding the GPU: which one CUDA's environment variables choose, and what is said where there is none."""

import ctypes
import subprocess
import sys
from types import ModuleType

import pytest

from hwnas.errors import UnavailableError
from hwnas.runtimes import RUNTIMES, RuntimeConfig, nvidia
from hwnas.runtimes.nvidia import Gpu, NoGpu, choose_gpu, gpu_settings, missing_modules, probe_gpu, read_clock_mhz, why_unusable
from tests.runtimes.models import conv_net

NVIDIA = ["onnxruntime-cuda", "tensorrt", "tensorrt-rtx"]
TWINS = {"GPU-aa11": "L4", "GPU-ab22": "L4"}
MIXED = {"GPU-aa11": "T400", "GPU-ab22": "RTX 4090"}


def has_driver() -> bool:
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return False
    return True


needs_no_gpu = pytest.mark.skipif(has_driver(), reason="this machine has an NVIDIA driver")
needs_gpu = pytest.mark.skipif(not has_driver(), reason="this machine has no NVIDIA driver")


@pytest.mark.parametrize(("visible", "chosen"), [
    (None, "GPU-aa11"), ("0", "GPU-aa11"), ("1", "GPU-ab22"), ("1,0", "GPU-ab22"), (" 1 ", "GPU-ab22"),
    ("GPU-ab22", "GPU-ab22"), ("GPU-ab", "GPU-ab22"), ("MIG-5f", "MIG-5f"),
])
def test_the_first_visible_gpu_is_chosen(visible, chosen):
    assert choose_gpu(TWINS, {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}) == chosen


@pytest.mark.parametrize("visible", ["", "-1", "2", "-1,0", "GPU-ff", "none"])
def test_hidden_gpus_are_not_there(visible):
    with pytest.raises(nvidia._NoGpuError, match="CUDA_VISIBLE_DEVICES"):
        choose_gpu(TWINS, {"CUDA_VISIBLE_DEVICES": visible})


def test_unlike_gpus_must_be_told_apart():
    """CUDA puts the one that it deems fastest first, whatever its slot."""
    with pytest.raises(nvidia._NoGpuError, match=r"T400, RTX 4090.*CUDA_DEVICE_ORDER=PCI_BUS_ID"):
        choose_gpu(MIXED, {})
    assert choose_gpu(MIXED, {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "1"}) == "GPU-ab22"
    assert choose_gpu(MIXED, {"CUDA_VISIBLE_DEVICES": "GPU-ab"}) == "GPU-ab22"


def test_a_driver_without_gpus_is_told():
    with pytest.raises(nvidia._NoGpuError, match="nvidia-smi"):
        choose_gpu({}, {})


@needs_no_gpu
def test_without_a_driver_every_question_has_an_answer():
    found = probe_gpu()
    assert isinstance(found, NoGpu) and "no NVIDIA GPU driver" in found.reason
    assert read_clock_mhz() is None
    assert gpu_settings() == {"gpu": "none"}


class Nvml(ModuleType):
    """NVML's module as far as it is asked for here, with two GPUs: functions give what the driver's give, or raise as it does."""

    NVML_CLOCK_GRAPHICS, NVML_CLOCK_SM = 0, 1

    class NVMLError(Exception):
        pass

    def __init__(self, clocks_mhz):
        super().__init__("pynvml")
        self.open, self.clocks_mhz = 0, clocks_mhz

    def nvmlInit(self):
        self.open += 1

    def nvmlShutdown(self):
        self.open -= 1

    def nvmlDeviceGetCount(self):
        return len(TWINS)

    def nvmlDeviceGetHandleByIndex(self, index):
        return list(TWINS)[index]

    def nvmlDeviceGetHandleByUUID(self, uuid):
        return uuid

    def nvmlDeviceGetUUID(self, handle):
        return handle

    def nvmlDeviceGetName(self, handle):
        return TWINS[handle]

    def nvmlDeviceGetClockInfo(self, handle, kind):
        if kind != self.NVML_CLOCK_SM or self.clocks_mhz[handle] is None:
            raise self.NVMLError("Not Supported")
        return self.clocks_mhz[handle]


@pytest.mark.parametrize(("clocks_mhz", "told"), [((1980, 345), 345), ((1980, None), None), ((1980, 0), None)])
def test_the_clock_is_that_of_the_gpu_that_computes(clocks_mhz, told, monkeypatch):
    nvml = Nvml(dict(zip(TWINS, clocks_mhz, strict=True)))
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(nvidia, "_driver_is_present", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    found = {name: runtime.clock_mhz() for name, runtime in RUNTIMES.items()}
    assert read_clock_mhz() == told and nvml.open == 0
    assert found == {name: told if name in (*NVIDIA, "torch-cuda") else None for name in RUNTIMES}


@needs_no_gpu
def test_all_reasons_are_given_at_once():
    assert why_unusable([]) == probe_gpu().reason
    both = why_unusable([None, "something is not installed; run: pip install something"])
    assert "driver" in both and "pip install something" in both


def test_modules_are_looked_for_without_importing_them():
    assert missing_modules(["json", "xml.dom"], "x") is None
    message = missing_modules(["json", "no_such_module", "no_such.package"], "pip install it")
    assert message == "no_such_module and no_such.package are not installed; run: pip install it"


@needs_no_gpu
@pytest.mark.parametrize("name", NVIDIA)
def test_without_a_gpu_nothing_runs_and_the_reason_is_its_absence(name):
    found = RUNTIMES[name].availability()
    assert not found.available and found.version is None and "no NVIDIA GPU driver was found" in found.reason
    with pytest.raises(UnavailableError, match=f"^{name} is not usable here: no NVIDIA GPU driver was found") as caught:
        RUNTIMES[name].compile(conv_net().SerializeToString(), RuntimeConfig())
    assert caught.value.exit_code == 5


@needs_no_gpu
def test_saying_no_imports_nothing_large():
    code = ("import sys\n"
            "from hwnas.runtimes import RUNTIMES\n"
            f"for name in {NVIDIA}: assert not RUNTIMES[name].availability().available\n"
            "assert not {'tensorrt_rtx', 'tensorrt', 'onnxruntime', 'cuda.bindings', 'pynvml', 'torch'} & set(sys.modules)\n")
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", NVIDIA)
def test_settings_record_threads_and_precision_with_and_without_a_gpu(name):
    one, two, half = (RUNTIMES[name].settings(RuntimeConfig(threads, precision))
                      for threads, precision in ((1, "fp32"), (2, "fp32"), (1, "fp16")))
    assert one["gpu"] and [(one[key], two[key]) for key in one if one[key] != two[key]] == [(1, 2)]
    assert [(one[key], half[key]) for key in one if one[key] != half[key]] == [("fp32", "fp16")]


@pytest.mark.gpu
@needs_gpu
def test_the_gpu_is_described():
    found = probe_gpu()
    assert isinstance(found, Gpu) and found.name and found.driver
    major, minor = found.compute_capability.split(".")
    assert int(major) >= 5 and int(minor) >= 0
    assert read_clock_mhz() > 0
    assert gpu_settings()["gpu_driver"] == found.driver
