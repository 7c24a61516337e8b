"""The base install, for small devices: an environment of its own, without torch, in which everything but training works.

The environment is made once, in .venv-base, and again when pyproject.toml is newer.
"""

import contextlib
import fcntl
import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
BASE = ROOT / ".venv-base"
BIN = BASE / "bin"

# What may import torch (or what comes with it) when it is imported. Everything else belongs to the base install.
NEEDS_TORCH = {"hwnas.lower.torch", "hwnas.lower.straight_through", "hwnas.lower.calibrate", "hwnas.data.augment",
               "hwnas.pipeline.search", "hwnas.pipeline.export", "hwnas.pipeline.compile", "hwnas.pipeline.retrain",
               "hwnas.pipeline.budget", "hwnas.pipeline.precision", "hwnas.pipeline.quantize", "hwnas.supernet",
               "hwnas.runtimes.torch_model", "hwnas.runtimes.torch_operators", "hwnas.runtimes.executorch_lowering"}

SPACE = {"name": "atom", "input_shape": [1, 8, 8], "layers": [
    {"name": "only", "options": {"k1": {"kind": "conv", "out_channels": 4, "kernel": 1},
                                 "k3": {"kind": "conv", "out_channels": 4, "kernel": 3}}},
    {"name": "head", "block": {"kind": "head", "classes": 3}}]}


def _modules():
    paths = [path.relative_to(ROOT).with_suffix("") for path in (ROOT / "hwnas").rglob("*.py") if path.stem != "__main__"]
    return sorted(".".join(path.parts).removesuffix(".__init__") for path in paths)


@contextlib.contextmanager
def _alone(path):
    """Waits for the other processes of the suite."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def base():
    """The base install, ready to be used."""
    BASE.mkdir(exist_ok=True)
    stamp, project = BASE / "installed", ROOT / "pyproject.toml"
    with _alone(BASE / "lock"):
        if not stamp.exists() or not (BIN / "python").exists() or stamp.stat().st_mtime < project.stat().st_mtime:
            stamp.unlink(missing_ok=True)
            venv.create(BASE, with_pip=True, symlinks=True)
            done = _run("python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
                        "--editable", f"{ROOT}[onnxruntime]")
            assert done.returncode == 0, done.stderr
            stamp.touch()


def _run(program, *arguments):
    """Runs a program of the base install, away from the source tree."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
    return subprocess.run([BIN / program, *map(str, arguments)], capture_output=True, text=True, check=False, cwd=BASE,
                          env=environment | {"OMP_NUM_THREADS": "1"})


def _hwnas(*arguments, code=0):
    done = _run("hwnas", *arguments)
    assert done.returncode == code, done.stderr
    return done


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    path = tmp_path_factory.mktemp("bare") / "atom.yaml"
    path.write_text(yaml.safe_dump(SPACE))
    return path


@pytest.fixture(scope="module")
def table(base, space):
    """Profiled there."""
    path = space.with_name("table.json")
    done = _hwnas("profile", "--device", "onnxruntime-cpu", "--space", space, "--output", path, "--json")
    assert json.loads(done.stdout)["missing"] == 0
    return path


@pytest.fixture(scope="module")
def artifact(space):
    """Made here, where torch is."""
    path = space.with_name("artifact")
    done = subprocess.run([sys.executable, "-m", "hwnas", "export", "--space", space, "--random", "1", "--output", path],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return path


def test_only_what_trains_needs_torch(base):
    """Every module is imported on its own; those that fail are the explicit list, and for no other reason."""
    code = ("import importlib, json, sys\n"
            "missing = {}\n"
            "for name in sys.argv[1:]:\n"
            "    try: importlib.import_module(name)\n"
            "    except ModuleNotFoundError as error: missing[name] = error.name\n"
            "assert not {'torch', 'sklearn', 'matplotlib', 'PIL', 'safetensors'} & set(sys.modules)\n"
            "print(json.dumps(missing))\n")
    assert _run("python", "-c", "import torch").returncode == 1
    done = _run("python", "-c", code, *_modules())
    assert done.returncode == 0, done.stderr
    missing = json.loads(done.stdout)
    assert set(missing.values()) <= {"torch", "safetensors"}
    unexpected = {name for name in missing if name not in NEEDS_TORCH and not name.startswith("hwnas.supernet.")}
    assert not unexpected, "the base install has no torch: import it inside the function, or move the code to supernet/"
    assert set(missing) >= NEEDS_TORCH, "these need torch no more: take them off the list"


def test_devices_and_spaces(base):
    rows = {row["name"]: row for row in json.loads(_hwnas("devices", "--json").stdout)}
    assert rows["onnxruntime-cpu"]["available"] and rows["onnxruntime-cpu"]["runtime_version"]
    assert not rows["openvino-cpu"]["available"] and "pip install openvino" in rows["openvino-cpu"]["reason"]
    assert "pip install openvino" in _hwnas("devices").stdout
    assert {row["name"] for row in json.loads(_hwnas("spaces", "--json").stdout)} >= {"spos", "proxyless"}


def test_profile_predict_feasible(table):
    document = json.loads(table.read_text())
    assert document["space"] == "atom" and len(document["entries"]) == 3
    predictions = json.loads(_hwnas("predict", "--table", table, "--random", 4, "--json").stdout)
    assert len(predictions) == 4 and all(0 < row["latency_ms"] <= row["upper_ms"] for row in predictions)
    assert json.loads(_hwnas("feasible", "--table", table, "--max-latency-ms", 1000, "--json").stdout)["budgets"][0]["count"] == 2
    assert "fastest" in _hwnas("feasible", "--table", table, "--max-latency-ms", 1e-6, code=3).stderr


def test_verify_and_bench(base, artifact, table):
    assert json.loads(_hwnas("verify", artifact, "--json").stdout)["verified"]
    measured = json.loads(_hwnas("bench", artifact, "--device", "onnxruntime-cpu", "--sessions", 1, "--json").stdout)
    assert measured["latency_ms"] > 0


@pytest.mark.parametrize("arguments", [
    ("train", "--space", "{space}", "--data", "digits", "--output", "{there}"),
    ("search", "--supernet", "{there}", "--max-macs", 10, "--output", "{there}"),
    ("export", "--space", "{space}", "--random", 1, "--output", "{there}"),
], ids=lambda arguments: arguments[0])
def test_what_needs_torch_says_how_to_get_it(arguments, base, space, tmp_path):
    filled = [str(one).format(space=space, there=tmp_path / "there") for one in arguments]
    done = _hwnas(*filled, code=5)
    assert "pip install 'hwnas[train]'" in done.stderr and "Traceback" not in done.stderr and done.stdout == ""
    assert not (tmp_path / "there").exists()


def test_an_unavailable_runtime_exits_with_5(base, space, tmp_path):
    done = _hwnas("profile", "--device", "openvino-cpu", "--space", space, "--output", tmp_path / "t.json", code=5)
    assert "pip install openvino" in done.stderr


def test_importing_hwnas_is_light():
    """Here, where everything is installed: the name alone loads nothing, a public name no framework."""
    code = ("import sys, hwnas\n"
            "heavy = {'torch', 'onnxruntime', 'openvino', 'onnx', 'sklearn', 'matplotlib', 'PIL', 'numpy'}\n"
            "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
            "hwnas.Trellis(hwnas.load_space('spos')).sample(1, seed=0), hwnas.load_table\n"
            "assert not heavy - {'numpy'} & set(sys.modules), heavy & set(sys.modules)\n"
            "import hwnas.cli\n"
            "assert not heavy - {'numpy'} & set(sys.modules), heavy & set(sys.modules)\n")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
