"""The contract of `hwnas.export.formats`, held against every format whose runtime is here; a new one is tested by being there."""

import json
import re
import shutil
import subprocess
import sys
from collections import Counter

import numpy as np
import onnx
import pytest
import torch

from hwnas.errors import InputError, UnavailableError, VerificationError
from hwnas.export.artifact import export_network
from hwnas.export.formats import FORMATS, FormatOptions
from hwnas.export.loading import load_artifact
from hwnas.export.verify import verify_artifact
from hwnas.ir.blocks import Head, MBConv, Stem
from hwnas.ir.network import build_network
from hwnas.ir.quantized import Quantized
from hwnas.ir.shape import TensorShape
from hwnas.lower.onnx import OPSET, to_onnx
from hwnas.lower.torch import to_torch
from hwnas.runtimes import RUNTIMES
from hwnas.runtimes.tensorrt import TENSORRT_RTX
from tests.export.conftest import IMAGES, NETWORK, WEIGHTS

MEAN, STD = [0.5, 0.4, 0.45], [0.2, 0.25, 0.3]
PREPROCESSING = {"size": [12, 12], "channels": "RGB", "mean": MEAN, "std": STD}
PIXELS = np.random.default_rng(1).integers(0, 256, (4, 3, 12, 12)).astype(np.float32)
BATCH = 3  # which does not divide the number of images

# Every format in every precision that its runtime has. ExecuTorch's lowering takes seconds a model.
CASES = [(name, precision) for name, one in FORMATS.items() for precision in RUNTIMES[one.runtime].precisions
         if one.runtime not in ("tensorrt", "tensorrt-rtx") and (name, precision) != ("executorch", "fp16")]


