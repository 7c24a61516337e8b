"""ONNX as it is shipped: small and readable, of open batch size, with pre-processing inside, and with weights beside it."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from hwnas.errors import HwnasError, InputError, VerificationError
from hwnas.export import making
from hwnas.export.artifact import export_network
from hwnas.export.formats import FormatOptions
from hwnas.export.loading import load_artifact
from hwnas.export.onnx_file import model_files, read_model, whole_model
from hwnas.export.verify import bisect_artifact, verify_artifact
from hwnas.lower.onnx import to_onnx
from hwnas.runtimes.onnx_model import external_locations, read_onnx
from tests.export.conftest import ARCHITECTURE, IMAGES, NETWORK, SPACE, WEIGHTS
from tests.export.test_verify import forge_file


def run(path, images):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"images": images})[0]


def test_the_graph_is_small_and_readable(exported):
    model = onnx.load(exported.model_path)
    graph = model.graph
    assert not [node.op_type for node in graph.node if node.op_type in ("BatchNormalization", "Identity", "Dropout", "Constant")]
    read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    assert {name for node in graph.node for name in node.output} <= read, "a dead node"
    assert {tensor.name for tensor in graph.initializer} <= read, "a dead weight"
    names = [node.name for node in graph.node]
    assert len(set(names)) == len(names) and {name.partition("/")[0] for name in names} == {"stem", "body", "tail", "head"}
    assert model.ir_version == onnx.helper.find_min_ir_version_for(model.opset_import)


def test_the_model_knows_what_it_is_without_its_manifest(exported):
    properties = {item.key: item.value for item in onnx.load(exported.model_path).metadata_props}
    assert json.loads(properties["architecture"]) == ARCHITECTURE.to_dict() and properties["space_hash"] == SPACE.hash
    assert json.loads(properties["versions"]).items() <= exported.manifest.versions.items()
    assert {"hwnas", "onnx", "torch", "numpy"} == set(json.loads(properties["versions"]))


# Open batch size

def test_an_open_batch_size_takes_any_number_of_images(tmp_path):
    still = export_network(NETWORK, WEIGHTS, tmp_path / "still", images=IMAGES)
    free = export_network(NETWORK, WEIGHTS, tmp_path / "free", images=IMAGES, options=FormatOptions(dynamic_batch=True))
    one_by_one = np.concatenate([run(still.model_path, image[None]) for image in IMAGES])
    for count in (1, 3, 8):
        np.testing.assert_allclose(run(free.model_path, IMAGES[:count]), one_by_one[:count], atol=1e-5)
    assert free.manifest.input_shape == (None, 3, 12, 12)
    assert verify_artifact(free.directory).parity.max_abs <= 1e-4 and bisect_artifact(free.directory) is None
    assert json.loads((free.directory / "manifest.json").read_text())["input_shape"] == [None, 3, 12, 12]
    assert read_onnx(load_artifact(free.directory).onnx_model()).inputs[0].shape == (1, 3, 12, 12)


def test_a_batch_size_that_is_not_open_is_found(tmp_path, monkeypatch):
    """A model that says it takes any number of images, and takes one."""
    def pretend(network, weights, **arguments):
        model = to_onnx(network, weights, **arguments | {"dynamic_batch": False})
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_param = "batch"
        node = next(one for one in model.graph.node if one.op_type == "Flatten")
        shape = numpy_helper.from_array(np.array([1, 16]), "shape")
        node.CopyFrom(onnx.helper.make_node("Reshape", [node.input[0], "shape"], node.output, node.name))
        model.graph.initializer.append(shape)
        return model

    monkeypatch.setattr(making, "to_onnx", pretend)
    with pytest.raises(VerificationError, match="on 3 images at a time"):
        export_network(NETWORK, WEIGHTS, tmp_path / "a", images=IMAGES, options=FormatOptions(dynamic_batch=True))
    assert not list(tmp_path.iterdir())


# Pre-processing

def test_preprocessing_inside_is_what_preprocessing_outside_is(tmp_path):
    mean, std = [0.48, 0.45, 0.4], [0.22, 0.23, 0.29]
    pixels = np.random.default_rng(2).integers(0, 256, (5, 3, 12, 12), np.uint8)
    outside = (pixels / 255.0 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    given = {"size": [12, 12], "channels": "RGB", "mean": mean, "std": std}
    plain = export_network(NETWORK, WEIGHTS, tmp_path / "plain", images=outside.astype(np.float32), preprocessing=given,
                           batch_size=5)
    inside = export_network(NETWORK, WEIGHTS, tmp_path / "inside", images=pixels.astype(np.float32), preprocessing=given,
                            batch_size=5, options=FormatOptions(include_preprocessing=True))
    np.testing.assert_allclose(run(inside.model_path, pixels.astype(np.float32)),
                               run(plain.model_path, outside.astype(np.float32)), atol=1e-5)
    assert [node.name for node in onnx.load(inside.model_path).graph.node][:2] == ["preprocessing/scale", "preprocessing/shift"]
    assert inside.manifest.preprocessing.in_model and not plain.manifest.preprocessing.in_model
    assert "pixel values 0 to 255" in (inside.directory / "run.py").read_text()


# Weights beside the model

@pytest.fixture
def split(tmp_path, monkeypatch):
    """As if the weights were too large for one file."""
    monkeypatch.setattr(making, "model_files", lambda model: model_files(model, inline_limit=1000))
    artifact = export_network(NETWORK, WEIGHTS, tmp_path / "split", images=IMAGES).directory
    monkeypatch.undo()
    return artifact


def test_large_weights_go_beside_the_model(split, exported):
    assert {path.name for path in split.iterdir()} == {"model.onnx", "model.onnx.data", "golden.npz", "run.py", "manifest.json"}
    np.testing.assert_array_equal(run(split / "model.onnx", IMAGES[:1]), run(exported.model_path, IMAGES[:1]))
    assert verify_artifact(split).parity.max_abs <= 1e-4
    whole = whole_model(load_artifact(split).contents)
    inside = {tensor.name: numpy_helper.to_array(tensor) for tensor in whole.graph.initializer}
    for tensor in onnx.load(exported.model_path).graph.initializer:
        np.testing.assert_array_equal(inside[tensor.name], numpy_helper.to_array(tensor))
    places = [int(entry.value) for tensor in onnx.load(split / "model.onnx", load_external_data=False).graph.initializer
              for entry in tensor.external_data if entry.key == "offset"]
    assert places and all(place % 4096 == 0 for place in places)
    with pytest.raises(InputError, match="has none"):
        bisect_artifact(split)


def test_changed_or_missing_weights_are_found(split):
    content = bytearray((split / "model.onnx.data").read_bytes())
    content[5] ^= 1
    (split / "model.onnx.data").write_bytes(content)
    with pytest.raises(VerificationError, match=r"model\.onnx\.data .*--trust-engine"):
        verify_artifact(split)
    (split / "model.onnx.data").unlink()
    with pytest.raises(VerificationError, match=r"model\.onnx\.data is missing"):
        verify_artifact(split)


def test_other_formats_need_their_weights_in_one_file(tmp_path, monkeypatch):
    monkeypatch.setattr(making, "model_files", lambda model: model_files(model, inline_limit=1000))
    with pytest.raises(InputError, match="as onnx instead of litert"):
        export_network(NETWORK, WEIGHTS, tmp_path / "a", images=IMAGES, options=FormatOptions("litert"))
    assert not list(tmp_path.iterdir())


def point_to(path, location, key="location"):
    """Makes a model look for its weights elsewhere, as a malicious one would."""
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == key:
                entry.value = location
    return model.SerializeToString()


ELSEWHERE = ["/etc/hostname", "../secret", "sub/../../secret", "..", "", ".", "C:\\secret", "\\\\server\\secret", "link",
             "folder/secret", "golden.npz", "model.onnx.data/../../secret"]


@pytest.mark.parametrize("location", ELSEWHERE)
def test_an_artefact_that_reaches_elsewhere_is_refused(split, location):
    (split.parent / "secret").write_bytes(b"secret" * 10000)
    (split / "link").symlink_to(split.parent / "secret")
    (split / "folder").symlink_to(split.parent)
    forge_file(split, "model.onnx", point_to(split / "model.onnx", location))
    with pytest.raises(VerificationError, match="refers to external data"):
        verify_artifact(split)
    with pytest.raises(HwnasError):
        load_artifact(split).onnx_model()


@pytest.mark.parametrize("location", [one for one in ELSEWHERE if one != "golden.npz"])
def test_a_file_that_reaches_elsewhere_is_refused(split, location):
    (split.parent / "secret").write_bytes(b"secret" * 10000)
    (split / "link").symlink_to(split.parent / "secret")
    (split / "folder").symlink_to(split.parent)
    (split / "model.onnx").write_bytes(point_to(split / "model.onnx", location))
    with pytest.raises(InputError, match="missing, a link or elsewhere"):
        read_onnx(split / "model.onnx")


def test_a_second_location_does_not_hide_behind_the_first(split):
    model = onnx.load(split / "model.onnx", load_external_data=False)
    next(one for one in model.graph.initializer if one.external_data).external_data.add(key="location", value="../secret")
    assert external_locations(model) == ["../secret", "model.onnx.data"]
    forge_file(split, "model.onnx", model.SerializeToString())
    with pytest.raises(VerificationError, match="secret"):
        verify_artifact(split)
    with pytest.raises(InputError, match="secret"):
        read_onnx(split / "model.onnx")


def test_a_linked_weights_file_is_refused(split):
    (split / "model.onnx.data").rename(split.parent / "weights")
    (split / "model.onnx.data").symlink_to(split.parent / "weights")
    with pytest.raises(VerificationError, match="link"):
        verify_artifact(split)
    with pytest.raises(InputError, match="link"):
        read_onnx(split / "model.onnx")


@pytest.mark.parametrize("key, value", [("offset", "-4096"), ("offset", "999999999999"), ("length", "1"), ("length", "-1"),
                                        ("offset", "x"), ("length", "1e9"), ("offset", "9" * 5000)])
def test_places_in_the_weights_that_cannot_be_are_refused(split, key, value):
    forge_file(split, "model.onnx", point_to(split / "model.onnx", value, key))
    with pytest.raises(VerificationError):
        verify_artifact(split)


def test_external_data_hide_nowhere(split):
    """In a function or in a sparse tensor they are found just as well."""
    model = onnx.load(split / "model.onnx", load_external_data=False)
    secret = onnx.TensorProto(name="secret", data_type=onnx.TensorProto.FLOAT, dims=[1],
                              data_location=onnx.TensorProto.EXTERNAL)
    secret.external_data.add(key="location", value="../secret")
    constant = onnx.helper.make_node("Constant", [], ["c"], value=secret)
    model.functions.append(onnx.helper.make_function("mine", "F", [], ["c"], [constant], [onnx.helper.make_opsetid("", 17)]))
    assert "../secret" in external_locations(model)
    sparse = onnx.ModelProto()
    sparse.graph.sparse_initializer.add().values.CopyFrom(secret)
    assert external_locations(sparse) == ["../secret"]
    with pytest.raises(VerificationError, match="secret"):
        read_model({"model.onnx": model.SerializeToString()})
