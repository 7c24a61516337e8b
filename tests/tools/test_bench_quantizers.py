"""The benchmark of quantisers: a small network through ONNX Runtime's quantiser and ours, on both runtimes, and its counting."""

import importlib.util
import json
from types import SimpleNamespace

import numpy as np
import onnx.reference
import pytest
import torch

from hwnas.data import load_dataset
from hwnas.ir.blocks import Head, MBConv, Stem
from hwnas.ir.space import Decision, Fixed, SearchSpace
from hwnas.runtimes import RuntimeConfig
from hwnas.runtimes.onnx_model import ONNX_FILE
from tests.tools.test_schemes import ROOT, load_tool

bench = load_tool("bench_quantizers")
OURS, THEIRS = "ours mse", "onnxruntime minmax"
WITH_NNCF = importlib.util.find_spec("nncf") is not None


def no_bar(done, total):
    assert 0 < done <= total


@pytest.fixture(scope="module")
def dataset():
    return load_dataset("digits?size=16&train=300&validation=20&test=60")


@pytest.fixture(scope="module")
def subject(dataset, tmp_path_factory):
    torch.set_num_threads(1)
    space = SearchSpace("small", (1, 16, 16), (
        Fixed("stem", Stem(8)), Decision("body", {"mb": MBConv(8, 3, 3, activation="relu")}), Fixed("head", Head(10, 16))))
    settings = SimpleNamespace(epochs=1, calibration_images=32)
    return bench.make_subject(space, "mb", dataset, tmp_path_factory.mktemp("trained"), settings, no_bar)


@pytest.fixture(scope="module")
def made(subject, tmp_path_factory):
    """Ours, and theirs from a process of its own, which finds the tool by its name."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "tools"))
        return folder, {OURS: bench.quantize_here(OURS, subject), **bench.quantize_all([THEIRS], subject, folder, no_bar)}


def test_models_are_made_once_from_the_same_images(subject, made, monkeypatch):
    folder, found = made
    files, costs = found[THEIRS]
    assert costs["seconds"] >= 0 and costs["peak_mib"] > 0
    monkeypatch.setattr(bench, "ProcessPoolExecutor", None)  # nothing is made again
    assert bench.quantize_all([THEIRS], subject, folder, no_bar) == {THEIRS: (files, costs)}
    assert bench.quantize_here(THEIRS, subject)[0] == files


def test_integer_layers_are_counted_in_the_runtime_s_own_graph(subject, made):
    """A stem, an inverted residual of three convolutions and a sum, and a head of a convolution, a pool and a classifier."""
    programs = {name: bench.as_program(files, subject.model) for name, (files, _) in made[1].items()}
    programs["fp32"] = bench.as_program({ONNX_FILE: subject.model}, subject.model)
    found = {name: bench.count_kernels("onnxruntime-cpu", program, RuntimeConfig()) for name, program in programs.items()}
    assert found["fp32"][0] == 0 and found[OURS] == (6, 8) and found[THEIRS] == (8, 8)
    integer = {name: bench.count_kernels("openvino-cpu", program, RuntimeConfig())[0] for name, program in programs.items()}
    assert integer["fp32"] == 0 and integer[OURS] >= 5 and integer[THEIRS] >= 5


def test_models_are_compared_on_the_same_images(subject, made, dataset):
    programs = {"fp32": bench.as_program({ONNX_FILE: subject.model}, subject.model),
                **{name: bench.as_program(files, subject.model) for name, (files, _) in made[1].items()}}
    sessions = {name: [SimpleNamespace(ratios=(ratio * 0.99, ratio, ratio * 1.01))] * 3
                for name, ratio in (("fp32", 2.0), (OURS, 1.0), (THEIRS, 1.5))}
    rows = bench.compare("onnxruntime-cpu", programs, {name: costs for name, (_, costs) in made[1].items()}, dataset, sessions,
                         no_bar)
    json.dumps(rows, default=float, allow_nan=False)
    assert [(row["name"], round(row["ratio_to_fp32"], 9)) for row in rows] == [(OURS, 0.5), (THEIRS, 0.75), ("fp32", 1.0)]
    assert rows[2]["divergence"] == rows[2]["against_fp32"]["difference"] == 0 < rows[0]["divergence"] < 0.1
    assert bench.claims(rows) == {"faster than ours (intervals apart)": [], "slower than ours (intervals apart)": [THEIRS],
                                  "more accurate than ours (p < 0.05)": [], "less accurate than ours (p < 0.05)": []}
    network = {"network": "small:mb", "runtime": "here", "version": "3", "rows": rows, "claims": bench.claims(rows)}
    document = {"quantizers": {"ours": "1", "onnxruntime": "2"}, "calibration_images": 32, "test_images": 60,
                "networks": [network]}
    table = [line for line in bench.markdown(document).splitlines() if line.startswith("|")]
    assert len(table) == 5 and len({line.count("|") for line in table}) == 1
    expected = onnx_logits(subject.model, dataset).argmax(1) == dataset.test.labels
    assert rows[2]["test_accuracy"] == expected.mean()


def onnx_logits(model, dataset):
    """By onnx's own reference, without a runtime."""
    reference = onnx.reference.ReferenceEvaluator(onnx.load_from_string(model))
    return np.concatenate([reference.run(None, {"images": image[None]})[0] for image in dataset.normalise(dataset.test.images)])


def test_divergence_is_that_of_probabilities():
    first, second = np.log([[0.5, 0.5], [0.9, 0.1]]), np.log([[0.25, 0.75], [0.9, 0.1]]) + 7
    assert bench.divergence(first, second) == pytest.approx((0.5 * np.log(2) + 0.5 * np.log(2 / 3)) / 2)


def test_it_says_when_nncf_is_missing():
    names, missing = bench.find_quantizers()
    assert (OURS in names) and (THEIRS in names) and bool(missing) == (not WITH_NNCF)
    assert any(name.startswith("nncf") for name in names) == WITH_NNCF
