"""Exporting a path of a supernet: the weights that were scored, real images, an honest accuracy."""

import numpy as np
import onnx
import pytest
import torch
from torch.nn import functional

from hwnas.data import load_dataset
from hwnas.errors import InputError, UnavailableError
from hwnas.export.formats import FormatOptions
from hwnas.export.loading import load_artifact
from hwnas.export.parity import run_model, run_program
from hwnas.export.verify import verify_artifact
from hwnas.ir.blocks import Head, Resolution, Stem
from hwnas.ir.network import build_network
from hwnas.ir.shape import TensorShape
from hwnas.ir.space import Decision, Fixed, SearchSpace
from hwnas.lower.onnx import to_onnx
from hwnas.lower.torch import to_torch
from hwnas.pipeline.export import TESTED_IMAGES, export_from_supernet, golden_images, preprocessing, random_network, supernet_path
from hwnas.pipeline.export import test_accuracy as accuracy_on_test
from hwnas.runtimes import RUNTIMES, RuntimeConfig
from hwnas.supernet.config import TrainConfig
from hwnas.supernet.supernet import extract
from hwnas.supernet.train import load_supernet, train_supernet
from tests.pipeline.samples import DATA, all_networks, make_space


@pytest.fixture(scope="module")
def exported(supernet_dir, dataset, space, tmp_path_factory):
    return export_from_supernet(supernet_dir, all_networks(space)[7], tmp_path_factory.mktemp("export") / "a", dataset=dataset,
                                calibration_images=64, batch_size=5)


def test_the_model_has_the_accuracy_that_its_manifest_claims(exported, dataset):
    """Counted anew with ONNX Runtime over the whole test set."""
    images = dataset.normalise(dataset.test.images)
    logits = run_model(exported.model_path.read_bytes(), images)
    assert np.mean(logits.argmax(axis=1) == dataset.test.labels) == pytest.approx(exported.manifest.accuracy)
    assert exported.manifest.accuracy > 0.15  # ten classes: it has learned something


def test_accuracy_is_of_the_recalibrated_path(exported, supernet_dir, dataset, space):
    supernet, _ = load_supernet(supernet_dir)
    assert accuracy_on_test(supernet, [all_networks(space)[7]], dataset, 64) == [exported.manifest.accuracy]


def test_the_manifest_says_how_to_feed_it(exported, dataset, space):
    manifest = exported.manifest
    assert manifest.input_shape == (5, 1, 16, 16) and manifest.classes == dataset.classes
    assert manifest.preprocessing.channels == "L" and manifest.preprocessing.size == (16, 16)
    assert manifest.preprocessing.mean == pytest.approx(dataset.mean)
    assert space.architecture(manifest.architecture["choices"]) == all_networks(space)[7]
    assert verify_artifact(exported.directory).extra_files == ()


def test_golden_images_are_the_first_of_the_test_set(exported, dataset, space):
    images, labels = golden_images(dataset, space.network(all_networks(space)[7]), 8)
    with np.load(exported.directory / "golden.npz", allow_pickle=False) as golden:
        assert np.array_equal(golden["images"], images)
    assert images.dtype == np.float32 and np.array_equal(labels, dataset.test.labels[:8])


def test_pixels_are_the_same_images_before_they_are_normalised(dataset, space):
    network = space.network(all_networks(space)[7])
    pixels, labels = golden_images(dataset, network, 8, pixels=True)
    images, same = golden_images(dataset, network, 8)
    assert pixels.dtype == np.float32 and pixels.min() >= 0 and 1 < pixels.max() <= 255 and np.array_equal(labels, same)
    assert np.allclose(dataset.normalise(pixels), images, atol=1e-6)


@pytest.mark.parametrize("inside", [False, True])
def test_the_accuracy_of_a_lower_precision_is_compared_with_pytorchs(supernet_dir, dataset, space, tmp_path, inside):
    """Counted anew through OpenVINO on the images that the export compared them on."""
    model = to_onnx(space.network(all_networks(space)[7])).SerializeToString()
    try:  # not every CPU has bf16
        RUNTIMES["openvino-cpu"].compile(model, RuntimeConfig(1, "bf16")).close()
    except UnavailableError as error:
        pytest.skip(str(error))
    options = FormatOptions("openvino", "bf16", include_preprocessing=inside)
    found = supernet_path(supernet_dir, all_networks(space)[7], dataset=dataset, calibration_images=64)
    artifact = found.export(tmp_path / "a", options, batch_size=4)
    images, labels = golden_images(dataset, found.network, TESTED_IMAGES, pixels=inside)
    loaded = load_artifact(artifact.directory)
    config = RuntimeConfig(precision=options.precision)
    outputs = run_program(RUNTIMES["openvino-cpu"], config, loaded.program(), images)
    with torch.inference_mode():
        expected = to_torch(found.network, found.weights).eval()(torch.from_numpy(
            dataset.normalise(images) if inside else images)).numpy()
    difference = (outputs.argmax(1) == labels).mean() - (expected.argmax(1) == labels).mean()
    assert artifact.manifest.parity_accuracy_difference == pytest.approx(difference, abs=1e-9)
    assert artifact.manifest.preprocessing.in_model == inside


