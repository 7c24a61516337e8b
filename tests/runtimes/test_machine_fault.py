"""Errors of a machine that is short of memory, by real runtimes under a real limit: they say nothing about the model."""

import subprocess
import sys
from pathlib import Path

import pytest

from hwnas.runtimes import RUNTIMES

ROOT = Path(__file__).parents[2]

# Loads and runs a model, whose inputs and weights are there, with a hundred megabytes more; it takes over a gigabyte.
SHORT_OF_MEMORY = """
import resource, sys
import numpy as np
from hwnas.errors import InputError
from hwnas.runtimes import RUNTIMES, RuntimeConfig
from hwnas.runtimes.base import machine_fault
from tests.runtimes.models import conv_net

runtime, config = RUNTIMES[sys.argv[1]], RuntimeConfig()
runtime.compile(conv_net().SerializeToString(), config)
program = runtime.prepare(conv_net(width=64, side=1500).SerializeToString(), config)
inputs = {tensor.name: np.zeros(tensor.shape, tensor.dtype) for tensor in program.inputs}
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 100 * 2**20,) * 2)
try:
    bound = runtime.load(program, config).bind(inputs)
    bound()
except InputError:
    raise
except Exception as error:
    print(machine_fault(runtime, error) or error)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc to see what is used")
@pytest.mark.parametrize("name", ["onnxruntime-cpu", "openvino-cpu", "torch-cpu"])
def test_a_lack_of_memory_is_no_refusal(name):
    found = RUNTIMES[name].availability()
    if not found.available:
        pytest.skip(f"{name}: {found.reason}")
    done = subprocess.run([sys.executable, "-c", SHORT_OF_MEMORY, name], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{name} lacks memory or a package where it runs (")
    print(done.stdout)
