"""What runs on a small device: each runtime loads and runs a program where nothing is but Python, numpy and its own package."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hwnas.runtimes import RUNTIMES, RuntimeConfig
from tests.runtimes.models import conv_net, noise
from tests.runtimes.shipping import ship

ROOT = Path(__file__).parents[2]

# The top-level modules of each runtime's own package, and of what that cannot be imported without.
PACKAGES = {
    "onnxruntime-cpu": ["onnxruntime"],
    "openvino-cpu": ["openvino"],
    "ncnn-cpu": ["ncnn"],
    "mnn-cpu": ["MNN", "_mnncengine"],
    "litert-cpu": ["ai_edge_litert"],
    "executorch-cpu": ["executorch", "torch", "torchgen", "typing_extensions"],
    "torch-cpu": ["torch", "torchgen", "typing_extensions", "onnx", "google", "ml_dtypes"],  # it translates ONNX itself
}

# Refuses every import but those of the standard library, numpy, hwnas, this test's helper and what is named.
BARE = """
import json, sys

class BareDevice:
    present = {"numpy", "hwnas", "tests", *json.loads(sys.argv[1])} | sys.stdlib_module_names

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in self.present:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, BareDevice())
"""

LOAD_AND_RUN = BARE + """
from pathlib import Path
import numpy as np
from hwnas.runtimes import RUNTIMES, RuntimeConfig
from tests.runtimes.shipping import receive

runtime, folder = RUNTIMES[sys.argv[2]], Path(sys.argv[3])
executable = runtime.load(receive(folder / "program"), RuntimeConfig())
images = {"images": np.load(folder / "images.npy")}
bound = executable.bind(images)
bound()
np.savez(folder / "results.npz", run=executable.run(images)["logits"], bound=bound.read_outputs()["logits"])
executable.close()
found = runtime.can_load()
print(json.dumps([found.available, found.version, found.reason]))
"""


def run_there(program: str, packages: list[str], *arguments: str) -> str:
    """The last line that a program prints in a process of its own."""
    done = subprocess.run([sys.executable, "-c", program, json.dumps(packages), *arguments], cwd=ROOT, capture_output=True,
                          text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_a_bare_device_can_name_the_runtimes_and_their_settings():
    said = run_there(BARE + ("from hwnas.runtimes import RUNTIMES, RuntimeConfig\n"
                             "assert all(runtime.settings(RuntimeConfig()) for runtime in RUNTIMES.values())\n"
                             "print(json.dumps({name: runtime.can_load().reason for name, runtime in RUNTIMES.items()}))\n"), [])
    reasons = json.loads(said)
    assert set(reasons) == set(RUNTIMES) and all("install" in reason for reason in reasons.values())


def test_importing_the_runtimes_loads_nothing_but_numpy_even_where_all_is_installed():
    said = run_there("import json, sys, numpy\n"
                     "before = set(sys.modules)\n"
                     "import hwnas.runtimes, hwnas.runtimes.base, hwnas.errors\n"
                     "print(json.dumps([name.partition('.')[0] for name in set(sys.modules) - before]))\n", [])
    assert set(json.loads(said)) - sys.stdlib_module_names == {"hwnas"}


@pytest.mark.parametrize("name", ["torch-cpu", "torch-cuda"])
def test_pytorch_is_not_usable_without_onnx_which_it_is_translated_from(name):
    there = [package for package in PACKAGES["torch-cpu"] if package not in ("onnx", "google", "ml_dtypes")]
    reason = run_there(BARE + f"from hwnas.runtimes import RUNTIMES\nprint(RUNTIMES[{name!r}].can_load().reason)", there)
    assert "onnx" in reason.partition("not installed")[0] and " onnx" in reason.partition("run: pip install")[2]


@pytest.mark.parametrize("name", [name for name in RUNTIMES if name.endswith("-cpu")])
def test_a_device_needs_nothing_but_the_runtimes_own_package(name, tmp_path):
    runtime = RUNTIMES[name]
    found = runtime.availability()
    if not found.available:
        pytest.skip(f"{name}: {found.reason}")
    images = noise((2, 3, 16, 16))
    program = runtime.prepare(conv_net().SerializeToString(), RuntimeConfig())
    (tmp_path / "program").mkdir()
    ship(program, tmp_path / "program")
    np.save(tmp_path / "images.npy", images)
    said = run_there(LOAD_AND_RUN, PACKAGES[name], name, str(tmp_path))
    assert json.loads(said) == [True, runtime.can_load().version, None]
    executable = runtime.load(program, RuntimeConfig())
    expected = executable.run({"images": images})["logits"]
    executable.close()
    with np.load(tmp_path / "results.npz", allow_pickle=False) as results:
        for result in results.values():
            np.testing.assert_array_equal(result, expected)