def available(name):
    found = RUNTIMES[FORMATS[name].runtime].availability()
    if not found.available:
        pytest.skip(f"{name}: {found.reason}")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def reference():
    """What PyTorch makes of the pixels, pre-processed in float64."""
    images = (PIXELS / 255.0 - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    with torch.inference_mode():
        return to_torch(NETWORK, WEIGHTS).eval()(torch.tensor(images.astype(np.float32))).numpy()


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def made(request, tmp_path_factory):
    """An artefact of each, with pre-processing inside: every converter takes that."""
    name, precision = request.param
    available(name)
    try:
        return export_network(NETWORK, WEIGHTS, tmp_path_factory.mktemp(name) / "artifact", images=PIXELS, batch_size=BATCH,
                              preprocessing=PREPROCESSING, options=FormatOptions(name, precision, include_preprocessing=True))
    except UnavailableError as error:  # not every CPU has every precision
        pytest.skip(str(error))


def run_script(folder, *arguments):
    """Runs an artefact's script alone: isolated from this tree, from user folders and from environment variables."""
    return subprocess.run([sys.executable, "-I", folder / "run.py", *arguments], cwd="/", capture_output=True, text=True,
                          timeout=120)


def test_the_folder_holds_the_formats_own_files_and_no_others(made):
    chosen = FORMATS[made.manifest.format]
    names = {path.name for path in made.directory.iterdir()}
    assert names == {name for name in chosen.files if name not in chosen.optional} | {"golden.npz", "manifest.json", "run.py"}
    assert ("model.onnx" in names) == (made.manifest.format == "onnx")
    assert set(made.manifest.files) == names - {"manifest.json"}


def test_the_shipped_files_give_pytorchs_numbers(made, reference):
    manifest = made.manifest
    scale = np.abs(reference).max()
    assert manifest.parity == "agrees" and manifest.parity_max_abs <= manifest.parity_tolerance <= 0.07 * scale
    assert manifest.precision != "fp32" or manifest.parity_tolerance <= 1.01e-4 * scale
    assert manifest.preprocessing.in_model and manifest.input_shape == (BATCH, 3, 12, 12) and manifest.outputs == 5
    with np.load(made.directory / "golden.npz", allow_pickle=False) as golden:
        np.testing.assert_array_equal(golden["images"], PIXELS)
        np.testing.assert_allclose(golden["logits"], reference, atol=1e-5)


def test_a_lower_precision_is_what_is_computed(made):
    """Half precision that gives float32's numbers was never switched on."""
    unit = {"fp32": 0.0, "fp16": 2.0**-11, "bf16": 2.0**-8}[made.manifest.precision]
    assert made.manifest.parity_max_abs >= unit / 50


def test_it_verifies(made):
    report = verify_artifact(made.directory)
    assert report.parity.max_abs <= report.parity.tolerance and report.not_run is None and report.extra_files == ()
    assert FORMATS[made.manifest.format].runtime in made.manifest.versions


def test_the_script_needs_nothing_of_hwnas(made, reference, tmp_path):
    source = (made.directory / "run.py").read_text()
    assert "hwnas" not in source and "pickle=False" in source
    done = run_script(made.directory)
    assert done.returncode == 0 and "agrees" in done.stdout, done.stderr
    np.save(tmp_path / "images.npy", PIXELS[1:3])
    done = run_script(made.directory, tmp_path / "images.npy")
    classes = next(line for line in done.stdout.splitlines() if line.startswith("classes:"))
    assert classes.split()[1:] == [str(one) for one in reference[1:3].argmax(axis=1)]


@pytest.mark.parametrize("made", [("litert", "fp32")], ids="-".join, indirect=True)  # the comparison is one text in all scripts
def test_the_script_reports_a_difference(made, tmp_path):
    copy = shutil.copytree(made.directory, tmp_path / "copy")
    with np.load(copy / "golden.npz") as golden:
        arrays = dict(golden)
    np.savez(copy / "golden.npz", **arrays | {"logits": arrays["logits"] + 0.5})
    done = run_script(copy)
    assert done.returncode == 1 and "DIFFERS" in done.stdout, done.stderr


def test_a_changed_model_is_never_loaded_unless_it_is_trusted(made, tmp_path, monkeypatch):
    copy = shutil.copytree(made.directory, tmp_path / "copy")
    name = next(iter(FORMATS[made.manifest.format].files))
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)

    def must_not_run(*arguments):
        raise AssertionError("a file with the wrong hash reached a runtime")

    with monkeypatch.context() as patch:
        patch.setattr("hwnas.export.verify.run_program", must_not_run)
        with pytest.raises(VerificationError, match=rf"{name} must have the SHA-256 .*--trust-engine"):
            verify_artifact(copy)
    assert load_artifact(copy, trust_engine=True).changed == (name,)


def test_a_trusted_change_still_has_to_give_the_golden_numbers(tmp_path):
    """Two builds of the same model: another hash, the same numbers."""
    first, second = (export_network(NETWORK, WEIGHTS, tmp_path / name, images=IMAGES, name=name).directory
                     for name in ("first", "second"))
    shutil.copy(second / "model.onnx", first / "model.onnx")
    with pytest.raises(VerificationError, match="not loaded"):
        verify_artifact(first)
    report = verify_artifact(first, trust_engine=True)
    assert report.changed == ("model.onnx",) and report.parity.max_abs <= report.parity.tolerance
    export_network(NETWORK, WEIGHTS | {"head/classifier.bias": WEIGHTS["head/classifier.bias"] + 1}, second, images=IMAGES,
                   overwrite=True)
    shutil.copy(second / "model.onnx", first / "model.onnx")
    with pytest.raises(VerificationError, match="differ by"):
        verify_artifact(first, trust_engine=True)


@pytest.mark.parametrize("name", ["golden.npz", "run.py"])
def test_what_is_no_model_is_never_trusted(artifact, name):
    (artifact / name).write_bytes((artifact / name).read_bytes() + b" ")
    with pytest.raises(VerificationError, match=name):
        verify_artifact(artifact, trust_engine=True)


