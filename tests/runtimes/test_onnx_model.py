"""Reading models: files, external data, open shapes, and what older exporters write."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hwnas.errors import InputError
from hwnas.runtimes import RuntimeConfig, load_runtime
from hwnas.runtimes.onnx_model import read_onnx
from tests.runtimes.models import build_model, conv_net, noise

IMAGES = noise((2, 3, 16, 16))


@pytest.fixture
def split_model(tmp_path):
    """A model whose weights lie in weights.bin beside it."""
    path = tmp_path / "model.onnx"
    onnx.save(conv_net(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path


def move_weights_to(path, location: str) -> None:
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(model.SerializeToString())


def test_a_file_is_read_as_its_bytes(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(conv_net().SerializeToString())
    assert read_onnx(path) == read_onnx(path.read_bytes())


def test_external_data_is_taken_in_wherever_the_process_stands(split_model, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    model = read_onnx(split_model)
    (split_model.parent / "weights.bin").unlink()
    runtime = load_runtime("onnxruntime-cpu")
    results = [
        runtime.compile(content, RuntimeConfig()).run({"images": IMAGES})["logits"]
        for content in (model.content, conv_net().SerializeToString())
    ]
    np.testing.assert_array_equal(*results)


def test_bytes_never_reach_for_files(split_model, monkeypatch):
    monkeypatch.chdir(split_model.parent)  # where a runtime would find weights.bin
    with pytest.raises(InputError, match="give the path"):
        read_onnx(split_model.read_bytes())


def test_external_constants_of_nested_graphs_are_found():
    secret = numpy_helper.from_array(np.ones(4, np.float32), "secret")
    onnx.external_data_helper.set_external_data(secret, location="secret.bin")
    branch = helper.make_graph(
        [helper.make_node("Constant", [], ["b"], value=secret)],
        "branch",
        [],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, [4])],
    )
    choice = helper.make_node("If", ["flag"], ["y"], then_branch=branch, else_branch=branch)
    flag = numpy_helper.from_array(np.array(True), "flag")
    with pytest.raises(InputError, match="another file"):
        read_onnx(build_model([choice], {}, {"y": [4]}, [flag]).SerializeToString())


@pytest.mark.parametrize("location", ["../outside.bin", "/etc/hostname", "missing.bin"])
def test_external_data_outside_the_folder_or_missing_is_refused(split_model, location):
    inner = split_model.parent / "inner"
    inner.mkdir()
    moved = split_model.rename(inner / "model.onnx")
    (split_model.parent / "weights.bin").rename(split_model.parent / "outside.bin")
    move_weights_to(moved, location)
    with pytest.raises(InputError, match="external data"):
        read_onnx(moved)


def test_a_missing_file_is_refused_with_its_path(tmp_path):
    with pytest.raises(InputError, match=r"absent\.onnx"):
        read_onnx(tmp_path / "absent.onnx")
    with pytest.raises(InputError, match="cannot be read"):
        read_onnx(tmp_path)


@pytest.mark.parametrize("shape", [["batch", 4], [None, 4], [0, 4]], ids=["named", "unknown", "empty"])
def test_open_shapes_are_refused(shape):
    model = build_model([helper.make_node("Relu", ["x"], ["y"])], {"x": shape}, {"y": shape}, [])
    with pytest.raises(InputError, match="open shape"):
        read_onnx(model.SerializeToString())


def test_shapes_that_the_exporter_left_out_are_inferred():
    nodes = [helper.make_node("Transpose", ["x"], ["y"], perm=[1, 0])]
    model = build_model(nodes, {"x": [3, 4]}, {"y": None}, [])
    assert read_onnx(model.SerializeToString()).outputs[0].shape == (4, 3)


def test_weights_listed_among_the_inputs_are_not_inputs():
    weight = numpy_helper.from_array(np.ones(4, np.float32), "w")
    nodes = [helper.make_node("Mul", ["x", "w"], ["y"])]
    model = build_model(nodes, {"x": [2, 4], "w": [4]}, {"y": [2, 4]}, [weight])
    assert [tensor.name for tensor in read_onnx(model.SerializeToString()).inputs] == ["x"]
