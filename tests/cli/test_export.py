"""Formats on the command line: exported, verified and timed, each by its own runtime."""

import json
import shutil

import onnx
import pytest

from hwnas.runtimes import RUNTIMES
from hwnas.runtimes.tensorrt import TENSORRT, TENSORRT_RTX
from tests.cli.command import hwnas, refused
from tests.cli.conftest import DEVICE


@pytest.fixture(scope="module")
def several(space, tmp_path_factory):
    """Two formats of one network, in fp32."""
    folder = tmp_path_factory.mktemp("several") / "network"
    done = hwnas("export", "--space", space, "--random", 3, "--format", "onnx", "--format", "litert", "--format", "onnx",
                 "--output", folder, "--json")
    assert done.code == 0, done.err
    return folder, done.json


def test_each_of_several_formats_is_an_artefact_of_its_own(several):
    folder, documents = several
    assert [one["format"] for one in documents] == ["onnx", "litert"]
    assert sorted(path.name for path in folder.iterdir()) == ["litert", "onnx"]
    for document in documents:
        assert document["artifact"] == str((folder / document["format"]).resolve()) and document["parity"] == "agrees"
        found = hwnas("verify", folder / document["format"], "--json").json
        assert found["verified"] and found["not_run"] is None and found["format"] == document["format"]


def test_an_artefact_is_timed_on_its_own_runtime(several):
    folder, _ = several
    for name, runtime in (("onnx", DEVICE), ("litert", "litert-cpu")):
        done = hwnas("bench", folder / name, "--sessions", 1, "--json")
        assert done.code == 0, done.err
        assert done.json["device"] == done.json["environment"]["runtime"] == runtime and done.json["latency_ms"] > 0
    assert "choose another" in refused(hwnas("bench", folder / "litert", "--device", DEVICE))
    assert hwnas("bench", folder / "onnx", "--device", "litert-cpu", "--sessions", 1, "--json").json["device"] == "litert-cpu"


def test_a_changed_engine_takes_trust(several, tmp_path):
    copy = shutil.copytree(several[0] / "litert", tmp_path / "copy")
    content = bytearray((copy / "model.tflite").read_bytes())
    content += b"\0" * 4  # which LiteRT does not read
    (copy / "model.tflite").write_bytes(content)
    for verb in (("verify", copy), ("bench", copy, "--sessions", 1)):
        assert "--trust-engine" in refused(hwnas(*verb), 4)
        assert hwnas(*verb, "--trust-engine").code == 0
    assert hwnas("verify", copy, "--trust-engine", "--json").json["changed_files"] == ["model.tflite"]


def test_bisect_names_a_layer(several, tmp_path):
    assert hwnas("verify", several[0] / "onnx", "--bisect").code == 0
    assert "as onnx" in refused(hwnas("verify", several[0] / "litert", "--bisect"))
    copy = shutil.copytree(several[0] / "onnx", tmp_path / "copy")
    model = onnx.load(copy / "model.onnx")
    tensor = next(one for one in model.graph.initializer if one.name.startswith("tail/") and one.name.endswith("conv.weight"))
    tensor.CopyFrom(onnx.numpy_helper.from_array(2 * onnx.numpy_helper.to_array(tensor), tensor.name))
    (copy / "model.onnx").write_bytes(model.SerializeToString())
    assert "--trust-engine" in refused(hwnas("verify", copy, "--bisect"), 4)
    assert repr(tensor.name.removesuffix(".weight")) in refused(hwnas("verify", copy, "--bisect", "--trust-engine"), 4)


def test_an_engine_for_gpus_that_are_not_here(space, tmp_path):
    if not TENSORRT_RTX.can_build().available or TENSORRT_RTX.availability().available:
        pytest.skip("for machines that build engines and cannot run them")
    export = ("export", "--space", space, "--random", 1, "--format", "tensorrt-rtx", "--compute-capability", "8.9")
    document = hwnas(*export, "--precision", "fp16", "--output", tmp_path / "a", "--json").json
    assert document["parity"].startswith("not run: ") and document["parity_max_abs"] is None
    assert document["compute_capabilities"] == ["8.9"] and document["precision"] == "fp16"
    found = hwnas("verify", tmp_path / "a", "--json").json
    assert not found["verified"] and found["not_run"] and found["files"] == 3 and found["max_abs"] is None
    assert "not run" in hwnas("verify", tmp_path / "a").out
    refused(hwnas("bench", tmp_path / "a", "--sessions", 1), 5)


def test_tensorrt_where_it_is_not(space, tmp_path):
    if TENSORRT.availability().available:
        pytest.skip("it is here")
    export = ("export", "--space", space, "--random", 1, "--format", "tensorrt", "--output", tmp_path / "a")
    assert "tensorrt is not usable here" in refused(hwnas(*export), 5)
    assert list(tmp_path.iterdir()) == []


def test_a_supernets_path_with_preprocessing_in_another_precision(architecture, supernet, tmp_path):
    """Trained weights and real images: the accuracy is compared, too."""
    name = "openvino" if RUNTIMES["openvino-cpu"].availability().available else "onnx"
    done = hwnas("export", "--architecture", architecture, "--weights", supernet, "--include-preprocessing", "--format", name,
                 "--output", tmp_path / "a", "--json")
    assert done.code == 0, done.err
    document = done.json
    assert document["preprocessing"]["in_model"] and abs(document["parity_accuracy_difference"]) <= 0.02
    assert document["parity_top1_agreement"] == 1.0 and len(document["classes"]) == 10
    assert json.loads((tmp_path / "a" / "manifest.json").read_text()) == {
        key: value for key, value in document.items() if key != "artifact"}


@pytest.mark.parametrize("arguments, word", [
    (("--format", "ncnn", "--format", "pickle"), "pickle"),
    (("--precision", "fp16"), "fp16"),
    (("--precision", "fp7"), "fp7"),
    (("--dynamic-batch", "--format", "mnn"), "--dynamic-batch"),
    (("--compute-capability", "8.9"), "--compute-capability"),
    (("--include-preprocessing",), "--include-preprocessing"),
    (("--quantile", 2), "quantile"),
])
def test_what_a_format_cannot_do_is_told_before_anything_is_made(arguments, word, space, tmp_path):
    assert word in refused(hwnas("export", "--space", space, "--random", 1, "--output", tmp_path / "a", *arguments))
    assert list(tmp_path.iterdir()) == []


def test_a_table_of_another_runtime_does_not_time_a_format(space, table, tmp_path):
    done = hwnas("export", "--space", space, "--random", 1, "--table", table, "--format", "litert", "--output", tmp_path / "a")
    assert "litert-cpu" in refused(done)
    assert list(tmp_path.iterdir()) == []