@pytest.mark.parametrize("name, precision", [("openvino", "bf16"), ("litert", "fp32")])
def test_a_conversion_that_departs_is_not_shipped_and_the_layer_is_named(name, precision, tmp_path, monkeypatch):
    """One channel of one convolution is negated on the way to the runtime."""
    available(name)
    chosen = FORMATS[name]

    def broken(model, options):
        proto = onnx.load_from_string(model)
        for tensor in proto.graph.initializer:
            if tensor.name == "body/depthwise_conv.weight":
                tensor.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(tensor), tensor.name))
        return chosen.build(proto.SerializeToString(), options)

    monkeypatch.setitem(FORMATS, name, type(chosen)(chosen.runtime, chosen.files, chosen.load, broken,
                                                    script_precisions=chosen.script_precisions))
    with pytest.raises(VerificationError, match=r"differ by .* the first layer that departs is 'body/depthwise_conv'"):
        export_network(NETWORK, WEIGHTS, tmp_path / "a", images=IMAGES, options=FormatOptions(name, precision))
    assert not list(tmp_path.iterdir())


# Operator sets

NEWER_OPSET = 21  # which all of them read
INT8_NETWORK = build_network(TensorShape(3, 12, 12), [
    ("stem", Stem(8)), ("body", Quantized(MBConv(16, 3, 2, se_ratio=0.25), 8, 8)), ("head", Head(5))])
RANDOM_NAME = re.compile(rb"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")  # MNN gives one to each of its files


def kernels_of_onnx_runtime(files, folder):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # it warns that the optimised model is for this machine alone
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    onnxruntime.InferenceSession(files["model.onnx"], options, providers=["CPUExecutionProvider"])
    return Counter((node.domain, node.op_type) for node in onnx.load(folder / "optimised.onnx").graph.node)