def test_colours_are_named():
    colour = load_dataset("glyphs?size=16&train=20&validation=10&test=10&classes=4")
    network = build_network((3, 16, 16), [("head", Head(4))])
    assert preprocessing(colour, network)["channels"] == "RGB"


def test_a_searched_resolution_is_what_the_artefact_takes(tmp_path):
    """Trained on larger images, scored and exported at the resolution of the path, with the accuracy that ONNX Runtime has."""
    data = "glyphs?size=16&train=64&validation=36&test=36&classes=4&channels=1"
    space = SearchSpace("elastic", TensorShape(1, 16, 16), (
        Decision("resolution", {"r12": Resolution(12), "r16": Resolution(16)}), Fixed("stem", Stem(4)), Fixed("head", Head(4))))
    dataset = load_dataset(data)
    train_supernet(space, dataset, tmp_path / "supernet", TrainConfig(epochs=1, batch_size=32))
    small = space.architecture({"resolution": "r12"})
    supernet, _ = load_supernet(tmp_path / "supernet")
    images = dataset.normalise(dataset.test.images)
    artifact = export_from_supernet(tmp_path / "supernet", small, tmp_path / "artefact", dataset=dataset)
    assert artifact.manifest.input_shape == (1, 1, 12, 12) and artifact.manifest.preprocessing.size == (12, 12)
    resized = functional.interpolate(torch.from_numpy(images), (12, 12), mode="bilinear", align_corners=False).numpy()
    logits = run_model((artifact.directory / "model.onnx").read_bytes(), resized)
    assert artifact.manifest.accuracy == pytest.approx((logits.argmax(1) == dataset.test.labels).mean(), abs=0.03)
    with torch.inference_mode():  # the supernet resizes by itself
        expected = extract(supernet, small).eval()(torch.from_numpy(resized))
        assert torch.allclose(supernet.eval()(torch.from_numpy(images), small), expected, atol=1e-5)


def test_other_data_and_other_spaces_are_refused(supernet_dir, dataset, space, tmp_path):
    with pytest.raises(InputError, match="train_images"):
        export_from_supernet(supernet_dir, all_networks(space)[0], tmp_path / "a",
                             dataset=load_dataset(DATA.replace("train=200", "train=190")))
    with pytest.raises(InputError):
        export_from_supernet(supernet_dir, all_networks(make_space(classes=11))[0], tmp_path / "a", dataset=dataset)
    with pytest.raises(InputError):
        export_from_supernet(tmp_path, all_networks(space)[0], tmp_path / "a", dataset=dataset)
    assert not (tmp_path / "a").exists()


# int8


def test_int8_is_the_network_calibrated_on_training_images(supernet_dir, space, dataset, tmp_path):
    found = supernet_path(supernet_dir, all_networks(space)[7], dataset=dataset)
    quantised = found.in_int8(64)
    assert set(found.weights) <= set(quantised.weights) and quantised.prediction is None
    scales = [name for name in quantised.weights if name.endswith("_quantize.scale")]
    assert scales and all(quantised.weights[name] > 0 for name in scales)
    assert quantised.accuracy > found.accuracy - 0.15
    artifact = quantised.export(tmp_path / "a")
    model = onnx.load(artifact.model_path)
    assert {tensor.data_type for tensor in model.graph.initializer} >= {onnx.TensorProto.INT8}
    assert artifact.manifest.rounding and artifact.manifest.architecture["choices"]["body"].endswith("_int8")
    assert verify_artifact(tmp_path / "a").parity.top1_agreement == 1.0


def test_int8_needs_real_images(space):
    with pytest.raises(InputError, match="calibrated on real images"):
        random_network(space, 0).in_int8()
