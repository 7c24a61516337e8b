"""A space of four networks, and one of everything that is made from it: each made once, by the command line where it can."""

import math
import subprocess
import sys

import numpy as np
import pytest
import yaml

from hwnas.latency.table import load_table
from hwnas.pipeline.precision import precision_space
from hwnas.pipeline.quantize import profile_precisions
from hwnas.pipeline.retrain import read_retrained
from hwnas.profiling.device import open_device
from hwnas.profiling.profiler import ProfilePlan, profile_space
from hwnas.profiling.timing import TimingPlan
from hwnas.runtimes.base import RuntimeConfig
from hwnas.spaces.load import load_space
from tests.cli.command import hwnas

DEVICE = "onnxruntime-cpu"
DATA = "digits?size=16&train=200&validation=60&test=60"
SPACE = """
name: tiny
input_shape: [1, 16, 16]
layers:
  - {name: stem, block: {kind: stem, out_channels: 8}}
  - {name: body, options: {narrow: {kind: conv, out_channels: 8, stride: 2}, wide: {kind: conv, out_channels: 24, stride: 2}}}
  - {name: tail, grid: {kind: mbconv, out_channels: 16, kernel: [3, 5]}}
  - {name: head, block: {kind: head, classes: 10, channels: 32}}
"""
# Two blocks and two networks: profiled in seconds, with the plan that users get.
ATOM = """
name: atom
input_shape: [1, 8, 8]
layers:
  - {name: only, options: {k1: {kind: conv, out_channels: 4, kernel: 1}, k3: {kind: conv, out_channels: 4}}}
"""
# In a moment; how good the table is does not matter here.
QUICK = ProfilePlan(min_sessions=1, max_sessions=1, fit_networks=2, fit_sessions=1, held_out_networks=2, held_out_sessions=1,
                    max_anchor_change=math.inf, timing=TimingPlan(
    sample_ms=0.2, min_pairs=6, max_pairs=6, max_seconds=0.1, warmup_pairs=2, max_warmup_seconds=0.01))


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """A folder for what all tests share; none of them may change it."""
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="session")
def space(place):
    path = place / "tiny.yaml"
    path.write_text(SPACE)
    return path


@pytest.fixture(scope="session")
def atom(place):
    path = place / "atom.yaml"
    path.write_text(ATOM)
    return path


@pytest.fixture(scope="session")
def table(place, space):
    path = place / "table.json"
    with open_device(DEVICE, RuntimeConfig()) as device:
        profile_space(load_space(str(space)), device, path, plan=QUICK)
    return path


@pytest.fixture(scope="session")
def latencies(table):
    """Fastest and slowest predicted latency of the table, in ms."""
    loaded = load_table(table)
    rows = loaded.search_space.architectures(np.array(list(np.ndindex(2, 2))))
    found = sorted(one.latency_ms for one in loaded.predict_many(rows))
    return found[0], found[-1]


@pytest.fixture(scope="session")
def supernet(place, space):
    done = hwnas("train", "--space", space, "--data", DATA, "--epochs", 1, "--batch-size", 40, "--threads", 1,
                 "--output", place / "supernet", "--json")
    assert done.code == 0, done.err
    return place / "supernet"


@pytest.fixture(scope="session")
def architecture(place, table):
    loaded = load_table(table)
    path = place / "architecture.json"
    loaded.search_space.architecture({"body": "wide", "tail": "k3"}).save(path)
    return path


@pytest.fixture(scope="session")
def network(place, space, architecture):
    done = hwnas("retrain", "--architecture", architecture, "--space", space, "--data", DATA, "--epochs", 8, "--batch-size", 20,
                 "--threads", 1, "--output", place / "network", "--json")
    assert done.code == 0, done.err
    return place / "network"


@pytest.fixture(scope="session")
def precisions_table(place, network):
    """Of the space of precisions of that network."""
    path = place / "precisions.json"
    architecture, space, _ = read_retrained(network)
    with open_device(DEVICE, RuntimeConfig()) as device:
        profile_precisions(precision_space(space, architecture), device, path, plan=QUICK)
    return path


@pytest.fixture(scope="session")
def artifact(place, space):
    done = hwnas("export", "--space", space, "--random", 1, "--output", place / "artifact", "--json")
    assert done.code == 0, done.err
    return place / "artifact"


@pytest.fixture(scope="session")
def measured_kit(place, atom):
    """A kit that has been measured, and what building it said."""
    kit = place / "kit"
    done = hwnas("kit", "build", "--device", DEVICE, "--space", atom, "--output", kit, "--fit-networks", 1,
                 "--held-out-networks", 1, "--json")
    assert done.code == 0, done.err
    run = subprocess.run([sys.executable, kit / "run.py"], capture_output=True, text=True, check=False)
    assert run.returncode == 0 and "Everything is measured" in run.stdout, run.stderr
    return kit, done.json


@pytest.fixture(scope="session")
def config(place, space, table):
    path = place / "compile.yaml"
    path.write_text(yaml.safe_dump({
        "space": space.name, "data": DATA, "max_latency_ms": 1000, "profile": {"table": table.name},
        "train": {"epochs": 1, "threads": 1}, "search": {"population": 4, "generations": 1, "parents": 2},
        "export": {"sessions": 1}}))
    return path