def kernels_of_openvino(files, folder):
    import openvino

    for name, content in files.items():
        (folder / name).write_bytes(content)
    compiled = openvino.Core().compile_model(folder / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return Counter(tuple(operator.get_rt_info()[key].astype(str) for key in ("layerType", "primitiveType"))
                   for operator in compiled.get_runtime_model().get_ops())


@pytest.mark.parametrize("network", [NETWORK, INT8_NETWORK], ids=["fp32", "int8"])
@pytest.mark.parametrize("name", [name for name in FORMATS if name not in ("executorch", "tensorrt")])
def test_a_newer_operator_set_changes_nothing_that_is_run(name, network, tmp_path):
    """So all formats have one that releases of many years read. (ExecuTorch's lowering takes seconds.)"""
    if name == "tensorrt-rtx" and not TENSORRT_RTX.can_build().available:
        pytest.skip("tensorrt-rtx is not installed")
    if name != "tensorrt-rtx":
        available(name)
    chosen, made = FORMATS[name], []
    for opset in (chosen.opset, NEWER_OPSET):
        files = chosen.build(to_onnx(network, seed=0, opset=opset).SerializeToString(), FormatOptions(name)).files
        if name == "onnx":
            made.append(kernels_of_onnx_runtime(files, tmp_path))
        elif name == "openvino":
            made.append(kernels_of_openvino(files, tmp_path))
        else:
            made.append({file: RANDOM_NAME.sub(b"", content) for file, content in files.items()})
    assert made[0] == made[1] and made[0] and chosen.opset == OPSET


# Engines for GPUs that are not here

@pytest.fixture(scope="module", params=TENSORRT_RTX.precisions)
def engine(request, tmp_path_factory):
    if not TENSORRT_RTX.can_build().available:
        pytest.skip("tensorrt-rtx is not installed")
    if TENSORRT_RTX.availability().available:
        pytest.skip("there is a GPU, on which it runs")
    return export_network(NETWORK, WEIGHTS, tmp_path_factory.mktemp("engine") / "artifact", images=IMAGES,
                          options=FormatOptions("tensorrt-rtx", request.param, compute_capabilities=("8.6", "8.9")))


def test_an_engine_that_cannot_run_here_says_so(engine):
    document = json.loads((engine.directory / "manifest.json").read_text())
    assert document["parity"].startswith("not run: ") and "GPU" in document["parity"]
    assert all(document[key] is None for key in ("parity_max_abs", "parity_tolerance", "parity_top1_agreement",
                                                 "parity_accuracy_difference", "measured_ms"))
    assert document["compute_capabilities"] == ["8.6", "8.9"] and "tensorrt-rtx" in document["versions"]
    assert (engine.directory / "model.engine").read_bytes()[:4] == b"vtrt"
    compile((engine.directory / "run.py").read_text(), "run.py", "exec")
    report = verify_artifact(engine.directory)
    assert report.parity is None and "GPU" in report.not_run


def test_a_damaged_engine_is_found_without_a_gpu(engine, tmp_path):
    copy = shutil.copytree(engine.directory, tmp_path / "copy")
    content = (copy / "model.engine").read_bytes()
    for damaged in (content[:len(content) // 2], content[:40], b"junk" * 100, b""):
        (copy / "model.engine").write_bytes(damaged)
        with pytest.raises(VerificationError, match="not loaded"):
            verify_artifact(copy)
        with pytest.raises(VerificationError, match="must be able to read the engine"):
            verify_artifact(copy, trust_engine=True)


def test_the_model_behind_an_engine_is_compared_before_it_is_built(tmp_path, monkeypatch):
    """Where the engine cannot run, what it is made from can: ONNX Runtime has both precisions."""
    if not TENSORRT_RTX.can_build().available or TENSORRT_RTX.availability().available:
        pytest.skip("for machines that build engines and cannot run them")
    monkeypatch.setattr("hwnas.export.making.run_model", lambda model, images: np.zeros((len(images), 5), np.float32))
    with pytest.raises(VerificationError, match="The model for tensorrt-rtx in ONNX Runtime and PyTorch"):
        export_network(NETWORK, WEIGHTS, tmp_path / "a", images=IMAGES, options=FormatOptions("tensorrt-rtx"))
    assert not list(tmp_path.iterdir())


# Options

@pytest.mark.parametrize("options, word", [
    (FormatOptions("pickle"), "pickle"), (FormatOptions("onnx", "fp16"), "fp16"), (FormatOptions("litert", "bf16"), "bf16"),
    (FormatOptions("ncnn", dynamic_batch=True), "--dynamic-batch"),
    (FormatOptions("onnx", compute_capabilities=("8.9",)), "--compute-capability"),
    (FormatOptions("tensorrt", compute_capabilities=("8.9",)), "--compute-capability"),
    (FormatOptions("tensorrt-rtx", version_compatible=True), "--version-compatible"),
    (FormatOptions("onnx", hardware_compatible="ampere-plus"), "--hardware-compatible"),
    (FormatOptions("tensorrt", hardware_compatible="8.9"), "same-compute-capability or ampere-plus, but got '8.9'")])
def test_options_that_a_format_lacks_are_refused(options, word, tmp_path):
    with pytest.raises(InputError, match=word):
        export_network(NETWORK, WEIGHTS, tmp_path / "a", images=IMAGES, options=options)
    assert not list(tmp_path.iterdir())


def test_an_unknown_gpu_is_refused(tmp_path):
    if not TENSORRT_RTX.can_build().available:
        pytest.skip("tensorrt-rtx is not installed")
    with pytest.raises(InputError, match=r"8\.6.*'3\.0'"):
        export_network(NETWORK, WEIGHTS, tmp_path / "a", images=IMAGES,
                       options=FormatOptions("tensorrt-rtx", compute_capabilities=("3.0",)))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["tensorrt", "openvino"])
def test_a_format_without_its_runtime_is_unavailable(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)  # as where it is not installed
    with pytest.raises(UnavailableError, match=f"{name}.*pip install"):
        export_network(NETWORK, WEIGHTS, tmp_path / "a", images=IMAGES, options=FormatOptions(name))
    assert not list(tmp_path.iterdir())


def test_preprocessing_that_is_not_known_cannot_be_included(tmp_path):
    with pytest.raises(InputError, match="--include-preprocessing"):
        export_network(NETWORK, WEIGHTS, tmp_path / "a", images=IMAGES, options=FormatOptions(include_preprocessing=True))
